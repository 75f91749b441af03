//! What the cluster agrees on: entries that carry the commands of many clients, and the machine that answers each.
//!
//! openraft writes, sends and commits one entry at a time. So what came while the last one was on its way goes in one
//! entry, and each of its commands is answered, or refused, on its own.

use std::io::Read;

use bytes::Bytes;
use openraft::TokioRuntime;
use ringwal::StateMachine;
use ringwal::machine::{KvCommand, KvError, KvImage, KvResponse, KvStateMachine};
use ringwal::raft::{RaftSnapshot, Reply};
use serde::{Deserialize, Serialize};

use crate::types::{NodeAddr, NodeId};

openraft::declare_raft_types!(
    /// What the nodes of this service are made of.
    pub Types:
        D = Commands,
        R = Answers,
        NodeId = NodeId,
        Node = NodeAddr,
        Entry = openraft::Entry<Types>,
        SnapshotData = RaftSnapshot,
        AsyncRuntime = TokioRuntime,
);

/// The commands of an entry, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commands(pub Vec<KvCommand>);

/// A command's answer; `Err` says why it was refused, on every node alike.
pub type Answer = Result<KvResponse, String>;

/// The answers to an entry, one for each of its commands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers(pub Vec<Answer>);

/// The key-value machine, fed with entries of several commands.
#[derive(Debug, Default)]
pub struct JoinedKv {
    kv: KvStateMachine,
}

/// Why the machine cannot go on with what it was given.
#[derive(Debug, thiserror::Error)]
pub enum JoinedError {
    /// The state is not one of this machine.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// An entry's bytes are no commands.
    #[error("these are no commands: {0}")]
    Commands(#[from] postcard::Error),
}

impl JoinedKv {
    /// The keys and values.
    pub fn kv(&self) -> &KvStateMachine {
        &self.kv
    }
}

impl StateMachine for JoinedKv {
    type Command = Commands;
    type Response = Answers;
    type Image = KvImage;
    type Error = JoinedError;

    const KIND: &'static str = "joined-kv/1";

    async fn apply(&mut self, Commands(commands): Commands) -> Result<Answers, JoinedError> {
        let results = self.kv.apply_batch(commands).await;
        Ok(Answers(results.into_iter().map(|result| result.map_err(|refusal| refusal.to_string())).collect()))
    }

    fn image(&self) -> KvImage {
        self.kv.image()
    }

    async fn restore(&mut self, source: &mut (dyn Read + Send)) -> Result<(), JoinedError> {
        Ok(self.kv.restore(source).await?)
    }

    fn encode(commands: &Commands) -> Bytes {
        postcard::to_stdvec(commands).expect("commands have nothing that postcard lacks, and memory grows").into()
    }

    fn decode(bytes: &Bytes) -> Result<Commands, JoinedError> {
        Ok(postcard::from_bytes(bytes)?)
    }
}

impl From<Reply<JoinedKv>> for Answers {
    fn from(reply: Reply<JoinedKv>) -> Answers {
        match reply {
            Reply::Done(answers) => answers,
            // The machine refuses commands, never an entry.
            Reply::Nothing | Reply::Refused(_) => Answers::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands() -> Commands {
        let set = |key: Vec<u8>, value: &'static str| KvCommand::Set { key: key.into(), value: value.into() };
        let too_long = vec![b'k'; KvStateMachine::KEY_BYTES_MAX + 1];
        let swap = KvCommand::CompareAndSet { key: "a".into(), expected: Some("1".into()), new: None };
        Commands(vec![set(b"a".to_vec(), "1"), set(too_long, "2"), swap, KvCommand::Delete { key: "a".into() }])
    }

    #[tokio::test]
    async fn each_command_of_an_entry_is_answered_and_a_refused_one_harms_no_other() {
        let Answers(answers) = JoinedKv::default().apply(commands()).await.unwrap();
        assert_eq!(answers.len(), 4);
        assert_eq!((&answers[0], &answers[2]), (&Ok(KvResponse::Done), &Ok(KvResponse::Swapped)));
        assert!(answers[1].as_ref().is_err_and(|why| why.contains("at most")), "{:?}", answers[1]);
        assert_eq!(answers[3], Ok(KvResponse::Deleted { existed: false }));
    }

    #[test]
    fn commands_come_back_from_their_bytes() {
        assert_eq!(JoinedKv::decode(&JoinedKv::encode(&commands())).unwrap(), commands());
        assert!(JoinedKv::decode(&Bytes::from_static(&[200])).is_err());
    }
}

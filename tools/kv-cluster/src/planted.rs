//! Faults that are built into a node on purpose, so that the torture can show that it finds them. Without `--plant`
//! none of this changes anything.

use ringwal::machine::{KvCommand, KvResponse};

use crate::args::Plant;
use crate::machine::{Answer, Answers};

/// Of so many sets one is lost, where that is the fault.
const SETS_PER_LOST: u64 = 20;

/// The fault of this node, if it has one.
#[derive(Debug)]
pub(crate) struct Planted {
    plant: Option<Plant>,
    /// Counted where some are to be lost.
    sets: u64,
}

/// Where in an entry there were commands that it does not have any more.
#[derive(Debug)]
pub(crate) struct Lost(Vec<usize>);

impl Planted {
    pub(crate) fn new(plant: Option<Plant>) -> Planted {
        Planted { plant, sets: 0 }
    }

    /// What those are told whose writes nobody has yet.
    pub(crate) fn early_answers(&self, commands: &[KvCommand]) -> Option<Answers> {
        (self.plant == Some(Plant::AckBeforeCommit)).then(|| Answers(commands.iter().map(acknowledged).collect()))
    }

    /// Makes one set of many a read, which changes nothing.
    pub(crate) fn lose(&mut self, commands: &mut [KvCommand]) -> Lost {
        let mut lost = Vec::new();
        if self.plant != Some(Plant::LostWrite) {
            return Lost(lost);
        }
        for (at, command) in commands.iter_mut().enumerate() {
            let KvCommand::Set { key, .. } = command else { continue };
            self.sets += 1;
            if self.sets.is_multiple_of(SETS_PER_LOST) {
                *command = KvCommand::Get { key: std::mem::take(key) };
                lost.push(at);
            }
        }
        Lost(lost)
    }
}

impl Lost {
    /// The entry's answers, as if it had had everything.
    pub(crate) fn cover(&self, mut answers: Answers) -> Answers {
        for at in &self.0 {
            if let Some(answer) = answers.0.get_mut(*at) {
                *answer = Ok(KvResponse::Done);
            }
        }
        answers
    }
}

fn acknowledged(command: &KvCommand) -> Answer {
    Ok(match command {
        KvCommand::Delete { .. } => KvResponse::Deleted { existed: true },
        KvCommand::CompareAndSet { .. } => KvResponse::Swapped,
        _ => KvResponse::Done,
    })
}

#[cfg(test)]
mod tests {
    use ringwal::StateMachine;

    use super::*;
    use crate::machine::{Commands, JoinedKv};

    fn sets(count: u64) -> Vec<KvCommand> {
        let set = |number: u64| KvCommand::Set { key: number.to_string().into(), value: "v".into() };
        (0..count).map(set).collect()
    }

    #[tokio::test]
    async fn a_write_that_is_lost_on_purpose_is_acknowledged_like_any_other_and_is_in_no_state() {
        let mut commands = sets(SETS_PER_LOST);
        let lost = Planted::new(Some(Plant::LostWrite)).lose(&mut commands);
        let mut kv = JoinedKv::default();
        let answers = lost.cover(kv.apply(Commands(commands)).await.unwrap());
        assert!(answers.0.iter().all(|answer| *answer == Ok(KvResponse::Done)), "{answers:?}");
        assert_eq!(answers.0.len() as u64, SETS_PER_LOST);
        assert_eq!(kv.kv().len(), SETS_PER_LOST - 1);
    }

    #[test]
    fn nothing_is_lost_or_acknowledged_early_by_a_node_without_that_fault() {
        for plant in [None, Some(Plant::AckBeforeCommit)] {
            let mut commands = sets(2 * SETS_PER_LOST);
            assert!(Planted::new(plant).lose(&mut commands).0.is_empty());
            assert_eq!(commands, sets(2 * SETS_PER_LOST));
        }
        assert_eq!(Planted::new(None).early_answers(&sets(1)), None);
        assert_eq!(Planted::new(Some(Plant::LostWrite)).early_answers(&sets(1)), None);
    }
}

//! The client API's JSON, as both sides see it.
//!
//! Keys and values are any bytes. JSON has none, so a value is a string where it is UTF-8 and `{"base64": "…"}` where it
//! is not; both forms are understood everywhere.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::types::{NodeAddr, NodeId};

/// Bytes in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Blob(pub Bytes);

/// What bytes that are not UTF-8 look like.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Encoded {
    base64: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Encoded(Encoded),
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => Encoded { base64: STANDARD.encode(&self.0) }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Blob, D::Error> {
        match Form::deserialize(deserializer)? {
            Form::Text(text) => Ok(Blob(text.into_bytes().into())),
            Form::Encoded(Encoded { base64 }) => {
                let bytes = STANDARD.decode(base64).map_err(serde::de::Error::custom)?;
                Ok(Blob(bytes.into()))
            }
        }
    }
}

/// `POST /v1/cas/{key}`: sets or removes a key if it is as expected. Both fields must be there: one that is left out by
/// mistake is not taken for "no value".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CasRequest {
    /// The value that the key must have; `null`: it must not be there.
    #[serde(deserialize_with = "given")]
    pub expected: Option<Blob>,
    /// The value that it gets; `null`: it is removed.
    #[serde(deserialize_with = "given")]
    pub new: Option<Blob>,
}

/// An `Option` field that may be `null` but not left out: serde gives only fields with a function of their own no default.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Blob>, D::Error> {
    Option::deserialize(deserializer)
}

/// What came of a [`CasRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CasAnswer {
    /// Whether the key was as expected, and is now as wanted.
    pub swapped: bool,
    /// If not: the value found, `null` where there is no such key. Left out if it was swapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<Option<Blob>>,
}

/// What came of a delete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteAnswer {
    /// Whether the key was there.
    pub existed: bool,
}

/// What a scan gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanAnswer {
    /// Keys and values, in the order of the keys.
    pub entries: Vec<(Blob, Blob)>,
    /// Whether the range has more: go on with `start` = the last key and a zero byte.
    pub more: bool,
}

/// `POST /v1/cluster/init`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitRequest {
    /// The first voters.
    pub nodes: BTreeMap<NodeId, NodeAddr>,
}

/// `POST /v1/cluster/learners`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnerRequest {
    /// A number that was never used in this cluster.
    pub id: NodeId,
    /// For the other nodes.
    pub peer: String,
    /// For clients.
    pub client: String,
}

/// `PUT /v1/cluster/voters`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VotersRequest {
    /// All voters from now on. Those that were and are not among them are removed.
    pub ids: BTreeSet<NodeId>,
}

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The term of the entry's leader.
    pub term: u64,
    /// The entry's index.
    pub index: u64,
}

/// A node, as the membership has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// For the other nodes.
    pub peer: String,
    /// For clients.
    pub client: String,
    /// Whether it votes; if not, it only learns.
    pub voter: bool,
    /// On the leader: how many entries this node is behind, as far as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind_entries: Option<u64>,
}

/// `GET /v1/cluster`: the cluster as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The node that answers.
    pub id: NodeId,
    /// `leader`, `candidate`, `follower`, `learner` or `shutdown`.
    pub state: String,
    /// Its term.
    pub term: u64,
    /// The leader it knows.
    pub leader: Option<NodeId>,
    /// Everybody, by number.
    pub members: BTreeMap<NodeId, Member>,
    /// The index of the last entry of its log.
    pub last_log_index: Option<u64>,
    /// The last entry applied.
    pub applied: Option<Place>,
    /// The last entry in its newest snapshot.
    pub snapshot: Option<Place>,
    /// The last entry that its log no longer has.
    pub purged: Option<Place>,
    /// On the leader: how long ago a majority confirmed it last, in milliseconds.
    pub quorum_ack_age_ms: Option<u64>,
    /// Number of keys, by this node's state; while it installs a snapshot, by its state before.
    pub keys: u64,
    /// `io_uring` or `syscall`: what carries its log's writes.
    pub io_mode: String,
}

impl ClusterStatus {
    /// The numbers of those that vote.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        self.members.iter().filter(|(_, member)| member.voter).map(|(id, _)| *id).collect()
    }

    /// Whether the node that answers leads.
    pub fn leads(&self) -> bool {
        self.state == "leader" && self.leader == Some(self.id)
    }
}

/// Whether a request that failed has changed something or may still change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It has not, and it never will.
    NotApplied,
    /// It may have, and it may yet: nobody knows until the cluster is asked.
    Unknown,
}

/// Where the leader is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderHint {
    /// Its number.
    pub id: NodeId,
    /// Its address for clients.
    pub client: String,
}

/// What every answer that is no success carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorAnswer {
    /// Which error, for programs: see the README's table.
    pub error: String,
    /// What it means for the request. Left out where nothing was to be changed, such as for a key that is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// What it is, for people.
    #[serde(default)]
    pub message: String,
    /// Whom to ask instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<LeaderHint>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_whether_they_are_text_or_not() {
        for bytes in [&b""[..], b"plain", "\u{e4}\0\n".as_bytes(), b"\xff\x00\xfe", b"{\"base64\":\"AA==\"}"] {
            let blob = Blob(Bytes::copy_from_slice(bytes));
            let text = serde_json::to_string(&blob).unwrap();
            assert_eq!(serde_json::from_str::<Blob>(&text).unwrap(), blob, "{text}");
        }
        assert_eq!(serde_json::from_str::<Blob>(r#"{"base64":"AP8="}"#).unwrap().0, &b"\x00\xff"[..]);
        for wrong in [r#"{"base64":"A"}"#, r#"{"base64":"AA==","x":1}"#, "7", "null", "{}"] {
            assert!(serde_json::from_str::<Blob>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_field_left_out_of_a_swap_is_not_taken_for_no_value() {
        let swap: CasRequest = serde_json::from_str(r#"{"expected":null,"new":"a"}"#).unwrap();
        assert_eq!(swap, CasRequest { expected: None, new: Some(Blob("a".into())) });
        for wrong in [r#"{"new":"a"}"#, r#"{"expected":"a"}"#, r#"{"expected":null,"new":null,"ttl":1}"#] {
            assert!(serde_json::from_str::<CasRequest>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_swap_that_found_no_key_says_null_and_one_that_was_made_says_nothing() {
        let differs = CasAnswer { swapped: false, found: Some(None) };
        assert_eq!(serde_json::to_string(&differs).unwrap(), r#"{"swapped":false,"found":null}"#);
        let swapped = CasAnswer { swapped: true, found: None };
        assert_eq!(serde_json::to_string(&swapped).unwrap(), r#"{"swapped":true}"#);
    }
}

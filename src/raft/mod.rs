//! The store of an [openraft] node: its log, its machine and its snapshots. Feature `openraft`.
//!
//! A consensus engine decides what the entries are; this module keeps them. [`open`] gives the two halves that openraft 0.9
//! asks for: a [`RaftLog`], which is a [`Log`](crate::Log) with a vote, and a [`RaftMachine`], which is any
//! [`StateMachine`](crate::StateMachine) with its snapshots. The network between nodes is the application's.
//!
//! ```
//! use std::collections::BTreeMap;
//! use std::sync::Arc;
//!
//! use openraft::{BasicNode, Raft};
//! use ringwal::machine::{CounterCommand, CounterStateMachine};
//! use ringwal::raft::{self, RaftConfig, RaftSnapshot, RaftStore, Reply};
//!
//! /// What a client is told; serde, because it may go over a network.
//! #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
//! pub struct Answer(Result<Option<i64>, String>);
//!
//! impl From<Reply<CounterStateMachine>> for Answer {
//!     fn from(reply: Reply<CounterStateMachine>) -> Answer {
//!         match reply {
//!             Reply::Nothing => Answer(Ok(None)),
//!             Reply::Done(count) => Answer(Ok(Some(count))),
//!             Reply::Refused(error) => Answer(Err(error.to_string())),
//!         }
//!     }
//! }
//!
//! openraft::declare_raft_types!(
//!     /// What this node is made of.
//!     pub Types: D = CounterCommand, R = Answer, SnapshotData = RaftSnapshot
//! );
//! # use openraft::error::{InstallSnapshotError, RPCError, RaftError, Unreachable};
//! # use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
//! # use openraft::raft::{
//! #     AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest, VoteResponse,
//! # };
//! # struct Network;
//! # struct Nobody;
//! # type Failed<E = openraft::error::Infallible> = RPCError<u64, BasicNode, RaftError<u64, E>>;
//! # fn nobody<E: std::error::Error>() -> Failed<E> {
//! #     RPCError::Unreachable(Unreachable::new(&std::io::Error::other("there is nobody else")))
//! # }
//! # impl RaftNetworkFactory<Types> for Network {
//! #     type Network = Nobody;
//! #     async fn new_client(&mut self, _: u64, _: &BasicNode) -> Nobody {
//! #         Nobody
//! #     }
//! # }
//! # impl RaftNetwork<Types> for Nobody {
//! #     async fn append_entries(
//! #         &mut self,
//! #         _: AppendEntriesRequest<Types>,
//! #         _: RPCOption,
//! #     ) -> Result<AppendEntriesResponse<u64>, Failed> {
//! #         Err(nobody())
//! #     }
//! #     async fn install_snapshot(
//! #         &mut self,
//! #         _: InstallSnapshotRequest<Types>,
//! #         _: RPCOption,
//! #     ) -> Result<InstallSnapshotResponse<u64>, Failed<InstallSnapshotError>> {
//! #         Err(nobody())
//! #     }
//! #     async fn vote(&mut self, _: VoteRequest<u64>, _: RPCOption) -> Result<VoteResponse<u64>, Failed> {
//! #         Err(nobody())
//! #     }
//! # }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let scratch = tempfile::tempdir()?;
//! # let directory = scratch.path().join("node-1");
//! # let store_config = RaftConfig::default().log(ringwal::Config::default().segment_bytes(1 << 20));
//! # let network = Network;
//! // Opening blocks: do it before the node serves anybody, or on a thread that may block.
//! let store = raft::open::<Types, _>(&directory, 1, CounterStateMachine::new(0), store_config)?;
//! let RaftStore { log, machine, .. } = store;
//! let counter = machine.handle();
//!
//! let config = Arc::new(openraft::Config::default().validate()?);
//! let node = Raft::new(1, config, network, log.clone(), machine).await?;
//! node.initialize(BTreeMap::from([(1, BasicNode::new("127.0.0.1:7101"))])).await?; // once for a cluster, on one node
//! node.wait(None).current_leader(1, "elected").await?;
//!
//! let written = node.client_write(CounterCommand::Increment(5)).await?; // durable on a majority
//! assert_eq!(written.data, Answer(Ok(Some(5))));
//! node.ensure_linearizable().await?; // nobody else leads, and this node has applied what was committed
//! assert_eq!(counter.read_async(|counter| counter.count()).await?, 5);
//!
//! node.shutdown().await?;
//! tokio::task::spawn_blocking(move || log.close()).await??;
//! # Ok(())
//! # }
//! ```
//!
//! # What is durable when
//!
//! | openraft | readable | durable |
//! |---|---|---|
//! | appends entries | when `append` returns | when its callback is called, from the log's writer thread; not before |
//! | saves a vote | at once | when `save_vote` returns |
//! | truncates, purges | at once | before anything that is acknowledged later |
//! | saves the committed log id | at once | with the next of the above, or when the log is closed |
//! | builds or installs a snapshot | when that returns | when that returns; the file was read back and verified |
//!
//! - A purge and the log id that it purged up to are one step, and so is everything else in this table: a crash leaves the log
//!   as it was after one of them, and after every one that was acknowledged.
//! - The committed log id has no write of its own, because the next append would wait behind that. After a crash it may be an
//!   older one: the leader tells the node again what was committed, and nothing is lost.
//! - The machine is in memory. An open restores the newest snapshot, and openraft applies what follows in the log, up to the
//!   committed log id. Openraft purges the log after a snapshot was published, never before.
//! - Entries at or below the purged log id that a leader sends once more are skipped, and acknowledged.
//!
//! Every disk operation of an append is done by the log's own threads, unless they are told otherwise (below). Reads of entries in memory
//! ([`Config::tail_cache_bytes`](crate::Config::tail_cache_bytes)) are answered at once, others by the log's reader thread:
//! no executor thread waits for the disk then, but for [`open`] and [`RaftLog::close`], and for what is said of reads below.
//!
//! # What an error means for the node
//!
//! [`open`] returns a [`RaftError`] that says what to do. Where [`RaftError::is_damage`] is true, this node has lost something
//! that the cluster relies on. **It must not be started with an empty directory under its old id**: it would vote a second time
//! in a term, and a majority that counted on its entries would not have them. Remove it from the membership, wipe the directory,
//! and add it as a new member: a learner first, under an id that was never used, then a voter.
//!
//! Any error of the store while the node runs makes openraft stop it (`Fatal`), in its own words. What it was is in
//! [`RaftLog::failure`]:
//!
//! | | what happened | what next |
//! |---|---|---|
//! | [`NoSpace`](crate::Error::NoSpace) | the disk is full; nothing of the append was accepted | free some, start the node again: it can open, vote, send what it has, and purge on a full disk |
//! | [`Poisoned`](crate::Error::Poisoned) | a write or sync failed | look at the device; start the node again, and recovery decides what is there |
//! | [`Damaged`](RaftError::Damaged) | an entry that is read is damaged | as when an open says so |
//! | [`TooLarge`](crate::Error::TooLarge) | an entry that no segment takes | refuse commands above [`RaftLog::entry_bytes_max`] before they are proposed; give all nodes the same segment size |
//! | [`NotInstalled`](RaftError::NotInstalled) | a snapshot that the log was to be purged under was not installed | start the node again: the leader sends it once more |
//! | [`Unencodable`](RaftError::Unencodable) | a command's serde form is none that postcard can hold | a mistake in the program; nothing was accepted |
//! | anything else | something that Raft never does, such as a gap | a mistake in the program |
//!
//! A client whose write ended in such an error, or in `ForwardToLeader` after it had been accepted, does not know whether it
//! will be applied.
//!
//! # Linearizable reads after a restart
//!
//! openraft 0.9 lets a leader that was killed and comes back before an election lead on in its old term, without a blank
//! entry of its own, and `ensure_linearizable` then takes the last committed log id that was saved for all that was
//! committed. That may be less than what the node acknowledged before (see above), so a read could miss it. Whoever reads
//! so: where the vote that the log has at the start is this node's own and committed, propose one entry first (a command
//! that changes nothing), and answer no such read in that term before the last index that the log had at the start is
//! applied. `tools/kv-cluster` does that; its torture found it.
//!
//! While a snapshot is installed, nobody reads: [`MachineHandle::read_async`] waits for its end as tasks do,
//! [`MachineHandle::try_read`] says at once that it would, and [`MachineHandle::read`] keeps the thread that called it: on an
//! executor, take one of the others.
//!
//! # What is on disk
//!
//! An entry's payload is a version byte and the openraft entry in postcard's encoding; the rest is hard state: `raft/node`,
//! `raft/vote`, `raft/committed`, `raft/purged`, and `machine`, which is `raft/` and the machine's
//! [`KIND`](crate::StateMachine::KIND). Commands are in postcard's encoding of their serde form, which does not describe itself:
//! variants of an enum may be added at its end, and nothing else may change while entries of the old form are in a log. A
//! command's bytes had better be [`Bytes`](bytes::Bytes): a `Vec<u8>` is encoded byte by byte.
//!
//! # How fast
//!
//! Openraft 0.9 makes one append at a time and waits for its callback, so a node's throughput is what it puts into one entry,
//! times appends per second; an append is one device write and the way to it and back. Let one command carry what came from
//! several clients while the last was on its way.
//!
//! The way to it and back is two wakes: of the log's writer thread by openraft's task, and of that task by the callback. On two
//! CPUs and a device that writes in 80 us they cost as much as half a write. With
//! [`Config::write_in_place`](crate::Config::write_in_place) openraft's task writes itself where the log is idle, and calls back
//! before `append` returns: that saves both, and blocks one of the executor's threads for as long as the device takes. On a
//! runtime with more threads than nodes nothing else waits for that thread, unless the device hangs; on a runtime with one,
//! everything does. Votes, truncations and purges are written in the same way. `benches/peers -- raft` measures it.
//!
//! [openraft]: https://docs.rs/openraft/0.9
#![allow(clippy::result_large_err, reason = "openraft's traits say which error they return")]

mod arrivals;
mod blocking;
mod builder;
mod codec;
mod error;
mod header;
mod log;
mod machine;
mod open;
mod snapshot;

pub use builder::RaftSnapshotBuilder;
pub use codec::CodecError;
pub use error::RaftError;
pub use log::RaftLog;
pub use machine::{MachineHandle, RaftMachine, RaftTypes, Reply};
pub use open::{RaftConfig, RaftReport, RaftStore, open, open_on};
pub use snapshot::RaftSnapshot;

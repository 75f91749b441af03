//! The log, a state machine and its snapshots as the store of an [openraft] node: feature `openraft`.

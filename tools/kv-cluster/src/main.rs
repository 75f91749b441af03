//! The command line of the replicated key-value service.

fn main() {}

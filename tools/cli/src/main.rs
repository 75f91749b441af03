//! The `ringwal` command-line tool.

fn main() {}

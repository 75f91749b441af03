//! A replicated key-value service over ringwal and openraft.

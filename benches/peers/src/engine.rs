//! What every engine is to the comparison, and the choice among them.

use std::path::Path;

use anyhow::{Result, bail};
use bytes::Bytes;

use crate::load::Load;
use crate::slice::{self, Seen, Start};

/// An open log. Every method may be called from many threads at once.
///
/// Both appends return when their entries survive power loss; a batch is one call to the engine, as atomic as the
/// engine makes it. `producer` counts from zero to the load's producers: engines that have several logs in one give
/// each producer its own.
pub(crate) trait Engine: Send + Sync {
    /// Appends one entry.
    fn append(&self, producer: usize, payload: Bytes) -> Result<()>;

    /// Appends several entries together.
    fn append_batch(&self, producer: usize, payloads: Vec<Bytes>) -> Result<()>;

    /// Runs the load's producers until the window that `start` opens is over. They are threads, unless the engine has
    /// another way.
    fn produce(&self, load: &Load, start: &Start) -> Result<Seen> {
        slice::produce_in_threads(self, load, start)
    }

    /// Closes the log, opens it again as a program after a restart would, and counts the entries it finds.
    fn close_and_count(self: Box<Self>) -> Result<u64>;
}

/// One engine before it is opened: who it is and how it is configured.
pub(crate) struct Contestant {
    /// As it is called on the command line.
    pub(crate) name: &'static str,
    /// The versions of what was built in.
    pub(crate) version: fn() -> String,
    /// What stands behind its acks, in words.
    pub(crate) durability: &'static str,
    /// Makes a new log in this directory, which is there and empty, warmed up as its file says.
    pub(crate) open: fn(&Path, &Load) -> Result<Box<dyn Engine>>,
}

/// Those of these names, in the order of the table; all of them if none is named.
pub(crate) fn chosen(built_in: &'static [Contestant], names: &[String]) -> Result<Vec<&'static Contestant>> {
    let known = || built_in.iter().map(|engine| engine.name).collect::<Vec<_>>();
    if let Some(unknown) = names.iter().find(|name| !known().contains(&name.as_str())) {
        bail!("there is no engine {unknown} in this build: it has {}", known().join(", "));
    }
    Ok(built_in.iter().filter(|engine| names.is_empty() || names.iter().any(|name| name == engine.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::chosen;
    use crate::engines::BUILT_IN;

    #[test]
    fn engines_are_chosen_by_name() {
        assert_eq!(chosen(BUILT_IN, &[]).unwrap().len(), BUILT_IN.len());
        assert_eq!(chosen(BUILT_IN, &["naive".to_owned()]).unwrap()[0].name, "naive");
        assert!(chosen(BUILT_IN, &["naiv".to_owned()]).is_err());
    }
}

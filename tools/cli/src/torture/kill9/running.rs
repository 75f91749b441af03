//! The process that is killed, seen from the one that kills it: started, listened to, killed.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::args::VictimArgs;
use crate::engine::Rng;
use crate::interrupt;
use crate::torture::Broken;
use crate::torture::kill9::victim::{self, TOLD_BYTES, Told};

/// How long the process may take to get as far as it is wanted.
const PATIENCE: Duration = Duration::from_secs(120);

/// All that a process told before it was killed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Said {
    /// The last batch in the log when it was opened; `None` if it never was.
    pub(crate) start: Option<u64>,
    /// The highest batch that was acknowledged; every one before it is too.
    pub(crate) acked: Option<u64>,
    /// How many acknowledgements were told.
    pub(crate) acks: u64,
    called: u64,
}

impl Said {
    fn note(&mut self, told: Told) -> Result<()> {
        match told {
            Told::Start(batch) => {
                ensure!(self.start.is_none(), "it started twice");
                (self.start, self.called) = (Some(batch), batch);
                return Ok(());
            }
            Told::Called(batch) => {
                let before = std::mem::replace(&mut self.called, batch);
                ensure!(before < batch, "the callback of batch {batch} was called after that of batch {before}");
                self.acked = self.acked.max(Some(batch));
            }
            Told::Waited(batch) => self.acked = self.acked.max(Some(batch)),
        }
        let is_new = self.start.is_some_and(|start| self.acked > Some(start));
        ensure!(is_new, "batch {:?} was acknowledged by a log that started with batch {:?}", self.acked, self.start);
        self.acks += 1;
        Ok(())
    }
}

/// When to kill.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) acks: u64,
    pub(crate) then: Duration,
}

impl Moment {
    /// One time in four within the open, else after some acknowledgements.
    pub(crate) fn draw(rng: &mut Rng) -> Moment {
        let (acks, then_us) = match rng.below(8) {
            0 | 1 => (0, rng.below(8_000)),
            2 => (1, rng.below(500)),
            3..=6 => (1 + rng.below(1500), rng.below(3000)),
            _ => (1 + rng.below(8000), rng.below(20_000)),
        };
        Moment { acks: acks as u64, then: Duration::from_micros(then_us as u64) }
    }
}

/// What was told so far: how many acknowledgements, and the highest batch among them.
#[derive(Default)]
struct Board {
    acks: AtomicU64,
    acked: AtomicU64,
}

/// A process that writes until it is killed; it does not outlive this value.
pub(crate) struct Running {
    child: Child,
    board: Arc<Board>,
    listener: Option<JoinHandle<Result<Said>>>,
}

impl Running {
    /// Starts this very program with its hidden command.
    pub(crate) fn start(args: &VictimArgs) -> Result<Running> {
        let mut command = Command::new(std::env::current_exe().context("cannot find this program's own file")?);
        command.arg(victim::COMMAND).arg(&args.dir);
        let (seed, round, producers) = (args.seed.to_string(), args.round.to_string(), args.producers.to_string());
        command.args(["--seed", &seed, "--round", &round, "--producers", &producers]);
        if let Some(group) = &args.cgroup {
            command.arg("--cgroup").arg(group);
        }
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.context("cannot start another process")?;
        let told = child.stdout.take().context("the other process has no output")?;
        let board = Arc::new(Board::default());
        let theirs = board.clone();
        let listener = Some(thread::spawn(move || listen(told, &theirs)));
        Ok(Running { child, board, listener })
    }

    /// Waits until it told so many acknowledgements.
    pub(crate) fn wait_for(&mut self, acks: u64) -> Result<()> {
        let start = Instant::now();
        while self.board.acks.load(Ordering::Relaxed) < acks {
            interrupt::check()?;
            if let Some(status) = self.child.try_wait()? {
                return Err(ended(status));
            }
            ensure!(start.elapsed() < PATIENCE, "it did not get to {acks} acknowledgements in {PATIENCE:?}");
            thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// The highest batch that it has told was acknowledged, so far.
    pub(crate) fn acked(&self) -> u64 {
        self.board.acked.load(Ordering::Relaxed)
    }

    /// Kills it. It may still be dying when this returns.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill the process")
    }

    /// Waits until it is gone.
    pub(crate) fn wait(&mut self) -> Result<()> {
        let status = self.child.wait().context("cannot wait for the process")?;
        // It was killed, unless it had ended before that.
        if status.code().is_some() { Err(ended(status)) } else { Ok(()) }
    }

    /// All that it told: complete, since the pipe is empty once the process is gone.
    pub(crate) fn said(&mut self) -> Result<Said> {
        let listener = self.listener.take().context("it was asked already")?;
        listener.join().map_err(|_| anyhow!("the listener panicked"))?
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.kill();
        let _ = self.child.wait();
    }
}

/// A process that was to go on until killed has told why on standard error.
fn ended(status: ExitStatus) -> anyhow::Error {
    match status.code() {
        Some(1) => anyhow!("the process that writes gave up, for the reason above"),
        _ => Broken(format!("the process that writes ended by itself ({status}), for the reason above")).into(),
    }
}

fn listen(told: ChildStdout, board: &Board) -> Result<Said> {
    let (mut told, mut said, mut bytes) = (BufReader::new(told), Said::default(), [0; TOLD_BYTES]);
    loop {
        match told.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(said),
            Err(error) => return Err(error).context("cannot hear the process"),
        }
        let Some(told) = Told::decode(bytes) else { bail!("the process told {bytes:02x?}") };
        said.note(told).map_err(|error| Broken(error.to_string()))?;
        board.acked.store(said.acked.unwrap_or(0), Ordering::Relaxed);
        board.acks.store(said.acks, Ordering::Relaxed);
    }
}

/// Whether writes of a process that is gone are still on their way: its lock on a segment lives until they end.
pub(crate) fn has_queued_writes(log: &Path) -> bool {
    let is_locked = |path: &Path| {
        let Ok(file) = File::open(path) else { return false };
        flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK)
    };
    let Ok(entries) = std::fs::read_dir(log) else { return false };
    entries
        .flatten()
        .map(|entry| entry.path())
        .any(|path| path.extension().is_some_and(|end| end == "seg") && is_locked(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(told: &[Told]) -> Result<Said> {
        let mut said = Said::default();
        told.iter().try_for_each(|&told| said.note(told))?;
        Ok(said)
    }

    #[test]
    fn acknowledgements_count_up_to_the_highest_and_callbacks_keep_their_order() {
        use Told::{Called, Start, Waited};
        let heard = said(&[Start(10), Called(12), Waited(11), Called(14), Waited(13)]).unwrap();
        assert_eq!((heard.start, heard.acked, heard.acks), (Some(10), Some(14), 4));
        assert_eq!(said(&[]).unwrap().acked, None);
        for wrong in [
            &[Start(10), Called(12), Called(11)][..],
            &[Start(10), Called(11), Called(11)],
            &[Start(10), Waited(10)],
            &[Start(10), Start(10)],
            &[Called(1)],
        ] {
            assert!(said(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_a_kill_cut_off_is_not_heard() {
        let start = Told::Start(3);
        let mut echo =
            Command::new("printf").arg("\\3\\0\\0\\0\\0\\0\\0\\1\\4\\0").stdout(Stdio::piped()).spawn().unwrap();
        let said = listen(echo.stdout.take().unwrap(), &Board::default()).unwrap();
        echo.wait().unwrap();
        assert_eq!((said.start, said.acked), (Some(3), None), "{start:?}");
    }

    #[test]
    fn a_segment_that_somebody_still_writes_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!has_queued_writes(dir.path()));
        let file = File::create(dir.path().join("1.seg")).unwrap();
        assert!(!has_queued_writes(dir.path()));
        flock(&file, FlockOperation::LockExclusive).unwrap();
        assert!(has_queued_writes(dir.path()));
    }
}

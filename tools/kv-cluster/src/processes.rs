//! Nodes as processes of their own: started, watched, killed, paused and resumed.
//!
//! A node that is dropped is killed, and one whose starter dies dies with it (see `--with-parent`): nothing is left
//! behind by a test that fails.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

pub use crate::args::NodeArgs;
use crate::types::{NodeAddr, NodeId};

/// How much of what a node tells is kept: its end.
const STDERR_BYTES_MAX: usize = 256 << 10;

/// A running node, or one that has ended and was not replaced yet.
#[derive(Debug)]
pub struct NodeProcess {
    args: NodeArgs,
    child: Child,
    pid: Pid,
    ready: watch::Receiver<Option<NodeAddr>>,
    stderr: Arc<Mutex<String>>,
    /// Ends when the node's standard error does.
    listener: tokio::task::JoinHandle<()>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Exit {
        status.code().map_or_else(|| Exit::Signal(status.signal().unwrap_or_default()), Exit::Code)
    }
}

impl NodeProcess {
    /// Starts a node with this very program. The thread that calls this must live as long as the node is to: the system
    /// ends the node with it, and so it should not be one of those that tokio ends when it has no use for them.
    ///
    /// # Errors
    ///
    /// The process cannot be started.
    pub fn spawn(args: &NodeArgs) -> Result<NodeProcess> {
        let program = std::env::current_exe().context("this program's own file is not known")?;
        NodeProcess::spawn_with(&program, args)
    }

    /// Starts a node with this program: for tests, whose own file is another.
    ///
    /// # Errors
    ///
    /// The process cannot be started.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn spawn_with(program: &Path, args: &NodeArgs) -> Result<NodeProcess> {
        let mut args = args.clone();
        args.with_parent = Some(std::process::id());
        let mut child = Command::new(program)
            .args(args.to_arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid as i32)).context("the node has no process id")?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let told = Arc::new(Mutex::new(String::new()));
        let ready = stdout.map(watch_ready).context("the node has no output")?;
        let listener = tokio::spawn(listen(stderr.context("the node has no standard error")?, told.clone()));
        Ok(NodeProcess { args, child, pid, ready, stderr: told, listener })
    }

    /// The node's number.
    pub fn id(&self) -> NodeId {
        self.args.id
    }

    /// What it was started with.
    pub fn args(&self) -> &NodeArgs {
        &self.args
    }

    /// The directory of the node.
    pub fn dir(&self) -> &PathBuf {
        &self.args.dir
    }

    /// Waits until the node listens, and gives its addresses.
    ///
    /// # Errors
    ///
    /// It ended before, or took longer than this.
    pub async fn wait_ready(&mut self, limit: Duration) -> Result<NodeAddr> {
        let mut ready = self.ready.clone();
        match tokio::time::timeout(limit, ready.wait_for(Option::is_some)).await {
            Ok(Ok(addr)) => return Ok(addr.clone().unwrap_or_default()),
            Ok(Err(_)) => {}
            Err(_) => bail!("node {} was not ready within {limit:?}: {}", self.id(), self.stderr()),
        }
        let exit = self.wait_exit(limit).await?;
        bail!("node {} ended before it was ready, with {exit:?}: {}", self.id(), self.stderr())
    }

    /// Kills it: `kill -9`. Returns when it is gone.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub async fn kill9(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Stops it where it is (SIGSTOP).
    ///
    /// # Errors
    ///
    /// There is no such process any more.
    pub fn pause(&self) -> io::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    ///
    /// There is no such process any more.
    pub fn resume(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Asks it to stop (SIGTERM).
    ///
    /// # Errors
    ///
    /// There is no such process any more.
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends it a signal.
    fn signal(&self, signal: Signal) -> io::Result<()> {
        // A child that was waited for has no process id any more: another process may have the number.
        if self.child.id().is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(kill_process(self.pid, signal)?)
    }

    /// Waits until it has ended, and everything it told has arrived.
    ///
    /// # Errors
    ///
    /// It took longer than this.
    pub async fn wait_exit(&mut self, limit: Duration) -> Result<Exit> {
        let ended = async {
            let status = self.child.wait().await?;
            // It ends with the node's standard error.
            if !self.listener.is_finished() {
                let _ = (&mut self.listener).await;
            }
            Ok::<_, io::Error>(status)
        };
        let status = tokio::time::timeout(limit, ended).await;
        Ok(status.with_context(|| format!("node {} did not end within {limit:?}", self.args.id))??.into())
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    ///
    /// The system refuses to tell.
    pub fn try_exit(&mut self) -> io::Result<Option<Exit>> {
        Ok(self.child.try_wait()?.map(Exit::from))
    }

    /// What it told on standard error up to now.
    pub fn stderr(&self) -> String {
        self.stderr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The line that a node prints when it listens.
pub fn ready_line(id: NodeId, addr: &NodeAddr) -> String {
    format!("ready id={id} {addr}")
}

fn parse_ready(line: &str) -> Option<NodeAddr> {
    let mut words = line.strip_prefix("ready id=")?.split(' ');
    words.next()?.parse::<NodeId>().ok()?;
    let peer = words.next()?.strip_prefix("peer=")?;
    let client = words.next()?.strip_prefix("client=")?;
    Some(NodeAddr::new(peer, client))
}

fn watch_ready(stdout: impl AsyncRead + Unpin + Send + 'static) -> watch::Receiver<Option<NodeAddr>> {
    let (tell, ready) = watch::channel(None);
    tokio::spawn(async move {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(addr) = parse_ready(&line) {
                tell.send_replace(Some(addr));
            }
        }
    });
    ready
}

async fn listen(stderr: impl AsyncRead + Unpin, told: Arc<Mutex<String>>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        told.push_str(&line);
        told.push('\n');
        if told.len() > STDERR_BYTES_MAX {
            let half = told.len() / 2;
            let cut = told[half..].find('\n').map_or(0, |newline| half + newline + 1);
            told.drain(..cut);
        }
    }
}

/// Addresses on loopback with ports that nobody listens at now, below those that the system gives to connections: a
/// node that is started again finds its port free, and nobody who dials a dead node reaches itself.
///
/// # Errors
///
/// There are not so many.
pub fn free_addrs(count: usize) -> Result<Vec<String>> {
    let mut held = Vec::new();
    for _ in 0..10_000 {
        if held.len() == count {
            break;
        }
        let port = rand::random_range(10_000..30_000);
        held.extend(std::net::TcpListener::bind(("127.0.0.1", port)));
    }
    if held.len() < count {
        bail!("there are no {count} free ports");
    }
    held.iter().map(|listener| Ok(listener.local_addr()?.to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_read_as_it_is_written() {
        let addr = NodeAddr::new("127.0.0.1:1", "[::1]:2");
        assert_eq!(parse_ready(&ready_line(7, &addr)), Some(addr));
        for other in ["", "ready", "ready id=x peer=a client=b", "ready id=1 peer=a", "already id=1 peer=a client=b"] {
            assert_eq!(parse_ready(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn a_node_that_tells_much_is_remembered_by_its_end() {
        let told = Arc::new(Mutex::new(String::new()));
        let lines: String = (0..100_000).map(|number| format!("line {number}\n")).collect();
        listen(lines.as_bytes(), told.clone()).await;
        let told = told.lock().unwrap();
        assert!(told.len() <= STDERR_BYTES_MAX && told.ends_with("line 99999\n") && told.starts_with("line "));
    }
}

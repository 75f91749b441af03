//! `up`: a cluster on this machine's loopback, until Ctrl-C.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::args::UpArgs;
use crate::local::LocalCluster;
use crate::types::NodeAddr;

/// How often it is looked whether all nodes still run.
const LOOK: Duration = Duration::from_millis(300);

/// Starts the nodes, tells how to use them, and stops them when asked to.
///
/// # Errors
///
/// A node does not start, or ends by itself.
pub async fn up(args: &UpArgs) -> Result<()> {
    let program = std::env::current_exe().context("this program's own file is not known")?;
    std::fs::create_dir_all(&args.dir).with_context(|| format!("cannot make {}", args.dir.display()))?;
    let mut cluster = LocalCluster::new(&program, &args.dir, |_| {});
    for id in 1..=args.nodes {
        let port = args.base_port + id as u16;
        let addr = NodeAddr::new(format!("127.0.0.1:{}", port + 100), format!("127.0.0.1:{port}"));
        println!("node {id}: {addr}");
        cluster.add_at(id, addr).await?;
    }
    // A directory of an earlier run is a cluster already.
    let is_new = cluster.status(1).await?.members.is_empty();
    let leader = if is_new { cluster.init().await? } else { cluster.leader().await? };
    println!("{}", usage(leader, &cluster.addr(1)?.client));
    let ended = watch(&mut cluster).await;
    println!("stopping");
    ended.and(cluster.stop().await)
}

fn usage(leader: u64, client: &str) -> String {
    format!(
        "node {leader} leads; try, with any node's client address:\n\
         \x20 curl -L -X PUT --data-binary red http://{client}/v1/kv/apple\n\
         \x20 curl -L http://{client}/v1/kv/apple\n\
         \x20 curl -L -d '{{\"expected\":\"red\",\"new\":\"green\"}}' http://{client}/v1/cas/apple\n\
         \x20 curl -L 'http://{client}/v1/scan?limit=10'\n\
         \x20 curl http://{client}/v1/cluster\n\
         \x20 curl http://{client}/metrics\n\
         Ctrl-C stops all nodes; start again with the same --dir, and everything is there"
    )
}

/// Waits until it is asked to stop, or a node has ended.
async fn watch(cluster: &mut LocalCluster) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            () = sleep(LOOK) => {}
        }
        for id in cluster.ids() {
            if let Some(exit) = cluster.node(id).try_exit()? {
                bail!("node {id} ended with {exit:?}: {}", cluster.node(id).stderr());
            }
        }
    }
}

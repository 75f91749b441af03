//! `up`: a cluster on this machine's loopback, until Ctrl-C.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::sleep;

use crate::args::UpArgs;
use crate::asked::Asked;
use crate::local::LocalCluster;
use crate::types::{NodeAddr, NodeId};

/// How often it is looked whether all nodes still run.
const LOOK: Duration = Duration::from_millis(300);

/// Starts the nodes, tells how to use them, and stops them when asked to.
///
/// # Errors
///
/// A node does not start, or ends by itself.
pub async fn up(args: &UpArgs) -> Result<()> {
    let program = std::env::current_exe().context("this program's own file is not known")?;
    // Held until all nodes have stopped.
    let temporary = tempfile::tempdir().context("cannot make a temporary directory")?;
    let dir = args.dir.as_deref().unwrap_or(temporary.path());
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut cluster = LocalCluster::new(&program, dir, |_| {});
    for id in 1..=args.nodes {
        let port = args.base_port + id as u16;
        let addr = NodeAddr::new(format!("127.0.0.1:{}", port + 100), format!("127.0.0.1:{port}"));
        println!("node {id}: {addr}");
        cluster.add_at(id, addr).await?;
    }
    // A directory of an earlier run is a cluster already.
    let mut known = BTreeMap::new();
    for id in cluster.ids() {
        known.insert(id, cluster.status(id).await?.members.into_keys().collect());
    }
    let leader = match outside(&known) {
        Some(none) if none == cluster.ids() => cluster.init().await?,
        Some(none) => {
            cluster.stop().await?;
            bail!("{} has a cluster without the nodes {none:?}: give it as many nodes as before", dir.display());
        }
        None => cluster.leader().await?,
    };
    let mut asked = Asked::listen()?;
    println!("{}", usage(leader, &cluster.addr(1)?.client));
    let ended = watch(&mut cluster, &mut asked).await;
    println!("stopping");
    ended.and(cluster.stop().await)
}

/// Who is in no cluster, by the members that each knows: those that know none, and that none of the others knows.
fn outside(known: &BTreeMap<NodeId, BTreeSet<NodeId>>) -> Option<BTreeSet<NodeId>> {
    let members: BTreeSet<_> = known.values().flatten().copied().collect();
    let outside: BTreeSet<_> = known.keys().filter(|id| !members.contains(id)).copied().collect();
    (!outside.is_empty()).then_some(outside)
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
         Ctrl-C stops all nodes; with a --dir, the next `up` finds everything there"
    )
}

/// Waits until it is asked to stop, or a node has ended.
async fn watch(cluster: &mut LocalCluster, asked: &mut Asked) -> Result<()> {
    loop {
        tokio::select! {
            () = asked.wait() => return Ok(()),
            () = sleep(LOOK) => {}
        }
        for id in cluster.ids() {
            if let Some(exit) = cluster.node(id).try_exit()? {
                bail!("node {id} ended with {exit:?}: {}", cluster.node(id).stderr());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_no_cluster_has_is_not_taken_for_one_of_an_earlier_run() {
        let of = |known: &[(NodeId, &[NodeId])]| {
            outside(&known.iter().map(|(id, members)| (*id, members.iter().copied().collect())).collect())
        };
        assert_eq!(of(&[(1, &[]), (2, &[])]), Some([1, 2].into()));
        assert_eq!(of(&[(1, &[1, 2]), (2, &[1, 2])]), None);
        // It was made a cluster, and ended before the other had heard of it.
        assert_eq!(of(&[(1, &[1, 2]), (2, &[])]), None);
        assert_eq!(of(&[(1, &[1, 2]), (2, &[1, 2]), (3, &[]), (4, &[])]), Some([3, 4].into()));
    }
}

//! The end of a run, with all clients gone and everything well: what was acknowledged is still there, after all nodes
//! were killed too, and all nodes have the same state.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::Broken;
use super::cluster::Cluster;
use super::history::{Action, Answer, Key, Operation, Value};
use super::ledger::Ledger;
use super::report::Report;

/// Entries of one page of a scan.
const PAGE: usize = 500;
/// Who reads back.
const READER: u32 = u32::MAX;

/// Reads everything back, kills all nodes, and reads everything back again; the answers go to the ledger, to be checked
/// with all that came before.
pub(crate) async fn read_back(cluster: &mut Cluster, ledger: &Ledger, report: &mut Report) -> Result<()> {
    cluster.restore().await?;
    cluster.settle().await?;
    report.keys_read_back = read_all(cluster, ledger).await?;
    for at in 0..cluster.len() {
        cluster.kill(at).await?;
    }
    cluster.restore().await?;
    cluster.settle().await?;
    read_all(cluster, ledger).await?;
    Ok(())
}

async fn read_all(cluster: &mut Cluster, ledger: &Ledger) -> Result<u64> {
    let keys = ledger.all();
    for page in keys.chunks(PAGE) {
        let (Some(first), Some(last)) = (page.first(), page.last()) else { continue };
        let start_ns = ledger.now_ns();
        let (start, end) = (first.bytes(), Key(last.0 + 1).bytes());
        let (entries, has_more) =
            cluster.admin.scan(&start, Some(&end), PAGE + 1).await.context("the keys cannot be read back")?;
        anyhow::ensure!(!has_more, Broken("a scan gave more keys than were ever written".into()));
        let found: BTreeMap<Vec<u8>, Vec<u8>> = entries.into_iter().collect();
        for key in page {
            let answer = Answer::Found(found.get(&key.bytes()).map(|value| Value::parse(value)));
            let end = Some((ledger.now_ns(), answer));
            ledger.read_back(*key, Operation { client: READER, action: Action::Get, start_ns, end });
        }
    }
    Ok(keys.len() as u64)
}

/// Compares the states of all nodes, key by key.
pub(crate) async fn compare(cluster: &mut Cluster, report: &mut Report) -> Result<()> {
    cluster.level().await?;
    let first = state(cluster, 0).await?;
    for at in 1..cluster.len() {
        let other = state(cluster, at).await?;
        if let Some(key) = first.keys().chain(other.keys()).find(|key| first.get(*key) != other.get(*key)) {
            let told = |value: Option<&Vec<u8>>| value.map(|value| Value::parse(value));
            let (one, two) = (told(first.get(key)), told(other.get(key)));
            let key = String::from_utf8_lossy(key);
            let (id, other) = (cluster.id(0), cluster.id(at));
            let message = format!("the states differ: {key} is {one:?} on node {id}, and {two:?} on node {other}");
            return Err(Broken(message).into());
        }
    }
    report.keys_compared = first.len() as u64;
    Ok(())
}

/// All that a node has.
async fn state(cluster: &Cluster, at: usize) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let addr = cluster.addr(at).client;
    Ok(cluster.admin.scan_local(&addr).await.context("a node's state")?.into_iter().collect())
}

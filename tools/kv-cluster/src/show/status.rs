//! `status`: a cluster as one of its nodes sees it.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::api::{ClusterStatus, Place};
use crate::args::StatusArgs;
use crate::client::KvClient;

/// Prints it.
///
/// # Errors
///
/// The node does not answer.
pub async fn status(args: &StatusArgs) -> Result<()> {
    let client = KvClient::new(vec![args.client_addr.clone()]).timeout(Duration::from_secs(3));
    let status = client.cluster_status(&args.client_addr).await?;
    let text = match args.json {
        true => serde_json::to_string_pretty(&status).context("cannot write it as JSON")? + "\n",
        false => table(&status),
    };
    print!("{text}");
    Ok(())
}

/// As a table.
pub(super) fn table(status: &ClusterStatus) -> String {
    let place =
        |place: Option<Place>| place.map_or("-".into(), |place| format!("{} (term {})", place.index, place.term));
    let number = |number: Option<u64>| number.map_or("-".into(), |number| number.to_string());
    let mut text = format!(
        "node {} is {} in term {}, leader {}\nlast log {}, applied {}, snapshot {}, purged {}, {} keys, {}\n",
        status.id,
        status.state,
        status.term,
        number(status.leader),
        number(status.last_log_index),
        place(status.applied),
        place(status.snapshot),
        place(status.purged),
        status.keys,
        status.io_mode,
    );
    for (id, member) in &status.members {
        let role = if member.voter { "voter" } else { "learner" };
        let behind = member.behind_entries.map(|behind| format!(", {behind} behind")).unwrap_or_default();
        // Into a string: nothing can fail.
        let _ = writeln!(text, "  {id}: {role}, peer {}, client {}{behind}", member.peer, member.client);
    }
    text
}

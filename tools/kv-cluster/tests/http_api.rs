//! What clients are promised by the HTTP API: any bytes, one leader, and an answer that says what became of a request.

mod cluster;

use std::time::Instant;

use cluster::{program, refused, scratch, send, small, started};
use reqwest::Method;
use ringwal_kv_cluster::api::{ErrorAnswer, Outcome};
use ringwal_kv_cluster::local::{LocalCluster, PATIENCE};
use ringwal_kv_cluster::types::{KEY_BYTES_MAX, NodeAddr, VALUE_BYTES_MAX};
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn keys_and_values_are_any_bytes_and_come_back_in_order() {
    let (_dir, cluster) = started(1, |_| {}).await;
    let client = cluster.client();
    let long = vec![b'z'; KEY_BYTES_MAX];
    let keys: [&[u8]; 10] = [b"", b"\0", b".", b"..", b"/", b"a b", b"a%2Fb", b"a+b?c=d&e#f", b"\xff\xfe", &long];
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(client.get(key).await.unwrap(), None, "{key:?}");
        client.put(key, &[number as u8, 0xff, 0]).await.unwrap();
    }
    client.put(b"empty", b"").await.unwrap();
    for (number, key) in keys.iter().enumerate() {
        assert_eq!(client.get(key).await.unwrap().unwrap(), [number as u8, 0xff, 0], "{key:?}");
    }
    let (entries, more) = client.scan(b"", None, 100).await.unwrap();
    let mut expected = keys.to_vec();
    expected.push(b"empty");
    expected.sort();
    assert!(!more);
    assert_eq!(entries.iter().map(|(key, _)| key.as_slice()).collect::<Vec<_>>(), expected);
    let (some, more) = client.scan(b".", Some(b"a+"), 3).await.unwrap();
    assert_eq!((some.len(), more), (3, true));
    assert!(client.delete(b"..").await.unwrap());
    assert!(!client.delete(b"..").await.unwrap());
    assert_eq!(client.get(b"..").await.unwrap(), None);
}

#[tokio::test]
async fn a_swap_is_made_only_where_the_key_is_as_expected() {
    let (_dir, cluster) = started(1, |_| {}).await;
    let (client, addr) = (cluster.client(), cluster.addr(1).unwrap().client.clone());
    assert!(!client.cas(b"k", Some(b"old"), Some(b"new")).await.unwrap());
    assert!(client.cas(b"k", None, Some(b"\xff")).await.unwrap());
    assert!(!client.cas(b"k", None, Some(b"other")).await.unwrap());
    let found = send(Method::POST, &addr, "/v1/cas/k", r#"{"expected":null,"new":"x"}"#).await;
    assert_eq!(found.status(), 409);
    assert_eq!(found.text().await.unwrap(), r#"{"swapped":false,"found":{"base64":"/w=="}}"#);
    assert!(client.cas(b"k", Some(b"\xff"), None).await.unwrap());
    assert_eq!(client.get(b"k").await.unwrap(), None);
    let found = send(Method::POST, &addr, "/v1/cas/k", r#"{"expected":"y","new":null}"#).await;
    assert_eq!(found.text().await.unwrap(), r#"{"swapped":false,"found":null}"#);
}

#[tokio::test]
async fn a_value_that_no_segment_takes_stops_one_leader_after_the_other() {
    let (_dir, cluster) = started(1, |args| args.segment_size = 1 << 20).await;
    let addr = cluster.addr(1).unwrap().client.clone();
    let answer = send(Method::PUT, &addr, "/v1/kv/k", vec![7; VALUE_BYTES_MAX]).await;
    refused(answer, 413, "too_large").await;
    let text = |byte: char| byte.to_string().repeat(VALUE_BYTES_MAX / 2);
    let swap = format!(r#"{{"expected":"{}","new":"{}"}}"#, text('a'), text('b'));
    refused(send(Method::POST, &addr, "/v1/cas/k", swap).await, 413, "too_large").await;
    let client = cluster.client();
    client.put(b"k", &vec![7; VALUE_BYTES_MAX / 2]).await.unwrap();
    assert_eq!(client.get(b"k").await.unwrap().unwrap().len(), VALUE_BYTES_MAX / 2);
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_told_and_nothing_of_it_is_applied() {
    let (_dir, cluster) = started(1, |_| {}).await;
    let addr = cluster.addr(1).unwrap().client.clone();
    let addr = addr.as_str();
    let long = format!("/v1/kv/{}", "k".repeat(KEY_BYTES_MAX + 1));
    refused(send(Method::PUT, addr, &long, "v").await, 413, "too_large").await;
    refused(send(Method::PUT, addr, "/v1/kv/k", vec![0; VALUE_BYTES_MAX + 1]).await, 413, "too_large").await;
    refused(send(Method::PUT, addr, "/v1/kv/k", vec![0; 17 * VALUE_BYTES_MAX]).await, 413, "too_large").await;
    for body in
        ["", "{}", r#"{"expected":null}"#, r#"{"expected":7,"new":null}"#, r#"{"expected":{"base64":"?"},"new":null}"#]
    {
        refused(send(Method::POST, addr, "/v1/cas/k", body).await, 400, "bad_request").await;
    }
    for path in
        ["/v1/kv", "/v1/kv/", "/v1/kv/k?ttl=3", "/v1/kv/k?consistency=none", "/v1/kv/k?key=k", "/v1/scan?limit=0"]
    {
        refused(send(Method::GET, addr, path, "").await, 400, "bad_request").await;
    }
    refused(send(Method::GET, addr, "/v2/kv/k", "").await, 404, "no_path").await;
    refused(send(Method::PATCH, addr, "/v1/kv/k", "").await, 405, "no_method").await;
    let (entries, _) = cluster.client().scan(b"", None, 10).await.unwrap();
    assert_eq!(entries, []);
    let exact = cluster::noise(1, VALUE_BYTES_MAX);
    cluster.client().put(&vec![b'k'; KEY_BYTES_MAX], &exact).await.unwrap();
    assert!(cluster.client().cas(&vec![b'k'; KEY_BYTES_MAX], Some(&exact), Some(&exact)).await.unwrap());
}

#[tokio::test]
async fn changes_of_the_cluster_that_make_no_sense_are_refused() {
    let (_dir, cluster) = started(1, |_| {}).await;
    let addr = cluster.addr(1).unwrap().client.clone();
    let addr = addr.as_str();
    let init = r#"{"nodes":{"1":{"peer":"127.0.0.1:1","client":"127.0.0.1:2"}}}"#;
    refused(send(Method::POST, addr, "/v1/cluster/init", init).await, 409, "already_initialized").await;
    let taken = r#"{"id":1,"peer":"127.0.0.1:1","client":"127.0.0.1:2"}"#;
    refused(send(Method::POST, addr, "/v1/cluster/learners", taken).await, 409, "id_in_use").await;
    let again = serde_json::json!({"id": 1, "peer": cluster.addr(1).unwrap().peer, "client": addr}).to_string();
    refused(send(Method::POST, addr, "/v1/cluster/learners", again).await, 409, "id_in_use").await;
    let nowhere = r#"{"id":2,"peer":"127.0.0.1","client":"127.0.0.1:2"}"#;
    refused(send(Method::POST, addr, "/v1/cluster/learners", nowhere).await, 400, "bad_request").await;
    for voters in [r#"{"ids":[]}"#, r#"{"ids":[1,7]}"#, r#"{"ids":"1"}"#, "[1]"] {
        refused(send(Method::PUT, addr, "/v1/cluster/voters", voters).await, 400, "bad_request").await;
    }
    refused(send(Method::DELETE, addr, "/v1/cluster/learners/1", "").await, 409, "is_voter").await;
    refused(send(Method::DELETE, addr, "/v1/cluster/learners/one", "").await, 400, "bad_request").await;
    assert_eq!(cluster.status(1).await.unwrap().members.len(), 1);
}

#[tokio::test]
async fn a_node_that_does_not_vote_before_it_has_caught_up_does_not_hold_up_the_others() {
    let (_dir, cluster) = started(1, |args| args.request_timeout_ms = 300).await;
    let client = cluster.client();
    // Nobody is there.
    client.add_learner(9, &NodeAddr::new("127.0.0.1:9", "127.0.0.1:9")).await.unwrap();
    let addr = cluster.addr(1).unwrap().client.clone();
    refused(send(Method::PUT, &addr, "/v1/cluster/voters", r#"{"ids":[1,9]}"#).await, 503, "behind").await;
    client.put(b"k", b"v").await.unwrap();
    assert_eq!(send(Method::DELETE, &addr, "/v1/cluster/learners/9", "").await.status(), 200);
    assert_eq!(cluster.status(1).await.unwrap().members.len(), 1);
}

#[tokio::test]
async fn a_node_that_does_not_lead_says_who_does_and_applies_nothing() {
    let (_dir, cluster) = started(3, |_| {}).await;
    let leader = cluster.leader().await.unwrap();
    let follower = cluster.ids().into_iter().find(|id| *id != leader).unwrap();
    let knows = cluster.wait(follower, "it knows the leader", |status| status.leader == Some(leader)).await.unwrap();
    assert!(!knows.leads());
    let (at, leads) = (cluster.addr(follower).unwrap().client.clone(), cluster.addr(leader).unwrap().client.clone());
    for (method, path) in
        [(Method::PUT, "/v1/kv/a%2Fb"), (Method::GET, "/v1/scan?limit=3"), (Method::DELETE, "/v1/kv/k")]
    {
        let response = send(method, &at, path, "v").await;
        assert_eq!(response.headers()["location"], format!("http://{leads}{path}"));
        let answer = refused(response, 307, "not_leader").await;
        assert_eq!(answer.leader.unwrap().id, leader);
    }
    assert_eq!(cluster.client().scan(b"", None, 10).await.unwrap().0, []);
    cluster::put(&cluster.client(), b"k", b"v").await;
    cluster.caught_up(follower).await.unwrap();
    assert_eq!(cluster.client().get_local(&at, b"k").await.unwrap().unwrap(), b"v");
}

#[tokio::test]
async fn a_node_without_a_cluster_answers_that_nobody_leads() {
    let dir = scratch();
    let mut cluster = LocalCluster::new(program(), dir.path(), small);
    let addr = cluster.add(1).await.unwrap().client;
    refused(send(Method::PUT, &addr, "/v1/kv/k", "v").await, 503, "no_leader").await;
    refused(send(Method::GET, &addr, "/v1/kv/k", "").await, 503, "no_leader").await;
    refused(send(Method::GET, &addr, "/healthz", "").await, 503, "no_leader").await;
    assert_eq!(send(Method::GET, &addr, "/v1/kv/k?consistency=local", "").await.status(), 404);
    let others = r#"{"nodes":{"2":{"peer":"127.0.0.1:1","client":"127.0.0.1:2"}}}"#;
    refused(send(Method::POST, &addr, "/v1/cluster/init", others).await, 400, "bad_request").await;
    cluster.init().await.unwrap();
    assert_eq!(send(Method::GET, &addr, "/healthz", "").await.status(), 200);
}

#[tokio::test]
async fn a_leader_without_its_majority_confirms_no_read_and_leaves_writes_unknown() {
    let (_dir, mut cluster) = started(3, |args| args.request_timeout_ms = 500).await;
    cluster::put(&cluster.client(), b"k", b"v").await;
    let leader = cluster.leader().await.unwrap();
    for id in cluster.ids().into_iter().filter(|id| *id != leader) {
        cluster.kill(id).await.unwrap();
    }
    let addr = cluster.addr(leader).unwrap().client.clone();
    refused(send(Method::GET, &addr, "/v1/kv/k", "").await, 503, "no_quorum").await;
    let response = send(Method::PUT, &addr, "/v1/kv/k", "w").await;
    assert_eq!(response.status(), 504);
    let answer: ErrorAnswer = response.json().await.unwrap();
    assert_eq!((answer.error.as_str(), answer.outcome), ("timeout", Some(Outcome::Unknown)));
    for id in [1, 2, 3].into_iter().filter(|id| *id != leader) {
        cluster.restart(id).await.unwrap();
    }
    // Either may be, and it stays.
    let client = cluster.client().timeout(ringwal_kv_cluster::local::PATIENCE);
    let found = client.get(b"k").await.unwrap().unwrap();
    assert!(found == b"v" || found == b"w", "{found:?}");
}

#[tokio::test]
async fn figures_are_told_of_the_cluster_the_requests_and_the_log() {
    let (_dir, cluster) = started(3, |_| {}).await;
    let leader = cluster.leader().await.unwrap();
    let client = cluster.client();
    client.put(b"k", b"v").await.unwrap();
    for id in cluster.ids() {
        cluster.caught_up(id).await.unwrap();
    }
    let text = client.metrics(&cluster.addr(leader).unwrap().client).await.unwrap();
    let value = |name: &str| {
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("{name} is not in {text}")).rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(value("ringwal_cluster_raft_is_leader"), 1.0);
    assert_eq!(value("ringwal_cluster_raft_voters"), 3.0);
    assert_eq!(value("ringwal_cluster_keys"), 1.0);
    assert_eq!(value(r#"ringwal_cluster_requests_total{operation="put",status="204"}"#), 1.0);
    assert_eq!(value(r#"ringwal_cluster_raft_state{state="leader"}"#), 1.0);
    let (applied, last) = (value("ringwal_cluster_raft_applied_index"), value("ringwal_cluster_raft_last_log_index"));
    assert!(applied == last && last >= 2.0, "{applied} {last}");
    for id in cluster.ids() {
        assert_eq!(value(&format!(r#"ringwal_cluster_raft_replication_lag_entries{{node="{id}"}}"#)), 0.0);
    }
    assert!(value("ringwal_cluster_log_write_seconds_count") >= 2.0);
    assert!(value("ringwal_cluster_log_written_bytes_total") >= 8192.0);
}

#[tokio::test]
async fn requests_that_send_nothing_of_what_they_announce_are_not_let_in_without_bound() {
    let (_dir, cluster) = started(1, |_| {}).await;
    let addr = cluster.addr(1).unwrap().client.clone();
    let mut held = Vec::new();
    let mut announce = async |bytes: usize| {
        let head = format!("PUT /v1/kv/k HTTP/1.1\r\nhost: n\r\ncontent-length: {bytes}\r\n\r\n");
        let mut connection = tokio::net::TcpStream::connect(&addr).await.unwrap();
        connection.write_all(head.as_bytes()).await.unwrap();
        held.push(connection);
    };
    for _ in 0..260 {
        announce(VALUE_BYTES_MAX).await;
    }
    // What is left goes to smaller ones, when the others have arrived.
    let until = Instant::now() + PATIENCE;
    loop {
        announce(100 << 10).await;
        announce(1000).await;
        let response = send(Method::PUT, &addr, "/v1/kv/k", "v").await;
        if response.status() == 503 {
            refused(response, 503, "overloaded").await;
            break;
        }
        assert!(Instant::now() < until, "all are let in");
    }
    drop(held);
    cluster.client().timeout(PATIENCE).put(b"k", b"v").await.unwrap();
}

#[tokio::test]
async fn a_body_is_refused_by_what_its_path_may_have() {
    let (_dir, cluster) = started(1, |_| {}).await;
    let addr = cluster.addr(1).unwrap().client.clone();
    let large = vec![b' '; 100 << 10];
    refused(send(Method::PUT, &addr, "/v1/cluster/voters", large.clone()).await, 413, "too_large").await;
    refused(send(Method::POST, &addr, "/v1/cas/k", large).await, 400, "bad_request").await;
}

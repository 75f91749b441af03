//! Keys and values: what the clients' requests do.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use ringwal::machine::{KvCommand, KvResponse, KvStateMachine};
use serde::de::DeserializeOwned;
use std::ops::Bound;

use super::query::{Parameters, key};
use super::{Node, Shared};
use crate::api::{Blob, CasAnswer, CasRequest, DeleteAnswer, ScanAnswer};
use crate::failing::Failure;
use crate::types::{SCAN_BYTES_MAX, SCAN_ENTRIES_MAX, VALUE_BYTES_MAX};

type Answered = Result<Response, Failure>;

/// Whatever could be read of a body.
pub(super) type Body = Result<Bytes, BytesRejection>;

pub(super) async fn get(State(node): Shared, uri: Uri) -> Answered {
    let mut parameters = Parameters::of(&uri, &["key", "consistency"])?;
    node.wait_to_read(&mut parameters).await?;
    let key = key(&uri, "/v1/kv", &mut parameters)?;
    let value = node.state.look(|kv| kv.get(&key)).await?;
    value.map(IntoResponse::into_response).ok_or_else(Failure::no_key)
}

pub(super) async fn put(State(node): Shared, uri: Uri, body: Body) -> Answered {
    let key = key(&uri, "/v1/kv", &mut Parameters::of(&uri, &["key"])?)?;
    let value = whole(body)?;
    checked("value", &value)?;
    match node.write(KvCommand::Set { key: key.into(), value }).await? {
        KvResponse::Done => Ok(StatusCode::NO_CONTENT.into_response()),
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn delete(State(node): Shared, uri: Uri) -> Answered {
    let key = key(&uri, "/v1/kv", &mut Parameters::of(&uri, &["key"])?)?;
    match node.write(KvCommand::Delete { key: key.into() }).await? {
        KvResponse::Deleted { existed } => Ok(Json(DeleteAnswer { existed }).into_response()),
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn cas(State(node): Shared, uri: Uri, body: Body) -> Answered {
    let key = key(&uri, "/v1/cas", &mut Parameters::of(&uri, &["key"])?)?;
    let CasRequest { expected, new } = json(body)?;
    let (expected, new) = (expected.map(|blob| blob.0), new.map(|blob| blob.0));
    for value in [&expected, &new].into_iter().flatten() {
        checked("value", value)?;
    }
    match node.write(KvCommand::CompareAndSet { key: key.into(), expected, new }).await? {
        KvResponse::Swapped => Ok(Json(CasAnswer { swapped: true, found: None }).into_response()),
        KvResponse::Differs(found) => {
            let answer = CasAnswer { swapped: false, found: Some(found.map(Blob)) };
            Ok((StatusCode::CONFLICT, Json(answer)).into_response())
        }
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn scan(State(node): Shared, uri: Uri) -> Answered {
    let mut parameters = Parameters::of(&uri, &["start", "end", "limit", "consistency"])?;
    let limit = match parameters.text("limit")?.map(|limit| limit.parse::<usize>()) {
        None => SCAN_ENTRIES_MAX,
        Some(Ok(limit)) if (1..=SCAN_ENTRIES_MAX).contains(&limit) => limit,
        Some(_) => return Err(Failure::bad(format!("limit must be a number from 1 to {SCAN_ENTRIES_MAX}"))),
    };
    node.wait_to_read(&mut parameters).await?;
    let start = parameters.take("start").unwrap_or_default();
    let end = parameters.take("end");
    Ok(Json(node.state.look(|kv| scanned(kv, start, end, limit)).await?).into_response())
}

/// A part of a range, bounded in entries and bytes, and at least one entry where there is one.
fn scanned(kv: &KvStateMachine, start: Vec<u8>, end: Option<Vec<u8>>, limit: usize) -> ScanAnswer {
    let end = end.map_or(Bound::Unbounded, Bound::Excluded);
    let (mut entries, mut bytes) = (Vec::new(), 0);
    for (key, value) in kv.range((Bound::Included(start), end)) {
        bytes += key.len() + value.len();
        let is_full = entries.len() == limit || (bytes > SCAN_BYTES_MAX && !entries.is_empty());
        if is_full {
            return ScanAnswer { entries, more: true };
        }
        entries.push((Blob(Bytes::copy_from_slice(key)), Blob(Bytes::copy_from_slice(value))));
    }
    ScanAnswer { entries, more: false }
}

impl Node {
    /// Waits until the state may be read: at once for who takes it as it is here.
    async fn wait_to_read(&self, parameters: &mut Parameters) -> Result<(), Failure> {
        match parameters.text("consistency")?.as_deref() {
            None | Some("linearizable") => self.reads.ready().await,
            Some("local") => self.leading.check_running(),
            Some(other) => Err(Failure::bad(format!("consistency is {other:?}: use linearizable or local"))),
        }
    }

    async fn write(self: &Arc<Self>, command: KvCommand) -> Result<KvResponse, Failure> {
        self.leading.check()?;
        self.room.check()?;
        let answered = self.writes.write(command).await;
        answered.map_err(|failure| match failure.is_stop() && self.room.stopped_full(&self.log) {
            true => failure.stopped_full(),
            false => failure,
        })
    }
}

/// A body that arrived.
fn whole(body: Body) -> Result<Bytes, Failure> {
    body.map_err(|rejection| Failure::body(rejection.status(), rejection.body_text()))
}

/// A body that is JSON, whatever its content type says.
pub(super) fn json<T: DeserializeOwned>(body: Body) -> Result<T, Failure> {
    serde_json::from_slice(&whole(body)?).map_err(|error| Failure::bad(format!("the body was not understood: {error}")))
}

fn checked(what: &str, bytes: &[u8]) -> Result<(), Failure> {
    match bytes.len() {
        len if len > VALUE_BYTES_MAX => Err(Failure::too_large(what, len, VALUE_BYTES_MAX)),
        _ => Ok(()),
    }
}

/// An answer to another question: the machine is not the one that this program knows.
fn unexpected(answer: &KvResponse) -> Failure {
    Failure::lost(&format!("the machine gave an answer to another command: {answer:?}"))
}

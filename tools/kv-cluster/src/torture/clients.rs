//! The clients: each works on a few keys together with the others, and writes down what it asked and what it was told.
//!
//! Half of them know one node only and hear from it who leads; the others ask around. Who does not know what became of a
//! write goes on with another key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Plant;
use super::history::{Action, Answer, Key, Operation, Value};
use super::ledger::Ledger;
use super::report::Counts;
use super::scans::Scan;
use crate::client::{ClientError, KvClient, Outcome};

/// How long an operation may take before its outcome is taken for unknown.
const TIMEOUT: Duration = Duration::from_millis(2500);
/// The longest pause between two operations of a client.
const THINK_MS_MAX: u64 = 20;

/// What all clients share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) counts: Arc<Counts>,
    /// The client addresses of all nodes.
    pub(crate) addrs: Vec<String>,
    /// The fault planted.
    pub(crate) plant: Option<Plant>,
}

/// Keys and what they have.
type Found = Vec<(Key, Option<Value>)>;

struct Client {
    number: u32,
    kv: KvClient,
    shared: Shared,
    rng: StdRng,
    /// The key of which this client does not know what became of it.
    avoided: Option<Key>,
}

/// Starts a client, which runs until it is told to stop.
pub(crate) fn start(number: u32, seed: u64, shared: Shared, stop: watch::Receiver<bool>) -> JoinHandle<()> {
    let mut addrs = shared.addrs.clone();
    addrs.rotate_left(number as usize / 2 % shared.addrs.len());
    if number.is_multiple_of(2) {
        addrs.truncate(1);
    }
    let kv = KvClient::new(addrs).timeout(TIMEOUT);
    let rng = StdRng::seed_from_u64(seed ^ (u64::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let client = Client { number, kv, shared, rng, avoided: None };
    tokio::spawn(client.run(stop))
}

impl Client {
    async fn run(mut self, stop: watch::Receiver<bool>) {
        // However short the run: one that nobody scanned in is not good.
        self.scan().await;
        while !*stop.borrow() {
            match self.rng.random_range(0..100) {
                0..4 => self.scan().await,
                _ => self.one().await,
            }
            let think = Duration::from_millis(self.rng.random_range(0..=THINK_MS_MAX));
            tokio::time::sleep(think).await;
        }
    }

    /// One operation on one key.
    async fn one(&mut self) {
        let (key, hint) = self.shared.ledger.begin(&mut self.rng, self.avoided);
        let action = self.draw(hint);
        let start_ns = self.shared.ledger.now_ns();
        let told = self.ask(key, action).await;
        self.avoided = matches!(&told, Err(error) if error.outcome == Outcome::Unknown).then_some(key);
        self.count(told.as_ref().err());
        if let Ok(Answer::Found(_)) = told {
            self.shared.counts.reads.fetch_add(1, Ordering::Relaxed);
        }
        let operation = match told {
            Ok(answer) => self.ended(action, start_ns, answer),
            Err(error) if error.outcome == Outcome::Unknown && action != Action::Get => self.open(action, start_ns),
            Err(_) => None,
        };
        self.shared.ledger.end(key, operation);
    }

    fn draw(&mut self, hint: Option<Value>) -> Action {
        let ledger = &self.shared.ledger;
        // Nothing whose answer depends on what was there: who answers before it is known would have to make it up.
        if self.shared.plant == Some(Plant::AckBeforeCommit) {
            return if self.rng.random_bool(0.5) { Action::Get } else { Action::Set(ledger.new_value()) };
        }
        match self.rng.random_range(0..20) {
            0..8 => Action::Get,
            8..13 => Action::Set(ledger.new_value()),
            13 => Action::Delete,
            14 => Action::Swap { expected: hint, new: None },
            _ => Action::Swap { expected: hint, new: Some(ledger.new_value()) },
        }
    }

    async fn ask(&mut self, key: Key, action: Action) -> Result<Answer, ClientError> {
        let key = key.bytes();
        match action {
            Action::Get => self.get(&key).await.map(|found| Answer::Found(found.map(|value| Value::parse(&value)))),
            Action::Set(value) => self.kv.put(&key, &value.bytes()).await.map(|()| Answer::Set),
            Action::Delete => self.kv.delete(&key).await.map(|existed| Answer::Deleted { existed }),
            Action::Swap { expected, new } => {
                let (expected, new) = (expected.map(Value::bytes), new.map(Value::bytes));
                self.kv.cas(&key, expected.as_deref(), new.as_deref()).await.map(Answer::Swapped)
            }
        }
    }

    async fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, ClientError> {
        if self.shared.plant != Some(Plant::StaleReads) {
            return self.kv.get(key).await;
        }
        let addr = &self.shared.addrs[self.rng.random_range(0..self.shared.addrs.len())];
        self.kv.get_local(addr, key).await
    }

    /// Reads all keys that are worked on: each is a read of its own that takes as long as the scan, and all together
    /// have to come from one moment.
    async fn scan(&mut self) {
        let keys = self.shared.ledger.begin_all();
        let start_ns = self.shared.ledger.now_ns();
        let told = self.ask_all(&keys).await;
        let end_ns = self.shared.ledger.now_ns();
        self.shared.counts.scans.fetch_add(u64::from(told.is_ok()), Ordering::Relaxed);
        self.count(told.as_ref().err());
        let Some(found) = told.ok().flatten() else {
            return keys.into_iter().for_each(|key| self.shared.ledger.end(key, None));
        };
        for (key, value) in &found {
            let end = Some((end_ns, Answer::Found(*value)));
            let operation = Operation { client: self.number, action: Action::Get, start_ns, end };
            self.shared.ledger.end(*key, Some(operation));
        }
        self.shared.ledger.note_scan(Scan { client: self.number, start_ns, end_ns, found });
    }

    /// What all of these keys have. `None` where more was found than there can be: then what is missing is not known.
    async fn ask_all(&mut self, keys: &[Key]) -> Result<Option<Found>, ClientError> {
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return Ok(None) };
        if self.shared.plant == Some(Plant::TornScans) {
            return self.ask_one_by_one(keys).await.map(Some);
        }
        let limit = (last.0 - first.0 + 1) as usize;
        let (entries, has_more) = self.kv.scan(&first.bytes(), Some(&Key(last.0 + 1).bytes()), limit).await?;
        let entries: BTreeMap<Vec<u8>, Vec<u8>> = entries.into_iter().collect();
        let found = keys.iter().map(|key| (*key, entries.get(&key.bytes()).map(|value| Value::parse(value))));
        Ok((!has_more).then(|| found.collect()))
    }

    /// The fault planted: a scan of which each entry comes from a moment of its own.
    async fn ask_one_by_one(&mut self, keys: &[Key]) -> Result<Found, ClientError> {
        let mut found = Found::new();
        for key in keys {
            found.push((*key, self.kv.get(&key.bytes()).await?.map(|value| Value::parse(&value))));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(found)
    }

    fn ended(&self, action: Action, start_ns: u64, answer: Answer) -> Option<Operation> {
        let end = Some((self.shared.ledger.now_ns(), answer));
        Some(Operation { client: self.number, action, start_ns, end })
    }

    fn open(&self, action: Action, start_ns: u64) -> Option<Operation> {
        Some(Operation { client: self.number, action, start_ns, end: None })
    }

    fn count(&self, error: Option<&ClientError>) {
        const INSUFFICIENT_STORAGE: u16 = 507;
        let counts = &self.shared.counts;
        let count = match error.map(|error| error.outcome) {
            None => &counts.ok,
            Some(Outcome::NotApplied) => &counts.not_applied,
            Some(Outcome::Unknown) => &counts.unknown,
        };
        count.fetch_add(1, Ordering::Relaxed);
        if error.is_some_and(|error| error.status == Some(INSUFFICIENT_STORAGE)) {
            counts.full.fetch_add(1, Ordering::Relaxed);
        }
    }
}

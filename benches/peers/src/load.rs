//! A load: so many producers, each appending batches of so many entries of so many bytes, one after the other.

use std::fmt;
use std::str::FromStr;

use bytes::{Bytes, BytesMut};
use serde::Serialize;

use crate::records::{KEY_BYTES, Records};

/// Entries are cut from pieces of this size, so that making one costs a copy and no allocation of its own.
pub(crate) const PIECE_BYTES: usize = 64 << 10;
/// Places where a payload may begin in the pool of random bytes, one byte apart.
const PLACES: usize = 4096;

/// What the producers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Load {
    /// Threads, each with one call outstanding.
    pub(crate) producers: usize,
    /// Entries in a call; 1 means single appends.
    pub(crate) batch: usize,
    /// Bytes of an entry's payload, or of a value where entries have keys.
    pub(crate) payload_bytes: usize,
    /// Whether each entry is a record of a store: a key and a value.
    pub(crate) is_keyed: bool,
    /// The cluster that the producers are the clients of, where there is one.
    pub(crate) cluster: Option<Shape>,
}

/// How large a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Shape {
    /// Nodes, each with a log of its own.
    pub(crate) nodes: usize,
    /// Worker threads of the runtime that all nodes and all clients share.
    pub(crate) workers: usize,
}

impl Load {
    /// The same load for stores.
    pub(crate) fn keyed(self) -> Load {
        Load { is_keyed: true, ..self }
    }

    /// What this producer's entries come from. It allocates for many at once.
    pub(crate) fn source(&self, producer: usize) -> Box<dyn FnMut() -> Bytes + Send> {
        if self.is_keyed {
            let mut records = Records::new(producer, self.payload_bytes);
            return Box::new(move || records.make());
        }
        let mut payloads = Payloads::new(producer, self.payload_bytes);
        Box::new(move || payloads.make())
    }
}

impl FromStr for Load {
    type Err = String;

    fn from_str(text: &str) -> Result<Load, String> {
        let numbers = text.split('x').map(str::parse).collect::<Result<Vec<usize>, _>>();
        let form = || format!("{text} is not of the form PRODUCERSxBATCHxBYTES");
        let [producers, batch, payload_bytes] = numbers.ok().and_then(|list| list.try_into().ok()).ok_or_else(form)?;
        let is_in_range = (1..=4096).contains(&producers)
            && (1..=100_000).contains(&batch)
            && (1..=1 << 20).contains(&payload_bytes)
            && batch * payload_bytes <= 32 << 20;
        let load = Load { producers, batch, payload_bytes, is_keyed: false, cluster: None };
        is_in_range.then_some(load).ok_or_else(|| format!("{text}: from 1 to 4096 producers, calls of up to 32 MiB"))
    }
}

impl fmt::Display for Load {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |count| if count == 1 { "" } else { "s" };
        match self.cluster {
            Some(Shape { nodes, .. }) => {
                write!(to, "{nodes} node{}, {} client{}, ", plural(nodes), self.producers, plural(self.producers))?;
            }
            None => write!(to, "{} producer{}, ", self.producers, plural(self.producers))?,
        }
        if self.batch > 1 {
            write!(to, "batches of {} x ", self.batch)?;
        }
        if self.is_keyed {
            write!(to, "{KEY_BYTES} B + ")?;
        }
        write!(to, "{} B", self.payload_bytes)
    }
}

/// Makes the payloads of one producer: random, so that no engine gains by compressing them, and each a copy of its own,
/// as it would be after an application encoded it.
#[derive(Debug)]
pub(crate) struct Payloads {
    pool: Vec<u8>,
    payload_bytes: usize,
    piece: BytesMut,
    state: u64,
}

impl Payloads {
    /// Payloads of this size; another producer gets others.
    pub(crate) fn new(producer: usize, payload_bytes: usize) -> Payloads {
        let mut state = producer as u64;
        let pool = (0..(payload_bytes + PLACES).div_ceil(8)).flat_map(|_| next_random(&mut state).to_le_bytes());
        Payloads { pool: pool.collect(), payload_bytes, piece: BytesMut::new(), state }
    }

    /// The next payload.
    pub(crate) fn make(&mut self) -> Bytes {
        if self.piece.capacity() < self.payload_bytes {
            self.piece = BytesMut::with_capacity(self.payload_bytes.max(PIECE_BYTES));
        }
        let start = next_random(&mut self.state) as usize % PLACES;
        self.piece.extend_from_slice(&self.pool[start..start + self.payload_bytes]);
        self.piece.split_to(self.payload_bytes).freeze()
    }
}

/// SplitMix64: every state gives another value, and neighbours share nothing.
pub(crate) fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_three_numbers() {
        let load = "4x1000x128".parse::<Load>().unwrap();
        assert_eq!(load, Load { producers: 4, batch: 1000, payload_bytes: 128, is_keyed: false, cluster: None });
        assert_eq!(load.to_string(), "4 producers, batches of 1000 x 128 B");
        assert_eq!("1x1x9".parse::<Load>().unwrap().to_string(), "1 producer, 9 B");
        assert_eq!(load.keyed().to_string(), "4 producers, batches of 1000 x 16 B + 128 B");
        for wrong in ["", "1x1", "1x1x1x1", "1x1xb", "0x1x1", "1x0x1", "1x1x0", "1x100000x1024"] {
            assert!(wrong.parse::<Load>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn payloads_have_their_size_and_differ() {
        for size in [1, 128, 200_000] {
            let mut payloads = Payloads::new(3, size);
            assert!((0..100).all(|_| payloads.make().len() == size));
        }
        let mut payloads = Payloads::new(0, 64);
        assert_ne!(payloads.make(), payloads.make());
    }
}

//! A link from one node to another: a TCP proxy that passes everything on until it is told to do harm.
//!
//! Requests go one way and their answers come back on the same connection, so each direction between two nodes has a link
//! of its own: cutting one of them leaves the other whole. What is held back or slowed down arrives later, in order and
//! complete; what is swallowed never does, and its connection ends with that weather.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long it takes a link that is cut to refuse a connection.
const REFUSAL: Duration = Duration::from_millis(10);

/// What happens on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Everything passes.
    Fair,
    /// Everything passes, each piece later by this much.
    Slow(Duration),
    /// Nothing passes, and connections stay: it all arrives when the weather changes.
    Held,
    /// Requests arrive, answers do not.
    Deaf,
    /// Connections break, and no new ones are made.
    Cut,
}

/// What the links of a run have done.
#[derive(Debug, Default)]
pub(crate) struct Harm {
    /// Connections broken, or refused.
    pub(crate) connections_cut: AtomicU64,
    /// Pieces that were held back.
    pub(crate) pieces_held: AtomicU64,
    /// Pieces that were swallowed.
    pub(crate) pieces_swallowed: AtomicU64,
    /// Pieces that came later.
    pub(crate) pieces_slowed: AtomicU64,
}

impl Harm {
    /// How often a weather was met.
    pub(crate) fn met(&self, weather: Weather) -> u64 {
        let count = match weather {
            Weather::Fair => return 0,
            Weather::Slow(_) => &self.pieces_slowed,
            Weather::Held => &self.pieces_held,
            Weather::Deaf => &self.pieces_swallowed,
            Weather::Cut => &self.connections_cut,
        };
        count.load(Ordering::Relaxed)
    }
}

/// A link, until this is dropped.
#[derive(Debug)]
pub(crate) struct Link {
    addr: SocketAddr,
    weather: watch::Sender<Weather>,
    listener: JoinHandle<()>,
}

/// The way of one connection's bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Requests,
    Answers,
}

/// What becomes of a piece.
enum Fate {
    Passed,
    Swallowed,
    Broken,
}

impl Link {
    /// Listens on loopback, and passes on to this address (which need not listen yet).
    ///
    /// # Errors
    ///
    /// There is no port.
    pub(crate) async fn open(to: String, harm: Arc<Harm>) -> io::Result<Link> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let (weather, seen) = watch::channel(Weather::Fair);
        let listener = tokio::spawn(listen(listener, to, seen, harm));
        Ok(Link { addr, weather, listener })
    }

    /// Where to reach the other end.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on this happens.
    pub(crate) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Its connections end by themselves: they see that nobody makes the weather any more.
        self.listener.abort();
    }
}

async fn listen(listener: TcpListener, to: String, weather: watch::Receiver<Weather>, harm: Arc<Harm>) {
    loop {
        // An error of one connection that was gone before it was accepted, or too many of them: the next may work.
        let Ok((near, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        if *weather.borrow() == Weather::Cut {
            // Not at once: an HTTP client's pool takes a fresh connection that is closed for bad luck, and tries again
            // in a loop without a pause.
            tokio::time::sleep(REFUSAL).await;
            harm.connections_cut.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        tokio::spawn(carry(near, to.clone(), weather.clone(), harm.clone()));
    }
}

/// Passes on what one connection carries, until either side ends it or the weather does.
async fn carry(near: TcpStream, to: String, weather: watch::Receiver<Weather>, harm: Arc<Harm>) {
    // A node that is not there: the connection ends, as the system would refuse it.
    let Ok(far) = TcpStream::connect(to).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    let requests = pass(Way::Requests, near_read, far_write, weather.clone(), &harm);
    let answers = pass(Way::Answers, far_read, near_write, weather, &harm);
    // One way that ends takes the other one with it: HTTP has no use for half a connection.
    tokio::select! { () = requests => {}, () = answers => {} }
}

async fn pass(
    way: Way,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    harm: &Harm,
) {
    let mut buffer = vec![0; 64 << 10];
    let mut has_swallowed = false;
    loop {
        let now = *weather.borrow_and_update();
        if now == Weather::Cut || (has_swallowed && now != Weather::Deaf) {
            harm.connections_cut.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let length = tokio::select! {
            changed = weather.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            length = from.read(&mut buffer) => length.unwrap_or(0),
        };
        if length == 0 {
            return;
        }
        match weathered(way, &mut weather, harm).await {
            Fate::Passed if to.write_all(&buffer[..length]).await.is_err() => return,
            Fate::Passed => {}
            Fate::Swallowed => has_swallowed = true,
            Fate::Broken => {
                harm.connections_cut.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
}

/// Waits as long as the weather has it, and tells what becomes of a piece.
async fn weathered(way: Way, weather: &mut watch::Receiver<Weather>, harm: &Harm) -> Fate {
    let mut was_held = false;
    loop {
        let now = *weather.borrow_and_update();
        match now {
            Weather::Fair => return Fate::Passed,
            Weather::Cut => return Fate::Broken,
            Weather::Deaf if way == Way::Requests => return Fate::Passed,
            Weather::Deaf => {
                harm.pieces_swallowed.fetch_add(1, Ordering::Relaxed);
                return Fate::Swallowed;
            }
            Weather::Slow(delay) => {
                harm.pieces_slowed.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(delay).await;
                // A cut may have come meanwhile.
                return if *weather.borrow() == Weather::Cut { Fate::Broken } else { Fate::Passed };
            }
            Weather::Held if !was_held => {
                was_held = true;
                harm.pieces_held.fetch_add(1, Ordering::Relaxed);
            }
            Weather::Held => {}
        }
        if weather.changed().await.is_err() {
            return Fate::Broken;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// A server that answers every byte with the next one, and tells of each that arrived.
    async fn server() -> (String, tokio::sync::mpsc::UnboundedReceiver<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (tell, told) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let tell = tell.clone();
                tokio::spawn(async move {
                    while let Ok(byte) = stream.read_u8().await {
                        let _ = tell.send(byte);
                        if stream.write_u8(byte + 1).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        (addr, told)
    }

    async fn answer(stream: &mut TcpStream) -> Option<u8> {
        tokio::time::timeout(LIMIT, stream.read_u8()).await.expect("an answer or an end").ok()
    }

    async fn dial(link: &Link) -> TcpStream {
        TcpStream::connect(link.addr()).await.unwrap()
    }

    #[tokio::test]
    async fn what_is_sent_arrives_and_is_answered() {
        let (to, _told) = server().await;
        let link = Link::open(to, Arc::default()).await.unwrap();
        let mut stream = dial(&link).await;
        for byte in [1, 50, 200] {
            stream.write_u8(byte).await.unwrap();
            assert_eq!(answer(&mut stream).await, Some(byte + 1));
        }
    }

    #[tokio::test]
    async fn a_cut_breaks_connections_and_lets_none_be_made_until_it_heals() {
        let (to, _told) = server().await;
        let harm = Arc::<Harm>::default();
        let link = Link::open(to, harm.clone()).await.unwrap();
        let mut stream = dial(&link).await;
        stream.write_u8(1).await.unwrap();
        assert_eq!(answer(&mut stream).await, Some(2));
        link.set(Weather::Cut);
        assert_eq!(answer(&mut stream).await, None);
        let mut refused = dial(&link).await;
        assert_eq!(answer(&mut refused).await, None);
        assert!(harm.connections_cut.load(Ordering::Relaxed) >= 2);
        link.set(Weather::Fair);
        let mut again = dial(&link).await;
        again.write_u8(7).await.unwrap();
        assert_eq!(answer(&mut again).await, Some(8));
    }

    #[tokio::test]
    async fn what_is_held_back_arrives_later_in_order() {
        let (to, mut told) = server().await;
        let harm = Arc::<Harm>::default();
        let link = Link::open(to, harm.clone()).await.unwrap();
        let mut stream = dial(&link).await;
        stream.write_u8(1).await.unwrap();
        assert_eq!((answer(&mut stream).await, told.recv().await), (Some(2), Some(1)));
        link.set(Weather::Held);
        stream.write_all(&[3, 4]).await.unwrap();
        while harm.pieces_held.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert!(told.try_recv().is_err());
        link.set(Weather::Fair);
        assert_eq!((answer(&mut stream).await, answer(&mut stream).await), (Some(4), Some(5)));
    }

    #[tokio::test]
    async fn a_deaf_link_delivers_requests_swallows_answers_and_never_goes_on_in_the_middle() {
        let (to, mut told) = server().await;
        let harm = Arc::<Harm>::default();
        let link = Link::open(to, harm.clone()).await.unwrap();
        let mut stream = dial(&link).await;
        link.set(Weather::Deaf);
        stream.write_u8(1).await.unwrap();
        assert_eq!(told.recv().await, Some(1));
        while harm.pieces_swallowed.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        link.set(Weather::Fair);
        assert_eq!(answer(&mut stream).await, None);
    }

    #[tokio::test]
    async fn a_slow_link_delivers_everything() {
        let (to, _told) = server().await;
        let harm = Arc::<Harm>::default();
        let link = Link::open(to, harm.clone()).await.unwrap();
        link.set(Weather::Slow(Duration::from_millis(20)));
        let mut stream = dial(&link).await;
        stream.write_u8(1).await.unwrap();
        assert_eq!(answer(&mut stream).await, Some(2));
        assert!(harm.pieces_slowed.load(Ordering::Relaxed) >= 2);
    }

    #[tokio::test]
    async fn a_node_that_is_not_there_ends_the_connection() {
        let (to, harm) = (server().await.0, Arc::<Harm>::default());
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
        assert_ne!(to, gone);
        let link = Link::open(gone, harm).await.unwrap();
        let mut stream = dial(&link).await;
        assert_eq!(answer(&mut stream).await, None);
    }

    #[tokio::test]
    async fn a_link_that_is_gone_takes_its_connections_with_it() {
        let (to, _told) = server().await;
        let link = Link::open(to, Arc::default()).await.unwrap();
        let mut stream = dial(&link).await;
        stream.write_u8(1).await.unwrap();
        assert_eq!(answer(&mut stream).await, Some(2));
        drop(link);
        assert_eq!(answer(&mut stream).await, None);
    }
}

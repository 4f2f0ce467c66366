//! Serving HTTP/1.1 with bounds, for the API and for netboot alike: so many connections, of all and
//! of one address, so long and so large a head of a request, and so long for an answer to be taken.
//! What is served, and to whom, is decided elsewhere.

mod patient;

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum_server::Server;
use axum_server::accept::Accept;
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tower::Service;

use self::patient::Patient;

/// Seconds for the head of a request; also how long a connection may lie idle. Not a number of
/// seconds that daemons or agents wait between calls: both sides would close it at once.
const HEAD: Duration = Duration::from_secs(20);
/// Bytes of the head of a request; and those of a body that are read before they are wanted.
const HEAD_BYTES: usize = 64 << 10;
/// Files that are open beside connections: database, boot files, BMCs.
const OTHER_FILES: u64 = 512;
/// Connections however few files may be open.
const FEWEST: usize = 64;
/// Connections that the kernel has accepted and we have not yet.
const BACKLOG: i32 = 4096;
/// Between lines of the log about connections that were closed.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What is served at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Connections at once.
    pub(crate) connections: usize,
    /// Of them, from one address; of IPv6 from one /64.
    pub(crate) per_address: usize,
    /// How long nothing of an answer may be taken.
    pub(crate) stall: Duration,
}

/// A server with an acceptor that has bounds.
pub(crate) fn bounded<A>(
    server: Server<SocketAddr, A>,
    bounds: Bounds,
) -> Server<SocketAddr, Bounded<A>> {
    let mut server = server
        .map(|inner| Bounded {
            inner,
            slots: Arc::new(Slots {
                bounds,
                held: Mutex::default(),
            }),
        })
        .http1_only();
    server
        .http_builder()
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES);
    server
}

/// A listener that does not lose callers who come all at once.
pub(crate) fn listener(at: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(at)?;
    // Again, as the standard library's 128 waiting ones are few.
    socket2::SockRef::from(&listener).listen(BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Allows this process as many open files as it may have; `wanted` connections need them. Gives how
/// many connections fit: without files, neither the database nor BMCs could be reached.
pub(crate) fn raise_file_limit(wanted: usize) -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let needed = OTHER_FILES.saturating_add(wanted as u64);
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let soft = soft.max(needed.min(hard));
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).map(|()| soft)
    });
    match raised {
        Ok(soft) if soft < needed => {
            tracing::warn!(
                soft,
                needed,
                "few open files are allowed: raise LimitNOFILE"
            );
            fitting(soft, wanted)
        }
        Ok(_) => wanted,
        Err(error) => {
            tracing::warn!(%error, "the number of open files cannot be raised");
            wanted
        }
    }
}

/// Connections that fit into so many files: three quarters.
fn fitting(files: u64, wanted: usize) -> usize {
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    (files / 4 * 3).max(FEWEST).min(wanted)
}

/// Connections that are there.
#[derive(Debug)]
struct Slots {
    bounds: Bounds,
    held: Mutex<HeldSlots>,
}

#[derive(Debug, Default)]
struct HeldSlots {
    all: usize,
    by_address: BTreeMap<IpAddr, usize>,
    /// Closed since the log was told.
    closed: u64,
    told: Option<Instant>,
}

impl Slots {
    fn held(&self) -> MutexGuard<'_, HeldSlots> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for a connection of `peer`, if there is one.
    fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Slot> {
        let from = network(peer);
        let mut held = self.held();
        let of_address = held.by_address.get(&from).copied().unwrap_or_default();
        let Bounds {
            connections,
            per_address,
            ..
        } = self.bounds;
        if held.all >= connections || of_address >= per_address {
            held.closed += 1;
            if held.told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
                let closed = std::mem::take(&mut held.closed);
                let all = held.all;
                held.told = Some(Instant::now());
                tracing::warn!(%peer, of_address, all, closed, "too many connections");
            }
            return None;
        }
        held.all += 1;
        held.by_address.insert(from, of_address + 1);
        Some(Slot {
            slots: Arc::clone(self),
            from,
        })
    }
}

/// What counts as one address: whoever has one of IPv6 usually has all of its /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let bits = u128::from(address) >> 64 << 64;
            Ipv6Addr::from(bits).into()
        }
    }
}

/// Free again when it is dropped.
#[derive(Debug)]
struct Slot {
    slots: Arc<Slots>,
    from: IpAddr,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.slots.held();
        held.all = held.all.saturating_sub(1);
        let left = held.by_address.get(&self.from).copied().unwrap_or_default();
        if left > 1 {
            held.by_address.insert(self.from, left - 1);
        } else {
            held.by_address.remove(&self.from);
        }
    }
}

/// Accepts as `inner` does, while there are slots.
#[derive(Debug, Clone)]
pub(crate) struct Bounded<A> {
    inner: A,
    slots: Arc<Slots>,
}

type Accepting<I, S> = Pin<Box<dyn Future<Output = io::Result<(Patient<I>, Slotted<S>)>> + Send>>;

impl<A, S> Accept<TcpStream, S> for Bounded<A>
where
    A: Accept<TcpStream, S>,
    A::Stream: AsyncRead + AsyncWrite + Unpin,
    A::Future: Send + 'static,
{
    type Stream = Patient<A::Stream>;
    type Service = Slotted<A::Service>;
    type Future = Accepting<A::Stream, A::Service>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        // An answer goes at once: its last piece would else wait for the caller's kernel to tell
        // that it has the others, 40 ms later.
        let slot = stream.set_nodelay(true).and_then(|()| stream.peer_addr());
        let slot = slot.map(|peer| self.slots.take(peer.ip()));
        let slot = match slot {
            Ok(Some(slot)) => Arc::new(slot),
            // Closed at once: the caller asks again, and whoever holds the others is timed out.
            Ok(None) => {
                return Box::pin(async { Err(io::Error::other("too many connections")) });
            }
            Err(gone) => return Box::pin(async { Err(gone) }),
        };
        let stall = self.slots.bounds.stall;
        let accepting = self.inner.accept(stream, service);
        Box::pin(async move {
            let (stream, inner) = accepting.await?;
            let slotted = Slotted { inner, _slot: slot };
            Ok((Patient::new(stream, stall), slotted))
        })
    }
}

/// A connection's service; its slot is free again when the connection is gone.
#[derive(Debug, Clone)]
pub(crate) struct Slotted<S> {
    inner: S,
    _slot: Arc<Slot>,
}

impl<S: Service<R>, R> Service<R> for Slotted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    impl Bounds {
        /// So many connections, from wherever they come.
        pub(crate) const fn of(connections: usize) -> Self {
            Self {
                connections,
                per_address: connections,
                stall: Duration::from_secs(30),
            }
        }
    }

    async fn ask(stream: &mut TcpStream) -> String {
        let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        let _ = stream.write_all(request).await;
        let mut reply = vec![0; 4096];
        let read = stream.read(&mut reply).await.unwrap_or(0);
        String::from_utf8_lossy(&reply[..read]).into_owned()
    }

    #[tokio::test]
    async fn one_connection_too_many_is_closed_and_the_slot_comes_back() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let server = bounded(axum_server::from_tcp(listener).unwrap(), Bounds::of(2));
        let router = axum::Router::new().route("/", get(|| async { "fine" }));
        let serving = tokio::spawn(server.serve(router.into_make_service()));
        let mut first = TcpStream::connect(at).await.unwrap();
        let mut second = TcpStream::connect(at).await.unwrap();
        assert!(ask(&mut first).await.contains("200 OK"));
        assert!(ask(&mut second).await.contains("200 OK"));
        let mut third = TcpStream::connect(at).await.unwrap();
        assert_eq!(ask(&mut third).await, "");
        drop(first);
        for _ in 0..100 {
            let mut again = TcpStream::connect(at).await.unwrap();
            if ask(&mut again).await.contains("200 OK") {
                return serving.abort();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the slot never came back");
    }

    #[tokio::test]
    async fn a_head_that_never_ends_is_not_waited_for() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let mut server = bounded(axum_server::from_tcp(listener).unwrap(), Bounds::of(2));
        let patience = Duration::from_millis(100);
        server.http_builder().http1().header_read_timeout(patience);
        let router = axum::Router::<()>::new();
        let serving = tokio::spawn(server.serve(router.into_make_service()));
        let mut slow = TcpStream::connect(at).await.unwrap();
        slow.write_all(b"GET / HT").await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), slow.read_to_end(&mut rest));
        assert!(ended.await.is_ok(), "the connection is held open");
        serving.abort();
    }
    #[test]
    fn one_address_leaves_slots_for_others() {
        let slots = Arc::new(Slots {
            bounds: Bounds {
                per_address: 2,
                ..Bounds::of(4)
            },
            held: Mutex::default(),
        });
        let take = |from: &str| slots.take(from.parse().unwrap());
        let (first, second) = (take("10.0.0.1").unwrap(), take("::ffff:10.0.0.1").unwrap());
        assert!(take("10.0.0.1").is_none());
        let others = [take("2001:db8::1").unwrap(), take("2001:db8::2").unwrap()];
        assert!(take("10.0.0.2").is_none(), "there are no more at all");
        drop(others);
        assert_eq!(
            slots.held().by_address.len(),
            1,
            "what is gone is forgotten"
        );
        drop(first);
        assert!(take("10.0.0.1").is_some());
        drop(second);
        assert_eq!(slots.held().all, 0);
    }

    #[test]
    fn files_are_left_for_others() {
        assert_eq!(fitting(20_000, 24_576), 15_000);
        assert_eq!(fitting(20_000, 100), 100);
        assert_eq!(fitting(16, 24_576), FEWEST);
    }
}

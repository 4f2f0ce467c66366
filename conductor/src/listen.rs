//! Serving HTTP/1.1 with bounds, for the API and for netboot alike: so many connections, and so
//! long for the head of a request. What is served, and to whom, is decided elsewhere.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum_server::Server;
use axum_server::accept::Accept;
use hyper_util::rt::TokioTimer;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::Service;

/// Seconds for the head of a request; also how long a connection may lie idle. Not a number of
/// seconds that daemons or agents wait between calls: both sides would close it at once.
const HEAD: Duration = Duration::from_secs(20);
/// Files that are open beside connections: database, boot files, BMCs.
const OTHER_FILES: u64 = 512;

/// A server with an acceptor that is bounded to `most` connections.
pub(crate) fn bounded<A>(
    server: Server<SocketAddr, A>,
    most: usize,
) -> Server<SocketAddr, Bounded<A>> {
    let mut server = server
        .map(|inner| Bounded {
            inner,
            slots: Arc::new(Semaphore::new(most)),
        })
        .http1_only();
    server
        .http_builder()
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD);
    server
}

/// Allows this process as many open files as it may have; `wanted` connections need them.
pub(crate) fn raise_file_limit(wanted: usize) {
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
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the number of open files cannot be raised"),
    }
}

/// Accepts as `inner` does, while there are slots.
#[derive(Debug, Clone)]
pub(crate) struct Bounded<A> {
    inner: A,
    slots: Arc<Semaphore>,
}

type Accepting<I, S> = Pin<Box<dyn Future<Output = io::Result<(I, Slotted<S>)>> + Send>>;

impl<A, S> Accept<TcpStream, S> for Bounded<A>
where
    A: Accept<TcpStream, S>,
    A::Future: Send + 'static,
{
    type Stream = A::Stream;
    type Service = Slotted<A::Service>;
    type Future = Accepting<A::Stream, A::Service>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            // Closed at once: the caller asks again, and whoever holds the others is timed out.
            let peer = stream.peer_addr().map(|peer| peer.to_string());
            tracing::warn!(peer = peer.unwrap_or_default(), "too many connections");
            return Box::pin(async { Err(io::Error::other("too many connections")) });
        };
        let accepting = self.inner.accept(stream, service);
        Box::pin(async move {
            let (stream, inner) = accepting.await?;
            let slot = Arc::new(slot);
            Ok((stream, Slotted { inner, _slot: slot }))
        })
    }
}

/// A connection's service; its slot is free again when the connection is gone.
#[derive(Debug, Clone)]
pub(crate) struct Slotted<S> {
    inner: S,
    _slot: Arc<OwnedSemaphorePermit>,
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
        let server = bounded(axum_server::from_tcp(listener).unwrap(), 2);
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
        let mut server = bounded(axum_server::from_tcp(listener).unwrap(), 2);
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
}

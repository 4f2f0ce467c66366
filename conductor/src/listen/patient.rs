//! A connection whose other end is waited for, but not for ever: to take an answer, and to end.
//!
//! Not here: how long a request may take to arrive. The head is hyper's, the body is
//! `api::arrival`'s.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// After our last word, what the other end still sends is read and dropped for so long: closed with
/// bytes unread, the kernel would take back an answer that tells why they are not wanted.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// And so much of it.
const LAST_BYTES: usize = 4 << 20;

/// A stream with bounds.
#[derive(Debug)]
pub(crate) struct Patient<I> {
    inner: I,
    /// How long nothing of an answer may be taken.
    stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    ending: Option<Ending>,
}

#[derive(Debug)]
struct Ending {
    over: Pin<Box<Sleep>>,
    left: usize,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Patient<I> {
    /// Waits for `stall` when nothing is taken.
    pub(crate) const fn new(inner: I, stall: Duration) -> Self {
        Self {
            inner,
            stall,
            stalled: None,
            ending: None,
        }
    }

    /// As polled, unless it has been pending for too long.
    fn in_time<T>(
        &mut self,
        context: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.stalled = None;
            return poll;
        }
        let stall = self.stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(stall)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn drop_last_words(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ending = self.ending.get_or_insert_with(|| Ending {
            over: Box::pin(sleep(LAST_WORDS)),
            left: LAST_BYTES,
        });
        let mut block = [0; 8192];
        while ending.left > 0 && ending.over.as_mut().poll(context).is_pending() {
            let mut read = ReadBuf::new(&mut block);
            let ended = ready!(Pin::new(&mut self.inner).poll_read(context, &mut read));
            if ended.is_err() || read.filled().is_empty() {
                break;
            }
            ending.left = ending.left.saturating_sub(read.filled().len());
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Patient<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, into)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Patient<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.in_time(context, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.in_time(context, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.inner).poll_flush(context);
        self.in_time(context, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ending.is_none() {
            let poll = Pin::new(&mut self.inner).poll_shutdown(context);
            ready!(self.in_time(context, poll))?;
        }
        self.drop_last_words(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    const STALL: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_left_and_who_takes_a_little_is_not() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Patient::new(near, STALL);
        let started = Instant::now();
        let reading = async {
            for _ in 0..3 {
                tokio::time::sleep(STALL * 2 / 3).await;
                far.read_exact(&mut [0; 32]).await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let error = tokio::select! {
            written = near.write_all(&[0; 1000]) => written.unwrap_err(),
            () = reading => unreachable!(),
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), 20 * 3 + 30);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_the_other_one_but_not_long_and_not_for_much() {
        for (written, waits) in [(0, 2), (100_000, 2), (LAST_BYTES * 2, 0)] {
            let (near, mut far) = tokio::io::duplex(1 << 20);
            let mut near = Patient::new(near, STALL);
            let writing = tokio::spawn(async move {
                let _ = far.write_all(&vec![0; written]).await;
                std::future::pending::<()>().await;
            });
            let started = Instant::now();
            near.shutdown().await.unwrap();
            assert_eq!(started.elapsed().as_secs(), waits, "{written}");
            writing.abort();
        }
        let (near, far) = tokio::io::duplex(64);
        drop(far);
        let started = Instant::now();
        Patient::new(near, STALL).shutdown().await.unwrap();
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}

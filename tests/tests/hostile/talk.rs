//! One connection: what is sent on it, and how it ends. Whether that end is fine, `attacks` says.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long a caller that goes on may be borne; the longest limit is the one of bodies.
pub(super) const PATIENCE: Duration = Duration::from_secs(40);

/// What follows the first bytes.
#[derive(Clone, Copy)]
pub(super) enum Then {
    Nothing,
    /// A byte each second.
    Drops,
    /// So many bytes, as fast as they are taken.
    Flood(u64),
    /// The same in chunks of HTTP.
    Chunks(u64),
}

/// How a connection went.
pub(super) struct End {
    /// Status, `closed` or `open`.
    pub(super) what: String,
    pub(super) after: Duration,
    pub(super) sent: u64,
}

/// Sends, and reads until there is an answer or an end.
pub(super) async fn speak<S>(stream: S, first: &[u8], then: Then) -> End
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let started = Instant::now();
    let sent = AtomicU64::new(0);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let talk = async {
        writer.write_all(first).await?;
        send(&mut writer, then, &sent).await
    };
    // Who cannot send any more may still be answered.
    let talk = async {
        let _ = talk.await;
        tokio::time::sleep(PATIENCE).await;
    };
    let what = tokio::select! {
        what = status(&mut reader) => what,
        () = talk => "open".to_owned(),
        () = tokio::time::sleep(PATIENCE) => "open".to_owned(),
    };
    End {
        what,
        after: started.elapsed(),
        sent: sent.into_inner(),
    }
}

async fn send<W: AsyncWriteExt + Unpin>(
    writer: &mut W,
    then: Then,
    sent: &AtomicU64,
) -> std::io::Result<()> {
    let block = vec![b'['; 64 << 10];
    match then {
        Then::Nothing => {}
        Then::Drops => loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            writer.write_all(b"a").await?;
            writer.flush().await?;
        },
        Then::Flood(bytes) | Then::Chunks(bytes) => {
            while sent.load(Ordering::Relaxed) < bytes {
                if matches!(then, Then::Chunks(_)) {
                    writer.write_all(b"10000\r\n").await?;
                }
                writer.write_all(&block).await?;
                if matches!(then, Then::Chunks(_)) {
                    writer.write_all(b"\r\n").await?;
                }
                sent.fetch_add(block.len() as u64, Ordering::Relaxed);
            }
        }
    }
    writer.flush().await
}

/// The status of the answer, or that there is none.
async fn status<R: AsyncReadExt + Unpin>(reader: &mut R) -> String {
    let mut answer = Vec::new();
    let mut block = [0; 512];
    while answer.len() < 12 {
        match reader.read(&mut block).await {
            Ok(0) | Err(_) => return "closed".to_owned(),
            Ok(read) => answer.extend_from_slice(&block[..read]),
        }
    }
    String::from_utf8_lossy(&answer[9..12]).into_owned()
}

pub(super) fn failed(error: &anyhow::Error, started: Instant) -> End {
    End {
        what: format!("not connected: {error:#}"),
        after: started.elapsed(),
        sent: 0,
    }
}

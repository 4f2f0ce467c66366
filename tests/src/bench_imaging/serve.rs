//! The static server that all contenders fetch from: one thread a connection, `sendfile`, ranges.
//! Its processor time is the bench's own, so it is nobody's; it only takes its share of the cores.
//!
//! It is quick and polite. The server that misbehaves on demand is `crate::images`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};
use nix::sys::sendfile::sendfile;

/// Between two looks at how much has gone.
const PIECE: usize = 1 << 20;
/// No head of ours or of the peers is near.
const HEAD_BYTES: u64 = 64 << 10;

/// Serves the files of one folder on loopback, until the process ends.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    sent: Arc<AtomicU64>,
}

impl Server {
    pub(super) fn start(dir: &Path) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listening on loopback")?;
        let address = listener.local_addr()?;
        let sent = Arc::new(AtomicU64::new(0));
        let (dir, counter) = (dir.to_owned(), Arc::clone(&sent));
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (dir, counter) = (dir.clone(), Arc::clone(&counter));
                std::thread::spawn(move || {
                    // A client that goes away has what it wanted, or says itself what it missed.
                    let _ = serve(&connection, &dir, &counter);
                });
            }
        });
        Ok(Self { address, sent })
    }

    pub(super) fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// Body bytes handed out so far.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Request {
    method: String,
    path: String,
    range: Option<String>,
    last: bool,
}

fn serve(connection: &TcpStream, dir: &Path, sent: &AtomicU64) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection);
    while let Some(request) = read_request(&mut reader)? {
        answer(connection, &request, dir, sent)?;
        if request.last {
            break;
        }
    }
    Ok(())
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut lines = reader.take(HEAD_BYTES).lines();
    let Some(first) = lines.next().transpose()? else {
        return Ok(None);
    };
    let mut words = first.split(' ').map(str::to_owned);
    let mut request = Request {
        method: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        ..Request::default()
    };
    for line in lines {
        let line = line?;
        if line.is_empty() {
            return Ok(Some(request));
        }
        let (name, value) = line.split_once(':').unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.trim().to_owned()),
            "connection" => request.last = value.trim().eq_ignore_ascii_case("close"),
            _ => (),
        }
    }
    Ok(None)
}

fn answer(
    mut connection: &TcpStream,
    request: &Request,
    dir: &Path,
    sent: &AtomicU64,
) -> io::Result<()> {
    let Ok(mut file) = File::open(file_for(dir, &request.path)) else {
        return connection.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let metadata = file.metadata()?;
    let length = metadata.len();
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH);
    let tag = modified.map_or(0, |time| time.as_nanos());
    let Some(range) = wanted(request.range.as_deref(), length) else {
        return write!(
            connection,
            "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{length}\r\n\
             Content-Length: 0\r\n\r\n"
        );
    };
    let status = match request.range {
        Some(_) => format!(
            "206 Partial Content\r\nContent-Range: bytes {}-{}/{length}",
            range.start,
            range.end.saturating_sub(1)
        ),
        None => "200 OK".to_owned(),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"{length:x}-{tag:x}\"\r\n\
         Accept-Ranges: bytes\r\nContent-Type: application/octet-stream\r\n\r\n",
        range.end - range.start
    );
    connection.write_all(head.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    file.seek(SeekFrom::Start(range.start))?;
    send(connection, &file, range.end - range.start, sent)
}

/// From the page cache to the socket; `io::copy` would go by way of 8 KiB of our memory.
fn send(connection: &TcpStream, file: &File, bytes: u64, sent: &AtomicU64) -> io::Result<()> {
    let mut left = bytes;
    while left > 0 {
        let most = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        let gone = sendfile(connection, file, None, most)? as u64;
        if gone == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        sent.fetch_add(gone, Ordering::Relaxed);
        left -= gone;
    }
    Ok(())
}

/// The folder is flat: only a path's last part counts, so nothing else can be asked for.
fn file_for(dir: &Path, path: &str) -> PathBuf {
    dir.join(Path::new(path).file_name().unwrap_or_default())
}

/// The range that is asked for; `None` when it cannot be had.
fn wanted(asked: Option<&str>, length: u64) -> Option<Range<u64>> {
    let Some(spec) = asked.and_then(|text| text.strip_prefix("bytes=")) else {
        return Some(0..length);
    };
    let (first, last) = spec.split_once('-')?;
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) => first..length.min(last.saturating_add(1)),
        (Ok(first), Err(_)) if last.is_empty() => first..length,
        (Err(_), Ok(count)) if first.is_empty() => length.saturating_sub(count)..length,
        _ => return None,
    };
    (range.start < range.end).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(server: &Server, head: &str) -> String {
        let mut connection = TcpStream::connect(server.address).unwrap();
        write!(connection, "{head}Connection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn files_ranges_and_tails_are_served_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "0123456789").unwrap();
        let server = Server::start(dir.path()).unwrap();
        let whole = ask(&server, "GET /file HTTP/1.1\r\n");
        assert!(whole.starts_with("HTTP/1.1 200 OK\r\n"), "{whole}");
        assert!(whole.ends_with("\r\n\r\n0123456789"), "{whole}");
        let part = ask(&server, "GET /file HTTP/1.1\r\nRange: bytes=2-4\r\n");
        assert!(part.contains("Content-Range: bytes 2-4/10\r\n"), "{part}");
        assert!(part.ends_with("\r\n\r\n234"), "{part}");
        let tail = ask(&server, "GET /file HTTP/1.1\r\nrange: bytes=-3\r\n");
        assert!(tail.ends_with("\r\n\r\n789"), "{tail}");
        assert_eq!(server.sent(), 16);
        let head = ask(&server, "HEAD /file HTTP/1.1\r\n");
        assert!(head.contains("Content-Length: 10\r\n"), "{head}");
        let beyond = ask(&server, "GET /file HTTP/1.1\r\nRange: bytes=10-\r\n");
        assert!(beyond.starts_with("HTTP/1.1 416"), "{beyond}");
        let outside = ask(&server, "GET /../../etc/passwd HTTP/1.1\r\n");
        assert!(outside.starts_with("HTTP/1.1 404"), "{outside}");
        assert_eq!(server.sent(), 16);
    }
}

//! An HTTP server for tests that misbehaves as told, one script a connection.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What one connection gets.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    status: u16,
    body: Vec<u8>,
    tag: String,
    /// Bytes of the body after which the connection is cut.
    cut: Option<usize>,
    /// Bytes after which nothing comes any more.
    stall: Option<usize>,
    /// Bytes at a time, ten times a second.
    drip: Option<usize>,
    /// Whether parts are given.
    ranges: bool,
    /// What is sent when the whole is asked for, not a part.
    then: Option<Vec<u8>>,
    /// By how much its parts are others than were asked for.
    shift: usize,
    /// Further lines of the answer's head.
    head: String,
}

impl Served {
    pub(crate) fn whole(body: &[u8]) -> Self {
        Self {
            status: 200,
            body: body.to_vec(),
            tag: "\"one\"".into(),
            cut: None,
            stall: None,
            drip: None,
            ranges: true,
            then: None,
            shift: 0,
            head: String::new(),
        }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::whole(b"no")
        }
    }

    pub(crate) fn cut_after(self, bytes: usize) -> Self {
        Self {
            cut: Some(bytes),
            ..self
        }
    }

    pub(crate) fn stall_after(self, bytes: usize) -> Self {
        Self {
            stall: Some(bytes),
            ..self
        }
    }

    pub(crate) fn tagged(self, tag: &str) -> Self {
        Self {
            tag: tag.into(),
            ..self
        }
    }

    pub(crate) fn without_ranges(self) -> Self {
        Self {
            ranges: false,
            ..self
        }
    }

    /// Another file for who asks for the whole of it than for who asks for parts.
    pub(crate) fn then_whole(self, body: &[u8]) -> Self {
        Self {
            then: Some(body.to_vec()),
            ..self
        }
    }

    pub(crate) fn shifted(self, bytes: usize) -> Self {
        Self {
            shift: bytes,
            ..self
        }
    }

    /// So many bytes ten times a second.
    pub(crate) fn dripping(self, bytes: usize) -> Self {
        Self {
            drip: Some(bytes),
            ..self
        }
    }

    pub(crate) fn with_header(self, name: &str, value: &str) -> Self {
        let head = format!("{}{name}: {value}\r\n", self.head);
        Self { head, ..self }
    }

    fn answer(&self, mut connection: TcpStream, range: &str) -> std::io::Result<()> {
        let total = self.body.len();
        let asked = range.strip_prefix("bytes=").filter(|_| self.ranges);
        let asked = asked.filter(|_| self.status == 200);
        let (start, end) = asked.and_then(|asked| asked.split_once('-')).unzip();
        let start = start.map_or(0, |text| text.parse::<usize>().unwrap() + self.shift);
        let end: Option<usize> = end.and_then(|text| text.parse().ok());
        let end = end.map_or(total, |last| total.min(last + 1));
        let whole = self.then.as_ref().filter(|_| asked.is_none());
        let body = whole.map_or(&self.body[start.min(end)..end], Vec::as_slice);
        let status = if asked.is_none() { self.status } else { 206 };
        write!(
            connection,
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nETag: {}\r\nConnection: close\r\n{}",
            body.len(),
            self.tag,
            self.head
        )?;
        if asked.is_some() {
            let last = end.saturating_sub(1);
            write!(
                connection,
                "Content-Range: bytes {start}-{last}/{total}\r\n"
            )?;
        }
        connection.write_all(b"\r\n")?;
        let sent = self
            .cut
            .or(self.stall)
            .unwrap_or(body.len())
            .min(body.len());
        if let Some(drip) = self.drip {
            for drop in body[..sent].chunks(drip) {
                connection.write_all(drop)?;
                std::thread::sleep(Duration::from_millis(100));
            }
            return Ok(());
        }
        connection.write_all(&body[..sent])?;
        if self.stall.is_some() {
            std::thread::sleep(Duration::from_secs(4));
        }
        Ok(())
    }
}

/// Answers the first connection with the first script, and so on; the last one repeats.
pub(crate) struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Asked>>>,
}

/// One request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) range: String,
    pub(crate) authorization: String,
}

impl Server {
    pub(crate) fn start(scripts: Vec<Served>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        if !scripts.is_empty() {
            let next = AtomicUsize::new(0);
            let script = move |_: &Asked| {
                let at = next.fetch_add(1, Ordering::Relaxed);
                scripts[at.min(scripts.len() - 1)].clone()
            };
            std::thread::spawn(move || serve(&listener, &Arc::new(script), &noted));
        }
        Self { port, seen }
    }

    /// Answers as a function of what is asked and of its own address says.
    pub(crate) fn answering(
        script: impl Fn(&Asked, &str) -> Served + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        let own = format!("http://127.0.0.1:{port}");
        let script = move |asked: &Asked| script(asked, &own);
        std::thread::spawn(move || serve(&listener, &Arc::new(script), &noted));
        Self { port, seen }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/image", self.port)
    }

    /// The ranges that were asked for, in order.
    pub(crate) fn ranges(&self) -> Vec<String> {
        let seen = self.asked().into_iter();
        seen.map(|asked| asked.range).collect()
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(
    listener: &TcpListener,
    script: &Arc<impl Fn(&Asked) -> Served + Send + Sync + 'static>,
    seen: &Arc<Mutex<Vec<Asked>>>,
) {
    while let Ok((connection, _)) = listener.accept() {
        let (script, seen) = (Arc::clone(script), Arc::clone(seen));
        std::thread::spawn(move || {
            let asked = Asked::read(&connection);
            seen.lock().unwrap().push(asked.clone());
            // A client that goes away is what some tests are about.
            let _ = script(&asked).answer(connection, &asked.range);
        });
    }
}

impl Asked {
    fn read(connection: &TcpStream) -> Self {
        let mut asked = Self::default();
        for line in BufReader::new(connection).lines() {
            let line = line.unwrap_or_default();
            if line.is_empty() {
                break;
            }
            let value = |name: &str| {
                let (found, value) = line.split_once(": ")?;
                let same = found.eq_ignore_ascii_case(name);
                same.then(|| value.to_owned())
            };
            if let Some(path) = line.strip_prefix("GET ") {
                path.split(' ').next().unwrap().clone_into(&mut asked.path);
            }
            if let Some(range) = value("range") {
                asked.range = range;
            }
            if let Some(authorization) = value("authorization") {
                asked.authorization = authorization;
            }
        }
        asked
    }
}

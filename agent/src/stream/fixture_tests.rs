//! An HTTP server for tests that misbehaves as told, one script a connection.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
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
}

impl Served {
    pub(crate) fn whole(body: &[u8]) -> Self {
        Self {
            status: 200,
            body: body.to_vec(),
            tag: "\"one\"".into(),
            cut: None,
            stall: None,
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

    fn answer(&self, mut connection: TcpStream, range: &str) -> std::io::Result<()> {
        let total = self.body.len();
        let start = range.trim_start_matches("bytes=").trim_end_matches('-');
        let start: usize = start.parse().unwrap_or(0);
        let body = &self.body[start.min(total)..];
        let status = if range.is_empty() { self.status } else { 206 };
        write!(
            connection,
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nETag: {}\r\nConnection: close\r\n",
            body.len(),
            self.tag
        )?;
        if !range.is_empty() {
            write!(
                connection,
                "Content-Range: bytes {start}-{}/{total}\r\n",
                total - 1
            )?;
        }
        connection.write_all(b"\r\n")?;
        let sent = self
            .cut
            .or(self.stall)
            .unwrap_or(body.len())
            .min(body.len());
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
    ranges: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(crate) fn start(scripts: Vec<Served>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&ranges);
        if !scripts.is_empty() {
            std::thread::spawn(move || serve(&listener, &scripts, &seen));
        }
        Self { port, ranges }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}/image", self.port)
    }

    /// The ranges that were asked for, in order.
    pub(crate) fn ranges(&self) -> Vec<String> {
        self.ranges.lock().unwrap().clone()
    }
}

fn serve(listener: &TcpListener, scripts: &[Served], seen: &Mutex<Vec<String>>) {
    let repeated = scripts
        .iter()
        .chain(std::iter::repeat(&scripts[scripts.len() - 1]));
    for script in repeated {
        let Ok((connection, _)) = listener.accept() else {
            return;
        };
        let mut range = String::new();
        for line in BufReader::new(&connection).lines() {
            let line = line.unwrap_or_default();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("range: ") {
                value.clone_into(&mut range);
            }
        }
        seen.lock().unwrap().push(range.clone());
        // A client that goes away is what some tests are about.
        let _ = script.answer(connection, &range);
    }
}

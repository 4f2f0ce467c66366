//! Fetches a file by HTTP or HTTPS, resuming where a connection broke, and hands its bytes on.
//!
//! It resumes only what is provably the same file: same length, and the same strong `ETag` or
//! Last-Modified. What the bytes mean is not its business.

use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::time::{Duration, Instant};

use ferrite_proto::address::{Policy, Refused};
use ferrite_proto::problem::{Code, Problem};
use reqwest::StatusCode;
use reqwest::blocking::{Client, Response};
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, IF_RANGE, LAST_MODIFIED, RANGE,
};
use rustls::{ClientConfig, RootCertStore};

use super::{CHUNK, CHUNKS, Chunk, State, offer, reach, spawn, take};

/// How long a server may make us wait, and where it may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For the connection.
    pub(crate) connect: Duration,
    /// For the next bytes.
    pub(crate) read: Duration,
    /// How often in a row nothing may come before it is given up.
    pub(crate) attempts: u32,
    /// The wait before the second attempt; it doubles each time.
    pub(crate) pause: Duration,
    /// Where bytes may come from.
    pub(crate) from: Policy,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            read: Duration::from_secs(30),
            attempts: 5,
            pause: Duration::from_millis(500),
            from: Policy::Others,
        }
    }
}

/// Where the bytes go.
pub(super) struct Feed {
    state: Arc<State>,
    outlets: Vec<SyncSender<Arc<Chunk>>>,
    home: Sender<Vec<u8>>,
    spares: Receiver<Vec<u8>>,
}

impl Feed {
    pub(super) fn new(state: Arc<State>, outlets: Vec<SyncSender<Arc<Chunk>>>) -> Self {
        let (home, spares) = mpsc::channel();
        for _ in 0..CHUNKS {
            let _ = home.send(Vec::with_capacity(CHUNK));
        }
        Self {
            state,
            outlets,
            home,
            spares,
        }
    }

    /// Hands a buffer to every stage; `false` when nobody wants more.
    fn hand_on(&self, bytes: Vec<u8>) -> bool {
        let home = self.home.clone();
        let chunk = Arc::new(Chunk { bytes, home });
        let mut outlets = self.outlets.iter();
        outlets.all(|outlet| offer(outlet, Arc::clone(&chunk), &self.state))
    }
}

/// Why a file cannot be fetched.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{url} cannot be fetched: {why}")]
    Unreachable { url: String, why: String },
    #[error("{url} is not fetched: {why}")]
    Forbidden { url: String, why: Refused },
    #[error("{url} cannot be fetched: its server answers {status}")]
    Status { url: String, status: StatusCode },
    #[error("{url} broke off at byte {byte}{} and cannot be continued: {why}", of(*.total))]
    CutOff {
        url: String,
        byte: u64,
        total: Option<u64>,
        why: String,
    },
    #[error("nobody waits for the file any more")]
    Stopped,
}

fn of(total: Option<u64>) -> String {
    total.map_or(String::new(), |total| format!(" of {total}"))
}

impl FetchError {
    /// Whether the same request may succeed later.
    fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error()
                    || *status == StatusCode::TOO_MANY_REQUESTS
                    || *status == StatusCode::REQUEST_TIMEOUT
            }
            Self::Forbidden { .. } | Self::CutOff { .. } | Self::Stopped => false,
        }
    }
}

impl From<FetchError> for Problem {
    fn from(error: FetchError) -> Self {
        let (code, advice) = match &error {
            FetchError::CutOff { .. } => (
                Code::ImageTruncated,
                "check that the server holds the whole file; the disk does not boot until an \
                 image has been written whole",
            ),
            FetchError::Status { .. } if !error.may_pass() => (
                Code::ImageNotFound,
                "correct the image's URL, or put the file there; nothing was written",
            ),
            FetchError::Forbidden { .. } => (
                Code::ImageInvalid,
                "put the image on a server of your network, and name that; nothing was written",
            ),
            FetchError::Stopped => (Code::StepCancelled, ""),
            _ => (
                Code::ImageUnreachable,
                "check that this host reaches the image's server: address, name, port, certificate",
            ),
        };
        Self::new(code, error.to_string(), advice)
    }
}

/// Fetches on a thread of its own.
pub(super) fn start(url: String, patience: Patience, feed: Feed) -> Result<(), Problem> {
    spawn("fetch", move || {
        let result = client(patience, &url).and_then(|client| {
            Fetch {
                client,
                url,
                patience,
                feed: &feed,
                byte: 0,
                known: None,
                buffer: Vec::new(),
                filled: 0,
            }
            .run()
        });
        match result {
            // Before the outlets close: their readers tell an end from a break by it.
            Ok(()) => feed.state.fetched.store(true, Ordering::Release),
            // Whoever does not listen any more has said why.
            Err(FetchError::Stopped) => {}
            Err(error) => feed.state.fail(error.into()),
        }
    })
    .map(drop)
}

fn client(patience: Patience, url: &str) -> Result<Client, FetchError> {
    let roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let failed = |why: String| FetchError::Unreachable {
        url: url.to_owned(),
        why,
    };
    let config = ClientConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let parsed = reqwest::Url::parse(url).map_err(|error| failed(error.to_string()))?;
    reach::check(patience.from, &parsed).map_err(|why| FetchError::Forbidden {
        url: url.to_owned(),
        why,
    })?;
    reach::bounded(Client::builder(), patience.from)
        .tls_backend_preconfigured(config)
        .no_proxy()
        .referer(false)
        .connect_timeout(patience.connect)
        // In the blocking client this is for each read, not for the whole file.
        .timeout(patience.read)
        .user_agent(concat!("ferrite-agent/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| failed(chain(&error)))
}

/// What makes a file the same file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    total: Option<u64>,
    /// A strong `ETag`, else Last-Modified.
    mark: Option<String>,
}

impl Known {
    fn of(headers: &HeaderMap, total: Option<u64>) -> Self {
        let text = |name: HeaderName| {
            let value = headers.get(name)?.to_str().ok()?;
            (value.len() <= 256).then(|| value.to_owned())
        };
        let strong = text(ETAG).filter(|tag| !tag.starts_with("W/"));
        Self {
            total,
            mark: strong.or_else(|| text(LAST_MODIFIED)),
        }
    }
}

struct Fetch<'a> {
    client: Client,
    url: String,
    patience: Patience,
    feed: &'a Feed,
    /// The next byte that is wanted.
    byte: u64,
    known: Option<Known>,
    /// Of [`CHUNK`] bytes, and how many of them have come.
    buffer: Vec<u8>,
    filled: usize,
}

impl Fetch<'_> {
    fn run(mut self) -> Result<(), FetchError> {
        let mut response = self.open_patiently()?;
        let known = Known::of(response.headers(), response.content_length());
        let _ = self.feed.state.total.set(known.total);
        self.known = Some(known);
        let mut futile = 0;
        self.buffer = self.spare()?;
        loop {
            let before = self.byte;
            match self.pump(&mut response) {
                Ok(()) => return self.hand_on(),
                Err(FetchError::Stopped) => return Err(FetchError::Stopped),
                Err(error) => {
                    futile = if self.byte > before { 1 } else { futile + 1 };
                    response = self.resume(&error, &mut futile)?;
                }
            }
        }
    }

    fn spare(&self) -> Result<Vec<u8>, FetchError> {
        let mut buffer = take(&self.feed.spares, &self.feed.state).ok_or(FetchError::Stopped)?;
        buffer.resize(CHUNK, 0);
        Ok(buffer)
    }

    /// Hands on what has come.
    fn hand_on(&mut self) -> Result<(), FetchError> {
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.truncate(std::mem::take(&mut self.filled));
        if bytes.is_empty() || self.feed.hand_on(bytes) {
            Ok(())
        } else {
            Err(FetchError::Stopped)
        }
    }

    /// Reads the body to its end, handing on every full buffer.
    fn pump(&mut self, body: &mut Response) -> Result<(), FetchError> {
        loop {
            if self.feed.state.stopped() {
                return Err(FetchError::Stopped);
            }
            match body.read(&mut self.buffer[self.filled..]) {
                Ok(0) => return self.check_end(),
                Ok(count) => {
                    self.filled += count;
                    self.byte += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.unreachable(chain(&error))),
            }
            if self.filled == CHUNK {
                self.hand_on()?;
                self.buffer = self.spare()?;
            }
        }
    }

    fn check_end(&self) -> Result<(), FetchError> {
        let total = self.known.as_ref().and_then(|known| known.total);
        match total {
            Some(total) if self.byte != total => {
                Err(self.unreachable("the connection was closed".to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Opens the file from its start, more than once if need be.
    fn open_patiently(&self) -> Result<Response, FetchError> {
        let mut attempt = 1;
        loop {
            match self.open() {
                Err(error) if error.may_pass() && attempt < self.patience.attempts => {
                    self.wait(attempt)?;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    fn open(&self) -> Result<Response, FetchError> {
        let request = self.client.get(&self.url);
        let response = request
            .header(ACCEPT_ENCODING, "identity")
            .send()
            .map_err(|error| self.not_sent(&error))?;
        if response.status() == StatusCode::OK {
            Ok(response)
        } else {
            Err(self.status(response.status()))
        }
    }

    /// Goes on where the connection broke.
    fn resume(&self, cause: &FetchError, futile: &mut u32) -> Result<Response, FetchError> {
        loop {
            if *futile >= self.patience.attempts {
                return Err(self.cut_off(&cause.to_string()));
            }
            tracing::warn!(byte = self.byte, %cause, "continuing the image");
            self.wait(*futile)?;
            match self.open_at_byte() {
                Err(error) if error.may_pass() => *futile += 1,
                result => return result,
            }
        }
    }

    fn open_at_byte(&self) -> Result<Response, FetchError> {
        let known = self.known.as_ref();
        let mark = known.and_then(|known| known.mark.as_deref());
        let mark = mark.ok_or_else(|| {
            self.cut_off(
                "the server gives neither ETag nor Last-Modified to tell a changed file by",
            )
        })?;
        let response = self
            .client
            .get(&self.url)
            .header(ACCEPT_ENCODING, "identity")
            .header(RANGE, format!("bytes={}-", self.byte))
            .header(IF_RANGE, mark)
            .send()
            .map_err(|error| self.not_sent(&error))?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK => {
                return Err(self.cut_off("the file changed, or its server cannot continue"));
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(self.cut_off("the server's file ends here"));
            }
            status => return Err(self.status(status)),
        }
        let range = response.headers().get(CONTENT_RANGE);
        let (start, total) = range
            .and_then(|range| parse_range(range.to_str().ok()?))
            .ok_or_else(|| self.cut_off("the server continues without saying where"))?;
        let same = known == Some(&Known::of(response.headers(), total));
        if start == self.byte && same {
            Ok(response)
        } else {
            Err(self.cut_off("the server continues with another file"))
        }
    }

    fn wait(&self, attempt: u32) -> Result<(), FetchError> {
        let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1).min(6));
        let until = Instant::now() + self.patience.pause.saturating_mul(doubled);
        while Instant::now() < until {
            if self.feed.state.stopped() {
                return Err(FetchError::Stopped);
            }
            let left = until.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(super::GLANCE));
        }
        Ok(())
    }

    fn not_sent(&self, error: &reqwest::Error) -> FetchError {
        match reach::refusal(error) {
            Some(why) => FetchError::Forbidden {
                url: self.url.clone(),
                why: why.clone(),
            },
            None => self.unreachable(chain(error)),
        }
    }

    fn unreachable(&self, why: String) -> FetchError {
        FetchError::Unreachable {
            url: self.url.clone(),
            why,
        }
    }

    fn status(&self, status: StatusCode) -> FetchError {
        FetchError::Status {
            url: self.url.clone(),
            status,
        }
    }

    fn cut_off(&self, why: &str) -> FetchError {
        FetchError::CutOff {
            url: self.url.clone(),
            byte: self.byte,
            total: self.known.as_ref().and_then(|known| known.total),
            why: why.to_owned(),
        }
    }
}

/// `bytes 100-199/200`: the first byte, and the whole length.
fn parse_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    let mut text = error.to_string();
    for cause in causes.take(8) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_says_where_it_begins_and_how_long_the_whole_is() {
        assert_eq!(parse_range("bytes 100-199/200"), Some((100, Some(200))));
        assert_eq!(parse_range("bytes 0-0/*"), Some((0, None)));
        assert_eq!(parse_range("items 0-0/1"), None);
        assert_eq!(parse_range("bytes */200"), None);
    }
}

//! A file as its bytes: on a server, on several that hold the same one, or on this machine. Read
//! from its start or in ranges, by several threads at once, going on where a connection broke.
//!
//! It goes on only with what is provably the same file: the same length, and on each server the
//! same strong `ETag` or Last-Modified throughout. What the bytes mean is not its business.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ferrite_imaging::ReadAt;
use ferrite_proto::address::Refused;
use ferrite_proto::image::{Format, ImageRef};
use ferrite_proto::problem::{Code, Problem};
use reqwest::{Response, StatusCode};

use super::GLANCE;
use super::http::{Ask, Engine, Length, Remote, chain};
use super::oci;
use super::terms::{Patience, Terms};

/// What a server must give to be given its attempts back; else one that sends a byte and hangs up
/// would be asked for ever.
const WORTHWHILE: u64 = 64 << 10;
/// What is fetched to learn of a file that is read in ranges.
const GREETING: u64 = 4 << 10;

/// Set by whoever does not want the bytes any more.
pub(crate) type Stop = Arc<AtomicBool>;

/// Why a file cannot be fetched.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("{url} cannot be fetched: {why}")]
    Unreachable { url: String, why: String },
    #[error("{url} cannot be fetched: its server sends fewer than {slowest} bytes a second")]
    TooSlow { url: String, slowest: u64 },
    #[error("{url} cannot be fetched: {why}")]
    Setup { url: String, why: String },
    #[error("{url} is not fetched: {why}")]
    Forbidden { url: String, why: Refused },
    #[error("{url} cannot be fetched: its server answers {status}")]
    Status {
        url: String,
        status: StatusCode,
        /// When it wants to be asked again.
        after: Option<Duration>,
    },
    #[error("{url} cannot be read in parts: its server only gives whole files")]
    NoRanges { url: String },
    #[error("{url}: {why}")]
    NotTheSame { url: String, why: &'static str },
    #[error("{url} has {has} bytes, but the same file has {wanted} elsewhere")]
    OtherLength { url: String, has: u64, wanted: u64 },
    #[error("{url} broke off at byte {byte}{} and cannot be continued: {why}", of(*.total))]
    CutOff {
        url: String,
        byte: u64,
        total: Option<u64>,
        why: String,
    },
    #[error("none of {} servers has it: {}", .0.len(), listed(.0))]
    Nowhere(Vec<FetchError>),
    #[error("{path} cannot be read: {why}")]
    Local { path: PathBuf, why: String },
    #[error("nobody waits for the file any more")]
    Stopped,
}

fn of(total: Option<u64>) -> String {
    total.map_or(String::new(), |total| format!(" of {total}"))
}

fn listed(errors: &[FetchError]) -> String {
    let all: Vec<String> = errors.iter().map(ToString::to_string).collect();
    all.join("; ")
}

impl FetchError {
    /// Whether the same request may succeed later.
    fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TooSlow { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error()
                    || *status == StatusCode::TOO_MANY_REQUESTS
                    || *status == StatusCode::REQUEST_TIMEOUT
            }
            Self::Nowhere(errors) => errors.iter().any(Self::may_pass),
            _ => false,
        }
    }

    /// Whether all that is missing is a server that knows ranges.
    pub(crate) fn is_for_want_of_ranges(&self) -> bool {
        match self {
            Self::NoRanges { .. } => true,
            Self::Nowhere(errors) => errors.iter().all(Self::is_for_want_of_ranges),
            _ => false,
        }
    }

    fn pause(&self) -> Option<Duration> {
        match self {
            Self::Status { after, .. } => *after,
            _ => None,
        }
    }
}

impl From<FetchError> for Problem {
    fn from(error: FetchError) -> Self {
        let (code, advice) = match &error {
            FetchError::CutOff { .. } | FetchError::NotTheSame { .. } => (
                Code::ImageTruncated,
                "check that the server holds the whole file; the disk does not boot until an \
                 image has been written whole",
            ),
            FetchError::Status { .. } if !error.may_pass() => (
                Code::ImageNotFound,
                "correct the image's URL, or put the file there, or check who may read it; \
                 nothing was written",
            ),
            FetchError::Nowhere(_) if !error.may_pass() => (
                Code::ImageNotFound,
                "put the same file on one of them; nothing was written",
            ),
            FetchError::OtherLength { .. } => (
                Code::ImageInvalid,
                "publish the same file on every mirror, or name only those that have it",
            ),
            FetchError::NoRanges { .. } => (
                Code::ImageInvalid,
                "use a server that knows ranges (RFC 9110, 14): nginx, Apache, S3 and \
                 `ferrite image` do; nothing was written",
            ),
            FetchError::Forbidden { .. } => (
                Code::ImageInvalid,
                "put the image on a server of your network, and name that; nothing was written",
            ),
            FetchError::Setup { .. } => (
                Code::ImageInvalid,
                "correct what is said of this server; nothing was written",
            ),
            FetchError::Local { .. } => (
                Code::ImageInvalid,
                "name a plain file that can be read; the disk does not boot until an image has \
                 been written whole",
            ),
            FetchError::Stopped => (Code::StepCancelled, ""),
            FetchError::Unreachable { .. }
            | FetchError::TooSlow { .. }
            | FetchError::Status { .. }
            | FetchError::Nowhere(_) => (
                Code::ImageUnreachable,
                "check that this host reaches the image's server: address, name, port, certificate",
            ),
        };
        Self::new(code, error.to_string(), advice)
    }
}

/// A file that bytes can be had of. Its clones are the same source.
#[derive(Debug, Clone)]
pub(crate) struct Source(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    place: Place,
    stop: Stop,
    /// Once somebody has answered.
    length: OnceLock<Length>,
    moved: AtomicU64,
}

#[derive(Debug)]
enum Place {
    Local { file: File, path: PathBuf },
    Web(Web),
}

/// Servers that hold the same file.
#[derive(Debug)]
struct Web {
    engine: Engine,
    mirrors: Vec<Remote>,
    /// The one that is asked first: the last that answered.
    current: AtomicUsize,
    patience: Patience,
}

impl Source {
    /// A file that an image names. Nobody is asked yet.
    pub(crate) fn new(image: &ImageRef, terms: &Terms, stop: Stop) -> Result<Self, FetchError> {
        let path = image.url.strip_prefix("file://");
        if let Some(path) = path.filter(|_| terms.local_files) {
            return Self::local(Path::new(path), stop);
        }
        let first = match oci::blob_of(&image.url) {
            Some((url, named)) => Remote::of_registry(&url, &named, None, terms)?,
            None => Remote::new(&image.url, terms)?,
        };
        let others = image.mirrors.iter().map(|url| Remote::new(url, terms));
        let mirrors = std::iter::once(Ok(first)).chain(others);
        let mirrors = mirrors.collect::<Result<_, _>>()?;
        let engine = match image.format {
            Format::Packed => Engine::for_many(),
            Format::Raw | Format::Qcow2 => Engine::for_one(),
        };
        Self::web(mirrors, engine, terms, stop)
    }

    /// Something at a URL that is no image.
    pub(super) fn of_url(url: &str, terms: &Terms, stop: Stop) -> Result<Self, FetchError> {
        Self::web(
            vec![Remote::new(url, terms)?],
            Engine::for_one(),
            terms,
            stop,
        )
    }

    /// Something of a registry's API, of the server that `named` is on.
    pub(super) fn of_registry(
        url: &str,
        named: &str,
        accept: &'static str,
        terms: &Terms,
        stop: Stop,
    ) -> Result<Self, FetchError> {
        let remote = Remote::of_registry(url, named, Some(accept), terms)?;
        Self::web(vec![remote], Engine::for_one(), terms, stop)
    }

    fn local(path: &Path, stop: Stop) -> Result<Self, FetchError> {
        let length = OnceLock::new();
        let place = local(path, &length)?;
        Ok(Self::at(place, length, stop))
    }

    fn web(
        mirrors: Vec<Remote>,
        engine: io::Result<Engine>,
        terms: &Terms,
        stop: Stop,
    ) -> Result<Self, FetchError> {
        let web = Web::new(mirrors, engine, terms.patience)?;
        Ok(Self::at(Place::Web(web), OnceLock::new(), stop))
    }

    fn at(place: Place, length: OnceLock<Length>, stop: Stop) -> Self {
        Self(Arc::new(Inner {
            place,
            stop,
            length,
            moved: AtomicU64::new(0),
        }))
    }

    /// The file's length, once its server has said it.
    pub(crate) fn total(&self) -> Option<u64> {
        self.0.length.get().and_then(|length| length.0)
    }

    /// Bytes that have come so far, those that came twice twice.
    pub(crate) fn moved(&self) -> u64 {
        self.0.moved.load(Ordering::Relaxed)
    }

    /// The whole file from its start. Any server will do.
    pub(crate) fn whole(&self) -> Reader {
        Reader::new(self.clone(), 0, None, true)
    }

    /// Bytes of the file. The server has to know ranges. Fewer come only with an error.
    pub(crate) fn range(&self, range: Range<u64>) -> Reader {
        Reader::new(self.clone(), range.start, Some(range.end), false)
    }

    /// What is said when it would have to be read in ranges, and cannot.
    pub(crate) fn for_want_of_ranges(&self) -> FetchError {
        let url = self.name();
        FetchError::NoRanges { url }
    }

    /// How messages call it.
    fn name(&self) -> String {
        match &self.0.place {
            Place::Local { path, .. } => path.display().to_string(),
            Place::Web(web) => web.mirrors[0].url.clone(),
        }
    }

    /// Before ranges are read: learns the file's length, and gives its first bytes.
    pub(crate) fn greet(&self) -> Result<Vec<u8>, FetchError> {
        let mut reader = self.range(0..self.total().unwrap_or(GREETING).min(GREETING));
        let mut first = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            if self.total().is_some_and(|total| reader.next >= total) {
                return Ok(first);
            }
            match reader.next(&mut buffer)? {
                0 => return Ok(first),
                count => first.extend_from_slice(&buffer[..count]),
            }
        }
    }
}

impl ReadAt for Source {
    fn size(&self) -> io::Result<u64> {
        self.total()
            .ok_or_else(|| io::Error::other("the server does not say how long the file is"))
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        let end = end.filter(|&end| self.total().is_some_and(|total| end <= total));
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.range(offset..end).read_exact(buffer)
    }
}

fn local(path: &Path, length: &OnceLock<Length>) -> Result<Place, FetchError> {
    let failed = |why: String| FetchError::Local {
        path: path.to_owned(),
        why,
    };
    // Before it is opened: a FIFO would make that wait.
    let kind = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    if !kind.is_file() {
        return Err(failed("it is not a plain file".to_owned()));
    }
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let found = file.metadata().map_err(|error| failed(error.to_string()))?;
    let _ = length.set(Length(Some(found.len())));
    Ok(Place::Local {
        file,
        path: path.to_owned(),
    })
}

impl Web {
    fn new(
        mirrors: Vec<Remote>,
        engine: io::Result<Engine>,
        patience: Patience,
    ) -> Result<Self, FetchError> {
        let engine = engine.map_err(|error| FetchError::Setup {
            url: mirrors
                .first()
                .map_or_else(String::new, |first| first.url.clone()),
            why: error.to_string(),
        })?;
        Ok(Self {
            engine,
            mirrors,
            current: AtomicUsize::new(0),
            patience,
        })
    }

    fn remote(&self, index: usize) -> Option<&Remote> {
        self.mirrors.get(index)
    }

    /// The next one after `index` that has not been given up, and whether all had their turn.
    fn after(&self, index: usize) -> Option<(usize, bool)> {
        let count = self.mirrors.len();
        (1..=count)
            .map(|step| (index + step) % count)
            .find(|&next| self.mirrors[next].given_up.get().is_none())
            .map(|next| (next, next <= index))
    }

    /// Why there is nobody left to ask.
    fn nobody(&self, last: FetchError) -> FetchError {
        let given_up = |remote: &Remote| remote.given_up.get().cloned();
        let mut errors: Vec<FetchError> = self.mirrors.iter().filter_map(given_up).collect();
        match errors.len() {
            0 => last,
            1 if self.mirrors.len() == 1 => errors.remove(0),
            count if count < self.mirrors.len() => {
                errors.push(last);
                FetchError::Nowhere(errors)
            }
            _ => FetchError::Nowhere(errors),
        }
    }
}

/// Consecutive bytes of a source. It is of one thread; each has a connection of its own.
#[derive(Debug)]
pub(crate) struct Reader {
    source: Source,
    /// The next byte that is wanted.
    next: u64,
    /// Where to end; else at the file's end.
    end: Option<u64>,
    /// Ranges have not been needed so far.
    whole: bool,
    body: Option<Body>,
    /// How often in a row nothing worthwhile came, and what has come since.
    futile: u32,
    gained: u64,
}

/// An answer that is being read.
#[derive(Debug)]
struct Body {
    mirror: usize,
    response: Response,
    rest: Bytes,
    pace: Pace,
}

/// How fast bytes come, in the time that was spent waiting for them.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Whether fewer bytes came than must.
    fn is_too_slow(&mut self, waited: Duration, bytes: u64, patience: Patience) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < patience.read {
            return false;
        }
        let done = std::mem::take(self);
        let wanted = u128::from(patience.slowest) * done.waited.as_millis() / 1000;
        u128::from(done.bytes) < wanted
    }
}

impl Reader {
    fn new(source: Source, next: u64, end: Option<u64>, whole: bool) -> Self {
        Self {
            source,
            next,
            end,
            whole,
            body: None,
            futile: 0,
            gained: 0,
        }
    }

    /// What is said when it ends before all that is wanted came.
    pub(crate) fn ended(&self) -> FetchError {
        FetchError::NotTheSame {
            url: self.source.name(),
            why: "it ended before all that its index names",
        }
    }

    /// Some of the next bytes; none at the end.
    pub(crate) fn next(&mut self, buffer: &mut [u8]) -> Result<usize, FetchError> {
        let room = self
            .end
            .map_or(u64::MAX, |end| end.saturating_sub(self.next));
        let room = usize::try_from(room)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let buffer = &mut buffer[..room];
        if buffer.is_empty() {
            return Ok(0);
        }
        let inner = Arc::clone(&self.source.0);
        if inner.stop.load(Ordering::Relaxed) {
            return Err(FetchError::Stopped);
        }
        let count = match &inner.place {
            Place::Local { file, path } => self.read_local(file, path, buffer)?,
            Place::Web(web) => self.read_web(web, buffer)?,
        };
        self.next += count as u64;
        Ok(count)
    }

    fn read_local(&self, file: &File, path: &Path, buffer: &mut [u8]) -> Result<usize, FetchError> {
        let failed = |why: String| FetchError::Local {
            path: path.to_owned(),
            why,
        };
        loop {
            match file.read_at(buffer, self.next) {
                Ok(0) if self.source.total().is_some_and(|total| self.next < total) => {
                    return Err(failed(format!("it ends at byte {}", self.next)));
                }
                Ok(count) => {
                    let moved = &self.source.0.moved;
                    moved.fetch_add(count as u64, Ordering::Relaxed);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error.to_string())),
            }
        }
    }

    fn read_web(&mut self, web: &Web, buffer: &mut [u8]) -> Result<usize, FetchError> {
        loop {
            let result = match self.body.as_mut() {
                Some(body) if !body.rest.is_empty() => {
                    let count = body.rest.len().min(buffer.len());
                    buffer[..count].copy_from_slice(&body.rest.split_to(count));
                    return Ok(count);
                }
                Some(_) => self.receive(web),
                None => self.open(web).map(|()| true),
            };
            match result {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(FetchError::Stopped) => return Err(FetchError::Stopped),
                Err(error) => self.recover(web, error)?,
            }
        }
    }

    /// Asks the current server for what is wanted next.
    fn open(&mut self, web: &Web) -> Result<(), FetchError> {
        let inner = &self.source.0;
        let mirror = web.current.load(Ordering::Relaxed);
        let Some(remote) = web.remote(mirror) else {
            return Err(FetchError::Stopped);
        };
        if let Some(error) = remote.given_up.get() {
            return Err(error.clone());
        }
        let ask = if self.whole && self.next == 0 {
            Ask::Whole
        } else {
            Ask::Part(self.next, self.end)
        };
        let known = inner.length.get().copied();
        let (response, length) = remote.ask(ask, known, &web.engine, &inner.stop)?;
        if *inner.length.get_or_init(|| length) != length {
            return Err(remote.unreachable("two servers answered at once".to_owned()));
        }
        self.body = Some(Body {
            mirror,
            response,
            rest: Bytes::new(),
            pace: Pace::default(),
        });
        Ok(())
    }

    /// Waits for more of the answer; `false` when that was all.
    fn receive(&mut self, web: &Web) -> Result<bool, FetchError> {
        let inner = &self.source.0;
        let Some(body) = self.body.as_mut() else {
            return Ok(false);
        };
        let Some(remote) = web.remote(body.mirror) else {
            return Ok(false);
        };
        let began = Instant::now();
        let more = web
            .engine
            .wait(web.patience.read, &inner.stop, body.response.chunk())
            .map_err(|waited| remote.waited(&waited))?
            .map_err(|error| remote.unreachable(chain(&error)))?;
        let Some(more) = more else {
            let end = self.end.or_else(|| self.source.total());
            return match end {
                Some(end) if self.next != end => {
                    Err(remote.unreachable("the connection was closed".to_owned()))
                }
                _ => Ok(false),
            };
        };
        let count = more.len() as u64;
        inner.moved.fetch_add(count, Ordering::Relaxed);
        if body.pace.is_too_slow(began.elapsed(), count, web.patience) {
            return Err(FetchError::TooSlow {
                url: remote.url.clone(),
                slowest: web.patience.slowest,
            });
        }
        body.rest = more;
        self.gained += count;
        Ok(true)
    }

    /// After an error: goes to the next server, or waits and goes to the same, or gives up.
    fn recover(&mut self, web: &Web, error: FetchError) -> Result<(), FetchError> {
        let mirror = self.body.take().map(|body| body.mirror);
        let mirror = mirror.unwrap_or_else(|| web.current.load(Ordering::Relaxed));
        let gained = std::mem::take(&mut self.gained);
        if gained >= WORTHWHILE && !matches!(error, FetchError::TooSlow { .. }) {
            self.futile = 0;
        }
        if let Some(remote) = web.remote(mirror).filter(|_| !error.may_pass()) {
            let _ = remote.given_up.set(error.clone());
        }
        let Some((next, round)) = web.after(mirror) else {
            return Err(self.given_up(web, error));
        };
        tracing::warn!(byte = self.next, %error, "going on with the image");
        web.current.store(next, Ordering::Relaxed);
        if round {
            self.futile += 1;
            if self.futile >= web.patience.attempts {
                return Err(self.given_up(web, error));
            }
            self.rest(web.patience, error.pause())?;
        }
        Ok(())
    }

    /// What is said when nobody is left: where it broke off, if it had begun.
    fn given_up(&self, web: &Web, last: FetchError) -> FetchError {
        let url = web.mirrors[0].url.clone();
        let error = web.nobody(last);
        let begun = self.source.0.length.get().is_some();
        if !begun || matches!(error, FetchError::Forbidden { .. }) {
            return error;
        }
        FetchError::CutOff {
            url,
            byte: self.next,
            total: self.source.total(),
            why: error.to_string(),
        }
    }

    fn rest(&self, patience: Patience, asked: Option<Duration>) -> Result<(), FetchError> {
        let doubled = 2_u32.saturating_pow(self.futile.saturating_sub(1).min(6));
        let pause = patience.pause.saturating_mul(doubled);
        let until = Instant::now() + pause.max(asked.unwrap_or_default());
        while Instant::now() < until {
            if self.source.0.stop.load(Ordering::Relaxed) {
                return Err(FetchError::Stopped);
            }
            let left = until.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(GLANCE));
        }
        Ok(())
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.next(buffer).map_err(io::Error::other)
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;

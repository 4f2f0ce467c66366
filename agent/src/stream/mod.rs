//! The data path: fetch → digest, fetch → decompress → (the caller) disk. Each arrow is a bounded
//! queue between threads, and all buffers are made once, so memory stays the same whatever the
//! image's size.
//!
//! Threads and `Read`/`Write`, not async: every stage is one loop that can be read from top to
//! bottom. Deliberately no knowledge of disks here; `write` has that.

mod decompress;
mod fetch;
#[cfg(test)]
#[path = "fixture_tests.rs"]
pub(crate) mod fixture;
mod gate;
mod http;
pub(crate) mod meter;
mod oci;
mod reach;
pub(crate) mod resolve;
pub(crate) mod source;
mod sums;
pub(crate) mod terms;
pub(crate) mod verify;
pub(crate) mod write;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ferrite_proto::digest::Digest;
use ferrite_proto::image::ImageRef;
use ferrite_proto::problem::{Code, Problem};

use crate::disk::aligned::Aligned;
use source::{Source, Stop};
use terms::Terms;

/// Buffers of the file as fetched: how many, and how large.
const CHUNKS: usize = 8;
const CHUNK: usize = 1 << 20;
/// Buffers of the image.
const PIECES: usize = 6;
pub(crate) const PIECE: usize = 2 << 20;
/// How often a waiting thread looks whether it shall stop.
pub(crate) const GLANCE: Duration = Duration::from_millis(100);

/// What the stages know of each other.
#[derive(Debug, Default)]
struct State {
    /// Everybody shall end.
    stop: Stop,
    /// The whole file has been fetched.
    fetched: AtomicBool,
    /// Bytes of the file that have been decompressed.
    consumed: AtomicU64,
    /// The file is the image, byte for byte.
    plain: AtomicBool,
    /// The first thing that went wrong; what goes wrong after it is its consequence.
    failure: Mutex<Option<Problem>>,
}

impl State {
    fn fail(&self, problem: Problem) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(problem);
        self.stop.store(true, Ordering::Relaxed);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Bytes of the file as fetched. Its buffer goes home when the last stage is done with it.
#[derive(Debug)]
struct Chunk {
    bytes: Vec<u8>,
    home: Sender<Vec<u8>>,
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // Nobody is there any more when the stream has ended.
        let _ = self.home.send(std::mem::take(&mut self.bytes));
    }
}

/// Consecutive bytes of the image.
#[derive(Debug)]
pub(crate) struct Piece {
    /// Room for [`PIECE`] bytes.
    pub(crate) buffer: Aligned,
    /// How many of them count. Only the last piece has fewer than [`PIECE`].
    pub(crate) length: usize,
    /// Known to be zeros, all of the buffer. Whoever writes anything else there says so.
    pub(crate) zero: bool,
}

impl Piece {
    fn empty() -> Self {
        Self {
            buffer: Aligned::zeroed(PIECE),
            length: 0,
            zero: true,
        }
    }
}

/// What a stream came to.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// Bytes of the file.
    pub(crate) bytes: u64,
    /// Its digest, when one was demanded.
    pub(crate) digest: Option<Digest>,
}

/// An image on its way.
#[derive(Debug)]
pub(crate) struct ImageStream {
    state: Arc<State>,
    pieces: Receiver<Piece>,
    spare: Sender<Piece>,
    digest: Option<JoinHandle<Digest>>,
    image: ImageRef,
    source: Source,
}

impl ImageStream {
    /// Starts to fetch. Nothing has to be there yet: the first [`Self::next`] tells.
    pub(crate) fn start(image: &ImageRef, terms: &Terms) -> Result<Self, Problem> {
        let stop = Stop::default();
        let source = Source::new(image, terms, Stop::clone(&stop))?;
        Self::over(image, source, stop)
    }

    /// Starts to fetch what has been read in parts before: all of it, and the same file. `stop`
    /// ends the source.
    pub(crate) fn over(image: &ImageRef, source: Source, stop: Stop) -> Result<Self, Problem> {
        let state = Arc::new(State {
            stop,
            ..State::default()
        });
        let (to_decompress, compressed) = mpsc::sync_channel(CHUNKS);
        let (to_write, pieces) = mpsc::sync_channel(PIECES);
        let (spare, spares) = mpsc::channel();
        for _ in 0..PIECES {
            let _ = spare.send(Piece::empty());
        }
        let mut outlets = vec![to_decompress];
        let digest = match &image.digest {
            Some(digest) => Some(verify::start(digest.algorithm(), &mut outlets)?),
            None => None,
        };
        let feed = fetch::Feed::new(Arc::clone(&state), outlets);
        fetch::start(source.clone(), feed)?;
        let work = decompress::Work {
            state: Arc::clone(&state),
            compressed,
            pieces: to_write,
            spares,
            declared: image.compression,
            url: image.url.clone(),
        };
        decompress::start(work)?;
        Ok(Self {
            state,
            pieces,
            spare,
            digest,
            image: image.clone(),
            source,
        })
    }

    /// The next bytes of the image; nothing at its end.
    pub(crate) fn next(&self, cancelled: &AtomicBool) -> Result<Option<Piece>, Problem> {
        loop {
            if cancelled.load(Ordering::Relaxed) {
                return Err(cancelled_problem());
            }
            match self.pieces.recv_timeout(GLANCE) {
                Ok(piece) => return Ok(Some(piece)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.failure().map_or(Ok(None), Err),
            }
        }
    }

    /// Gives a buffer back.
    pub(crate) fn recycle(&self, piece: Piece) {
        let _ = self.spare.send(piece);
    }

    /// Bytes of the file that have passed.
    pub(crate) fn consumed(&self) -> u64 {
        self.state.consumed.load(Ordering::Relaxed)
    }

    /// Length of the file, once its server has said it.
    pub(crate) fn total(&self) -> Option<u64> {
        self.source.total()
    }

    /// Whether the file is not compressed; known once the first piece is there.
    pub(crate) fn is_plain(&self) -> bool {
        self.state.plain.load(Ordering::Acquire)
    }

    /// After the end: was all of it what was demanded?
    pub(crate) fn finish(mut self) -> Result<Fetched, Problem> {
        let digest = match self.digest.take() {
            Some(thread) => Some(
                thread
                    .join()
                    .map_err(|_| internal("the digest was not computed"))?,
            ),
            None => None,
        };
        if let Some(problem) = self.failure() {
            return Err(problem);
        }
        if !self.state.fetched.load(Ordering::Acquire) {
            return Err(internal("the stream ended before the file did"));
        }
        if digest == self.image.digest {
            let bytes = self.consumed();
            return Ok(Fetched { bytes, digest });
        }
        let shown = |digest: &Option<Digest>| digest.as_ref().map(ToString::to_string);
        let found = shown(&digest).unwrap_or_default();
        let wanted = shown(&self.image.digest).unwrap_or_default();
        let url = &self.image.url;
        Err(Problem::new(
            Code::ImageDigestMismatch,
            format!("{url} has the digest {found}, but {wanted} was demanded"),
            "correct the digest if the image was renewed, else find out who changed it; the disk \
             does not boot until an image has been written whole",
        ))
    }

    fn failure(&self) -> Option<Problem> {
        let failure = self.state.failure.lock();
        failure.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for ImageStream {
    /// Whoever drops a stream early wants its threads to end. They do within their read's time
    /// limit; nobody waits for that, because a cancelled step must end within a second.
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
    }
}

/// What a cancelled step says.
pub(crate) fn cancelled_problem() -> Problem {
    Problem::new(
        Code::StepCancelled,
        "the step was cancelled",
        "a disk that was being written does not boot; start over",
    )
}

fn internal(what: &str) -> Problem {
    Problem::new(Code::Internal, what, "report this, with the host's log")
}

/// Starts a stage on a thread of its own.
fn spawn<T: Send + 'static>(
    name: &str,
    stage: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, Problem> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread
        .spawn(stage)
        .map_err(|error| internal(&format!("no thread can be started: {error}")))
}

/// Sends to a stage that may have ended or may have to end; `false` when there is no point.
fn offer<T>(outlet: &SyncSender<T>, item: T, state: &State) -> bool {
    !state.stopped() && outlet.send(item).is_ok()
}

/// Takes from a stage, or nothing when it has ended or everybody shall end.
fn take<T>(inlet: &Receiver<T>, state: &State) -> Option<T> {
    loop {
        match inlet.recv_timeout(GLANCE) {
            Ok(item) => return Some(item),
            Err(RecvTimeoutError::Timeout) if !state.stopped() => {}
            Err(_) => return None,
        }
    }
}

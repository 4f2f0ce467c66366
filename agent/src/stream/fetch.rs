//! The first stage of a stream: takes a file from its source, from start to end, and hands its
//! bytes to the stages after it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};

use ferrite_proto::problem::Problem;

use super::source::{FetchError, Reader, Source};
use super::{CHUNK, CHUNKS, Chunk, State, offer, spawn, take};

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

    /// Hands on all that comes.
    fn run(&self, mut from: Reader) -> Result<(), FetchError> {
        loop {
            let mut buffer = take(&self.spares, &self.state).ok_or(FetchError::Stopped)?;
            buffer.resize(CHUNK, 0);
            let filled = fill(&mut from, &mut buffer)?;
            buffer.truncate(filled);
            if filled > 0 && !self.hand_on(buffer) {
                return Err(FetchError::Stopped);
            }
            if filled < CHUNK {
                return Ok(());
            }
        }
    }
}

/// Fetches on a thread of its own.
pub(super) fn start(source: Source, feed: Feed) -> Result<(), Problem> {
    spawn("fetch", move || {
        let from = source.whole();
        match feed.run(from) {
            // Before the outlets close: their readers tell an end from a break by it.
            Ok(()) => feed.state.fetched.store(true, Ordering::Release),
            // Whoever does not listen any more has said why.
            Err(FetchError::Stopped) => {}
            Err(error) => feed.state.fail(error.into()),
        }
    })
    .map(drop)
}

/// Reads until the buffer is full or the file ends.
fn fill(from: &mut Reader, buffer: &mut [u8]) -> Result<usize, FetchError> {
    let mut done = 0;
    while done < buffer.len() {
        match from.next(&mut buffer[done..])? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done)
}

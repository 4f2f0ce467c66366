//! The file as fetched becomes the image: decompressed by what its bytes say it is, with bounded
//! memory, into buffers that a disk can take directly.

use std::io::{self, BufRead, ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};

use ferrite_imaging::decompress::{MEMORY, decoder};
use ferrite_imaging::is_zero;
use ferrite_proto::image::Compression;
use ferrite_proto::problem::{Code, Problem};

use super::{Chunk, PIECE, Piece, State, offer, spawn, take};

/// The stage's surroundings.
pub(super) struct Work {
    pub(super) state: Arc<State>,
    pub(super) compressed: Receiver<Arc<Chunk>>,
    pub(super) pieces: SyncSender<Piece>,
    pub(super) spares: Receiver<Piece>,
    pub(super) declared: Option<Compression>,
    pub(super) url: String,
}

pub(super) fn start(work: Work) -> Result<(), Problem> {
    spawn("decompress", move || {
        // The outlet closes only after that: whoever finds it closed looks for the reason.
        if let Err(problem) = work.run() {
            work.state.fail(problem);
        }
    })
    .map(drop)
}

impl Work {
    fn run(&self) -> Result<(), Problem> {
        let state = &self.state;
        let mut source = Chunks {
            state,
            inlet: &self.compressed,
            chunk: None,
            at: 0,
        };
        let Ok(first) = source.fill_buf() else {
            return Ok(());
        };
        let compression = agreed(self.declared, Compression::of(first), first, &self.url)?;
        let plain = compression == Compression::None;
        state.plain.store(plain, Ordering::Release);
        let broken = |error: io::Error| broken(&error, compression, state, &self.url);
        if plain {
            return self.hand_on(|piece| copy(&mut source, piece).map_err(broken));
        }
        let mut decoder = decoder(compression, source, MEMORY).map_err(broken)?;
        self.hand_on(|piece| {
            piece.zero = false;
            piece.length = fill(&mut decoder, &mut piece.buffer).map_err(broken)?;
            Ok(())
        })
    }

    /// Hands on pieces as they are filled, until one is not full.
    fn hand_on(
        &self,
        mut fill: impl FnMut(&mut Piece) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        while let Some(mut piece) = take(&self.spares, &self.state) {
            fill(&mut piece)?;
            let length = piece.length;
            if length == 0 || !offer(&self.pieces, piece, &self.state) || length < PIECE {
                break;
            }
        }
        Ok(())
    }
}

/// What a person declared must be what the bytes say; a wrong word would write garbage.
fn agreed(
    declared: Option<Compression>,
    found: Compression,
    first: &[u8],
    url: &str,
) -> Result<Compression, Problem> {
    if first.is_empty() {
        return Err(Problem::new(
            Code::ImageTruncated,
            format!("{url} is empty"),
            "publish the image again",
        ));
    }
    match declared {
        Some(declared) if declared != found => Err(Problem::new(
            Code::ImageFormat,
            format!("{url} is declared as {declared:?} (compression), but its bytes say {found:?}"),
            "correct the declaration, or leave it out; nothing was written",
        )),
        _ => Ok(found),
    }
}

/// The file's own bytes become a piece. Most of a disk image is zeros: those are looked at, and not
/// copied where they are already.
fn copy(source: &mut impl BufRead, piece: &mut Piece) -> io::Result<()> {
    let mut only_zeros = true;
    piece.length = 0;
    while piece.length < PIECE {
        let bytes = source.fill_buf()?;
        let count = bytes.len().min(PIECE - piece.length);
        if count == 0 {
            break;
        }
        let bytes = &bytes[..count];
        let zeros = is_zero(bytes);
        only_zeros &= zeros;
        if !(zeros && piece.zero) {
            piece.zero = false;
            piece.buffer[piece.length..piece.length + count].copy_from_slice(bytes);
        }
        source.consume(count);
        piece.length += count;
    }
    piece.zero |= only_zeros && piece.length == PIECE;
    Ok(())
}

/// Reads until the buffer is full or the image ends.
fn fill(decoder: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match decoder.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn broken(error: &io::Error, compression: Compression, state: &State, url: &str) -> Problem {
    let byte = state.consumed.load(Ordering::Relaxed);
    if error.kind() == ErrorKind::UnexpectedEof {
        return Problem::new(
            Code::ImageTruncated,
            format!("{url} ends at byte {byte}, in the middle of its {compression:?} data"),
            "publish the whole image; the disk does not boot until one has been written whole",
        );
    }
    Problem::new(
        Code::ImageFormat,
        format!("{url} cannot be decompressed ({compression:?}, before byte {byte}): {error}"),
        "check the file with its own tool (gzip -t, zstd -t, xz -t, bzip2 -t, lz4 -t) and publish \
         it again",
    )
}

/// The fetched chunks, read one after the other without being copied.
struct Chunks<'a> {
    state: &'a State,
    inlet: &'a Receiver<Arc<Chunk>>,
    chunk: Option<Arc<Chunk>>,
    at: usize,
}

impl BufRead for Chunks<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let used_up = |chunk: &Arc<Chunk>, at| at >= chunk.bytes.len();
        if self
            .chunk
            .as_ref()
            .is_none_or(|chunk| used_up(chunk, self.at))
        {
            self.chunk = None;
            self.at = 0;
            self.chunk = take(self.inlet, self.state);
            if self.chunk.is_none() && !self.state.fetched.load(Ordering::Acquire) {
                // The fetch was cut off; its own error says why.
                return Err(ErrorKind::BrokenPipe.into());
            }
        }
        let bytes = self.chunk.as_ref().map(|chunk| chunk.bytes.as_slice());
        Ok(bytes
            .and_then(|bytes| bytes.get(self.at..))
            .unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
        let amount = amount as u64;
        self.state.consumed.fetch_add(amount, Ordering::Relaxed);
    }
}

impl Read for Chunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer that was used before holds, and says of itself, what came last.
    #[test]
    fn a_piece_is_what_came_and_knows_whether_it_is_zeros() {
        let noise = vec![7; PIECE];
        let zeros = vec![0; PIECE];
        let mixed = [&noise[..PIECE / 2], &zeros[..PIECE / 2]].concat();
        let mut piece = Piece::empty();
        for (bytes, zero) in [
            (&zeros[..], true),
            (&zeros[..1000], true),
            (&mixed[..], false),
            (&zeros[..1000], false),
            (&zeros[..], true),
            (&noise[..], false),
            (&mixed[..], false),
            (&zeros[..], true),
            (&noise[..5], false),
        ] {
            // In parts that do not meet the piece's ends.
            let mut source = io::BufReader::with_capacity(300_000, bytes);
            copy(&mut source, &mut piece).unwrap();
            assert_eq!(piece.zero, zero);
            assert!(piece.buffer[..piece.length] == *bytes);
            assert!(!piece.zero || is_zero(&piece.buffer));
        }
    }
}

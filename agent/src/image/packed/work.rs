//! The threads that make the chunks right: each takes the next run of chunks, compares, fetches
//! with a connection of its own, decodes, checks and writes.
//!
//! Each has buffers for one chunk, made once; how many threads there are is bounded by memory, so
//! that it stays the same whatever the image's size and however many processors there are.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

use ferrite_imaging::is_zero;
use ferrite_imaging::packed::{Index, Unpacker};
use ferrite_proto::problem::{Code, Problem};

use super::deeds::{Deed, deeds};
use super::file::File;
use super::open::Held;
use super::tally::{Tally, add};
use super::{Begun, Edges, Target, internal, open};
use crate::disk::DiskError;
use crate::disk::aligned::Aligned;
use crate::image::content::Content;
use crate::image::zeros::Zeros;
use crate::stream::source::{FetchError, Reader};
use crate::stream::write::Writer;

/// Threads for each processor: while one waits for the disk or the network, another computes.
const FOR_EACH: usize = 2;
/// Most threads: with 4.2 MiB each, all of the agent stays below 96 MiB.
const MOST: usize = 12;
/// What is thrown away at once.
const AT_ONCE: usize = 1 << 20;
/// Chunks that a thread takes at once, at most: 128 MiB of the image.
const LONGEST_RUN: usize = 64;
/// Each thread comes for more about so many times, so that all end together.
const TURNS: usize = 4;
/// Without direct writes, how much of the image is written between two flushes.
const UNFLUSHED: u64 = 32 << 20;

/// What all threads share.
pub(super) struct Work<'a> {
    pub(super) target: &'a Target<'a>,
    pub(super) file: &'a File,
    pub(super) index: &'a Index,
    pub(super) edges: &'a Edges,
    pub(super) begun: &'a Begun<'a>,
    pub(super) tally: &'a Tally,
    pub(super) stop: &'a AtomicBool,
}

/// What one thread has of its own.
pub(super) struct Hands {
    unpacker: Unpacker,
    packed: Vec<u8>,
    raw: Aligned,
    unflushed: u64,
}

impl Hands {
    pub(super) fn new(index: &Index) -> Result<Self, Problem> {
        let chunk = index.chunk_bytes as usize;
        let unpacker = Unpacker::new().map_err(|error| internal(&error.to_string()))?;
        Ok(Self {
            unpacker,
            packed: Vec::new(),
            // A disk takes whole sectors, and none is larger.
            raw: Aligned::zeroed(chunk.next_multiple_of(4096)),
            unflushed: 0,
        })
    }
}

impl Work<'_> {
    /// Makes all chunks right. Unless `comparing`, none is looked at before it is written.
    ///
    /// Those of zeros are looked at as well, which is most of the reading: nothing cheaper is sure.
    /// A block device does not say which of its blocks it has never been given (`SEEK_HOLE` knows
    /// only files), what SCSI and NVMe could say of that is optional and often wrong, and zeroing
    /// them again would be a write, and wear, where nothing has changed.
    pub(super) fn fill(&self, comparing: bool) -> Result<(), Problem> {
        match (comparing, self.file.is_whole()) {
            (true, false) => self.by_all(|run, hands| {
                let needed = self.wrong_ones(run, hands);
                self.perform_all(&needed, hands)
            }),
            (true, true) => {
                let needed = self.all_wrong_ones()?;
                self.fetch_in_order(&needed)
            }
            (false, false) => self.beside_zeros(|| {
                self.by_all(|run, hands| {
                    let needed: Vec<_> = run.filter(|&number| self.has_data(number)).collect();
                    self.perform_all(&needed, hands)
                })
            }),
            (false, true) => self.beside_zeros(|| {
                let all = 0..self.index.chunks.len();
                let needed: Vec<_> = all.filter(|&number| self.has_data(number)).collect();
                self.fetch_in_order(&needed)
            }),
        }
    }

    fn has_data(&self, number: usize) -> bool {
        !self.index.chunks[number].zero && !self.is_held(number)
    }

    /// The chunks of data that the disk does not have; those of zeros are made so at once.
    fn all_wrong_ones(&self) -> Result<Vec<usize>, Problem> {
        let wrong = Mutex::new(Vec::new());
        self.by_all(|run, hands| {
            let needed = self.wrong_ones(run, hands);
            let (data, zeros): (Vec<_>, Vec<_>) = needed
                .into_iter()
                .partition(|&number| self.has_data(number));
            let mut wrong = wrong.lock().unwrap_or_else(PoisonError::into_inner);
            wrong.extend(data);
            drop(wrong);
            self.perform_all(&zeros, hands)
        })?;
        let mut wrong = wrong.into_inner().unwrap_or_else(PoisonError::into_inner);
        wrong.sort_unstable();
        Ok(wrong)
    }

    /// Fetches the whole file for these chunks, given in order.
    fn fetch_in_order(&self, numbers: &[usize]) -> Result<(), Problem> {
        if numbers.is_empty() {
            return Ok(());
        }
        let mut hands = Hands::new(self.index)?;
        self.take(self.file.source.whole(), 0, numbers, &mut hands)?;
        if self.stopped() {
            return Err(FetchError::Stopped.into());
        }
        Ok(())
    }

    /// The chunks of a run that the disk does not have.
    fn wrong_ones(&self, run: Range<usize>, hands: &mut Hands) -> Vec<usize> {
        let mut wrong = Vec::new();
        for number in run.filter(|&number| !self.is_held(number)) {
            if self.stopped() {
                break;
            }
            if self.is_right(number, hands) {
                add(&self.tally.skipped, u64::from(self.index.length(number)));
            } else {
                wrong.push(number);
            }
        }
        wrong
    }

    fn perform_all(&self, needed: &[usize], hands: &mut Hands) -> Result<(), Problem> {
        for deed in deeds(self.index, needed) {
            self.perform(deed, hands)?;
        }
        Ok(())
    }

    /// Zeroes all chunks of zeros while the others are written.
    fn beside_zeros(&self, fill: impl FnOnce() -> Result<(), Problem>) -> Result<(), Problem> {
        let zero = |number: &usize| self.index.chunks[*number].zero && !self.is_held(*number);
        let numbers: Vec<_> = (0..self.index.chunks.len()).filter(zero).collect();
        let ranges = deeds(self.index, &numbers).into_iter();
        let zeros = Zeros::new(ranges.filter_map(|deed| match deed {
            Deed::Zero(range) => Some(range),
            Deed::Fetch { .. } => None,
        }));
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("zeros".to_owned());
            let beside = thread.spawn_scoped(scope, || self.zero_all(&zeros));
            // Whatever is left when the data are written, both do.
            let filled = fill().and_then(|()| self.zero_all(&zeros));
            let beside = match beside.map(ScopedJoinHandle::join) {
                Ok(joined) => joined.unwrap_or_else(|_| Err(internal("zeroing has ended"))),
                // One thread fewer: all of it was done above.
                Err(_) => Ok(()),
            };
            beside.and(filled)
        })
    }

    fn zero_all(&self, zeros: &Zeros) -> Result<(), Problem> {
        while let Some(range) = zeros.next() {
            if self.stopped() {
                return Ok(());
            }
            if let Err(error) = self.zero(range) {
                self.stop.store(true, Ordering::Relaxed);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Makes a range of the image zeros, and what its last sector has beyond it.
    fn zero(&self, range: Range<u64>) -> Result<(), DiskError> {
        self.begun.begin()?;
        let length = range.end - range.start;
        let whole = length.next_multiple_of(self.target.device.sector());
        self.target.device.zero(range.start, whole)?;
        add(&self.tally.zeroed, length);
        Ok(())
    }

    /// Reads all chunks back and compares them with the index.
    pub(super) fn verify(&self) -> Result<(), Problem> {
        self.by_all(|run, hands| {
            for number in run.filter(|&number| !self.is_held(number)) {
                if self.stopped() {
                    return Ok(());
                }
                self.verify_one(number, hands)?;
            }
            Ok(())
        })
    }

    /// Reads the disk from its start, and compares the digest of the image's content with the one
    /// that was demanded.
    pub(super) fn check_content(&self, held: &[Held]) -> Result<(), Problem> {
        let mut content = Content::of(self.target.image);
        let mut hands = Hands::new(self.index)?;
        for number in 0..self.index.chunks.len() {
            if self.stopped() {
                return Err(FetchError::Stopped.into());
            }
            let start = self.index.start(number);
            let length = self.index.length(number) as usize;
            if let Some(held) = held.iter().find(|held| held.start == start) {
                content.update(&held.raw[..length]);
            } else {
                let raw = &mut hands.raw[..self.whole(length)];
                self.target.device.read_medium(raw, start)?;
                content.update(&raw[..length]);
            }
            self.tally.verified.store(start, Ordering::Relaxed);
        }
        content.check(self.target.image)
    }

    /// Has runs of chunks dealt with by as many threads as are good for it. The first failure
    /// ends it.
    fn by_all(
        &self,
        job: impl Fn(Range<usize>, &mut Hands) -> Result<(), Problem> + Sync,
    ) -> Result<(), Problem> {
        let threads = threads();
        let queue = Queue::new(self.index.chunks.len(), threads);
        let failure = Mutex::new(None);
        let work = || {
            let mut hands = Hands::new(self.index)?;
            while let Some(run) = queue.next().filter(|_| !self.stopped()) {
                job(run, &mut hands)?;
            }
            Ok(())
        };
        let until_failure = || {
            if let Err(problem) = work() {
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(problem);
                self.stop.store(true, Ordering::Relaxed);
            }
        };
        std::thread::scope(|scope| {
            for number in 1..threads {
                let thread = std::thread::Builder::new().name(format!("chunks-{number}"));
                if let Err(error) = thread.spawn_scoped(scope, until_failure) {
                    tracing::warn!(%error, number, "one thread fewer writes the image");
                }
            }
            until_failure();
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(problem) => Err(problem),
            None if self.stopped() => Err(FetchError::Stopped.into()),
            None => Ok(()),
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Whether a chunk is dealt with by itself, because of what is held back of it.
    pub(super) fn is_held(&self, number: usize) -> bool {
        open::is_held(self.index, self.edges, number)
    }

    /// Whether the disk has a chunk already. One that cannot be read is written.
    pub(super) fn is_right(&self, number: usize, hands: &mut Hands) -> bool {
        match self.matches(number, hands) {
            Ok(right) => right,
            Err(error) => {
                tracing::warn!(%error, "written anew, because it cannot be read");
                false
            }
        }
    }

    fn matches(&self, number: usize, hands: &mut Hands) -> Result<bool, DiskError> {
        let chunk = &self.index.chunks[number];
        let length = self.index.length(number) as usize;
        let raw = &mut hands.raw[..self.whole(length)];
        let device = &self.target.device;
        device.read_medium(raw, self.index.start(number))?;
        let (raw, rest) = raw.split_at(length);
        let right = if chunk.zero {
            is_zero(raw)
        } else {
            chunk.digest == *blake3::hash(raw).as_bytes()
        };
        Ok(right && is_zero(rest))
    }

    fn verify_one(&self, number: usize, hands: &mut Hands) -> Result<(), Problem> {
        if self.matches(number, hands)? {
            add(&self.tally.verified, u64::from(self.index.length(number)));
            return Ok(());
        }
        Err(DiskError::ReadBack {
            disk: self.target.device.name().to_owned(),
            offset: self.index.start(number),
        }
        .into())
    }

    fn perform(&self, deed: Deed, hands: &mut Hands) -> Result<(), Problem> {
        if self.stopped() {
            return Ok(());
        }
        match deed {
            Deed::Zero(range) => Ok(self.zero(range)?),
            Deed::Fetch { bytes, numbers } => self.fetch(bytes, &numbers, hands),
        }
    }

    /// Fetches a range of the file and writes what it holds, chunk by chunk.
    fn fetch(
        &self,
        bytes: Range<u64>,
        numbers: &[usize],
        hands: &mut Hands,
    ) -> Result<(), Problem> {
        let start = bytes.start;
        self.take(self.file.source.range(bytes), start, numbers, hands)
    }

    /// Writes chunks as they come from a reader that is at a byte of the file.
    fn take(
        &self,
        mut reader: Reader,
        mut at: u64,
        numbers: &[usize],
        hands: &mut Hands,
    ) -> Result<(), Problem> {
        for &number in numbers {
            if self.stopped() {
                return Ok(());
            }
            let chunk = &self.index.chunks[number];
            discard(&mut reader, chunk.offset - at, &mut hands.packed)?;
            at = chunk.offset + u64::from(chunk.packed);
            self.unpack(number, &mut reader, hands)?;
            self.begun.begin()?;
            self.put(number, hands)?;
            let moved = self.file.source.moved();
            self.tally.fetched.store(moved, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The next chunk of a reader, checked.
    fn unpack(&self, number: usize, from: &mut Reader, hands: &mut Hands) -> Result<(), Problem> {
        let length = self.index.length(number) as usize;
        let Hands {
            unpacker,
            packed,
            raw,
            ..
        } = hands;
        packed.resize(self.index.chunks[number].packed as usize, 0);
        fill(from, packed)?;
        let url = &self.target.image.url;
        unpack(
            url,
            self.index,
            number,
            unpacker,
            packed,
            &mut raw[..length],
        )?;
        add(&self.tally.decoded, length as u64);
        Ok(())
    }

    /// Writes the chunk that has been unpacked; long runs of zeros in it are told, not sent.
    fn put(&self, number: usize, hands: &mut Hands) -> Result<(), Problem> {
        let device = &self.target.device;
        let length = self.index.length(number) as usize;
        let whole = self.whole(length);
        hands.raw[length..whole].fill(0);
        let mut writer = Writer::new(device, self.index.start(number));
        writer.push(&hands.raw[..whole])?;
        let (written, zeroed) = writer.settled()?;
        // What a sector has beyond the image's end is not the image's.
        add(
            &self.tally.written,
            written.min(length as u64 - zeroed.min(length as u64)),
        );
        add(&self.tally.zeroed, zeroed.min(length as u64));
        hands.unflushed += written;
        if !device.is_direct() && hands.unflushed >= UNFLUSHED {
            hands.unflushed = 0;
            device.flush()?;
        }
        Ok(())
    }

    fn whole(&self, length: usize) -> usize {
        let sector = self.target.device.sector();
        length.next_multiple_of(usize::try_from(sector).unwrap_or(4096))
    }
}

/// Makes a chunk of its frame.
pub(super) fn unpack(
    url: &str,
    index: &Index,
    number: usize,
    unpacker: &mut Unpacker,
    packed: &[u8],
    into: &mut [u8],
) -> Result<(), Problem> {
    let chunk = &index.chunks[number];
    unpacker.unpack(chunk, packed, into).map_err(|bad| {
        let start = index.start(number);
        let why = std::error::Error::source(&bad).map(|source| format!(" ({source})"));
        Problem::new(
            Code::ImageDigestMismatch,
            format!(
                "{url}, chunk {number} (from byte {start} of the image) is not what the index \
                 says: {bad}{}",
                why.unwrap_or_default()
            ),
            "publish the packed image again; the disk does not boot until one has been written \
             whole",
        )
    })
}

/// Reads until the buffer is full.
pub(super) fn fill(from: &mut Reader, buffer: &mut [u8]) -> Result<(), FetchError> {
    let mut done = 0;
    while done < buffer.len() {
        match from.next(&mut buffer[done..])? {
            0 => return Err(from.ended()),
            count => done += count,
        }
    }
    Ok(())
}

/// Reads what nobody needs.
fn discard(from: &mut Reader, bytes: u64, scratch: &mut Vec<u8>) -> Result<(), FetchError> {
    let mut left = bytes;
    while left > 0 {
        let part = usize::try_from(left).map_or(AT_ONCE, |left| left.min(AT_ONCE));
        scratch.resize(part, 0);
        fill(from, scratch)?;
        left -= part as u64;
    }
    Ok(())
}

fn threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (processors * FOR_EACH).min(MOST)
}

/// Hands out runs of chunks: long ones at first, short ones towards the end.
struct Queue {
    next: Mutex<usize>,
    count: usize,
    threads: usize,
}

impl Queue {
    fn new(count: usize, threads: usize) -> Self {
        Self {
            next: Mutex::new(0),
            count,
            threads,
        }
    }

    fn next(&self) -> Option<Range<usize>> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let left = self.count - *next;
        let run = (left / (self.threads * TURNS))
            .clamp(1, LONGEST_RUN)
            .min(left);
        let start = *next;
        *next += run;
        (run > 0).then_some(start..start + run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_every_chunk_once_and_end_short() {
        for (count, threads) in [(1, 4), (7, 4), (1000, 4), (4096, 12)] {
            let queue = Queue::new(count, threads);
            let runs: Vec<_> = std::iter::from_fn(|| queue.next()).collect();
            let covered: Vec<usize> = runs.iter().cloned().flatten().collect();
            assert!(covered.iter().copied().eq(0..count));
            assert!(runs.iter().all(|run| run.len() <= LONGEST_RUN));
            assert_eq!(runs.last().unwrap().len(), 1);
        }
    }
}

//! A packed file before its chunks are written: its index, at its end, and the chunks of which
//! something is held back.
//!
//! A server that knows ranges gives just those. From one that does not, the file comes twice: once
//! for these, of which only both ends are kept, and once more, in order, for its chunks. Rejected:
//! writing chunks as they come the first time, because what vouches for them comes last.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ferrite_proto::image::ImageRef;
use ferrite_proto::problem::Problem;

use super::tally::Tally;
use super::work::fill;
use crate::stream::source::{FetchError, Reader, Source, Stop};
use crate::stream::terms::Terms;

/// What is kept of a file's start, for the image's first MiB,
const FIRST: usize = 8 << 20;
/// and of its end: the longest index and seek table, and the chunks before them.
const LAST: usize = 16 << 20;

/// A packed file on its server.
#[derive(Debug)]
pub(super) struct File {
    pub(super) source: Source,
    /// It only comes as a whole, in order.
    whole: bool,
    /// Both its ends, while they are needed.
    ends: Option<Ends>,
}

impl File {
    /// Asks for it for the first time.
    pub(super) fn greet(
        image: &ImageRef,
        terms: &Terms,
        stop: &Stop,
        tally: &Tally,
    ) -> Result<Self, FetchError> {
        let source = Source::new(image, terms, Arc::clone(stop))?;
        match source.greet() {
            Ok(_) => Ok(Self {
                source,
                whole: false,
                ends: None,
            }),
            Err(error) if error.is_for_want_of_ranges() => {
                tracing::warn!(%error, "the image is fetched twice: first to learn of its chunks");
                // The one before has given its servers up.
                let source = Source::new(image, terms, Arc::clone(stop))?;
                let ends = Ends::read(&mut source.whole(), FIRST, LAST, tally)?;
                Ok(Self {
                    source,
                    whole: true,
                    ends: Some(ends),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Whether it only comes as a whole, in order.
    pub(super) const fn is_whole(&self) -> bool {
        self.whole
    }

    /// Frees what was only needed before the first write.
    pub(super) fn let_go(&mut self) {
        self.ends = None;
    }

    /// Its length, if its server says so.
    pub(super) fn total(&self) -> Option<u64> {
        let ends = self.ends.as_ref().map(|ends| ends.total);
        ends.or_else(|| self.source.total())
    }

    /// Some bytes of it.
    pub(super) fn bytes(&self, range: Range<u64>) -> Result<Vec<u8>, Problem> {
        if let Some(ends) = &self.ends {
            let kept = ends.bytes(range).map(<[u8]>::to_vec);
            return kept.ok_or_else(|| self.source.for_want_of_ranges().into());
        }
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        fill(&mut self.source.range(range), &mut bytes)?;
        Ok(bytes)
    }
}

/// The start and the end of a file that came by.
#[derive(Debug)]
struct Ends {
    first: Vec<u8>,
    last: Vec<u8>,
    total: u64,
}

impl Ends {
    /// Lets a file come by, and keeps so much of its start and at least so much of its end.
    fn read(
        from: &mut Reader,
        first: usize,
        last: usize,
        tally: &Tally,
    ) -> Result<Self, FetchError> {
        let mut ends = Self {
            first: Vec::new(),
            last: Vec::new(),
            total: 0,
        };
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = from.next(&mut buffer)?;
            if count == 0 {
                return Ok(ends);
            }
            ends.take(&buffer[..count], first, last);
            tally.fetched.store(ends.total, Ordering::Relaxed);
        }
    }

    fn take(&mut self, bytes: &[u8], first: usize, last: usize) {
        let room = (first - self.first.len()).min(bytes.len());
        self.first.extend_from_slice(&bytes[..room]);
        self.last.extend_from_slice(bytes);
        // Seldom, so that not every byte is moved again and again.
        if self.last.len() > 2 * last {
            self.last.drain(..self.last.len() - last);
        }
        self.total += bytes.len() as u64;
    }

    fn bytes(&self, range: Range<u64>) -> Option<&[u8]> {
        let within = |part: &'_ [u8], start: u64| {
            let at = |byte: u64| usize::try_from(byte.checked_sub(start)?).ok();
            let range = at(range.start)?..at(range.end)?;
            (range.end <= part.len()).then_some(range)
        };
        let last_at = self.total - self.last.len() as u64;
        match within(&self.last, last_at) {
            Some(range) => self.last.get(range),
            None => self.first.get(within(&self.first, 0)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_kept_and_nothing_else_is_given() {
        let file: Vec<u8> = (0..10_000_u32).map(|at| at.to_le_bytes()[0]).collect();
        let mut ends = Ends {
            first: Vec::new(),
            last: Vec::new(),
            total: 0,
        };
        for part in file.chunks(333) {
            ends.take(part, 1000, 2000);
            assert!(ends.last.len() <= 4000);
        }
        for range in [0..1000, 10..20, 8000..10_000, 9_999..10_000, 0..0] {
            let wanted = &file[range.start..range.end];
            let range = range.start as u64..range.end as u64;
            assert_eq!(ends.bytes(range), Some(wanted));
        }
        for range in [999..1001, 5000..5001, 9_999..10_001, 0..10_000] {
            assert_eq!(ends.bytes(range.clone()), None, "{range:?}");
        }
    }
}

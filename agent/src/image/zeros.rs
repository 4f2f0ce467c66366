//! Ranges of a disk that shall be zeros, made so beside what is written between them.
//!
//! A disk works on one such request at a time, and what is written meanwhile waits for it: so each
//! is short, and none of them is left for the end, when nothing else is to be done.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Longest request: 10 ms of a disk in memory, and less than a second of one that has to write it.
const REQUEST: u64 = 64 << 20;

/// What is left to be done, by any thread.
#[derive(Debug, Default)]
pub(super) struct Zeros(Mutex<Vec<Range<u64>>>);

impl Zeros {
    /// Ranges of whole sectors.
    pub(super) fn new(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let ranges = ranges.into_iter().filter(|range| !range.is_empty());
        let mut ranges: Vec<_> = ranges.collect();
        ranges.reverse();
        Self(Mutex::new(ranges))
    }

    /// The next request, in the order of the ranges.
    pub(super) fn next(&self) -> Option<Range<u64>> {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let range = left.last_mut()?;
        let end = range.end.min(range.start.saturating_add(REQUEST));
        let next = range.start..end;
        range.start = end;
        if range.is_empty() {
            left.pop();
        }
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_cover_the_ranges_once_and_in_order() {
        let ranges = [
            0..REQUEST,
            1 << 40..1 << 40,
            2 << 40..(2 << 40) + 2 * REQUEST + 512,
        ];
        let zeros = Zeros::new(ranges);
        let requests: Vec<_> = std::iter::from_fn(|| zeros.next()).collect();
        let at = 2 << 40;
        let expected = [
            0..REQUEST,
            at..at + REQUEST,
            at + REQUEST..at + 2 * REQUEST,
            at + 2 * REQUEST..at + 2 * REQUEST + 512,
        ];
        assert_eq!(requests, expected);
    }
}

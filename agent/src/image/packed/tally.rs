//! What became of the image's bytes so far, counted by all who work on it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use ferrite_proto::step::ImageWritten;

use crate::stream::meter::{Meter, Parts};

/// Bytes by what became of them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    phase: AtomicU8,
    /// Length of the image, once known.
    pub(super) image: AtomicU64,
    /// Of the file, over the network, those that came twice twice.
    pub(super) fetched: AtomicU64,
    /// Of the image, the rest of the image's.
    pub(super) decoded: AtomicU64,
    pub(super) written: AtomicU64,
    pub(super) zeroed: AtomicU64,
    pub(super) skipped: AtomicU64,
    pub(super) verified: AtomicU64,
}

/// What is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Writing = 1,
    Verifying = 2,
}

impl Tally {
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Bytes of the image that are as they shall be.
    pub(super) fn done(&self) -> u64 {
        [&self.written, &self.zeroed, &self.skipped]
            .into_iter()
            .map(|bytes| bytes.load(Ordering::Relaxed))
            .sum()
    }

    /// Tells a meter.
    pub(super) fn tell(&self, meter: &mut Meter<'_>) {
        meter.parts = self.parts();
        let image = self.image.load(Ordering::Relaxed);
        let (phase, done) = match self.phase.load(Ordering::Relaxed) {
            0 => ("fetching", 0),
            1 => ("writing", self.done()),
            _ => ("verifying", self.verified.load(Ordering::Relaxed)),
        };
        meter.during(phase, done, Some(image).filter(|&image| image > 0));
    }

    fn parts(&self) -> Parts {
        let of = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed);
        Parts {
            fetched: of(&self.fetched),
            decoded: of(&self.decoded),
            written: of(&self.written),
            skipped: of(&self.skipped),
        }
    }

    /// Adds the figures to a report.
    pub(super) fn report(&self, report: ImageWritten) -> ImageWritten {
        let of = |bytes: &AtomicU64| bytes.load(Ordering::Relaxed);
        ImageWritten {
            bytes_read: of(&self.fetched),
            bytes_image: of(&self.image),
            bytes_written: of(&self.written),
            bytes_zeroed: of(&self.zeroed),
            bytes_skipped: of(&self.skipped),
            ..report
        }
    }
}

/// Counts.
pub(super) fn add(bytes: &AtomicU64, count: u64) {
    bytes.fetch_add(count, Ordering::Relaxed);
}

//! The digest of what a qcow2 image holds. Its clusters come in the file's order and a digest wants
//! the disk's, so the disk is read back for it: slower than any other digest, but nothing is
//! staged, and what was written has been looked at once more.
//!
//! What is held back of the image or changed on this disk is remembered as it came.

use std::sync::atomic::Ordering;

use ferrite_proto::problem::Problem;

use super::super::content::Content;
use super::super::{Edges, Target};
use crate::disk::aligned::Aligned;
use crate::stream::meter::Meter;
use crate::stream::{PIECE, cancelled_problem};

/// Stretches of the image that the disk does not have as they came: both edges and the image's own
/// backup table, a few MiB at most.
#[derive(Debug, Default)]
pub(super) struct Originals(Vec<Original>);

#[derive(Debug)]
struct Original {
    start: u64,
    bytes: Vec<u8>,
}

impl Originals {
    /// Remembers a stretch that begins at `start`.
    pub(super) fn keep(&mut self, bytes: &[u8], start: u64) {
        let bytes = bytes.to_vec();
        self.0.push(Original { start, bytes });
    }

    /// Reads the disk as the image was, and compares the digest. All of it must be durable.
    pub(super) fn check(
        &self,
        target: &Target<'_>,
        edges: &Edges,
        size: u64,
        meter: &mut Meter<'_>,
    ) -> Result<(), Problem> {
        let device = &target.device;
        let sector = usize::try_from(device.sector()).unwrap_or(4096);
        let mut content = Content::of(target.image);
        let mut buffer = Aligned::zeroed(PIECE);
        let mut start = 0;
        while start < size {
            if target.context.cancelled.load(Ordering::Relaxed) {
                return Err(cancelled_problem());
            }
            meter.during("verifying", start, Some(size));
            let part = |bytes: u64| usize::try_from(bytes).map_or(PIECE, |bytes| bytes.min(PIECE));
            let length = part(size - start);
            // Whole sectors go past the page cache.
            let whole = length.next_multiple_of(sector);
            let bytes = &mut buffer[..whole.min(part(device.bytes() - start))];
            device.read_medium(bytes, start)?;
            if edges.touch(start..start + bytes.len() as u64) {
                self.restore(bytes, start, edges, sector);
            }
            content.update(&bytes[..length]);
            start += length as u64;
        }
        content.check(target.image)
    }

    /// Puts what came in the place of what the disk has instead; what did not come is zeros.
    fn restore(&self, bytes: &mut [u8], start: u64, edges: &Edges, sector: usize) {
        for (at, block) in (start..).step_by(sector).zip(bytes.chunks_mut(sector)) {
            let end = at + block.len() as u64;
            if !edges.touch(at..end) {
                continue;
            }
            block.fill(0);
            for original in &self.0 {
                let within = |byte: u64| {
                    let byte = usize::try_from(byte.saturating_sub(original.start));
                    byte.unwrap_or(usize::MAX).min(original.bytes.len())
                };
                let came = &original.bytes[within(at)..within(end)];
                let skipped = usize::try_from(original.start.saturating_sub(at));
                let skipped = skipped.unwrap_or(usize::MAX).min(block.len());
                block[skipped..skipped + came.len()].copy_from_slice(came);
            }
        }
    }
}

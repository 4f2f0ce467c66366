//! `--verify` for what comes as a stream: what was written is remembered by its digests, and read
//! back before the disk becomes bootable.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use ferrite_proto::problem::Problem;

use crate::disk::aligned::Aligned;
use crate::disk::{Device, DiskError};
use crate::stream::meter::Meter;
use crate::stream::{PIECE, cancelled_problem};

/// What was written where: 48 bytes for each piece of 2 MiB.
#[derive(Debug, Default)]
pub(super) struct ReadBack(Vec<Part>);

#[derive(Debug)]
struct Part {
    offset: u64,
    length: usize,
    digest: [u8; 32],
}

impl ReadBack {
    /// Remembers what is written at a place, a piece at most.
    pub(super) fn remember(&mut self, bytes: &[u8], offset: u64) {
        if !bytes.is_empty() {
            self.0.push(Part {
                offset,
                length: bytes.len(),
                digest: blake3::hash(bytes).into(),
            });
        }
    }

    /// Remembers that a range became zeros.
    pub(super) fn remember_zeros(&mut self, range: Range<u64>) {
        let zeros = vec![0; PIECE];
        let mut at = range.start;
        while at < range.end {
            let part = usize::try_from(range.end - at).map_or(PIECE, |left| left.min(PIECE));
            self.remember(&zeros[..part], at);
            at += part as u64;
        }
    }

    /// Reads it all back from the medium. What was written must be durable.
    pub(super) fn check(
        &self,
        device: &Device<'_>,
        meter: &mut Meter<'_>,
        cancelled: &AtomicBool,
    ) -> Result<(), Problem> {
        let total = self.0.iter().map(|part| part.length as u64).sum();
        let mut buffer = Aligned::zeroed(PIECE);
        let mut done = 0;
        for part in &self.0 {
            if cancelled.load(Ordering::Relaxed) {
                return Err(cancelled_problem());
            }
            meter.during("verifying", done, Some(total));
            let bytes = &mut buffer[..part.length];
            device.read_medium(bytes, part.offset)?;
            if part.digest != *blake3::hash(bytes).as_bytes() {
                let disk = device.name().to_owned();
                let offset = part.offset;
                return Err(DiskError::ReadBack { disk, offset }.into());
            }
            done += part.length as u64;
        }
        Ok(())
    }
}

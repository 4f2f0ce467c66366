//! The image's bytes become the disk's: in order, zeros told rather than sent.
//!
//! A run of zeros is never skipped, because the disk may hold something else there: the device
//! zeroes it, or zeros are written.

use ferrite_imaging::is_zero;

use crate::disk::{Device, DiskError};

/// Zeros are looked for in blocks of this size.
const BLOCK: usize = 64 << 10;
/// Shorter runs are written: a request of their own would cost more.
const WORTH: u64 = 256 << 10;
/// Longest run that is told at once: while a disk works on one, what comes has to wait, and only a
/// few MiB of it can.
const LONGEST: u64 = 64 << 20;
/// Without direct writes, how much may wait in the page cache.
const UNFLUSHED: u64 = 128 << 20;

/// Writes consecutive bytes, and goes on elsewhere when told to.
pub(crate) struct Writer<'d, 'k> {
    disk: &'d Device<'k>,
    /// Where the next byte goes.
    position: u64,
    /// Zeros before `position` that the disk has not been told.
    pending: u64,
    unflushed: u64,
    /// Bytes sent.
    pub(crate) written: u64,
    /// Bytes that the disk was told to zero.
    pub(crate) zeroed: u64,
}

impl<'d, 'k> Writer<'d, 'k> {
    pub(crate) fn new(disk: &'d Device<'k>, position: u64) -> Self {
        Self {
            disk,
            position,
            pending: 0,
            unflushed: 0,
            written: 0,
            zeroed: 0,
        }
    }

    /// Where the next byte goes.
    pub(crate) const fn position(&self) -> u64 {
        self.position
    }

    /// Goes on elsewhere on the disk.
    pub(crate) fn jump(&mut self, position: u64) -> Result<(), DiskError> {
        if position != self.position {
            self.settle()?;
            self.position = position;
        }
        Ok(())
    }

    /// Takes so many zeros.
    pub(crate) fn push_zeros(&mut self, length: u64) -> Result<(), DiskError> {
        self.pending += length;
        self.position += length;
        if self.pending >= LONGEST {
            self.settle()?;
        }
        Ok(())
    }

    /// Takes the next bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (zero, run) = first_run(rest);
            let (now, later) = rest.split_at(run);
            if zero {
                self.push_zeros(now.len() as u64)?;
            } else {
                self.settle()?;
                self.send(now)?;
            }
            rest = later;
        }
        Ok(())
    }

    /// After the last byte: how many were sent, and how many zeros told. All is durable.
    pub(crate) fn end(self) -> Result<(u64, u64), DiskError> {
        let disk = self.disk;
        let told = self.settled()?;
        disk.flush()?;
        Ok(told)
    }

    /// The same, but it may not be durable yet.
    pub(crate) fn settled(mut self) -> Result<(u64, u64), DiskError> {
        self.settle()?;
        Ok((self.written, self.zeroed))
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.disk.write_at(bytes, self.position)?;
        let count = bytes.len() as u64;
        self.position += count;
        self.written += count;
        self.unflushed += count;
        if !self.disk.is_direct() && self.unflushed >= UNFLUSHED {
            self.unflushed = 0;
            self.disk.flush()?;
        }
        Ok(())
    }

    /// Tells the disk of the zeros that came last.
    fn settle(&mut self) -> Result<(), DiskError> {
        let length = std::mem::take(&mut self.pending);
        let start = self.position - length;
        if length == 0 {
            return Ok(());
        }
        if length < WORTH {
            self.written += length;
            return self.disk.write_zeros(start, length);
        }
        self.zeroed += length;
        self.disk.zero(start, length)
    }
}

/// Whether the first block is zeros, and how many bytes are the same in that.
fn first_run(bytes: &[u8]) -> (bool, usize) {
    let mut blocks = bytes.chunks(BLOCK);
    let zero = blocks.next().is_some_and(is_zero);
    let same = 1 + blocks.take_while(|block| is_zero(block) == zero).count();
    (zero, (same * BLOCK).min(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fixture::used_disk;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        /// Whatever the disk held and however the image comes in parts, the disk then holds it.
        #[test]
        fn the_disk_holds_the_image(
            runs in proptest::collection::vec((any::<bool>(), 1_usize..12), 1..12),
            part in 1_usize..40,
        ) {
            let mut image = Vec::new();
            for (zero, blocks) in runs {
                let byte = if zero { 0 } else { 0x5a };
                image.resize(image.len() + blocks * BLOCK, byte);
            }
            let folder = tempfile::tempdir().unwrap();
            let disk = used_disk(&folder.path().join("disk"), 10 << 20);
            let mut writer = Writer::new(&disk, 4096);
            for piece in image.chunks(part * 4096) {
                writer.push(piece).unwrap();
            }
            prop_assert_eq!(writer.position(), 4096 + image.len() as u64);
            let (written, zeroed) = writer.end().unwrap();
            prop_assert_eq!(written + zeroed, image.len() as u64);
            disk.expect(&image, 4096).unwrap();
            disk.expect(&[0xa5], 4095).unwrap();
            disk.expect(&[0xa5], 4096 + image.len() as u64).unwrap();
        }
    }
}

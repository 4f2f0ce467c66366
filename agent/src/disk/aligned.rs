//! Memory that a disk can take directly: it starts at a multiple of 4096 bytes.

use std::ops::{Deref, DerefMut};

/// What direct writes need, of any device that Linux knows.
const ALIGNMENT: usize = 4096;

/// A buffer of a fixed size.
#[derive(Debug)]
pub(crate) struct Aligned {
    storage: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// A buffer of zeros.
    pub(crate) fn zeroed(length: usize) -> Self {
        let storage = vec![0; length + ALIGNMENT];
        let start = storage.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self {
            storage,
            start,
            length,
        }
    }
}

impl Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.storage[self.start..self.start + self.length]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.storage[self.start..self.start + self.length]
    }
}

/// Whether bytes lie where a disk can take them directly.
pub(crate) fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().align_offset(ALIGNMENT) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_starts_aligned_and_has_its_size() {
        for length in [0, 1, 4096, 1 << 20] {
            let mut buffer = Aligned::zeroed(length);
            assert!(is_aligned(&buffer));
            assert_eq!(buffer.len(), length);
            buffer.fill(7);
        }
    }
}

//! What is to be done about chunks that are not right on the disk: which ranges of the file are
//! fetched, and which of the disk become zeros. Pure.

use std::ops::Range;

use ferrite_imaging::packed::Index;

/// Bytes between two chunks that are fetched and thrown away rather than asked for anew.
const BRIDGED: u64 = 64 << 10;

/// One request to a server, or one to the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deed {
    /// Chunks whose frames lie close together in the file.
    Fetch {
        /// Of the file.
        bytes: Range<u64>,
        /// In order.
        numbers: Vec<usize>,
    },
    /// A range of the image that is zeros.
    Zero(Range<u64>),
}

/// What is to be done about these chunks, given in order.
pub(super) fn deeds(index: &Index, needed: &[usize]) -> Vec<Deed> {
    let mut deeds = Vec::new();
    for &number in needed {
        let chunk = &index.chunks[number];
        let start = index.start(number);
        let end = start + u64::from(index.length(number));
        let file_end = chunk.offset + u64::from(chunk.packed);
        match deeds.last_mut() {
            Some(Deed::Zero(zeros)) if chunk.zero && zeros.end == start => zeros.end = end,
            Some(Deed::Fetch { bytes, numbers })
                if !chunk.zero && chunk.offset - bytes.end <= BRIDGED =>
            {
                bytes.end = file_end;
                numbers.push(number);
            }
            _ if chunk.zero => deeds.push(Deed::Zero(start..end)),
            _ => deeds.push(Deed::Fetch {
                bytes: chunk.offset..file_end,
                numbers: vec![number],
            }),
        }
    }
    deeds
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrite_imaging::packed::Chunk;
    use proptest::prelude::*;

    const CHUNK: u32 = 64 << 10;

    fn index(zeros: &[bool]) -> Index {
        let mut offset = 0;
        let chunks = zeros.iter().map(|&zero| {
            let packed = if zero { 20 } else { 50_000 };
            let chunk = Chunk {
                offset,
                packed,
                digest: [0; 32],
                zero,
            };
            offset += u64::from(packed);
            chunk
        });
        let chunks: Vec<Chunk> = chunks.collect();
        Index {
            // The last is short.
            image_bytes: zeros.len() as u64 * u64::from(CHUNK) - 1000,
            chunk_bytes: CHUNK,
            chunks,
        }
    }

    #[test]
    fn neighbours_are_one_request_and_zeros_one_range() {
        let index = index(&[false, false, true, true, false]);
        let deeds = deeds(&index, &[0, 1, 2, 3, 4]);
        let first = Deed::Fetch {
            bytes: 0..100_000,
            numbers: vec![0, 1],
        };
        let zeros = Deed::Zero(2 * u64::from(CHUNK)..4 * u64::from(CHUNK));
        assert_eq!(deeds[..2], [first, zeros]);
        assert!(matches!(&deeds[2], Deed::Fetch { bytes, .. } if *bytes == (100_040..150_040)));
    }

    #[test]
    fn a_small_gap_is_bridged_and_a_large_one_is_not() {
        let index = index(&[false; 5]);
        let requests = |needed: &[usize]| deeds(&index, needed).len();
        assert_eq!(requests(&[0, 2]), 1, "50,000 bytes are thrown away");
        assert_eq!(requests(&[0, 3]), 2, "100,000 are not");
    }

    proptest! {
        /// Every chunk that is needed is dealt with once, and no other one is written.
        #[test]
        fn each_needed_chunk_once(
            chunks in proptest::collection::vec((any::<bool>(), any::<bool>()), 1..60),
        ) {
            let zeros: Vec<bool> = chunks.iter().map(|(zero, _)| *zero).collect();
            let index = index(&zeros);
            let needed: Vec<usize> = (0..chunks.len()).filter(|&n| chunks[n].1).collect();
            let mut dealt = Vec::new();
            for deed in deeds(&index, &needed) {
                match deed {
                    Deed::Fetch { bytes, numbers } => {
                        for number in numbers {
                            let chunk = index.chunks[number];
                            prop_assert!(!chunk.zero && bytes.contains(&chunk.offset));
                            prop_assert!(chunk.offset + u64::from(chunk.packed) <= bytes.end);
                            dealt.push(number);
                        }
                    }
                    Deed::Zero(range) => {
                        let first = usize::try_from(range.start / u64::from(CHUNK)).unwrap();
                        let last = usize::try_from((range.end - 1) / u64::from(CHUNK)).unwrap();
                        prop_assert!(range.end <= index.image_bytes);
                        for number in first..=last {
                            prop_assert!(index.chunks[number].zero);
                            dealt.push(number);
                        }
                    }
                }
            }
            dealt.sort_unstable();
            prop_assert_eq!(dealt, needed);
        }
    }
}

//! The index of a packed image: what vouches for each chunk. It comes from elsewhere, so it is
//! bounded in every respect before anything is kept of it.

use super::{CHUNK_BYTES, INDEX_MAGIC, MOST_CHUNKS, content, most_packed, skippable};

const WORD: &[u8; 8] = b"FerrPkd1";
const HEADER: usize = 24;
const ENTRY: usize = 36;
const ZERO: u32 = 1 << 31;
/// Bytes of the image in a chunk, at least and at most: readers have their memory planned.
const SMALLEST: u32 = 64 << 10;
const LARGEST: u32 = CHUNK_BYTES;

/// What a packed image consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Length of the image.
    pub image_bytes: u64,
    /// Length of each chunk of it but the last, which has what is left.
    pub chunk_bytes: u32,
    /// The chunks, in the image's order, without gaps in the image or in the file.
    pub chunks: Vec<Chunk>,
}

/// A part of a packed image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Where its frame begins in the file.
    pub offset: u64,
    /// Length of its frame.
    pub packed: u32,
    /// BLAKE3 of the chunk's bytes in the image.
    pub digest: [u8; 32],
    /// All its bytes in the image are zero.
    pub zero: bool,
}

/// Bytes that are no packed image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadIndex {
    /// No seek table, or one without an index.
    #[error("this is not a packed image: make one of it with `ferrite-image pack`")]
    NotPacked,
    /// The end of the file does not agree with itself.
    #[error("the packed image's end is damaged: {0}")]
    End(&'static str),
    /// The index does not agree with itself.
    #[error("the packed image's index is damaged: {0}")]
    Index(&'static str),
    /// An entry of the index cannot be.
    #[error("the packed image's index is damaged: chunk {number} {what}")]
    Chunk {
        /// Which, from 0.
        number: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl Index {
    /// Reads an index from its frame, from the magic to the end.
    ///
    /// # Errors
    /// When anything in it disagrees, or is larger than a reader has planned for.
    pub fn parse(frame: &[u8]) -> Result<Self, BadIndex> {
        let damaged = BadIndex::Index;
        let content = content(INDEX_MAGIC, frame).ok_or(damaged("it is no index"))?;
        let (header, entries) = content
            .split_first_chunk::<HEADER>()
            .ok_or(damaged("it ends in its header"))?;
        let (word, numbers) = header.split_at(WORD.len());
        if word != WORD {
            return Err(damaged("it is of another version"));
        }
        let (image, numbers) = numbers.split_at(8);
        let image_bytes = u64::from_le_bytes(image.try_into().unwrap_or_default());
        let chunk_bytes = number(&numbers[..4]);
        let (entries, rest) = entries.as_chunks::<ENTRY>();
        if number(&numbers[4..]) as usize != entries.len() || !rest.is_empty() {
            return Err(damaged("it ends before or after its last chunk"));
        }
        let mut index = Self::bounded(image_bytes, chunk_bytes, entries.len())?;
        index.take(entries)?;
        Ok(index)
    }

    /// An index without its chunks yet.
    fn bounded(image_bytes: u64, chunk_bytes: u32, count: usize) -> Result<Self, BadIndex> {
        if !chunk_bytes.is_power_of_two() || !(SMALLEST..=LARGEST).contains(&chunk_bytes) {
            return Err(BadIndex::Index(
                "its chunks are not a power of two from 64 KiB to 2 MiB long",
            ));
        }
        if count == 0 || count > MOST_CHUNKS as usize {
            return Err(BadIndex::Index("it has no chunk, or more than 262144"));
        }
        if image_bytes.div_ceil(u64::from(chunk_bytes)) != count as u64 {
            return Err(BadIndex::Index(
                "the image's length is not that of its chunks",
            ));
        }
        Ok(Self {
            image_bytes,
            chunk_bytes,
            chunks: Vec::with_capacity(count),
        })
    }

    fn take(&mut self, entries: &[[u8; ENTRY]]) -> Result<(), BadIndex> {
        let full = zeros(self.chunk_bytes);
        let mut offset = 0;
        for (number, entry) in entries.iter().enumerate() {
            let bad = |what| BadIndex::Chunk { number, what };
            let (length, digest) = entry.split_at(4);
            let length = self::number(length);
            let (packed, zero) = (length & !ZERO, length & ZERO != 0);
            let digest = digest.try_into().unwrap_or_default();
            let raw = self.length(number);
            if packed == 0 || packed > most_packed(raw) {
                return Err(bad("is empty, or longer than its bytes of the image allow"));
            }
            let as_zeros = |raw| {
                if raw == self.chunk_bytes {
                    full
                } else {
                    zeros(raw)
                }
            };
            if zero && digest != as_zeros(raw) {
                return Err(bad("is said to be zeros, but its digest is not theirs"));
            }
            self.chunks.push(Chunk {
                offset,
                packed,
                digest,
                zero,
            });
            offset += u64::from(packed);
        }
        Ok(())
    }

    /// The index as a frame: what a digest or a signature of a packed image is of.
    pub fn encode(&self) -> Vec<u8> {
        let count = u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
        let mut content = Vec::with_capacity(HEADER + ENTRY * self.chunks.len());
        content.extend_from_slice(WORD);
        content.extend_from_slice(&self.image_bytes.to_le_bytes());
        content.extend_from_slice(&self.chunk_bytes.to_le_bytes());
        content.extend_from_slice(&count.to_le_bytes());
        for chunk in &self.chunks {
            let zero = if chunk.zero { ZERO } else { 0 };
            content.extend_from_slice(&(chunk.packed | zero).to_le_bytes());
            content.extend_from_slice(&chunk.digest);
        }
        skippable(INDEX_MAGIC, &content)
    }

    /// Length of a chunk's bytes in the image.
    pub fn length(&self, number: usize) -> u32 {
        let left = self.image_bytes.saturating_sub(self.start(number));
        u32::try_from(left).map_or(self.chunk_bytes, |left| left.min(self.chunk_bytes))
    }

    /// Where a chunk begins in the image.
    pub fn start(&self, number: usize) -> u64 {
        (number as u64).saturating_mul(u64::from(self.chunk_bytes))
    }

    /// Bytes of the file that the chunks' frames take: the index begins there.
    pub fn packed_bytes(&self) -> u64 {
        let last = self.chunks.last();
        last.map_or(0, |chunk| chunk.offset + u64::from(chunk.packed))
    }
}

/// Longest index that [`Index::parse`] takes.
pub(super) const MOST_BYTES: u64 = (8 + HEADER + ENTRY * MOST_CHUNKS as usize) as u64;

fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().unwrap_or_default())
}

/// BLAKE3 of so many zeros.
fn zeros(length: u32) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let block = [0; 16 << 10];
    let mut left = length as usize;
    while left > 0 {
        let part = left.min(block.len());
        hasher.update(&block[..part]);
        left -= part;
    }
    hasher.finalize().into()
}

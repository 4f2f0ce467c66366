//! A packed image that can be read at any place: a file on a disk, or buffers.
//!
//! The agent fetches the same parts over the network, in an order of its own.

use std::io;

use super::index::{BadIndex, Index};
use super::locate::{Located, TAIL_BYTES, locate};
use super::unpack::{BadChunk, Unpacker};
use crate::ReadAt;

/// A packed image: its index has been read, and nothing has been believed of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// What it consists of.
    pub index: Index,
    /// The index's frame, which digest and signature are of.
    pub frame: Vec<u8>,
    /// The signature's frame.
    pub signature: Option<Vec<u8>>,
    /// Length of the file.
    pub file_bytes: u64,
}

/// Why a packed image cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum Unopened {
    /// Its bytes cannot be had.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    /// Its end or its index is not as it should be.
    #[error(transparent)]
    Index(#[from] BadIndex),
    /// A chunk is not what the index says.
    #[error("chunk {number}, at byte {offset}, is damaged")]
    Chunk {
        /// Which, from 0.
        number: usize,
        /// Where its frame begins in the file.
        offset: u64,
        /// What about it.
        #[source]
        source: BadChunk,
    },
}

impl Opened {
    /// Finds and reads the index.
    ///
    /// # Errors
    /// When there is none that can be.
    pub fn open(file: &dyn ReadAt) -> Result<Self, Unopened> {
        let size = file.size()?;
        let length = size.min(TAIL_BYTES as u64);
        let tail = part(file, size - length, length)?;
        let Located { index, signature } = locate(&tail, size)?;
        let frame = part(file, index.start, index.end - index.start)?;
        let signature = signature
            .map(|range| part(file, range.start, range.end - range.start))
            .transpose()?;
        let parsed = Index::parse(&frame)?;
        if parsed.packed_bytes() != index.start {
            return Err(BadIndex::Index("its chunks do not end where it begins").into());
        }
        Ok(Self {
            index: parsed,
            frame,
            signature,
            file_bytes: size,
        })
    }

    /// Unpacks and checks one chunk, which is then in `into`. `packed` is room.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn read_chunk(
        &self,
        file: &dyn ReadAt,
        number: usize,
        unpacker: &mut Unpacker,
        packed: &mut Vec<u8>,
        into: &mut Vec<u8>,
    ) -> Result<(), Unopened> {
        let chunk = &self.index.chunks[number];
        packed.resize(chunk.packed as usize, 0);
        into.resize(self.index.length(number) as usize, 0);
        file.read_exact_at(packed, chunk.offset)?;
        let unpacked = unpacker.unpack(chunk, packed, into);
        unpacked.map_err(|source| Unopened::Chunk {
            number,
            offset: chunk.offset,
            source,
        })
    }
}

/// Bytes whose count has been bounded.
fn part(file: &dyn ReadAt, start: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}

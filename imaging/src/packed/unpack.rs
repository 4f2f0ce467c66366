//! One chunk's frame becomes the chunk, and is compared with what the index vouches for.

use std::io;

use super::Chunk;

/// A chunk that is not what the index says.
#[derive(Debug, thiserror::Error)]
pub enum BadChunk {
    /// The frame cannot be decompressed into the chunk's length.
    #[error("its frame is damaged")]
    Frame(#[source] io::Error),
    /// The frame holds less than the chunk.
    #[error("its frame holds {0} bytes, fewer than the chunk")]
    Short(usize),
    /// It is something else.
    #[error("its bytes are not those of the index's digest")]
    Digest,
}

/// Unpacks chunks, one after the other. Each thread has its own.
pub struct Unpacker {
    zstd: zstd::bulk::Decompressor<'static>,
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacker").finish_non_exhaustive()
    }
}

impl Unpacker {
    /// A decoder with nothing in it.
    ///
    /// # Errors
    /// For want of memory.
    pub fn new() -> io::Result<Self> {
        let zstd = zstd::bulk::Decompressor::new()?;
        Ok(Self { zstd })
    }

    /// Decompresses a chunk's frame into `into`, which is as long as the chunk
    /// ([`super::Index::length`]), and compares. Nothing is to be believed of `into` unless this
    /// succeeds.
    ///
    /// # Errors
    /// When that is not the chunk.
    pub fn unpack(
        &mut self,
        chunk: &Chunk,
        packed: &[u8],
        into: &mut [u8],
    ) -> Result<(), BadChunk> {
        let length = self
            .zstd
            .decompress_to_buffer(packed, into)
            .map_err(BadChunk::Frame)?;
        if length != into.len() {
            return Err(BadChunk::Short(length));
        }
        if *blake3::hash(into).as_bytes() != chunk.digest {
            return Err(BadChunk::Digest);
        }
        Ok(())
    }
}

//! The packed image: a zstd file whose parts can be fetched, checked and written each for itself.
//!
//! ```text
//! zstd frame per chunk            2 MiB of the image each, the last what is left; zeros too
//! skippable frame 0x184D2A50      the index: each chunk's length, digest, whether it is zeros
//! skippable frame 0x184D2A51      optional: a signature of the index's frame
//! skippable frame 0x184D2A5E      the seek table of zstd's seekable format, at the file's end
//! ```
//!
//! `zstd -d` gives the image, byte for byte. A reader fetches the file's tail, finds the index
//! in it ([`locate`]), believes it when its digest or signature holds, and from then on believes
//! each chunk on its own. The digest of a packed image is that of the index's frame as it lies in
//! the file, from its magic to its end.
//!
//! The index, all numbers little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `FerrPkd1` |
//! | 8 | length of the image |
//! | 4 | length of a chunk of it: a power of two, 64 KiB to 2 MiB |
//! | 4 | count of chunks |
//! | 36 each | length of the chunk's frame, its highest bit set for zeros; BLAKE3 of the chunk |
//!
//! Frames lie one after the other from the file's first byte: no offset is written that could lie.
//! The frames carry no checksum of zstd's own, because the index has a better one.

mod index;
mod locate;
mod open;
mod pack;
mod sign;
mod signature;
mod unpack;

pub use index::{BadIndex, Chunk, Index};
pub use locate::{Located, TAIL_BYTES, locate};
pub use open::{Opened, Unopened};
pub use pack::{Chunks, LEVEL, Packed, Packer, Sign, Writer, pack};
pub use sign::{BadKey, SigningKey};
pub use signature::{BadSignature, PublicKey, signature_text};
pub use unpack::{BadChunk, Unpacker};

/// Bytes of the image in a chunk that we pack.
pub const CHUNK_BYTES: u32 = 2 << 20;
/// Most chunks: 512 GiB of image, an index of 9 MiB.
pub const MOST_CHUNKS: u32 = 1 << 18;
/// Longest signature.
pub const MOST_SIGNATURE: u32 = 4 << 10;

const INDEX_MAGIC: u32 = 0x184D_2A50;
const SIGNATURE_MAGIC: u32 = 0x184D_2A51;
const SEEK_TABLE_MAGIC: u32 = 0x184D_2A5E;
/// Magic and length, before a skippable frame's content.
const FRAME_HEADER: usize = 8;

/// Longest frame that a chunk of so many bytes may have: zstd itself needs less.
const fn most_packed(raw: u32) -> u32 {
    raw + raw / 128 + (1 << 10)
}

/// A skippable frame (RFC 8878, 3.1.2).
fn skippable(magic: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(FRAME_HEADER + content.len());
    frame.extend_from_slice(&magic.to_le_bytes());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(content);
    frame
}

/// The content of the skippable frame that `bytes` are, to their end.
fn content(magic: u32, bytes: &[u8]) -> Option<&[u8]> {
    let (header, content) = bytes.split_at_checked(FRAME_HEADER)?;
    let length = u32::try_from(content.len()).ok()?;
    (header[..4] == magic.to_le_bytes() && header[4..] == length.to_le_bytes()).then_some(content)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

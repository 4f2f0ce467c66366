//! Where a packed image's index is: its file's end says so, as zstd's seekable format has it.

use std::ops::Range;

use super::index::{BadIndex, MOST_BYTES};
use super::{FRAME_HEADER, MOST_SIGNATURE, SEEK_TABLE_MAGIC, skippable};

/// How much of the file's end to fetch for [`locate`].
pub const TAIL_BYTES: usize = 64 << 10;

const FOOTER: usize = 9;
const FOOTER_MAGIC: u32 = 0x8F92_EAB1;
/// Longest frame of a signature.
const MOST_SIGNED: u64 = MOST_SIGNATURE as u64 + FRAME_HEADER as u64;
/// A frame's length in the file, and what it holds.
const ENTRY: usize = 8;

/// Where the parts of a packed image's end lie in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The index's frame, for [`super::Index::parse`] and for the digest.
    pub index: Range<u64>,
    /// The signature's frame, for [`super::PublicKey::vouches`].
    pub signature: Option<Range<u64>>,
}

/// Finds the index of a packed image from the last bytes of its file ([`TAIL_BYTES`], or the
/// whole file when it is shorter). Chunks lie from the file's first byte to the index.
///
/// # Errors
/// When that is no packed image's end.
pub fn locate(tail: &[u8], file_bytes: u64) -> Result<Located, BadIndex> {
    let (before, footer) = tail
        .split_last_chunk::<FOOTER>()
        .ok_or(BadIndex::NotPacked)?;
    if footer[5..] != FOOTER_MAGIC.to_le_bytes() || footer[4] != 0 {
        return Err(BadIndex::NotPacked);
    }
    let frames = u64::from(u32::from_le_bytes([
        footer[0], footer[1], footer[2], footer[3],
    ]));
    let table = FRAME_HEADER as u64 + frames * ENTRY as u64 + FOOTER as u64;
    let end = file_bytes
        .checked_sub(table)
        .ok_or(BadIndex::End("its seek table is longer than the file"))?;
    if frames < 2 {
        return Err(BadIndex::NotPacked);
    }
    let mut entries = before.rchunks_exact(ENTRY);
    let mut next = || entries.next().map(entry).ok_or(BadIndex::NotPacked);
    let (last, one_before) = (next()?, next()?);
    // Only what is not of the image holds nothing of it.
    let (index, signature) = match (last, one_before) {
        ((signature, 0), (index, 0)) => (index, Some(signature)),
        ((index, 0), _) => (index, None),
        _ => return Err(BadIndex::NotPacked),
    };
    let too_long = signature.is_some_and(|length| u64::from(length) > MOST_SIGNED);
    if u64::from(index) > MOST_BYTES || too_long {
        return Err(BadIndex::End("its index or signature is too long"));
    }
    let signed = u64::from(signature.unwrap_or(0));
    let start = end.checked_sub(signed + u64::from(index));
    let start = start.ok_or(BadIndex::End("its index is longer than the file"))?;
    let index = start..start + u64::from(index);
    Ok(Located {
        signature: signature.map(|_| index.end..end),
        index,
    })
}

fn entry(bytes: &[u8]) -> (u32, u32) {
    let half = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap_or_default());
    (half(&bytes[..4]), half(&bytes[4..]))
}

/// The seek table of frames, each given as its length in the file and what it holds.
pub(super) fn seek_table(frames: &[(u32, u32)]) -> Vec<u8> {
    let count = u32::try_from(frames.len()).unwrap_or(u32::MAX);
    let mut content = Vec::with_capacity(frames.len() * ENTRY + FOOTER);
    for (packed, raw) in frames {
        content.extend_from_slice(&packed.to_le_bytes());
        content.extend_from_slice(&raw.to_le_bytes());
    }
    content.extend_from_slice(&count.to_le_bytes());
    content.push(0);
    content.extend_from_slice(&FOOTER_MAGIC.to_le_bytes());
    skippable(SEEK_TABLE_MAGIC, &content)
}

//! qcow2, versions 2 and 3: QEMU's disk image, read by our own code (QEMU, docs/interop/qcow2.txt).
//!
//! Such a file comes from anywhere, so nothing in it is trusted: every place that it names is
//! checked against the file before it is read, memory is one cluster and one table whatever the
//! file says, and tables that are named twice cannot make work that the file's size does not pay
//! for. Only what is read is understood: the active disk. Refcounts, snapshots and bitmaps say
//! nothing of its content and are passed over. What needs another file or a key, and what a newer
//! QEMU may have added, is refused by name.

mod content;
mod header;
mod inflate;
mod map;

use std::io;

pub use content::Content;
pub use header::KNOWN as HEADER;
pub use inflate::Inflater;
pub use map::{Held, Map, Run};

use crate::ReadAt;
use header::Header;

/// The first bytes of a qcow2 file.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

/// What the compressed clusters of a file are compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Deflate without a header.
    Deflate,
    /// A zstd frame each.
    Zstd,
}

/// Why a file cannot be read. Each says what it is; whoever shows it says which file.
#[derive(Debug, thiserror::Error)]
pub enum BadQcow2 {
    /// Something else.
    #[error("it does not begin as a qcow2 file does")]
    NotQcow2,
    /// A version that is not known.
    #[error("it is qcow2 of version {0}, and only versions 2 and 3 are known")]
    Version(u32),
    /// Only a part of a disk.
    #[error("it is only what differs from its backing file {0:?}: join them with qemu-img convert")]
    BackingFile(String),
    /// Only tables.
    #[error("its data lies in an external data file: join them with qemu-img convert")]
    ExternalData,
    /// Not readable without a key.
    #[error("it is encrypted ({0}): decrypt it with qemu-img convert")]
    Encrypted(&'static str),
    /// QEMU itself says so.
    #[error("QEMU has marked it as corrupt: repair it with qemu-img check -r all, or make it anew")]
    MarkedCorrupt,
    /// Entries of 16 bytes, with a bitmap each.
    #[error("it has extended L2 entries (subclusters): convert it without extended_l2")]
    ExtendedL2,
    /// Bits that say: who does not know this must not read on.
    #[error("it needs incompatible features that are not known: {0}")]
    UnknownFeatures(String),
    /// A compression that is not known.
    #[error("its compression type {0} is not known, only 0 (zlib) and 1 (zstd)")]
    UnknownCompression(u8),
    /// Sizes that nobody has.
    #[error("its {what} is {value}, and at most {most} is read")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large it says it is.
        value: u64,
        /// How large it may be.
        most: u64,
    },
    /// It ends before something that it names does.
    #[error("it is cut off: its {what} ends at byte {end}, the file at byte {has}")]
    Truncated {
        /// What is not whole.
        what: &'static str,
        /// Where that would end.
        end: u64,
        /// Where the file ends.
        has: u64,
    },
    /// It contradicts itself.
    #[error("it is damaged at byte {at}: {what}")]
    Damaged {
        /// What about it.
        what: &'static str,
        /// Where in the file.
        at: u64,
    },
    /// One place of the file is named more often than there is room for.
    #[error("it is damaged: its tables name one place of the file twice ({0} and {1})")]
    Overlap(&'static str, &'static str),
    /// A cluster does not decompress to a cluster.
    #[error("it is damaged: the compressed cluster at byte {at} cannot be decompressed: {why}")]
    Cluster {
        /// Where in the file.
        at: u64,
        /// What the decoder says.
        why: String,
    },
    /// Its bytes cannot be had.
    #[error("its {what} at byte {at} cannot be read: {source}")]
    Read {
        /// What was read.
        what: &'static str,
        /// Where in the file.
        at: u64,
        /// What the source says.
        source: io::Error,
    },
}

impl From<BadQcow2> for io::Error {
    fn from(error: BadQcow2) -> Self {
        let kind = match &error {
            BadQcow2::Read { source, .. } => source.kind(),
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// A qcow2 file whose header has been read and found readable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qcow2 {
    header: Header,
    file_bytes: u64,
}

impl Qcow2 {
    /// Reads the header. The tables are read and checked by [`Self::map`].
    ///
    /// # Errors
    /// When it is not such a file, or one that cannot be read whole by itself.
    pub fn open(source: &dyn ReadAt) -> Result<Self, BadQcow2> {
        let size = source.size();
        let file_bytes = size.map_err(|error| unread("size", 0, error))?;
        let header = Header::read(source, file_bytes)?;
        Ok(Self { header, file_bytes })
    }

    /// Bytes of the disk that it holds.
    pub const fn size(&self) -> u64 {
        self.header.size
    }

    /// Bytes of the file.
    pub const fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// 2 or 3.
    pub const fn version(&self) -> u32 {
        self.header.version
    }

    /// Bytes of a cluster: the grain in which the disk is stored.
    pub const fn cluster_bytes(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// What compressed clusters are compressed with, if there are any.
    pub const fn compression(&self) -> Compression {
        self.header.compression
    }

    /// Where each part of the disk lies, in the disk's order. `source` is what was opened.
    pub fn map<'s>(&'s self, source: &'s dyn ReadAt) -> Map<'s> {
        Map::new(self, source)
    }

    /// The disk's bytes, from its first to its last.
    ///
    /// # Errors
    /// When no decoder can be made.
    pub fn content<'s>(&'s self, source: &'s dyn ReadAt) -> io::Result<Content<'s>> {
        Content::new(self, source)
    }
}

fn unread(what: &'static str, at: u64, source: io::Error) -> BadQcow2 {
    BadQcow2::Read { what, at, source }
}

fn read(
    source: &dyn ReadAt,
    what: &'static str,
    buffer: &mut [u8],
    at: u64,
) -> Result<(), BadQcow2> {
    source
        .read_exact_at(buffer, at)
        .map_err(|error| unread(what, at, error))
}

#[cfg(test)]
pub(crate) mod hostile;
#[cfg(test)]
pub(crate) mod made;
#[cfg(test)]
mod tests;

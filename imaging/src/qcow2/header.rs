//! The header: what the file is, and whether everything in it is understood.

use super::{BadQcow2, Compression, MAGIC, read};
use crate::ReadAt;

/// Bytes of the header of version 2, and the least of version 3.
const V2: usize = 72;
const V3: usize = 104;
/// All of a header that is understood lies in so many bytes; the rest of it only names things.
pub const KNOWN: usize = 112;
/// So much of the file is looked at: the header with all extensions that are known.
const LOOK: u64 = 4096;
/// Smallest and largest cluster, as powers of two: 512 bytes and 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Largest L1 table, as QEMU has it.
const MOST_L1: u64 = 32 << 20;
/// What a backing file's name may have, and what of it is shown.
const LONGEST_NAME: usize = 1023;
const SHOWN: usize = 100;
/// The header extension that gives features names.
const FEATURE_NAMES: u32 = 0x6803_f857;

/// Incompatible features.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// What the rest of the reader needs of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    pub(super) size: u64,
    pub(super) l1_at: u64,
    /// As many as the disk's size needs; more mean nothing.
    pub(super) l1_entries: u64,
    pub(super) compression: Compression,
}

impl Header {
    pub(super) fn read(source: &dyn ReadAt, file_bytes: u64) -> Result<Self, BadQcow2> {
        let look = file_bytes.min(LOOK);
        let mut first = vec![0; usize::try_from(look).unwrap_or(0)];
        read(source, "header", &mut first, 0)?;
        if !first.starts_with(&MAGIC) {
            return Err(BadQcow2::NotQcow2);
        }
        let fields = Fields {
            bytes: &first,
            file_bytes,
        };
        fields.header()
    }
}

struct Fields<'a> {
    bytes: &'a [u8],
    file_bytes: u64,
}

impl Fields<'_> {
    fn header(&self) -> Result<Header, BadQcow2> {
        let version = self.word(4)?;
        let own = match version {
            2 => V2,
            3 => self.own_length()?,
            other => return Err(BadQcow2::Version(other)),
        };
        self.whole(own)?;
        let features = if version == 3 { self.long(72)? } else { 0 };
        self.check_features(features, own)?;
        self.check_alone()?;
        let cluster_bits = self.word(20)?;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(damaged("clusters of an impossible size", 20));
        }
        let (l1_at, l1_entries) = self.l1(cluster_bits)?;
        Ok(Header {
            version,
            cluster_bits,
            size: self.long(24)?,
            l1_at,
            l1_entries,
            compression: self.compression(features, own)?,
        })
    }

    /// The length that a header of version 3 says it has.
    fn own_length(&self) -> Result<usize, BadQcow2> {
        let length = self.word(100)? as usize;
        if length < V3 || length as u64 > LOOK || !length.is_multiple_of(8) {
            return Err(damaged("a header of an impossible length", 100));
        }
        Ok(length)
    }

    fn check_features(&self, features: u64, own: usize) -> Result<(), BadQcow2> {
        if features & EXTERNAL_DATA != 0 {
            return Err(BadQcow2::ExternalData);
        }
        if features & EXTENDED_L2 != 0 {
            return Err(BadQcow2::ExtendedL2);
        }
        // Dirty is read: it says that refcounts may be wrong, and they are not looked at.
        let known = DIRTY | CORRUPT | COMPRESSION_TYPE;
        let unknown = features & !known;
        if unknown != 0 {
            return Err(BadQcow2::UnknownFeatures(self.names(unknown, own)));
        }
        if features & CORRUPT != 0 {
            return Err(BadQcow2::MarkedCorrupt);
        }
        Ok(())
    }

    /// Neither another file nor a key is needed.
    fn check_alone(&self) -> Result<(), BadQcow2> {
        match self.word(32)? {
            0 => {}
            1 => return Err(BadQcow2::Encrypted("AES")),
            2 => return Err(BadQcow2::Encrypted("LUKS")),
            _ => return Err(BadQcow2::Encrypted("a method that is not known")),
        }
        let (at, length) = (self.long(8)?, self.word(16)? as usize);
        if at == 0 {
            return Ok(());
        }
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let end = at.saturating_add(length.min(LONGEST_NAME));
        let name = self.bytes.get(at..end).unwrap_or_default();
        Err(BadQcow2::BackingFile(shown(name)))
    }

    /// Where the L1 table is, and how many of its entries the disk needs.
    fn l1(&self, cluster_bits: u32) -> Result<(u64, u64), BadQcow2> {
        let (size, entries, at) = (self.long(24)?, u64::from(self.word(36)?), self.long(40)?);
        // A table is a cluster of 8-byte entries, so an L1 entry stands for so many bytes:
        let covered = 1_u64 << (cluster_bits + cluster_bits - 3);
        let needed = size.div_ceil(covered);
        let most = MOST_L1 / 8;
        if needed > most {
            return Err(BadQcow2::TooLarge {
                what: "disk",
                value: size,
                most: most.saturating_mul(covered),
            });
        }
        if entries > most {
            return Err(BadQcow2::TooLarge {
                what: "L1 table",
                value: entries * 8,
                most: MOST_L1,
            });
        }
        if entries < needed {
            return Err(damaged("its L1 table is too short for its disk", 36));
        }
        if needed == 0 {
            return Ok((0, 0));
        }
        let cluster = 1 << cluster_bits;
        if at < cluster || !at.is_multiple_of(cluster) {
            return Err(damaged("its L1 table is not where a table can be", 40));
        }
        let end = at.saturating_add(needed * 8);
        if end > self.file_bytes {
            return Err(BadQcow2::Truncated {
                what: "L1 table",
                end,
                has: self.file_bytes,
            });
        }
        Ok((at, needed))
    }

    fn compression(&self, features: u64, own: usize) -> Result<Compression, BadQcow2> {
        let kind = if own > V3 { self.bytes[V3] } else { 0 };
        let said = features & COMPRESSION_TYPE != 0;
        match kind {
            0 if !said => Ok(Compression::Deflate),
            1 if said => Ok(Compression::Zstd),
            0 | 1 => Err(damaged(
                "its compression type and its features disagree",
                104,
            )),
            other => Err(BadQcow2::UnknownCompression(other)),
        }
    }

    /// The bits of features, with the names that the file gives them.
    fn names(&self, features: u64, own: usize) -> String {
        let table = self.extension(FEATURE_NAMES, own).unwrap_or_default();
        let named = |bit: u32| {
            // Kind 0 is incompatible; then the bit, then a name padded with zeros.
            let (entries, _) = table.as_chunks::<48>();
            let entry = entries
                .iter()
                .find(|entry| entry[0] == 0 && u32::from(entry[1]) == bit);
            match entry.map(|entry| shown(&entry[2..])) {
                Some(name) if !name.is_empty() => format!("bit {bit} ({name})"),
                _ => format!("bit {bit}"),
            }
        };
        let bits = (0..64).filter(|bit| features >> bit & 1 == 1);
        bits.map(named).collect::<Vec<_>>().join(", ")
    }

    /// The data of a header extension.
    fn extension(&self, wanted: u32, own: usize) -> Option<&[u8]> {
        let mut at = own;
        loop {
            let (kind, length) = (self.word(at).ok()?, self.word(at + 4).ok()? as usize);
            let end = at.checked_add(8)?.checked_add(length)?;
            if kind == 0 {
                return None;
            }
            let data = self.bytes.get(at + 8..end)?;
            if kind == wanted {
                return Some(data);
            }
            at = end.checked_next_multiple_of(8)?;
        }
    }

    fn word(&self, at: usize) -> Result<u32, BadQcow2> {
        self.field(at).map(u32::from_be_bytes)
    }

    fn long(&self, at: usize) -> Result<u64, BadQcow2> {
        self.field(at).map(u64::from_be_bytes)
    }

    fn field<const N: usize>(&self, at: usize) -> Result<[u8; N], BadQcow2> {
        let field = self.bytes.get(at..).and_then(<[u8]>::first_chunk);
        field.copied().ok_or_else(|| self.cut(at + N))
    }

    fn whole(&self, length: usize) -> Result<(), BadQcow2> {
        if self.bytes.len() < length {
            return Err(self.cut(length));
        }
        Ok(())
    }

    fn cut(&self, end: usize) -> BadQcow2 {
        BadQcow2::Truncated {
            what: "header",
            end: end as u64,
            has: self.file_bytes,
        }
    }
}

const fn damaged(what: &'static str, at: u64) -> BadQcow2 {
    BadQcow2::Damaged { what, at }
}

/// A name out of the file, up to its first zero, fit to be shown.
fn shown(bytes: &[u8]) -> String {
    let name = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(name);
    let printable = text.chars().filter(|letter| !letter.is_control());
    printable.take(SHOWN).collect()
}

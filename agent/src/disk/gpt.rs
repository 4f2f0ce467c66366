//! The GUID partition table (UEFI 2.10, chapter 5), moved and extended without touching what it
//! says: numbers, GUIDs, attributes and names stay byte for byte.
//!
//! The `gpt` crate renumbers partitions when it writes (an image with partitions 1, 14, 15 comes
//! back as 1, 2, 3) and trusts the places that a header names. So it only reads here, as a second
//! opinion after we wrote; see [`confirm`].

use std::ops::Range;
use std::path::Path;

use super::aligned::Aligned;
use super::{Device, DiskError, EDGE, mbr};

/// How much of a disk's start is looked at and written last.
pub(crate) const HEAD: usize = 1 << 20;
const _: () = assert!(
    HEAD as u64 == EDGE,
    "what is cleared first is what is written last"
);
const MAGIC: &[u8; 8] = b"EFI PART";
/// The header's own bytes; what follows in its sector is reserved.
const HEADER: usize = 92;
const ENTRY: usize = 128;
/// Most entries that are taken: eight times what everybody writes.
const MOST_ENTRIES: u32 = 1024;
/// Smallest and largest sector that disks have.
const SECTORS: [u64; 2] = [512, 4096];
/// Where partitions begin and end, for every disk made since 2009.
const GRAIN: u64 = 1 << 20;
/// Linux file system data, 0FC63DAF-8483-4772-8E79-3D69D8477DE4, as on disk.
const LINUX_DATA: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];

/// Why a table cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadTable {
    /// It contradicts itself or is damaged.
    #[error("the partition table is damaged: {0}")]
    Damaged(&'static str),
    /// The disk ends before the partitions do.
    #[error(
        "partition {number} ends at byte {end}, beyond what the disk of {bytes} bytes can hold"
    )]
    Beyond { number: u32, end: u64, bytes: u64 },
    /// All entries are in use.
    #[error("all {0} places of the partition table are taken")]
    Full(u32),
    /// No gap is large enough.
    #[error(
        "no free space of {wanted} bytes is left for a partition; the largest gap has {largest}"
    )]
    NoSpace { wanted: u64, largest: u64 },
}

/// First and last sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Span {
    /// The bytes that it covers.
    pub(crate) const fn bytes(self, sector: u64) -> Range<u64> {
        let end = self.last.saturating_add(1);
        self.first.saturating_mul(sector)..end.saturating_mul(sector)
    }
}

/// A partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    /// As in `/dev/sda14`.
    pub(crate) number: u32,
    pub(crate) span: Span,
    /// As on disk.
    pub(crate) guid: [u8; 16],
    pub(crate) name: String,
}

/// A table in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    sector: u64,
    header: [u8; HEADER],
    entries: Vec<u8>,
}

impl Table {
    /// The table in a disk's first bytes, if there is one. `sector` is tried first.
    pub(crate) fn read(head: &[u8], sector: u64) -> Result<Option<Self>, BadTable> {
        for sector in sectors(sector) {
            if let Some(header) = header_at(head, usize::try_from(sector).ok()) {
                let table = Self::parse(head, 0, header, sector)?;
                table.check_places()?;
                return Ok(Some(table));
            }
        }
        Ok(None)
    }

    /// The second copy, in the last bytes of a disk of `disk_bytes`; told as if it were the first.
    pub(crate) fn read_backup(
        tail: &[u8],
        disk_bytes: u64,
        sector: u64,
    ) -> Result<Option<Self>, BadTable> {
        let start = disk_bytes.saturating_sub(tail.len() as u64);
        for sector in sectors(sector) {
            let size = usize::try_from(sector).ok();
            let at = size.and_then(|size| tail.len().checked_sub(size));
            let Some(header) = header_at(tail, at) else {
                continue;
            };
            let mut table = Self::parse(tail, start, header, sector)?;
            let own = table.long(24);
            if own.checked_add(1).and_then(|n| n.checked_mul(sector)) != Some(disk_bytes) {
                return Err(BadTable::Damaged("its backup is of a disk of another size"));
            }
            for (at, value) in [(24, 1), (32, own), (72, 2)] {
                table.set_long(at, value);
            }
            table.check_places()?;
            return Ok(Some(table));
        }
        Ok(None)
    }

    /// `bytes` begin at byte `begin` of the disk. What the places mean is not checked yet.
    fn parse(
        bytes: &[u8],
        begin: u64,
        header: [u8; HEADER],
        sector: u64,
    ) -> Result<Self, BadTable> {
        let damaged = BadTable::Damaged;
        let mut table = Self {
            sector,
            header,
            entries: Vec::new(),
        };
        let size = table.word(12);
        // A longer header means a newer revision, whose meaning we would lose.
        if table.word(8) != 0x0001_0000 || size as usize != HEADER {
            return Err(damaged("an unknown revision"));
        }
        if table.header_crc() != table.word(16) {
            return Err(damaged("the header's checksum is wrong"));
        }
        let (count, size) = (table.word(80), table.word(84));
        if size as usize != ENTRY || !(1..=MOST_ENTRIES).contains(&count) {
            return Err(damaged("entries of an unusual size or number"));
        }
        let start = table.long(72).checked_mul(sector);
        let start = start.and_then(|start| start.checked_sub(begin));
        let start = start.and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(count as usize * ENTRY)?));
        let entries = range.and_then(|range| bytes.get(range));
        let entries = entries.ok_or(damaged("its entries lie more than a MiB from the edge"))?;
        table.entries = entries.to_vec();
        if crc32fast::hash(&table.entries) != table.word(88) {
            return Err(damaged("the entries' checksum is wrong"));
        }
        Ok(table)
    }

    /// Every place that the header names must make sense before anything is derived from it.
    fn check_places(&self) -> Result<(), BadTable> {
        let damaged = |what| Err(BadTable::Damaged(what));
        let most = u64::MAX / self.sector / 4;
        let numbers = [self.backup(), self.first_usable(), self.last_usable()];
        if self.long(24) != 1 || numbers.iter().any(|&number| number > most) {
            return damaged("impossible sector numbers");
        }
        let array = self.array_sectors();
        let entries = self.long(72);
        if entries < 2 || self.first_usable() < entries + array {
            return damaged("its entries overlap something");
        }
        if self.first_usable() > self.last_usable() {
            return damaged("its usable space overlaps itself");
        }
        if self.backup() < self.last_usable() + array + 1 {
            return damaged("its usable space overlaps its backup");
        }
        let usable = self.first_usable()..=self.last_usable();
        for partition in self.partitions() {
            let Span { first, last } = partition.span;
            if first > last || !usable.contains(&first) || !usable.contains(&last) {
                return damaged("a partition lies outside the usable space");
            }
        }
        Ok(())
    }

    /// Its sectors' size.
    pub(crate) const fn sector(&self) -> u64 {
        self.sector
    }

    /// Size of the disk that it was made for.
    pub(crate) fn disk_bytes(&self) -> u64 {
        (self.backup() + 1) * self.sector
    }

    /// The bytes that the backup takes.
    pub(crate) fn backup_range(&self) -> Range<u64> {
        (self.backup() - self.array_sectors()) * self.sector..self.disk_bytes()
    }

    /// The partitions in use, by number.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = Partition> + '_ {
        let numbered = (1..).zip(self.entries.chunks_exact(ENTRY));
        numbered
            .filter(|(_, entry)| entry[..16] != [0; 16])
            .map(|(number, entry)| Partition {
                number,
                span: Span {
                    first: long(entry, 32),
                    last: long(entry, 40),
                },
                guid: entry[16..32].try_into().unwrap_or_default(),
                name: name(&entry[56..128]),
            })
    }

    /// Makes the table fit a disk of another size. Nothing but the end moves.
    pub(crate) fn fit(&mut self, disk_bytes: u64) -> Result<(), BadTable> {
        let sectors = disk_bytes / self.sector;
        let reserved = self.array_sectors() + 1;
        let last_usable = sectors.checked_sub(reserved + 1);
        let last_usable = last_usable.filter(|&last| last >= self.first_usable());
        let furthest = self
            .partitions()
            .max_by_key(|partition| partition.span.last);
        let beyond = |number, last: u64| BadTable::Beyond {
            number,
            end: last.saturating_add(1).saturating_mul(self.sector),
            bytes: disk_bytes,
        };
        let last_usable = last_usable.ok_or_else(|| beyond(0, self.first_usable()))?;
        if let Some(partition) = furthest.filter(|partition| partition.span.last > last_usable) {
            return Err(beyond(partition.number, partition.span.last));
        }
        self.set_long(32, sectors - 1);
        self.set_long(48, last_usable);
        Ok(())
    }

    /// Adds a Linux data partition in the last gap that is large enough, in the first free place.
    pub(crate) fn add(
        &mut self,
        label: &str,
        bytes: u64,
        guid: [u8; 16],
    ) -> Result<Partition, BadTable> {
        let places = self.entries.chunks_exact(ENTRY);
        let free = places.clone().position(|entry| entry[..16] == [0; 16]);
        let full = BadTable::Full(self.word(80));
        let slot = free.ok_or(full)?;
        let span = self.gap(bytes)?;
        let entry = &mut self.entries[slot * ENTRY..(slot + 1) * ENTRY];
        entry.fill(0);
        entry[..16].copy_from_slice(&LINUX_DATA);
        entry[16..32].copy_from_slice(&guid);
        entry[32..40].copy_from_slice(&span.first.to_le_bytes());
        entry[40..48].copy_from_slice(&span.last.to_le_bytes());
        let letters = label.encode_utf16().take(36);
        for (place, letter) in entry[56..].chunks_exact_mut(2).zip(letters) {
            place.copy_from_slice(&letter.to_le_bytes());
        }
        Ok(Partition {
            number: u32::try_from(slot + 1).unwrap_or(u32::MAX),
            span,
            guid,
            name: label.to_owned(),
        })
    }

    /// The last gap of so many bytes; it begins and ends at whole MiB where the disk's end allows.
    fn gap(&self, bytes: u64) -> Result<Span, BadTable> {
        let grain = GRAIN / self.sector;
        let mut spans: Vec<Span> = self.partitions().map(|partition| partition.span).collect();
        spans.sort_by_key(|span| std::cmp::Reverse(span.last));
        let wanted = bytes.div_ceil(GRAIN) * grain;
        let (mut end, mut largest) = (self.last_usable() + 1, 0);
        let floor = std::iter::once(self.first_usable());
        for start in spans.iter().map(|span| span.last + 1).chain(floor) {
            let (low, high) = (start.div_ceil(grain) * grain, end / grain * grain);
            if high >= low + wanted {
                return Ok(Span {
                    first: high - wanted,
                    last: high - 1,
                });
            }
            largest = largest.max(high.saturating_sub(low));
            let below = spans.iter().find(|span| span.last + 1 == start);
            end = end.min(below.map_or(start, |span| span.first));
        }
        Err(BadTable::NoSpace {
            wanted: wanted * self.sector,
            largest: largest * self.sector,
        })
    }

    /// Puts the primary table, and a protective record that covers the disk, into its first bytes.
    pub(crate) fn patch_head(&self, head: &mut [u8]) {
        let at = |sector: u64| usize::try_from(sector * self.sector).unwrap_or(usize::MAX);
        let (entries, header) = (at(self.long(72)), at(1));
        mbr::protect(head, self.backup() + 1);
        head[header..header + HEADER].copy_from_slice(&self.sealed(
            1,
            self.backup(),
            self.long(72),
        ));
        head[entries..entries + self.entries.len()].copy_from_slice(&self.entries);
    }

    /// The bytes at the disk's end, and where they begin.
    pub(crate) fn backup_bytes(&self) -> (u64, Vec<u8>) {
        let range = self.backup_range();
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
        bytes[..self.entries.len()].copy_from_slice(&self.entries);
        let header = bytes.len() - usize::try_from(self.sector).unwrap_or(0);
        let array = self.backup() - self.array_sectors();
        bytes[header..header + HEADER].copy_from_slice(&self.sealed(self.backup(), 1, array));
        (range.start, bytes)
    }

    /// The header for one of the two places, with its checksums.
    fn sealed(&self, own: u64, other: u64, array: u64) -> [u8; HEADER] {
        let mut sealed = self.clone();
        sealed.set_long(24, own);
        sealed.set_long(32, other);
        sealed.set_long(72, array);
        sealed.header[88..92].copy_from_slice(&crc32fast::hash(&self.entries).to_le_bytes());
        let crc = sealed.header_crc();
        sealed.header[16..20].copy_from_slice(&crc.to_le_bytes());
        sealed.header
    }

    fn header_crc(&self) -> u32 {
        let mut header = self.header;
        header[16..20].fill(0);
        crc32fast::hash(&header)
    }

    const fn array_sectors(&self) -> u64 {
        (self.entries.len() as u64).div_ceil(self.sector)
    }

    fn backup(&self) -> u64 {
        self.long(32)
    }

    fn first_usable(&self) -> u64 {
        self.long(40)
    }

    fn last_usable(&self) -> u64 {
        self.long(48)
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.header[at..at + 4].try_into().unwrap_or_default())
    }

    fn long(&self, at: usize) -> u64 {
        long(&self.header, at)
    }

    fn set_long(&mut self, at: usize, value: u64) {
        self.header[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

/// The sizes that sectors may have, the likely one first.
fn sectors(likely: u64) -> impl Iterator<Item = u64> {
    let others = SECTORS.into_iter().filter(move |other| *other != likely);
    std::iter::once(likely).chain(others)
}

/// The header at a byte, if one is there.
fn header_at(bytes: &[u8], at: Option<usize>) -> Option<[u8; HEADER]> {
    let header = bytes.get(at?..)?.first_chunk::<HEADER>()?;
    header.starts_with(MAGIC).then_some(*header)
}

/// Writes a table and the rest of a disk's first bytes: backup first, what boots last.
pub(crate) fn commit(table: &Table, head: &[u8], disk: &Device<'_>) -> Result<(), DiskError> {
    let mut patched = Aligned::zeroed(head.len());
    patched.copy_from_slice(head);
    table.patch_head(&mut patched);
    let (at, backup) = table.backup_bytes();
    disk.write_at(&backup, at)?;
    disk.flush()?;
    disk.expect(&backup, at)?;
    write_head(&patched, disk)
}

/// Writes a disk's first bytes from the back to the front: until the very first sector is there,
/// nothing boots.
pub(crate) fn write_head(head: &[u8], disk: &Device<'_>) -> Result<(), DiskError> {
    let first = usize::try_from(disk.sector())
        .unwrap_or(4096)
        .min(head.len());
    disk.write_at(&head[first..], first as u64)?;
    disk.flush()?;
    disk.write_at(&head[..first], 0)?;
    disk.flush()?;
    disk.expect(head, 0)
}

/// A second opinion: the `gpt` crate must find both copies sound and the same partitions.
pub(crate) fn confirm(table: &Table, path: &Path) -> Result<(), BadTable> {
    let damaged = BadTable::Damaged;
    let size = match table.sector {
        512 => ::gpt::disk::LogicalBlockSize::Lb512,
        _ => ::gpt::disk::LogicalBlockSize::Lb4096,
    };
    let config = ::gpt::GptConfig::new()
        .writable(false)
        .logical_block_size(size);
    let read = config
        .open(path)
        .map_err(|_| damaged("it cannot be read back"))?;
    if read.primary_header().is_err() || read.backup_header().is_err() {
        return Err(damaged("one of its two copies is not sound when read back"));
    }
    let found = read.partitions().iter().map(|(number, partition)| {
        let span = Span {
            first: partition.first_lba,
            last: partition.last_lba,
        };
        (*number, span, partition.part_guid.to_bytes_le())
    });
    let wanted = table.partitions().map(|p| (p.number, p.span, p.guid));
    if found.eq(wanted) {
        Ok(())
    } else {
        Err(damaged("other partitions are read back than were written"))
    }
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default())
}

fn name(bytes: &[u8]) -> String {
    let letters = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    let letters: Vec<u16> = letters.take_while(|&letter| letter != 0).collect();
    String::from_utf16_lossy(&letters)
}

#[cfg(test)]
#[path = "gpt_tests.rs"]
pub(crate) mod tests;

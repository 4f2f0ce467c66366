//! Where each part of the disk lies in the file: two levels of tables, read one at a time.

use super::{BadQcow2, Qcow2, read};
use crate::ReadAt;

/// Bits 9 to 55 of an entry: a place in the file.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of entries that mean nothing yet.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// So many entries of the L1 table are read at once.
const L1_BLOCK: u64 = 8192;
/// Compressed data is counted in sectors of so many bytes.
const SECTOR: u64 = 512;

/// A part of the disk that is stored in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where on the disk.
    pub guest: u64,
    /// How long, in bytes of the disk.
    pub length: u64,
    /// Where in the file.
    pub held: Held,
}

/// How a part of the disk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Nowhere: it reads as zeros.
    Zero,
    /// As it is.
    Data {
        /// Where in the file.
        host: u64,
    },
    /// One cluster, or what the disk has of it, in fewer bytes.
    Compressed {
        /// Where in the file.
        host: u64,
        /// At most so many bytes; what follows the compressed data in them belongs to others.
        bytes: u32,
    },
}

/// The parts of the disk, one after the other; together they are the whole disk. After an error
/// there is no more.
pub struct Map<'s> {
    image: &'s Qcow2,
    source: &'s dyn ReadAt,
    /// Where the next part begins.
    guest: u64,
    /// The part of the L1 table that was read last, and the number of its first entry.
    l1: Vec<u8>,
    l1_first: u64,
    /// The L2 table that was read last, and the number of its L1 entry.
    l2: Vec<u8>,
    l2_of: Option<u64>,
    /// Bytes of the file that tables and data together take so far.
    taken: u64,
    /// Read, and not yet joined with what follows.
    waiting: Option<Run>,
}

impl std::fmt::Debug for Map<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map")
            .field("guest", &self.guest)
            .finish_non_exhaustive()
    }
}

impl Iterator for Map<'_> {
    type Item = Result<Run, BadQcow2>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.guest >= self.image.size() {
                return self.waiting.take().map(Ok);
            }
            let run = match self.part() {
                Ok(run) => run,
                Err(error) => {
                    self.guest = u64::MAX;
                    self.waiting = None;
                    return Some(Err(error));
                }
            };
            let Some(before) = self.waiting.replace(run) else {
                continue;
            };
            match joined(before, run) {
                Some(both) => self.waiting = Some(both),
                None => return Some(Ok(before)),
            }
        }
    }
}

impl<'s> Map<'s> {
    pub(super) fn new(image: &'s Qcow2, source: &'s dyn ReadAt) -> Self {
        Self {
            image,
            source,
            guest: 0,
            l1: Vec::new(),
            l1_first: 0,
            l2: Vec::new(),
            l2_of: None,
            taken: 0,
            waiting: None,
        }
    }

    /// The next part, of one L2 table at most.
    fn part(&mut self) -> Result<Run, BadQcow2> {
        let cluster = self.image.cluster_bytes();
        let entries = cluster / 8;
        let (guest, index) = (self.guest, self.guest / cluster / entries);
        let end = (index + 1)
            .saturating_mul(cluster * entries)
            .min(self.image.size());
        let table = self.l1_entry(index)?;
        if table == 0 {
            self.guest = end;
            return Ok(Run {
                guest,
                length: end - guest,
                held: Held::Zero,
            });
        }
        self.load(index, table)?;
        let held = self.cluster(table)?;
        let mut run = Run {
            guest,
            length: self.step(held)?,
            held,
        };
        while self.guest < end {
            let next = Run {
                guest: self.guest,
                held: self.cluster(table)?,
                length: 0,
            };
            let Some(both) = joined(run, next) else { break };
            run = Run {
                length: both.length + self.step(next.held)?,
                ..both
            };
        }
        Ok(run)
    }

    /// Goes past one cluster; how much of it the disk has.
    fn step(&mut self, held: Held) -> Result<u64, BadQcow2> {
        if matches!(held, Held::Data { .. }) {
            self.take("data", self.image.cluster_bytes())?;
        }
        let length = self.clipped();
        self.guest += length;
        Ok(length)
    }

    fn clipped(&self) -> u64 {
        self.image
            .cluster_bytes()
            .min(self.image.size() - self.guest)
    }

    fn l1_entry(&mut self, index: u64) -> Result<u64, BadQcow2> {
        let header = &self.image.header;
        let within = index
            .checked_sub(self.l1_first)
            .filter(|&at| at < self.l1.len() as u64 / 8);
        let within = if let Some(within) = within {
            within
        } else {
            let count = (header.l1_entries - index).min(L1_BLOCK);
            self.l1.resize(usize::try_from(count * 8).unwrap_or(0), 0);
            self.l1_first = index;
            read(
                self.source,
                "L1 table",
                &mut self.l1,
                header.l1_at + index * 8,
            )?;
            0
        };
        let entry = entry(&self.l1, within);
        let at = header.l1_at + index * 8;
        if entry & L1_RESERVED != 0 {
            return Err(BadQcow2::Damaged {
                what: "an L1 entry has bits that mean nothing",
                at,
            });
        }
        let table = entry & PLACE;
        if !table.is_multiple_of(self.image.cluster_bytes()) {
            return Err(BadQcow2::Damaged {
                what: "an L2 table is not at a cluster's start",
                at,
            });
        }
        Ok(table)
    }

    fn load(&mut self, index: u64, table: u64) -> Result<(), BadQcow2> {
        if self.l2_of == Some(index) {
            return Ok(());
        }
        let cluster = self.image.cluster_bytes();
        self.within("L2 table", table, cluster)?;
        self.take("L2 table", cluster)?;
        self.l2.resize(usize::try_from(cluster).unwrap_or(0), 0);
        self.l2_of = None;
        read(self.source, "L2 table", &mut self.l2, table)?;
        self.l2_of = Some(index);
        Ok(())
    }

    /// How the cluster at hand is stored.
    fn cluster(&self, table: u64) -> Result<Held, BadQcow2> {
        let cluster = self.image.cluster_bytes();
        let slot = self.guest / cluster % (cluster / 8);
        let entry = entry(&self.l2, slot);
        let at = table + slot * 8;
        if entry & COMPRESSED != 0 {
            return self.compressed(entry, at);
        }
        let damaged = |what| Err(BadQcow2::Damaged { what, at });
        if entry & L2_RESERVED != 0 {
            return damaged("an L2 entry has bits that mean nothing");
        }
        let host = entry & PLACE;
        if !host.is_multiple_of(cluster) {
            return damaged("a cluster is not at a cluster's start");
        }
        if entry & ZERO != 0 {
            // With a place it is set aside only: what lies there does not count.
            return match self.image.version() {
                2 => damaged("a zero cluster, which version 2 does not have"),
                _ => Ok(Held::Zero),
            };
        }
        if host == 0 {
            return Ok(Held::Zero);
        }
        self.within("data", host, self.clipped())?;
        Ok(Held::Data { host })
    }

    fn compressed(&self, entry: u64, at: u64) -> Result<Held, BadQcow2> {
        // The larger the cluster, the more bits count its sectors.
        let places = 62 - (self.image.header.cluster_bits - 8);
        let host = entry & ((1 << places) - 1);
        let more = (entry & (COMPRESSED - 1)) >> places;
        let has = self.image.file_bytes();
        let end = host - host % SECTOR + (more + 1) * SECTOR;
        if host < self.image.cluster_bytes() {
            return Err(BadQcow2::Damaged {
                what: "compressed data lies in the header",
                at,
            });
        }
        if host >= has {
            return Err(BadQcow2::Truncated {
                what: "compressed data",
                end,
                has,
            });
        }
        // The last sector need not be whole where the file ends.
        let bytes = u32::try_from(end.min(has) - host).unwrap_or(u32::MAX);
        Ok(Held::Compressed { host, bytes })
    }

    fn within(&self, what: &'static str, at: u64, length: u64) -> Result<(), BadQcow2> {
        let (end, has) = (at.saturating_add(length), self.image.file_bytes());
        if end > has {
            return Err(BadQcow2::Truncated { what, end, has });
        }
        let header = &self.image.header;
        if at < header.l1_at + header.l1_entries * 8 && end > header.l1_at {
            return Err(BadQcow2::Overlap(what, "L1 table"));
        }
        Ok(())
    }

    /// Each cluster of the file holds one thing. Who takes more than there is names one twice.
    fn take(&mut self, what: &'static str, length: u64) -> Result<(), BadQcow2> {
        self.taken += length;
        // The last cluster need not be whole.
        let has = self
            .image
            .file_bytes()
            .next_multiple_of(self.image.cluster_bytes());
        if self.taken > has {
            return Err(BadQcow2::Overlap(what, what));
        }
        Ok(())
    }
}

/// Both as one, when they follow one another in the file too.
fn joined(before: Run, after: Run) -> Option<Run> {
    let follows = match (before.held, after.held) {
        (Held::Zero, Held::Zero) => true,
        (Held::Data { host }, Held::Data { host: next }) => host + before.length == next,
        _ => false,
    };
    follows.then_some(Run {
        length: before.length + after.length,
        ..before
    })
}

fn entry(table: &[u8], index: u64) -> u64 {
    let (entries, _) = table.as_chunks::<8>();
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    entries
        .get(index)
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

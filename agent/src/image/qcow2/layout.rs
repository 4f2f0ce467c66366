//! Where each byte of a qcow2 file belongs on the disk: its tables turned round, in the file's
//! order, so that the file can come as one stream.
//!
//! The tables are read before the stream begins, and come by in it once more. Each has a
//! fingerprint here, by which a server that answers differently the second time is found out.
//! Bounded: a file whose parts are so scattered that this does not fit is refused.

use std::io;
use std::sync::{Mutex, PoisonError};

use ferrite_imaging::ReadAt;
use ferrite_imaging::qcow2::{BadQcow2, HEADER, Held, Qcow2, Run};

/// Most memory that the parts of a file may take here.
const MOST_BYTES: usize = 24 << 20;
/// Longest part, so that its length fits.
const LONGEST: u64 = 1 << 30;
/// Compressed data is named in sectors: the last may hold the beginning of something else.
const SECTOR: u64 = 512;

/// Why a file cannot be written as a stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoLayout {
    #[error(transparent)]
    Bad(#[from] BadQcow2),
    #[error(
        "it is damaged: its tables name byte {at} of the file twice, which holds two things there"
    )]
    Overlap { at: u64 },
    #[error(
        "it has more than {most} parts that lie scattered: pack it first (ferrite-image pack), or \
         convert it once more (qemu-img convert)"
    )]
    Scattered { most: usize },
}

/// A part of the file that means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Where in the file.
    pub(super) host: u64,
    pub(super) bytes: u32,
    pub(super) what: What,
    /// Where on the disk; of a table its fingerprint.
    pub(super) guest: u64,
}

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// A table that has been read, or the header.
    Table,
    /// Bytes of the disk.
    Data,
    /// A compressed cluster.
    Packed,
}

impl Part {
    pub(super) fn end(&self) -> u64 {
        self.host + u64::from(self.bytes)
    }
}

/// The whole file.
#[derive(Debug)]
pub(super) struct Layout {
    /// In the file's order, none over another.
    pub(super) parts: Vec<Part>,
    /// Parts of the disk that the file says nothing of: where they begin, and how long they are.
    pub(super) zeros: Vec<(u64, u64)>,
    pub(super) image: Qcow2,
    fingerprints: Fingerprints,
}

impl Layout {
    /// Reads the file's tables. What is read back later needs memory for each part too.
    pub(super) fn read(source: &dyn ReadAt, verify: bool) -> Result<Self, NoLayout> {
        let most_bytes = if verify { MOST_BYTES / 4 } else { MOST_BYTES };
        let noting = Noting::new(source);
        let image = Qcow2::open(&noting)?;
        let mut parts = Vec::new();
        let mut zeros = Vec::new();
        for run in image.map(&noting) {
            place(run?, &mut parts, &mut zeros);
            let taken = (parts.len() + noting.count()) * size_of::<Part>();
            if taken + zeros.len() * size_of::<(u64, u64)>() > most_bytes {
                let most = most_bytes / size_of::<Part>();
                return Err(NoLayout::Scattered { most });
            }
        }
        let (tables, fingerprints) = noting.end();
        parts.extend(tables);
        parts.sort_unstable_by_key(|part| part.host);
        part_from_the_next(&mut parts)?;
        Ok(Self {
            parts,
            zeros,
            image,
            fingerprints,
        })
    }

    /// Whether a table is what was read at first.
    pub(super) fn is_same(&self, table: &Part, bytes: &[u8]) -> bool {
        self.fingerprints.of(bytes) == table.guest
    }
}

/// Puts a run of the disk where it belongs.
fn place(run: Run, parts: &mut Vec<Part>, zeros: &mut Vec<(u64, u64)>) {
    match run.held {
        Held::Zero => zeros.push((run.guest, run.length)),
        Held::Data { host } => {
            let mut done = 0;
            while done < run.length {
                let bytes = (run.length - done).min(LONGEST);
                parts.push(Part {
                    host: host + done,
                    bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
                    what: What::Data,
                    guest: run.guest + done,
                });
                done += bytes;
            }
        }
        Held::Compressed { host, bytes } => parts.push(Part {
            host,
            bytes,
            what: What::Packed,
            guest: run.guest,
        }),
    }
}

/// Ends each part where the next one begins, and refuses what lies over another.
fn part_from_the_next(parts: &mut [Part]) -> Result<(), NoLayout> {
    for index in 1..parts.len() {
        let next = parts[index].host;
        let part = &mut parts[index - 1];
        let over = part.end().saturating_sub(next);
        if over == 0 {
            continue;
        }
        let own = next - part.host;
        if part.what != What::Packed || over >= SECTOR || own == 0 {
            return Err(NoLayout::Overlap { at: next });
        }
        part.bytes = u32::try_from(own).unwrap_or(u32::MAX);
    }
    Ok(())
}

/// Short digests under a key that nobody else knows, so that no two tables can be made to have
/// the same one.
#[derive(Debug)]
struct Fingerprints([u8; 32]);

impl Fingerprints {
    fn of(&self, bytes: &[u8]) -> u64 {
        let digest = blake3::keyed_hash(&self.0, bytes);
        digest
            .as_bytes()
            .first_chunk()
            .map_or(0, |first| u64::from_le_bytes(*first))
    }
}

/// Takes down what is read.
struct Noting<'s> {
    source: &'s dyn ReadAt,
    fingerprints: Fingerprints,
    noted: Mutex<Vec<Part>>,
}

impl<'s> Noting<'s> {
    fn new(source: &'s dyn ReadAt) -> Self {
        Self {
            source,
            fingerprints: Fingerprints(rand::random()),
            noted: Mutex::default(),
        }
    }

    fn count(&self) -> usize {
        self.noted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    fn end(self) -> (Vec<Part>, Fingerprints) {
        let noted = self.noted.into_inner();
        (
            noted.unwrap_or_else(PoisonError::into_inner),
            self.fingerprints,
        )
    }
}

impl ReadAt for Noting<'_> {
    fn size(&self) -> io::Result<u64> {
        self.source.size()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.source.read_exact_at(buffer, offset)?;
        // Behind the header proper may already be a table, where clusters are small.
        let most = if offset == 0 { HEADER } else { usize::MAX };
        let bytes = &buffer[..buffer.len().min(most)];
        let part = Part {
            host: offset,
            bytes: u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            what: What::Table,
            guest: self.fingerprints.of(bytes),
        };
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.push(part);
        Ok(())
    }
}

//! Images, disks and a kernel that records or refuses, for the tests of writing.

use super::*;
use crate::disk::fixture::used_disk;
use crate::disk::gpt::tests::table_of;
use crate::kernel::{Change, Kernel};
use crate::root::Root;
use crate::stream::terms::{Patience, Terms};
use ferrite_imaging::packed::{self, Packed};
use ferrite_proto::address::Policy;
use ferrite_proto::digest::{Algorithm, Digest};
use ferrite_proto::image::Format;
use sha2::Digest as _;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

#[path = "../../../imaging/src/qcow2/made.rs"]
pub(crate) mod made;

pub(crate) const MIB: usize = 1 << 20;

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
}

/// An image of so many MiB with a table: noise from 3 MiB on, zeros in its last quarter but for
/// the backup table.
pub(crate) fn image(mib: usize, seed: u64) -> Vec<u8> {
    let (head, table) = table_of(512, (mib * MIB) as u64);
    let mut image = vec![0; mib * MIB];
    image[..head.len()].copy_from_slice(&head);
    noise(&mut image[3 * MIB..mib * MIB * 3 / 4], seed);
    let (at, backup) = table.backup_bytes();
    let at = usize::try_from(at).unwrap();
    image[at..at + backup.len()].copy_from_slice(&backup);
    image
}

/// The image as a packed file.
pub(crate) fn pack(image: &[u8]) -> (Vec<u8>, Packed) {
    let mut file = Vec::new();
    let mut from = image;
    let packed = packed::pack(&mut from, &mut file, 1).unwrap();
    (file, packed)
}

/// What a disk of so many bytes holds when the image has been written: the table moved.
pub(crate) fn expected(image: &[u8], mut disk: Vec<u8>) -> Vec<u8> {
    use crate::disk::gpt::{HEAD, Table};
    disk[..image.len()].copy_from_slice(image);
    let Some(mut table) = Table::read(&image[..HEAD.min(image.len())], 512).unwrap() else {
        return disk;
    };
    let edge = disk.len() - MIB;
    disk[edge.max(image.len())..].fill(0);
    let own = table.backup_range();
    let own = usize::try_from(own.start).unwrap()..usize::try_from(own.end).unwrap();
    disk[own].fill(0);
    table.fit(disk.len() as u64).unwrap();
    table.patch_head(&mut disk);
    let (at, backup) = table.backup_bytes();
    let at = usize::try_from(at).unwrap();
    disk[at..at + backup.len()].copy_from_slice(&backup);
    disk
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::new(Algorithm::Sha256, sha2::Sha256::digest(bytes).to_vec()).unwrap()
}

pub(crate) fn raw_ref(url: String, file: &[u8]) -> ImageRef {
    ImageRef {
        url,
        digest: Some(sha256(file)),
        mirrors: Vec::new(),
        digest_url: None,
        raw_digest: None,
        signed_by: None,
        format: Format::Raw,
        compression: None,
        allow_unverified: false,
    }
}

pub(crate) fn packed_ref(url: String, packed: &Packed) -> ImageRef {
    ImageRef {
        digest: Some(sha256(&packed.frame)),
        format: Format::Packed,
        ..raw_ref(url, b"")
    }
}

/// A machine with one disk, a plain file that was in use before.
pub(crate) struct Machine {
    folder: tempfile::TempDir,
    pub(crate) verify: bool,
    pub(crate) cancelled: AtomicBool,
}

impl Machine {
    pub(crate) fn new(disk_bytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("dev")).unwrap();
        drop(used_disk(&folder.path().join("dev/vda"), disk_bytes as u64));
        Self {
            folder,
            verify: false,
            cancelled: AtomicBool::new(false),
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn write(
        &self,
        image: &ImageRef,
        kernel: &dyn Kernel,
    ) -> Result<ImageWritten, Problem> {
        write_at(self.folder(), image, kernel, self.verify, &self.cancelled)
    }

    pub(crate) fn disk(&self) -> Vec<u8> {
        std::fs::read(self.folder().join("dev/vda")).unwrap()
    }

    pub(crate) fn set_disk(&self, bytes: &[u8]) {
        std::fs::write(self.folder().join("dev/vda"), bytes).unwrap();
    }

    pub(crate) fn is_untouched(&self) -> bool {
        self.disk().iter().all(|&byte| byte == 0xa5)
    }
}

/// Writes an image to the disk of a machine at a folder.
pub(crate) fn write_at(
    folder: &Path,
    image: &ImageRef,
    kernel: &dyn Kernel,
    verify: bool,
    cancelled: &AtomicBool,
) -> Result<ImageWritten, Problem> {
    let disk = Disk {
        name: "/dev/vda".into(),
        ..Disk::default()
    };
    let patience = Patience {
        connect: Duration::from_secs(2),
        read: Duration::from_secs(5),
        attempts: 3,
        pause: Duration::from_millis(10),
        from: Policy::OthersAndLoopback,
        ..Patience::default()
    };
    let terms = Terms {
        patience,
        ..Terms::default()
    };
    let context = Context {
        root: &Root::at(folder),
        kernel,
        progress: &|_| {},
        cancelled,
    };
    let demand = Demand { room: 0, verify };
    write(image, &disk, demand, &terms, &context)
}

/// Whether firmware or a kernel could find anything to boot, at either end.
pub(crate) fn is_bootable(disk: &[u8]) -> bool {
    let table = b"EFI PART";
    let end = disk.len();
    let places = [512, 4096, end - 512, end - 4096];
    disk[510..512] == [0x55, 0xaa] || places.iter().any(|&at| disk[at..].starts_with(table))
}

/// One change of a disk.
#[derive(Debug, Clone)]
pub(crate) enum Recorded {
    Write { offset: usize, bytes: Vec<u8> },
    Zero { offset: usize, length: usize },
    Flush,
}

/// A kernel that records what happens to a disk, and fails from some change on.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub(crate) changes: Mutex<Vec<Recorded>>,
    /// The change that fails, and how; changes after it fail too.
    pub(crate) fails: Option<(usize, i32)>,
}

impl Recorder {
    pub(crate) fn failing(at: usize, how: i32) -> Self {
        Self {
            fails: Some((at, how)),
            ..Self::default()
        }
    }

    pub(crate) fn changes(&self) -> Vec<Recorded> {
        self.changes.lock().unwrap().clone()
    }

    /// Bytes that were written or became zeros.
    pub(crate) fn bytes(&self) -> usize {
        let changes = self.changes.lock().unwrap();
        let bytes = changes.iter().map(|change| match change {
            Recorded::Write { bytes, .. } => bytes.len(),
            Recorded::Zero { length, .. } => *length,
            Recorded::Flush => 0,
        });
        bytes.sum()
    }
}

impl Kernel for Recorder {
    fn changing(&self, change: Change<'_>) -> io::Result<()> {
        let at = |offset: u64| usize::try_from(offset).unwrap();
        let mut changes = self.changes.lock().unwrap();
        if let Some((_, how)) = self.fails.filter(|(at, _)| changes.len() == *at) {
            return Err(io::Error::from_raw_os_error(how));
        }
        changes.push(match change {
            Change::Write { offset, bytes } => Recorded::Write {
                offset: at(offset),
                bytes: bytes.to_vec(),
            },
            Change::Zero { offset, length } => Recorded::Zero {
                offset: at(offset),
                length: at(length),
            },
            Change::Flush => Recorded::Flush,
        });
        Ok(())
    }
}

//! A disk that is written: opened for us alone, addressed by byte, zeroed by the device where it
//! can, and never left with writes in flight.
//!
//! A plain file can stand for a disk, which is how most tests run. What is on a disk is the
//! business of `gpt` and `mbr`.

pub(crate) mod aligned;
pub(crate) mod any;
pub(crate) mod gpt;
pub(crate) mod mbr;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ferrite_proto::problem::{Code, Problem};
use nix::fcntl::{FallocateFlags, fallocate};

use crate::kernel::{Change, Kernel};
use aligned::Aligned;

/// Start and end of a disk that are cleared and written last.
pub(crate) const EDGE: u64 = 1 << 20;
/// How often and how long the kernel is asked to read the partitions while somebody else looks.
const REREADS: u32 = 20;
const REREAD_PAUSE: Duration = Duration::from_millis(100);

/// What a disk refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// It cannot be opened.
    #[error("{disk} cannot be opened for writing")]
    Open {
        disk: String,
        #[source]
        source: io::Error,
    },
    /// Somebody else has it.
    #[error("{disk} is in use: mounted, or held by another program")]
    Busy { disk: String },
    /// A read failed.
    #[error("reading {disk} at byte {offset} failed")]
    Read {
        disk: String,
        offset: u64,
        #[source]
        source: io::Error,
    },
    /// A write failed.
    #[error("writing {disk} at byte {offset} failed")]
    Write {
        disk: String,
        offset: u64,
        #[source]
        source: io::Error,
    },
    /// What was written does not read back.
    #[error("{disk} does not return at byte {offset} what was written")]
    ReadBack { disk: String, offset: u64 },
    /// The disk did not confirm its writes.
    #[error("{disk} did not confirm its writes")]
    Flush {
        disk: String,
        #[source]
        source: io::Error,
    },
    /// The kernel did not take the new partitions.
    #[error("the kernel did not read the new partitions of {disk}")]
    Reread {
        disk: String,
        #[source]
        source: io::Error,
    },
}

impl From<DiskError> for Problem {
    fn from(error: DiskError) -> Self {
        let reason = std::error::Error::source(&error).map(|source| format!(": {source}"));
        let message = format!("{error}{}", reason.unwrap_or_default());
        match error {
            DiskError::Busy { .. } => Self::new(
                Code::DiskInUse,
                message,
                "choose another disk, or release this one",
            ),
            DiskError::Open { .. } => {
                Self::new(Code::DiskIo, message, "check that the disk is still there")
            }
            _ => Self::new(
                Code::DiskIo,
                message,
                "check the disk's health and cabling, replace it if need be, then retry",
            ),
        }
    }
}

/// A disk, ours alone while this value lives; several threads may read and write it at once.
#[derive(Debug)]
pub(crate) struct Device<'a> {
    name: String,
    path: PathBuf,
    kernel: &'a dyn Kernel,
    file: File,
    /// The same disk past the page cache, where that is possible.
    direct: Option<File>,
    block: bool,
    bytes: u64,
    sector: u64,
    /// Whether the device zeroes by itself; found out by asking it.
    punches: AtomicBool,
}

impl<'a> Device<'a> {
    /// Opens a disk for us alone. `name` is how messages call it.
    pub(crate) fn open(path: &Path, name: &str, kernel: &'a dyn Kernel) -> Result<Self, DiskError> {
        let failed = |source: io::Error| {
            let disk = name.to_owned();
            if source.raw_os_error() == Some(libc::EBUSY) {
                DiskError::Busy { disk }
            } else {
                DiskError::Open { disk, source }
            }
        };
        let kind = std::fs::metadata(path).map_err(failed)?.file_type();
        let block = kind.is_block_device();
        if !block && !kind.is_file() {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        // O_EXCL on a block device: refused while it or a partition of it is mounted or held.
        let exclusive = if block { libc::O_EXCL } else { 0 };
        let file = options.custom_flags(exclusive).open(path).map_err(failed)?;
        let direct = options.custom_flags(libc::O_DIRECT).open(path).ok();
        let (bytes, sector) = if block {
            kernel.disk_geometry(&file).map_err(failed)?
        } else {
            (file.metadata().map_err(failed)?.len(), 512)
        };
        Ok(Self {
            name: name.to_owned(),
            path: path.to_owned(),
            kernel,
            file,
            direct,
            block,
            bytes,
            sector,
            punches: AtomicBool::new(true),
        })
    }

    /// How messages call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its size.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its logical sector, bytes.
    pub(crate) const fn sector(&self) -> u64 {
        self.sector
    }

    /// Whether writes can go past the page cache.
    pub(crate) const fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Stands in for a disk with other sectors.
    #[cfg(test)]
    pub(crate) fn with_sector(mut self, sector: u64) -> Self {
        self.sector = sector;
        self
    }

    /// Fills `bytes` from the disk.
    pub(crate) fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.file
            .read_exact_at(bytes, offset)
            .map_err(|source| DiskError::Read {
                disk: self.name.clone(),
                offset,
                source,
            })
    }

    /// Fills `bytes` from the disk, past the page cache when memory and place are aligned for it.
    pub(crate) fn read_medium(&self, bytes: &mut [u8], offset: u64) -> Result<(), DiskError> {
        match self.direct_for(bytes, offset) {
            Some(direct) if direct.read_exact_at(bytes, offset).is_ok() => Ok(()),
            _ => self.read_at(bytes, offset),
        }
    }

    /// Writes `bytes`; past the page cache when memory and place are aligned for it.
    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), DiskError> {
        self.kernel
            .changing(Change::Write { offset, bytes })
            .map_err(|source| self.write_failed(offset, source))?;
        let direct = self.direct_for(bytes, offset);
        let result = match direct.map(|direct| direct.write_all_at(bytes, offset)) {
            Some(Err(error)) if error.raw_os_error() != Some(libc::EINVAL) => Err(error),
            Some(Ok(())) => Ok(()),
            // Not aligned, or a device that wants more alignment than it says.
            _ => self.file.write_all_at(bytes, offset),
        };
        result.map_err(|source| self.write_failed(offset, source))
    }

    /// The way past the page cache, where memory and place are aligned for it.
    fn direct_for(&self, bytes: &[u8], offset: u64) -> Option<&File> {
        let unit = usize::try_from(self.sector).unwrap_or(4096).max(512);
        let fits = bytes.len().is_multiple_of(unit) && offset.is_multiple_of(self.sector);
        self.direct
            .as_ref()
            .filter(|_| fits && aligned::is_aligned(bytes))
    }

    /// Makes a range read back as zeros: told to the device where it understands, else written.
    pub(crate) fn zero(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let aligned = offset.is_multiple_of(self.sector) && length.is_multiple_of(self.sector);
        if length == 0 {
            return Ok(());
        }
        if aligned {
            self.kernel
                .changing(Change::Zero { offset, length })
                .map_err(|source| self.write_failed(offset, source))?;
        }
        if aligned && self.punches.load(Ordering::Relaxed) {
            match self.punch(offset, length) {
                Ok(()) => return Ok(()),
                Err(error) if is_unsupported(&error) => {
                    self.punches.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(self.write_failed(offset, error)),
            }
        }
        if aligned && self.block {
            match self.kernel.zero_out(&self.file, offset, length) {
                Ok(()) => return Ok(()),
                Err(error) if is_unsupported(&error) => {}
                Err(error) => return Err(self.write_failed(offset, error)),
            }
        }
        self.write_zeros(offset, length)
    }

    /// On a block device the kernel answers only when reads give zeros; it never merely discards.
    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let signed = |number: u64| i64::try_from(number).map_err(|_| io::ErrorKind::InvalidInput);
        Ok(fallocate(
            &self.file,
            flags,
            signed(offset)?,
            signed(length)?,
        )?)
    }

    /// Sends zeros.
    pub(crate) fn write_zeros(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let zeros = Aligned::zeroed(usize::try_from(length.min(EDGE)).unwrap_or(0));
        let mut done = 0;
        while done < length {
            let part = usize::try_from(length - done).map_or(zeros.len(), |l| l.min(zeros.len()));
            self.write_at(&zeros[..part], offset + done)?;
            done += part as u64;
        }
        Ok(())
    }

    /// Waits until everything written is on the medium.
    pub(crate) fn flush(&self) -> Result<(), DiskError> {
        let flushed = self.kernel.changing(Change::Flush);
        flushed
            .and_then(|()| self.file.sync_all())
            .map_err(|source| DiskError::Flush {
                disk: self.name.clone(),
                source,
            })
    }

    /// Forgets what the kernel keeps of the disk, so that it is read from the medium next.
    pub(crate) fn drop_cache(&self) -> Result<(), DiskError> {
        if !self.block {
            return Ok(());
        }
        self.kernel
            .drop_cache(&self.file)
            .map_err(|source| DiskError::Flush {
                disk: self.name.clone(),
                source,
            })
    }

    /// Compares a range of the disk with what it shall hold, past the page cache where possible.
    pub(crate) fn expect(&self, wanted: &[u8], offset: u64) -> Result<(), DiskError> {
        let mut found = Aligned::zeroed(wanted.len());
        self.read_medium(&mut found, offset)?;
        match found.iter().zip(wanted).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(at) => Err(DiskError::ReadBack {
                disk: self.name.clone(),
                offset: offset + at as u64,
            }),
        }
    }

    /// Whether a range of the disk holds this already. One that cannot be read does not.
    pub(crate) fn holds(&self, wanted: &[u8], offset: u64) -> bool {
        match self.expect(wanted, offset) {
            Ok(()) => true,
            Err(DiskError::ReadBack { .. }) => false,
            Err(error) => {
                tracing::warn!(%error, "written anew, because it cannot be read");
                false
            }
        }
    }

    /// Overwrites the first and last MiB with zeros and waits for it: nothing boots from here.
    pub(crate) fn clear_edges(&self) -> Result<(), DiskError> {
        self.clear_from(self.bytes - EDGE.min(self.bytes))
    }

    /// The same, but of the last MiB only what lies behind `tail`.
    pub(crate) fn clear_from(&self, tail: u64) -> Result<(), DiskError> {
        self.write_zeros(0, EDGE.min(self.bytes))?;
        self.write_zeros(tail, self.bytes.saturating_sub(tail))?;
        self.flush()
    }

    /// Flushes, lets go of the disk, and has the kernel read its partitions.
    pub(crate) fn finish(self) -> Result<(), DiskError> {
        self.flush()?;
        let Self {
            name,
            path,
            kernel,
            file,
            direct,
            block,
            ..
        } = self;
        // Some kernels refuse to read the partitions of a disk that is held exclusively.
        drop((file, direct));
        if !block {
            return Ok(());
        }
        let failed = |source| DiskError::Reread {
            disk: name.clone(),
            source,
        };
        let device = File::open(&path).map_err(failed)?;
        for _ in 0..REREADS {
            match kernel.reread_partitions(&device) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(REREAD_PAUSE);
                }
                // A device that cannot have partitions, such as a loop device without them.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
                result => return result.map_err(failed),
            }
        }
        Err(failed(io::Error::from_raw_os_error(libc::EBUSY)))
    }

    fn write_failed(&self, offset: u64, source: io::Error) -> DiskError {
        DiskError::Write {
            disk: self.name.clone(),
            offset,
            source,
        }
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    let refused = [
        libc::EOPNOTSUPP,
        libc::ENODEV,
        libc::EINVAL,
        libc::ENOSYS,
        libc::ENOTTY,
    ];
    error.kind() == io::ErrorKind::Unsupported
        || error.raw_os_error().is_some_and(|os| refused.contains(&os))
}

/// A disk made of a plain file, for the tests of this and other modules.
#[cfg(test)]
pub(crate) mod fixture {
    use super::Device;
    use crate::inspect::block::{self, Extent};
    use crate::kernel::Kernel;
    use crate::root::Root;
    use std::io::Write as _;
    use std::path::Path;
    use std::process::Command;

    /// Plain files need nothing of the kernel.
    #[derive(Debug)]
    pub(crate) struct NoKernel;
    impl Kernel for NoKernel {}

    /// A file full of old data, as a disk that was in use before.
    pub(crate) fn used_disk(path: &Path, bytes: u64) -> Device<'static> {
        let pattern = vec![0xa5; 1 << 20];
        let mut left = usize::try_from(bytes).unwrap();
        let mut file = std::fs::File::create(path).unwrap();
        while left > 0 {
            let part = left.min(pattern.len());
            std::io::Write::write_all(&mut file, &pattern[..part]).unwrap();
            left -= part;
        }
        Device::open(path, "/dev/test", &NoKernel).unwrap()
    }

    /// A loop device over a file; gone when dropped.
    pub(crate) struct Loop {
        pub(crate) name: String,
    }

    impl Loop {
        /// Nothing, and a line that says why, where there is no root or no loop device.
        pub(crate) fn new(file: &Path, sector: u32) -> Option<Self> {
            let made = Command::new("losetup")
                .args(["--find", "--show", "--direct-io=on", "--partscan"])
                .args(["--sector-size", &sector.to_string()])
                .arg(file)
                .output();
            let why = match made {
                Ok(made) if made.status.success() => {
                    let name = String::from_utf8_lossy(&made.stdout).trim().to_owned();
                    return Some(Self { name });
                }
                Ok(made) => String::from_utf8_lossy(&made.stderr).trim().to_owned(),
                Err(error) => error.to_string(),
            };
            let test = std::thread::current();
            let test = test.name().unwrap_or("a test");
            // Not `eprintln`, which the test runner swallows.
            let _ = writeln!(std::io::stderr(), "skipped: {test}: no loop device: {why}");
            None
        }

        /// What the kernel sees on it.
        pub(crate) fn partitions(&self) -> Vec<Extent> {
            block::partitions(&Root::system(), &block::kernel_name(&self.name))
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup")
                .args(["--detach", &self.name])
                .status();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::{NoKernel, used_disk};
    use super::*;

    #[test]
    fn zeros_read_back_as_zeros_aligned_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let disk = used_disk(&folder.path().join("disk"), 8 * EDGE);
        disk.zero(EDGE, 3 * EDGE).unwrap();
        disk.zero(5 * EDGE + 7, 100).unwrap();
        disk.punches.store(false, Ordering::Relaxed);
        disk.zero(6 * EDGE, EDGE).unwrap();
        for (start, length) in [(EDGE, 3 * EDGE), (5 * EDGE + 7, 100), (6 * EDGE, EDGE)] {
            let length = usize::try_from(length).unwrap();
            disk.expect(&vec![0; length], start).unwrap();
        }
        disk.expect(&[0xa5; 7], 5 * EDGE).unwrap();
        let error = disk.expect(&[0xa5, 0xa6], 5 * EDGE).unwrap_err();
        assert!(matches!(error, DiskError::ReadBack { offset, .. } if offset == 5 * EDGE + 1));
    }

    #[test]
    fn cleared_edges_leave_the_middle() {
        let folder = tempfile::tempdir().unwrap();
        let disk = used_disk(&folder.path().join("disk"), 4 * EDGE);
        disk.clear_edges().unwrap();
        let edge = vec![0; usize::try_from(EDGE).unwrap()];
        disk.expect(&edge, 0).unwrap();
        disk.expect(&edge, 3 * EDGE).unwrap();
        disk.expect(&[0xa5], EDGE).unwrap();
        disk.expect(&[0xa5], 3 * EDGE - 1).unwrap();
    }

    #[test]
    fn errors_name_the_disk_and_the_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let disk = used_disk(&path, EDGE);
        let problem: Problem = disk.read_at(&mut [0; 10], EDGE).unwrap_err().into();
        assert_eq!(problem.code, Code::DiskIo);
        assert!(
            problem.message.contains("/dev/test at byte 1048576"),
            "{problem}"
        );
        let error = Device::open(folder.path(), "/dev/x", &NoKernel).unwrap_err();
        assert!(matches!(error, DiskError::Open { .. }));
    }
}

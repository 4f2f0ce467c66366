//! Effects that only the kernel has: ioctls, mounts, modules, kexec, reboot.
//!
//! The one place with `unsafe`. [`Kernel`] is a trait so that tests can record what would be done
//! and fail on demand; [`Linux`] does it.

#![expect(
    unsafe_code,
    reason = "system calls that no crate wraps; each block says why it holds"
)]

use std::ffi::{CStr, CString};
use std::fmt::{self, Debug};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags};
use nix::sys::reboot::RebootMode;
use nix::sys::time::TimeSpec;
use nix::time::ClockId;

/// What Ferrite asks of the kernel beyond plain files. What a double does not do is unsupported.
pub(crate) trait Kernel: Debug + Send + Sync {
    /// Mounts a file system; `data` are its own options.
    fn mount(&self, mount: &Mount<'_>) -> io::Result<()> {
        let _ = mount;
        Err(unsupported())
    }
    /// Takes a mount away.
    fn unmount(&self, target: &Path) -> io::Result<()> {
        let _ = target;
        Err(unsupported())
    }
    /// Loads a module from its uncompressed bytes.
    fn load_module(&self, image: &[u8]) -> io::Result<()> {
        let _ = image;
        Err(unsupported())
    }
    /// Sets the wall clock, seconds since 1970.
    fn set_clock(&self, seconds: i64) -> io::Result<()> {
        let _ = seconds;
        Err(unsupported())
    }
    /// Puts a kernel in memory, for a later [`Departure::Kexec`].
    fn load_kexec(&self, kernel: &File, initrd: Option<&File>, line: &CStr) -> io::Result<()> {
        let _ = (kernel, initrd, line);
        Err(unsupported())
    }
    /// Leaves the running kernel. Returns only when that failed.
    fn leave(&self, how: Departure) -> io::Error {
        let _ = how;
        unsupported()
    }
    /// Lets a file of efivarfs be changed: most variables are immutable files until told otherwise.
    fn allow_changes(&self, file: &File) -> io::Result<()> {
        let _ = file;
        Err(unsupported())
    }
    /// Size and logical sector of a block device, bytes.
    fn disk_geometry(&self, device: &File) -> io::Result<(u64, u64)> {
        let _ = device;
        Err(unsupported())
    }
    /// Makes a range of a block device read back as zeros; the kernel writes them if it must.
    fn zero_out(&self, device: &File, offset: u64, bytes: u64) -> io::Result<()> {
        let _ = (device, offset, bytes);
        Err(unsupported())
    }
    /// Empties the page cache of a block device: what is read next comes from the device.
    fn drop_cache(&self, device: &File) -> io::Result<()> {
        let _ = device;
        Err(unsupported())
    }
    /// Told of each change of a disk before it is made: nothing to do for a real kernel. A double
    /// records it, or fails in its place.
    fn changing(&self, change: Change<'_>) -> io::Result<()> {
        tracing::trace!(%change);
        Ok(())
    }
    /// Has the kernel read a block device's partitions again.
    fn reread_partitions(&self, device: &File) -> io::Result<()> {
        let _ = device;
        Err(unsupported())
    }
}

fn unsupported() -> io::Error {
    io::ErrorKind::Unsupported.into()
}

/// What is about to happen to a disk.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change<'a> {
    /// Bytes are written.
    Write { offset: u64, bytes: &'a [u8] },
    /// A range becomes zeros.
    Zero { offset: u64, length: u64 },
    /// All before it becomes durable.
    Flush,
}

impl fmt::Display for Change<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { offset, bytes } => write!(f, "write {} at {offset}", bytes.len()),
            Self::Zero { offset, length } => write!(f, "zero {length} at {offset}"),
            Self::Flush => f.write_str("flush"),
        }
    }
}

/// What to mount where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mount<'a> {
    /// The device, or a name for file systems without one.
    pub(crate) source: &'a Path,
    /// The folder.
    pub(crate) target: &'a Path,
    /// `ext4`, `proc`, …
    pub(crate) kind: &'a str,
    /// Read-only, nosuid, ….
    pub(crate) flags: MsFlags,
    /// The file system's own options.
    pub(crate) data: &'a str,
}

/// How a machine leaves the ramdisk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// Through the firmware.
    Reboot,
    /// Into the kernel that [`Kernel::load_kexec`] put in memory.
    Kexec,
    /// Off.
    PowerOff,
}

/// The running kernel.
#[derive(Debug)]
pub(crate) struct Linux;

mod ioctl {
    nix::ioctl_read!(get_flags, b'f', 1, libc::c_long);
    nix::ioctl_write_ptr!(set_flags, b'f', 2, libc::c_long);
    nix::ioctl_read!(disk_bytes, 0x12, 114, u64);
    nix::ioctl_read_bad!(disk_sector, nix::request_code_none!(0x12, 104), libc::c_int);
    nix::ioctl_write_ptr_bad!(zero_out, nix::request_code_none!(0x12, 127), [u64; 2]);
    nix::ioctl_none!(reread_partitions, 0x12, 95);
    nix::ioctl_none!(drop_cache, 0x12, 97);
}

/// `KEXEC_FILE_NO_INITRAMFS`.
const KEXEC_NO_INITRAMFS: libc::c_ulong = 4;
/// `FS_IMMUTABLE_FL`.
const IMMUTABLE: libc::c_long = 0x10;

impl Kernel for Linux {
    fn mount(&self, mount: &Mount<'_>) -> io::Result<()> {
        let Mount {
            source,
            target,
            kind,
            flags,
            data,
        } = *mount;
        Ok(nix::mount::mount(
            Some(source),
            target,
            Some(kind),
            flags,
            Some(data),
        )?)
    }

    fn unmount(&self, target: &Path) -> io::Result<()> {
        Ok(nix::mount::umount2(target, MntFlags::empty())?)
    }

    fn load_module(&self, image: &[u8]) -> io::Result<()> {
        Ok(nix::kmod::init_module(image, &CString::default())?)
    }

    fn set_clock(&self, seconds: i64) -> io::Result<()> {
        Ok(nix::time::clock_settime(
            ClockId::CLOCK_REALTIME,
            TimeSpec::new(seconds, 0),
        )?)
    }

    fn load_kexec(&self, kernel: &File, initrd: Option<&File>, line: &CStr) -> io::Result<()> {
        let flags = if initrd.is_some() {
            0
        } else {
            KEXEC_NO_INITRAMFS
        };
        // SAFETY: both descriptors are open for the length of the call (the second is ignored
        // with KEXEC_FILE_NO_INITRAMFS); the line is NUL-terminated and its length counts the NUL.
        let result = unsafe {
            libc::syscall(
                libc::SYS_kexec_file_load,
                kernel.as_raw_fd(),
                initrd.map_or(-1, AsRawFd::as_raw_fd),
                line.to_bytes_with_nul().len(),
                line.as_ptr(),
                flags,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn leave(&self, how: Departure) -> io::Error {
        let mode = match how {
            Departure::Reboot => RebootMode::RB_AUTOBOOT,
            Departure::Kexec => RebootMode::RB_KEXEC,
            Departure::PowerOff => RebootMode::RB_POWER_OFF,
        };
        match nix::sys::reboot::reboot(mode) {
            Err(errno) => errno.into(),
            Ok(never) => match never {},
        }
    }

    fn allow_changes(&self, file: &File) -> io::Result<()> {
        let mut flags: libc::c_long = 0;
        // SAFETY: the descriptor is open and the kernel writes at most a long to `flags`.
        unsafe { ioctl::get_flags(file.as_raw_fd(), &raw mut flags) }?;
        if flags & IMMUTABLE == 0 {
            return Ok(());
        }
        flags &= !IMMUTABLE;
        // SAFETY: the descriptor is open and the kernel only reads `flags`.
        unsafe { ioctl::set_flags(file.as_raw_fd(), &raw const flags) }?;
        Ok(())
    }

    fn disk_geometry(&self, device: &File) -> io::Result<(u64, u64)> {
        let (mut bytes, mut sector) = (0_u64, 0);
        // SAFETY: the descriptor is open and BLKGETSIZE64 writes one u64.
        unsafe { ioctl::disk_bytes(device.as_raw_fd(), &raw mut bytes) }?;
        // SAFETY: the descriptor is open and BLKSSZGET writes one int.
        unsafe { ioctl::disk_sector(device.as_raw_fd(), &raw mut sector) }?;
        let sector = u64::try_from(sector).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok((bytes, sector))
    }

    fn zero_out(&self, device: &File, offset: u64, bytes: u64) -> io::Result<()> {
        let range = [offset, bytes];
        // SAFETY: the descriptor is open and BLKZEROOUT reads two u64; it changes no memory.
        unsafe { ioctl::zero_out(device.as_raw_fd(), &raw const range) }?;
        Ok(())
    }

    fn drop_cache(&self, device: &File) -> io::Result<()> {
        // SAFETY: the descriptor is open and BLKFLSBUF takes no argument.
        unsafe { ioctl::drop_cache(device.as_raw_fd()) }?;
        Ok(())
    }

    fn reread_partitions(&self, device: &File) -> io::Result<()> {
        // SAFETY: the descriptor is open and BLKRRPART takes no argument.
        unsafe { ioctl::reread_partitions(device.as_raw_fd()) }?;
        Ok(())
    }
}

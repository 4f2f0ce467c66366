//! Which file system a partition has, by its superblock; only those that boot files lie on.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A file system that is mounted to look for a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// ext2, ext3 and ext4: one driver.
    Ext4,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// FAT, as on an EFI system partition.
    Vfat,
}

impl FileSystem {
    /// Its name in `mount`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Vfat => "vfat",
        }
    }

    /// Options that keep the kernel from writing to it: a read-only mount replays the journal.
    pub(crate) const fn options(self) -> &'static str {
        match self {
            Self::Ext4 => "noload",
            Self::Xfs => "norecovery",
            Self::Btrfs => "rescue=nologreplay",
            Self::Vfat => "",
        }
    }

    /// The modules it needs. The kernel asks for code pages by a program that the ramdisk lacks.
    pub(crate) const fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["ext4"],
            Self::Xfs => &["xfs"],
            Self::Btrfs => &["btrfs"],
            Self::Vfat => &[
                "nls_cp437",
                "nls_ascii",
                "nls_iso8859_1",
                "nls_utf8",
                "vfat",
            ],
        }
    }
}

/// The file system of a device, if it is one of ours.
pub(crate) fn of(device: &Path) -> io::Result<Option<FileSystem>> {
    let file = File::open(device)?;
    let has = |offset: u64, magic: &[u8]| {
        let mut found = [0; 8];
        let length = magic.len().min(found.len());
        let read = file.read_exact_at(&mut found[..length], offset);
        read.is_ok() && found[..length] == *magic
    };
    let kind = if has(1024 + 56, &[0x53, 0xEF]) {
        Some(FileSystem::Ext4)
    } else if has(0, b"XFSB") {
        Some(FileSystem::Xfs)
    } else if has(0x1_0040, b"_BHRfS_M") {
        Some(FileSystem::Btrfs)
    } else if has(510, &[0x55, 0xAA]) && (has(54, b"FAT") || has(82, b"FAT32")) {
        Some(FileSystem::Vfat)
    } else {
        None
    };
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblocks_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device");
        for (offset, magic, wanted) in [
            (1080, b"\x53\xEF".as_slice(), Some(FileSystem::Ext4)),
            (0, b"XFSB", Some(FileSystem::Xfs)),
            (0x1_0040, b"_BHRfS_M", Some(FileSystem::Btrfs)),
            (0, b"nothing", None),
        ] {
            let mut bytes = vec![0; 70_000];
            bytes[offset..offset + magic.len()].copy_from_slice(magic);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(of(&path).unwrap(), wanted);
        }
        let mut bytes = vec![0; 512];
        bytes[510..].copy_from_slice(&[0x55, 0xAA]);
        bytes[82..87].copy_from_slice(b"FAT32");
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(of(&path).unwrap(), Some(FileSystem::Vfat));
    }
}

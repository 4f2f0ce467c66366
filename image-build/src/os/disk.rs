//! Lays the parts of the image out on one sparse file: GPT, BIOS-boot partition, ESP, root.
//! Partition numbers are 1, 2, 3, the root is last so that it can grow. Nothing here knows what the
//! parts hold.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::partition::Partition;
use gpt::partition_types::{self, Type};
use gpt::{GptConfig, GptDisk};
use uuid::Uuid;

use super::grub;

const SECTOR: u64 = grub::SECTOR as u64;
const MIB: u64 = 1 << 20;
/// What the backup table needs at the end, rounded up to what partitions are aligned to.
const TAIL: u64 = MIB;

/// Where the parts lie, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) size: u64,
    pub(crate) esp: Span,
    pub(crate) root: Span,
    bios: Span,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) length: u64,
}

impl Layout {
    /// One MiB for GRUB's core, `esp` for the ESP, the rest for the root file system.
    pub(crate) fn new(size: u64, esp: u64) -> Result<Self> {
        ensure!(
            size.is_multiple_of(MIB),
            "the image size {size} is not a multiple of 1 MiB"
        );
        let bios = Span {
            start: MIB,
            length: MIB,
        };
        let esp = Span {
            start: bios.start + bios.length,
            length: esp,
        };
        let start = esp.start + esp.length;
        ensure!(
            size > start + TAIL + 64 * MIB,
            "an image of {size} bytes has no room for a root"
        );
        Ok(Self {
            size,
            bios,
            esp,
            root: Span {
                start,
                length: size - TAIL - start,
            },
        })
    }
}

/// Makes the sparse file; what is not written stays a hole.
pub(crate) fn create(path: &Path, size: u64) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path);
    let file = file.with_context(|| format!("creating {}", path.display()))?;
    file.set_len(size)
        .with_context(|| format!("sizing {} to {size} bytes", path.display()))?;
    Ok(file)
}

/// Writes partition tables, boot sector, core.img and ESP around the root file system.
pub(crate) fn write_boot(file: File, layout: &Layout, parts: BootParts) -> Result<()> {
    let BootParts {
        mut boot,
        mut core,
        esp,
    } = parts;
    ensure!(
        core.len() as u64 <= layout.bios.length,
        "core.img of {} bytes is too large",
        core.len()
    );
    ensure!(
        esp.len() as u64 == layout.esp.length,
        "the ESP has {} bytes",
        esp.len()
    );
    grub::patch(&mut boot, &mut core, layout.bios.start / SECTOR)?;
    let mut file = write_table(file, layout)?;
    write_mbr(&mut file, layout, &boot)?;
    write_at(&mut file, layout.bios.start, &core)?;
    write_at(&mut file, layout.esp.start, &esp)?;
    file.sync_all().context("flushing the image")
}

/// What makes the image boot.
pub(crate) struct BootParts {
    pub(crate) boot: Vec<u8>,
    pub(crate) core: Vec<u8>,
    pub(crate) esp: Vec<u8>,
}

fn write_table(file: File, layout: &Layout) -> Result<File> {
    let config = GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512);
    let mut table: GptDisk<File> = config
        .create_from_device(file, Some(fixed_uuid(0)))
        .context("creating the GPT")?;
    let parts = [
        (layout.bios, "bios", partition_types::BIOS),
        (layout.esp, "esp", partition_types::EFI),
        (layout.root, "root", partition_types::LINUX_FS),
    ];
    let entries: BTreeMap<u32, Partition> = (1..)
        .zip(parts)
        .map(|(n, (span, name, kind))| (n, entry(n, span, name, kind)))
        .collect();
    table
        .update_partitions(entries)
        .context("filling the GPT")?;
    table.write().context("writing the GPT")
}

fn entry(number: u32, span: Span, name: &str, kind: Type) -> Partition {
    Partition {
        part_type_guid: kind,
        part_guid: fixed_uuid(number),
        first_lba: span.start / SECTOR,
        last_lba: (span.start + span.length) / SECTOR - 1,
        flags: 0,
        name: name.to_owned(),
    }
}

/// Fixed identifiers, so that two builds differ in less.
fn fixed_uuid(number: u32) -> Uuid {
    Uuid::from_u128(0x4665_7272_6974_4000_8000_0000_0000_0000 + u128::from(number))
}

fn write_mbr(file: &mut File, layout: &Layout, boot: &[u8]) -> Result<()> {
    let sectors = u32::try_from(layout.size / SECTOR - 1).unwrap_or(u32::MAX);
    let mut mbr = ProtectiveMBR::with_lb_size(sectors);
    let code: [u8; grub::MBR_CODE] = boot[..grub::MBR_CODE]
        .try_into()
        .context("taking the boot sector's code")?;
    mbr.set_bootcode(code);
    mbr.overwrite_lba0(file)
        .context("writing the boot sector")?;
    Ok(())
}

fn write_at(file: &mut File, offset: u64, bytes: &[u8]) -> Result<()> {
    file.seek(SeekFrom::Start(offset))
        .context("seeking in the image")?;
    // Zero sectors stay holes.
    for (at, chunk) in (offset..).step_by(4096).zip(bytes.chunks(4096)) {
        if chunk.iter().any(|&b| b != 0) {
            file.seek(SeekFrom::Start(at))
                .context("seeking in the image")?;
            file.write_all(chunk)
                .with_context(|| format!("writing the image at byte {at}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn an_image_has_three_partitions_and_a_patched_boot_sector() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        let layout = Layout::new(200 * MIB, 8 * MIB).unwrap();
        let boot = vec![0xaa; 512];
        let parts = BootParts {
            boot,
            core: vec![0xbb; 2048],
            esp: vec![0xcc; 8 << 20],
        };
        write_boot(create(&path, layout.size).unwrap(), &layout, parts).unwrap();

        let table = GptConfig::new().open(&path).unwrap();
        let numbers: Vec<_> = table.partitions().keys().copied().collect();
        assert_eq!(numbers, [1, 2, 3]);
        let root = &table.partitions()[&3];
        assert_eq!(root.first_lba * 512, layout.root.start);
        assert_eq!((root.last_lba + 1) * 512, layout.size - TAIL);

        let mut start = vec![0; 3 << 20];
        File::open(&path).unwrap().read_exact(&mut start).unwrap();
        assert_eq!(start[0x5c..0x64], 2048_u64.to_le_bytes());
        assert_eq!(start[510..512], [0x55, 0xaa]);
        assert_eq!(start[450], 0xee, "protective partition");
        assert_eq!(
            start[(1 << 20) + 500..(1 << 20) + 508],
            2049_u64.to_le_bytes()
        );
        assert_eq!(start[2 << 20], 0xcc);
    }

    #[test]
    fn too_small_an_image_is_refused() {
        assert!(Layout::new(50 * MIB, 8 * MIB).is_err());
        assert!(Layout::new(MIB * 200 + 1, 8 * MIB).is_err());
    }
}

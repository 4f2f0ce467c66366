//! The ISO for virtual media: an El Torito UEFI entry with the UKI in an ESP, and BOOT.CFG.
//!
//! BOOT.CFG is 4096 bytes in one extent that the conductor replaces for each host while it streams
//! the file; what stands in it here is only its first line. BIOS machines boot over the network
//! instead.

use std::io::Cursor;
use std::num::NonZeroU16;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ferrite_proto::boot::{BOOT_CFG_BYTES, BOOT_CFG_MAGIC};
use hadris_iso::boot::options::{BootEntryOptions, BootOptions, BootSectionOptions};
use hadris_iso::boot::{EmulationType, PlatformId};
use hadris_iso::read::{IsoImage, PathSeparator};
use hadris_iso::write::options::{BaseIsoLevel, CreationFeatures, IsoFormatOptions};
use hadris_iso::write::{File, InputFiles, IsoImageWriter};

use crate::artifacts::Extent;
use crate::esp::{self, EspFile};

const LABEL: &str = "FERRITE";
const CONFIG_NAME: &str = "BOOT.CFG";
const ESP_NAME: &str = "EFI.IMG";
const ESP_ID: u32 = 0x4645_5252;
const SECTOR: usize = 2048;
/// What FAT needs for itself, and a rest.
const ESP_SPARE: usize = 2 << 20;

/// The ISO and where its configuration lies.
#[derive(Debug)]
pub(crate) struct Iso {
    pub(crate) bytes: Vec<u8>,
    pub(crate) config: Extent,
}

/// Builds the ISO in memory; it is some tens of MB.
pub(crate) fn build(uki: &[u8]) -> Result<Iso> {
    let esp_size = (uki.len() + uki.len() / 256 + ESP_SPARE).next_multiple_of(1 << 20);
    let files = [EspFile {
        path: "EFI/BOOT/BOOTX64.EFI",
        bytes: uki,
    }];
    let esp = esp::image(esp_size, LABEL, ESP_ID, &files)?;
    let mut out = Cursor::new(vec![0; esp_size + (1 << 20)]);
    let load_size = load_size(esp.len());
    let file = |name: &str, contents| File::File {
        name: Arc::new(name.to_owned()),
        contents,
    };
    let files = InputFiles {
        path_separator: PathSeparator::ForwardSlash,
        files: vec![file(CONFIG_NAME, empty_config()), file(ESP_NAME, esp)],
    };
    IsoImageWriter::create(&mut out, files, options(load_size))
        .map_err(|error| anyhow::anyhow!("writing the ISO: {error}"))?;
    let mut bytes = out.into_inner();
    forget_times(&mut bytes)?;
    let config = find_config(&bytes)?;
    Ok(Iso { bytes, config })
}

/// The placeholder: recognisable, and without any word that an agent would obey.
fn empty_config() -> Vec<u8> {
    let mut text = format!("{BOOT_CFG_MAGIC}\n").into_bytes();
    text.resize(BOOT_CFG_BYTES - 1, b' ');
    text.push(b'\n');
    text
}

/// The catalog counts 512-byte sectors in 16 bits. For a larger ESP firmware takes 1 to mean "to
/// the end".
fn load_size(esp: usize) -> NonZeroU16 {
    u16::try_from(esp / 512)
        .ok()
        .and_then(NonZeroU16::new)
        .unwrap_or(NonZeroU16::MIN)
}

fn options(load_size: NonZeroU16) -> IsoFormatOptions {
    let entry = BootEntryOptions {
        boot_image_path: ESP_NAME.to_owned(),
        load_size: Some(load_size),
        boot_info_table: false,
        grub2_boot_info: false,
        emulation: EmulationType::NoEmulation,
    };
    let section = BootSectionOptions {
        platform: PlatformId::UEFI,
    };
    let boot = BootOptions {
        write_boot_catalog: true,
        default: entry.clone(),
        entries: vec![(section, entry)],
    };
    IsoFormatOptions {
        volume_name: LABEL.to_owned(),
        system_id: None,
        volume_set_id: None,
        publisher_id: None,
        preparer_id: None,
        application_id: None,
        sector_size: SECTOR,
        path_separator: PathSeparator::ForwardSlash,
        features: CreationFeatures {
            filenames: BaseIsoLevel::Level1 {
                supports_lowercase: false,
                supports_rrip: false,
            },
            long_filenames: false,
            joliet: None,
            rock_ridge: None,
            el_torito: Some(boot),
            hybrid_boot: None,
        },
        strict_charset: false,
    }
}

/// Sets every time to one and the same: the writer stamps its own, and two builds of one input
/// shall not differ.
fn forget_times(iso: &mut [u8]) -> Result<()> {
    /// In the volume descriptor: creation and modification, then the root directory's record.
    const VOLUME: usize = 16 * SECTOR;
    const VOLUME_TIMES: usize = VOLUME + 813;
    const ROOT: usize = VOLUME + 156;
    let number = |iso: &[u8], at: usize| {
        let bytes = iso
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_le_bytes);
        bytes
            .map(|n| n as usize)
            .context("the new ISO is cut short")
    };
    let (start, length) = (number(iso, ROOT + 2)? * SECTOR, number(iso, ROOT + 10)?);
    ensure!(
        start + length <= iso.len(),
        "the new ISO's root directory is cut short"
    );
    for at in [VOLUME_TIMES, VOLUME_TIMES + 17] {
        iso[at..at + 17].copy_from_slice(b"1980010100000000\0");
    }
    forget_time(iso, ROOT);
    let mut at = start;
    while at + 33 < start + length && iso[at] != 0 {
        forget_time(iso, at);
        at += usize::from(iso[at]);
    }
    Ok(())
}

/// Sets the time in a directory record: years since 1900, month, day, and zeroes.
fn forget_time(iso: &mut [u8], record: usize) {
    iso[record + 18..record + 25].copy_from_slice(&[80, 1, 1, 0, 0, 0, 0]);
}

/// Reads the ISO back to find the extent, and checks that the bytes there are the placeholder's.
fn find_config(iso: &[u8]) -> Result<Extent> {
    let image = IsoImage::open(Cursor::new(iso))
        .map_err(|error| anyhow::anyhow!("reading the new ISO back: {error}"))?;
    let root = image.root_dir();
    for entry in root.iter(&image).entries() {
        let entry = entry.map_err(|error| anyhow::anyhow!("reading its root: {error}"))?;
        if !entry.name().starts_with(CONFIG_NAME.as_bytes()) {
            continue;
        }
        let header = entry.header();
        let start = header.extent.read() as usize * SECTOR;
        let length = header.data_len.read() as usize;
        ensure!(
            length == BOOT_CFG_BYTES,
            "{CONFIG_NAME} has {length} bytes in the ISO"
        );
        let there = iso.get(start..start + length);
        ensure!(
            there == Some(&empty_config()),
            "{CONFIG_NAME} is not where the ISO says"
        );
        return Ok(Extent {
            offset: start as u64,
            length: length as u64,
        });
    }
    anyhow::bail!("the new ISO has no {CONFIG_NAME}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_lies_in_one_extent_that_can_be_replaced() {
        let mut iso = build(&vec![7; 300_000]).unwrap();
        let at = usize::try_from(iso.config.offset).unwrap();
        assert_eq!((at % SECTOR, iso.config.length), (0, 4096));
        assert!(iso.bytes[at..].starts_with(b"# ferrite boot configuration v1\n"));
        iso.bytes[at..at + 4096].fill(b'x');
        let image = IsoImage::open(Cursor::new(&iso.bytes[..])).unwrap();
        let root = image.root_dir();
        assert!(
            root.iter(&image)
                .entries()
                .any(|e| e.unwrap().name().starts_with(b"BOOT.CFG"))
        );
    }

    #[test]
    fn no_time_of_the_build_is_left() {
        let one = build(&vec![7; 300_000]).unwrap().bytes;
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert!(
            one == build(&vec![7; 300_000]).unwrap().bytes,
            "two builds differ"
        );
    }

    #[test]
    fn the_label_and_the_uefi_entry_are_there() {
        let iso = build(&vec![7; 300_000]).unwrap().bytes;
        assert!(iso[16 * SECTOR + 40..].starts_with(b"FERRITE "));
        // Boot record: identifier, then the catalog's sector; its second entry header is for
        // platform 0xef.
        let record = &iso[17 * SECTOR..];
        assert_eq!(&record[1..6], b"CD001");
        let sector = u32::from_le_bytes(record[0x47..0x4b].try_into().unwrap()) as usize;
        let catalog = &iso[sector * SECTOR..];
        assert!(
            catalog[1] == 0xef || catalog[65] == 0xef,
            "{:02x?}",
            &catalog[..96]
        );
    }
}

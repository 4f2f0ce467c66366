//! What the firmware says of the machine: SMBIOS (DMTF DSP0134) types 0, 1, 2, 3 and 17.
//!
//! The tables are foreign bytes. Only whole, well-formed structures of these types reach
//! `smbios-lib`; the types it stumbles over never do. What an ordinary user may read is taken
//! from `/sys/class/dmi/id` instead.

use ferrite_proto::inventory::{Dimm, System};
use smbioslib::{
    MemorySize, MemorySizeExtended, MemorySpeed, MemorySpeedExtended, SMBiosBaseboardInformation,
    SMBiosData, SMBiosInformation, SMBiosMemoryDevice, SMBiosString,
    SMBiosSystemChassisInformation, SMBiosSystemInformation, SMBiosVersion, SystemUuidData,
};

use super::Reader;

/// The types that are read, with the least length that a structure of that type can have.
const WANTED: [(u8, usize); 5] = [(0, 0x12), (1, 0x08), (2, 0x08), (3, 0x09), (17, 0x15)];
/// Most structures that are looked at.
const STRUCTURES: usize = 4096;
/// Most bytes of a text that is kept.
const TEXT: usize = 128;

/// What the firmware tells.
#[derive(Debug, Default)]
pub(super) struct Firmware {
    pub(super) system: System,
    pub(super) dimms: Vec<Dimm>,
}

pub(super) fn read(reader: &Reader<'_>) -> Firmware {
    let table = "/sys/firmware/dmi/tables/DMI";
    let mut firmware = match reader.root.read(table) {
        Ok(bytes) => parse(&bytes),
        Err(error) => {
            reader.note(table.to_owned(), &error);
            Firmware::default()
        }
    };
    complete(reader, &mut firmware.system);
    firmware
}

/// Fills what is missing with what the kernel has read by itself.
fn complete(reader: &Reader<'_>, system: &mut System) {
    let fill = |field: &mut Option<String>, name: &str| {
        if field.is_none() {
            let text = reader.text(format!("/sys/class/dmi/id/{name}"));
            *field = text.and_then(|text| meant(&text));
        }
    };
    fill(&mut system.vendor, "sys_vendor");
    fill(&mut system.product, "product_name");
    fill(&mut system.serial, "product_serial");
    fill(&mut system.uuid, "product_uuid");
    fill(&mut system.sku, "product_sku");
    fill(&mut system.bios_vendor, "bios_vendor");
    fill(&mut system.bios_version, "bios_version");
    fill(&mut system.bios_date, "bios_date");
    fill(&mut system.board, "board_name");
    fill(&mut system.asset_tag, "chassis_asset_tag");
    system.uuid = system.uuid.take().map(|uuid| uuid.to_lowercase());
}

/// The tables' own words.
fn parse(table: &[u8]) -> Firmware {
    let version = Some(SMBiosVersion::new(3, 0, 0));
    let data = SMBiosData::from_vec_and_version(well_formed(table), version);
    let mut firmware = Firmware::default();
    let system = &mut firmware.system;
    if let Some(one) = data.first::<SMBiosSystemInformation<'_>>() {
        system.vendor = text(&one.manufacturer());
        system.product = text(&one.product_name());
        system.serial = text(&one.serial_number());
        system.sku = text(&one.sku_number());
        system.uuid = one.uuid().and_then(|uuid| match uuid {
            SystemUuidData::Uuid(uuid) => Some(uuid.to_string().to_lowercase()),
            _ => None,
        });
    }
    if let Some(bios) = data.first::<SMBiosInformation<'_>>() {
        system.bios_vendor = text(&bios.vendor());
        system.bios_version = text(&bios.version());
        system.bios_date = text(&bios.release_date());
    }
    if let Some(board) = data.first::<SMBiosBaseboardInformation<'_>>() {
        system.board = text(&board.product());
    }
    if let Some(chassis) = data.first::<SMBiosSystemChassisInformation<'_>>() {
        system.asset_tag = text(&chassis.asset_tag_number());
    }
    let slots: Vec<SMBiosMemoryDevice<'_>> = data.collect();
    firmware.dimms = slots.iter().map(dimm).collect();
    firmware
}

fn dimm(device: &SMBiosMemoryDevice<'_>) -> Dimm {
    let mib = |count: u64| count << 20;
    let size_bytes = match (device.size(), device.extended_size()) {
        (Some(MemorySize::Kilobytes(count)), _) => u64::from(count) << 10,
        (Some(MemorySize::Megabytes(count)), _) => mib(count.into()),
        (Some(MemorySize::SeeExtendedSize), Some(MemorySizeExtended::Megabytes(count))) => {
            mib(count.into())
        }
        _ => 0,
    };
    let speed = match device.configured_memory_speed().or_else(|| device.speed()) {
        Some(MemorySpeed::MTs(speed)) => Some(u32::from(speed)),
        Some(MemorySpeed::SeeExtendedSpeed) => match device.extended_configured_memory_speed() {
            Some(MemorySpeedExtended::MTs(speed)) => Some(speed),
            _ => None,
        },
        _ => None,
    };
    Dimm {
        slot: text(&device.device_locator()),
        size_bytes,
        speed_mts: speed,
        vendor: text(&device.manufacturer()),
        part: text(&device.part_number()),
        serial: text(&device.serial_number()),
    }
}

fn text(string: &SMBiosString) -> Option<String> {
    meant(&string.to_utf8_lossy()?)
}

/// Nothing for the words that firmware writes when nobody filled in the field.
fn meant(text: &str) -> Option<String> {
    let visible = text.chars().filter(|c| !c.is_control());
    let short: String = visible.take(TEXT).collect();
    let trimmed = short.trim();
    let lower = trimmed.to_lowercase();
    let empty = [
        "",
        "none",
        "not specified",
        "unknown",
        "default string",
        "to be filled by o.e.m.",
    ];
    (!empty.contains(&lower.as_str())).then(|| trimmed.to_owned())
}

/// The structures of the wanted types that are whole: a header, at least the type's least length,
/// and a string set that ends. The walk stops at the first that is not.
fn well_formed(table: &[u8]) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut rest = table;
    for _ in 0..STRUCTURES {
        let [kind, length, ..] = *rest else { break };
        let length = usize::from(length);
        if kind == 127 || length < 4 || rest.len() < length + 2 {
            break;
        }
        let strings = &rest[length..];
        let Some(end) = strings.windows(2).position(|pair| pair == [0, 0]) else {
            break;
        };
        let (structure, tail) = rest.split_at(length + end + 2);
        let wanted = WANTED.iter().find(|(wanted, _)| *wanted == kind);
        if wanted.is_some_and(|(_, least)| length >= *least) {
            kept.extend_from_slice(structure);
        }
        rest = tail;
    }
    // The structure that ends a table.
    kept.extend_from_slice(&[127, 4, 0xff, 0xff, 0, 0]);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::fixture::write;
    use crate::root::Root;
    use proptest::prelude::*;

    fn structure(kind: u8, body: &[u8], strings: &[&str]) -> Vec<u8> {
        let length = u8::try_from(body.len() + 4).unwrap();
        let mut bytes = vec![kind, length, kind, 0];
        bytes.extend_from_slice(body);
        for string in strings {
            bytes.extend_from_slice(string.as_bytes());
            bytes.push(0);
        }
        if strings.is_empty() {
            bytes.push(0);
        }
        bytes.push(0);
        bytes
    }

    fn machine() -> Vec<u8> {
        let mut bios = vec![1, 2, 0, 0, 3];
        bios.resize(0x14, 0);
        let mut system = vec![1, 2, 0, 3];
        system.extend_from_slice(&[
            0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd,
            0xee, 0xff,
        ]);
        system.extend_from_slice(&[6, 4, 0]);
        let mut dimm = vec![0; 0x18];
        dimm[0x08..0x0a].copy_from_slice(&16384_u16.to_le_bytes());
        dimm[0x0c] = 1;
        let mut table = structure(0, &bios, &["Maker", "1.2", "01/02/2026"]);
        table.extend(structure(1, &system, &["Vendor", "Box", " SN1 ", "SKU"]));
        table.extend(structure(40, &[1, 0, 0], &[]));
        table.extend(structure(17, &dimm, &["DIMM A1"]));
        table.extend([127, 4, 0, 0, 0, 0]);
        table
    }

    #[test]
    fn a_machine_says_what_it_is() {
        let firmware = parse(&machine());
        let system = firmware.system;
        assert_eq!(system.vendor.as_deref(), Some("Vendor"));
        assert_eq!(system.serial.as_deref(), Some("SN1"));
        assert_eq!(
            system.uuid.as_deref(),
            Some("00112233-4455-6677-8899-aabbccddeeff")
        );
        assert_eq!(system.bios_date.as_deref(), Some("01/02/2026"));
        assert_eq!(firmware.dimms.len(), 1);
        assert_eq!(firmware.dimms[0].size_bytes, 16 << 30);
        assert_eq!(firmware.dimms[0].slot.as_deref(), Some("DIMM A1"));
    }

    #[test]
    fn what_the_tables_do_not_say_comes_from_the_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        write(
            &root,
            &[
                ("/sys/class/dmi/id/sys_vendor", b"Other\n"),
                ("/sys/class/dmi/id/product_serial", b"Default string\n"),
                (
                    "/sys/class/dmi/id/product_uuid",
                    b"00000000-0000-4000-8000-0000000000AB\n",
                ),
            ],
        );
        let reader = Reader::new(&root);
        let system = read(&reader).system;
        assert_eq!(system.vendor.as_deref(), Some("Other"));
        assert_eq!(system.serial, None);
        assert!(system.uuid.unwrap().ends_with("0ab"));
        let unread = reader.unread.into_inner();
        assert!(unread.iter().any(|unread| unread.what.contains("DMI")));
    }

    proptest! {
        #[test]
        fn damaged_tables_never_panic(
            at in 0_usize..150, value in any::<u8>(), cut in 0_usize..200,
            noise in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut table = machine();
            let at = at % table.len();
            table[at] = value;
            let _ = parse(&table);
            table.truncate(cut);
            let _ = parse(&table);
            let _ = parse(&noise);
        }
    }
}

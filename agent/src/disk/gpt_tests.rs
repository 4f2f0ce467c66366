//! Tests of the partition table, and the images that other tests write.

use super::super::fixture::used_disk;
use super::*;
use proptest::prelude::*;
use std::process::Command;

const MIB: u64 = 1 << 20;

/// An image with partitions 1, 14 and 15, as Ubuntu's cloud images have: number, first, last MiB.
pub(crate) const LAYOUT: [(u32, u64, u64); 3] = [(1, 6, 12), (14, 1, 2), (15, 2, 6)];

/// The first MiB of a disk of the given size, with the table of [`LAYOUT`], and its backup.
pub(crate) fn table_of(sector: u64, disk_bytes: u64) -> (Vec<u8>, Table) {
    let mut entries = vec![0; 128 * ENTRY];
    for (number, first, last) in LAYOUT {
        let at = (number as usize - 1) * ENTRY;
        let entry = &mut entries[at..at + ENTRY];
        entry[..16].copy_from_slice(&LINUX_DATA);
        entry[16..32].fill(u8::try_from(number).unwrap());
        entry[32..40].copy_from_slice(&(first * MIB / sector).to_le_bytes());
        entry[40..48].copy_from_slice(&(last * MIB / sector - 1).to_le_bytes());
    }
    let mut table = Table {
        sector,
        header: [0; HEADER],
        entries,
    };
    table.header[..8].copy_from_slice(MAGIC);
    table.header[8..12].copy_from_slice(&0x0001_0000_u32.to_le_bytes());
    table.header[12..16].copy_from_slice(&92_u32.to_le_bytes());
    table.header[56..72].fill(0xd1);
    table.header[80..84].copy_from_slice(&128_u32.to_le_bytes());
    table.header[84..88].copy_from_slice(&128_u32.to_le_bytes());
    table.set_long(40, 2 + table.array_sectors());
    table.set_long(72, 2);
    table.fit(disk_bytes).unwrap();
    table.header = table.sealed(1, disk_bytes / sector - 1, 2);
    let mut head = vec![0; HEAD];
    head[..3].copy_from_slice(b"\xeb\x63\x90");
    head[510..512].copy_from_slice(&[0x55, 0xaa]);
    mbr::add(&mut head, 1, 1).unwrap();
    head[450] = mbr::PROTECTIVE;
    table.patch_head(&mut head);
    (head, table)
}

/// What another program says of a table; `None` where it is not installed.
pub(crate) fn outside_opinion(path: &Path) -> Option<String> {
    let output = Command::new("sgdisk").arg("-v").arg(path).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn a_table_moves_to_a_larger_disk_with_its_numbers() {
    for sector in SECTORS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let disk = used_disk(&path, 32 * MIB).with_sector(sector);
        let (head, made) = table_of(sector, 16 * MIB);
        let mut table = Table::read(&head, 512).unwrap().unwrap();
        assert_eq!(table, made);
        assert_eq!(table.disk_bytes(), 16 * MIB);
        table.fit(disk.bytes()).unwrap();
        disk.clear_edges().unwrap();
        commit(&table, &head, &disk).unwrap();
        confirm(&table, &path).unwrap();
        let mut written = vec![0; HEAD];
        disk.read_at(&mut written, 0).unwrap();
        let read = Table::read(&written, sector).unwrap().unwrap();
        assert_eq!(read.disk_bytes(), 32 * MIB);
        let numbers: Vec<u32> = read.partitions().map(|p| p.number).collect();
        assert_eq!(numbers, [1, 14, 15]);
        assert_eq!(
            read.entries, made.entries,
            "not a byte of the entries may change"
        );
        assert_eq!(
            u64::from(mbr::read(&written).unwrap()[0].sectors),
            32 * MIB / sector - 1
        );
        if sector == 512 {
            match outside_opinion(&path) {
                Some(said) => assert!(said.contains("No problems found"), "{said}"),
                None => eprintln!("not checked with sgdisk: it is not installed (gdisk)"),
            }
        }
    }
}

#[test]
fn a_disk_that_is_too_small_is_refused_by_partition() {
    let (_, mut table) = table_of(512, 16 * MIB);
    let error = table.fit(8 * MIB).unwrap_err();
    assert_eq!(
        error,
        BadTable::Beyond {
            number: 1,
            end: 12 * MIB,
            bytes: 8 * MIB
        }
    );
    assert!(table.fit(1024).is_err());
    assert!(table.fit(0).is_err());
}

#[test]
fn a_partition_is_added_at_the_end_in_the_first_free_place() {
    let (_, mut table) = table_of(512, 16 * MIB);
    table.fit(64 * MIB).unwrap();
    let before: Vec<Partition> = table.partitions().collect();
    let added = table.add("config-2", 8 * MIB, [9; 16]).unwrap();
    assert_eq!(added.number, 2);
    assert_eq!(added.span.last * 512 + 512, 63 * MIB);
    assert_eq!(added.span.first * 512, 55 * MIB);
    let after: Vec<Partition> = table.partitions().filter(|p| p.number != 2).collect();
    assert_eq!(before, after);
    assert_eq!(table.partitions().find(|p| p.number == 2), Some(added));
    assert!(table.check_places().is_ok());
}

#[test]
fn a_gap_is_found_below_a_last_partition_and_a_full_disk_is_told() {
    let (_, mut table) = table_of(512, 64 * MIB);
    let end = table.add("tail", MIB, [1; 16]).unwrap();
    let below = table.add("next", MIB, [2; 16]).unwrap();
    assert_eq!(below.span.last + 1, end.span.first);
    let error = table.add("huge", 60 * MIB, [3; 16]).unwrap_err();
    assert!(matches!(error, BadTable::NoSpace { wanted, .. } if wanted == 60 * MIB));
    let (_, mut full) = table_of(512, 13 * MIB + 64 * 512);
    assert!(matches!(
        full.add("x", 2 * MIB, [3; 16]),
        Err(BadTable::NoSpace { .. })
    ));
    for slot in full.entries.chunks_exact_mut(ENTRY) {
        slot[0] = 1;
    }
    assert_eq!(full.add("x", 1, [0; 16]), Err(BadTable::Full(128)));
}

#[test]
fn damage_is_told_by_its_kind() {
    let (head, _) = table_of(512, 16 * MIB);
    let damaged = |at: usize, value: u8| {
        let mut head = head.clone();
        head[at] = value;
        Table::read(&head, 512)
    };
    assert!(damaged(512 + 40, 9).is_err(), "header checksum");
    assert!(damaged(1024 + 33, 9).is_err(), "entries checksum");
    assert_eq!(damaged(512, b'X'), Ok(None));
}

#[test]
fn the_second_copy_says_the_same_as_the_first() {
    for sector in SECTORS {
        let (_, made) = table_of(sector, 16 * MIB);
        let (at, backup) = made.backup_bytes();
        let mut tail = vec![0xa5; HEAD];
        let start = HEAD - backup.len();
        tail[start..].copy_from_slice(&backup);
        assert_eq!(at + backup.len() as u64, 16 * MIB);
        let read = Table::read_backup(&tail, 16 * MIB, 512).unwrap().unwrap();
        assert!(read.partitions().eq(made.partitions()));
        assert_eq!(read.backup_bytes(), made.backup_bytes());
        assert!(Table::read_backup(&tail, 17 * MIB, 512).is_err());
        tail[start] ^= 1;
        assert!(Table::read_backup(&tail, 16 * MIB, 512).is_err());
    }
    assert_eq!(Table::read_backup(&[0xa5; 100], 100, 512), Ok(None));
}

/// Changes header fields and makes its checksum right again, as a hostile image would.
fn forge(head: &mut [u8], fields: &[(usize, u64)]) {
    for (at, value) in fields {
        head[512 + at..512 + at + 8].copy_from_slice(&value.to_le_bytes());
    }
    head[512 + 16..512 + 20].fill(0);
    let crc = crc32fast::hash(&head[512..512 + HEADER]);
    head[512 + 16..512 + 20].copy_from_slice(&crc.to_le_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever a header with right checksums says, nothing panics, and what is accepted stays
    /// within the disk and the first MiB.
    #[test]
    fn hostile_headers_are_refused_or_harmless(
        place in 0_usize..7,
        value in prop_oneof![any::<u64>(), 0_u64..70_000, (u64::MAX - 99)..u64::MAX],
        other in any::<u64>(),
        disk in 0_u64..(1 << 40),
    ) {
        let (mut head, _) = table_of(512, 16 * MIB);
        let at = [24, 32, 40, 48, 72, 80, 84][place];
        let mut fields = vec![(at, value)];
        if place == 6 {
            fields = vec![(84, value & 0xffff_ffff | other << 32)];
        }
        forge(&mut head, &fields);
        if let Ok(Some(mut table)) = Table::read(&head, 512) {
            prop_assert!(table.backup_range().start > table.last_usable() * 512);
            if table.fit(disk).is_ok() {
                let (at, bytes) = table.backup_bytes();
                prop_assert!(at + bytes.len() as u64 <= disk);
                table.patch_head(&mut head);
                let _ = table.add("x", MIB, [1; 16]);
            }
        }
    }

    #[test]
    fn noise_never_panics(
        at in 0_usize..2048,
        noise in proptest::collection::vec(any::<u8>(), 1..64),
    ) {
        let (mut head, _) = table_of(512, 16 * MIB);
        head[at..at + noise.len()].copy_from_slice(&noise);
        let _ = Table::read(&head, 512);
        let _ = Table::read(&noise, 512);
        let _ = Table::read_backup(&noise, noise.len() as u64, 512);
        let (_, mut tail) = table_of(512, 16 * MIB).1.backup_bytes();
        let header = tail.len() - 512;
        let at = header + at % 64;
        tail[at..at + noise.len()].copy_from_slice(&noise);
        forge(&mut tail[header - 512..], &[]);
        let _ = Table::read_backup(&tail, 16 * MIB, 512);
    }
}

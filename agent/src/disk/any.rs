//! What must hold of partition tables, whatever the bytes they are read from: for the fuzz targets
//! and their short form in the tests. Nothing of the agent calls it.

use super::gpt::{HEAD, Table};
use super::mbr;

/// Disks on which an accepted table is tried.
const DISKS: [u64; 4] = [0, 1 << 20, 1 << 30, 1 << 60];
const SECTOR: usize = 512;

/// `bytes` are a disk's first ones, then its last ones, as they are and with right checksums: what
/// is accepted stays within the disk that it is fitted to.
///
/// # Panics
/// When that does not hold.
pub fn gpt(bytes: &[u8]) {
    let mut head = bytes[..bytes.len().min(HEAD)].to_vec();
    check(Table::read(&head, 512), &head);
    check(Table::read_backup(&head, head.len() as u64, 512), &head);
    for at in [SECTOR, 4096] {
        seal(&mut head, at);
        check(Table::read(&head, at as u64), &head);
    }
    if let Some(at) = head.len().checked_sub(SECTOR) {
        seal(&mut head, at);
        let own = head.get(at + 24..at + 32).and_then(<[u8]>::first_chunk);
        let own = own.map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let disk = own.saturating_add(1).saturating_mul(512);
        check(Table::read_backup(&head, disk, 512), &head);
    }
}

fn check<E>(read: Result<Option<Table>, E>, head: &[u8]) {
    let Ok(Some(table)) = read else { return };
    for disk in DISKS.into_iter().chain([table.disk_bytes()]) {
        let mut fitted = table.clone();
        if fitted.fit(disk).is_err() {
            continue;
        }
        let (at, backup) = fitted.backup_bytes();
        let end = at.checked_add(backup.len() as u64);
        assert!(end.is_some_and(|end| end <= disk), "within the disk");
        for partition in fitted.partitions() {
            assert!(
                partition.span.bytes(fitted.sector()).end <= at,
                "before the backup"
            );
        }
        let mut room = vec![0; HEAD];
        room[..head.len()].copy_from_slice(head);
        fitted.patch_head(&mut room);
        let again = Table::read(&room, fitted.sector());
        assert!(again.is_ok_and(|again| {
            again.is_some_and(|again| again.partitions().eq(fitted.partitions()))
        }));
        if let Ok(added) = fitted.add("any", 1 << 20, [1; 16]) {
            assert!(
                added.span.bytes(fitted.sector()).end <= at,
                "before the backup"
            );
        }
    }
}

/// Makes the checksums of a header at a byte right, as a hostile image would have them.
fn seal(bytes: &mut [u8], at: usize) {
    const HEADER: usize = 92;
    let Some(header) = bytes.get(at..at + HEADER) else {
        return;
    };
    let field = |at: usize| {
        header[at..]
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes))
    };
    let (start, count) = (field(72), field(80) & 0xffff_ffff);
    let sector = if at == 4096 { 4096 } else { 512 };
    let start = usize::try_from(start.saturating_mul(sector)).unwrap_or(usize::MAX);
    let length = usize::try_from(count.saturating_mul(128)).unwrap_or(usize::MAX);
    let entries = bytes.get(start..).and_then(|rest| rest.get(..length));
    if let Some(crc) = entries.map(crc32fast::hash) {
        bytes[at + 88..at + HEADER].copy_from_slice(&crc.to_le_bytes());
    }
    bytes[at + 16..at + 20].fill(0);
    let crc = crc32fast::hash(&bytes[at..at + HEADER]);
    bytes[at + 16..at + 20].copy_from_slice(&crc.to_le_bytes());
}

/// A boot record: what is added to it is read again, and what protects a table stays one.
///
/// # Panics
/// When that does not hold.
pub fn mbr(bytes: &[u8]) {
    let Some(before) = mbr::read(bytes) else {
        return;
    };
    for entry in &before {
        assert!((1..=4).contains(&entry.number) && entry.span().last >= entry.span().first);
    }
    let mut head = bytes.to_vec();
    mbr::protect(&mut head, u64::MAX);
    if let Some(number) = mbr::add(&mut head, 2048, 4096) {
        let after = mbr::read(&head).unwrap_or_default();
        assert!(
            after.iter().any(|entry| entry.number == number),
            "read again"
        );
        assert_eq!(after.len(), before.len() + 1, "one more");
    }
}

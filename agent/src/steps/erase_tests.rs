//! Tests of `erase`: rules on made-up machines, and as root the real thing on a loop device.

use super::*;
use crate::disk::fixture::{Loop, NoKernel, used_disk};
use crate::disk::gpt::tests::table_of;
use crate::inspect::fixture;
use crate::kernel::Linux;
use crate::root::Root;
use proptest::prelude::*;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

const MIB: u64 = 1 << 20;
const DISK: u64 = 24 * MIB;

/// Two disks full of old data, with tables, and an optical drive.
fn machine() -> (tempfile::TempDir, Root) {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::at(folder.path());
    let names = ["vda", "vdb", "sr0"];
    fixture::disks(&root, &names.map(|name| (name, DISK)));
    for name in names {
        let disk = used_disk(&root.path(block::device_path(name)), DISK);
        disk.write_at(&table_of(512, DISK).0, 0).unwrap();
    }
    (folder, root)
}

fn go(root: &Root, cancelled: bool) -> Result<Vec<ErasedDisk>, Problem> {
    let context = Context {
        root,
        kernel: &NoKernel,
        progress: &|_| {},
        cancelled: &AtomicBool::new(cancelled),
    };
    match run(EraseMethod::Metadata, &context)? {
        Outcome::Erased { disks } => Ok(disks),
        other => panic!("{other:?}"),
    }
}

/// The whole MiB of a file that are zeros.
fn zeros(file: &Path) -> Vec<usize> {
    let bytes = std::fs::read(file).unwrap();
    let mebibytes = bytes.chunks(1 << 20).enumerate();
    mebibytes
        .filter(|(_, mib)| mib.iter().all(|&byte| byte == 0))
        .map(|(number, _)| number)
        .collect()
}

/// The disk 0-24, partition 14 at 1-2, partition 15 at 2-6, partition 1 at 6-12.
const EDGES: [usize; 7] = [0, 1, 2, 5, 6, 11, 23];

#[test]
fn every_edge_of_every_usable_disk_is_zero_and_the_rest_is_not_touched() {
    let (_folder, root) = machine();
    let disks = go(&root, false).unwrap();
    let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
    assert_eq!(names, ["/dev/vda", "/dev/vdb"]);
    assert_eq!(disks[0].serial.as_deref(), Some("vda-serial"));
    assert_eq!(zeros(&root.path("/dev/vda")), EDGES);
    assert_eq!(disks[0].bytes, 7 * MIB);
    let bytes = std::fs::read(root.path("/dev/vda")).unwrap();
    assert!(bytes[3 << 20..5 << 20].iter().all(|&byte| byte == 0xa5));
    let medium = std::fs::read(root.path("/dev/sr0")).unwrap();
    assert_eq!(&medium[512..520], b"EFI PART");
}

#[test]
fn the_second_copy_tells_where_partitions_were_when_the_first_is_gone() {
    let (_folder, root) = machine();
    let path = root.path("/dev/vda");
    let disk = used_disk(&path, DISK);
    let (at, backup) = table_of(512, DISK).1.backup_bytes();
    disk.write_at(&backup, at).unwrap();
    go(&root, false).unwrap();
    assert_eq!(zeros(&path), EDGES);
}

#[test]
fn partitions_that_only_the_kernel_or_a_boot_record_knows_are_erased_too() {
    let (_folder, root) = machine();
    for (file, text) in [("partition", "1"), ("start", "8192"), ("size", "4096")] {
        let path = format!("/sys/block/vda/vda1/{file}");
        fixture::write(&root, &[(&path, text.as_bytes())]);
    }
    let mut head = vec![0; 512];
    head[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr::add(&mut head, 20_480, 8192).unwrap();
    let path = root.path("/dev/vda");
    used_disk(&path, DISK).write_at(&head, 0).unwrap();
    go(&root, false).unwrap();
    assert_eq!(zeros(&path), [0, 4, 5, 10, 13, 23]);
}

#[test]
fn a_disk_in_use_is_named_and_nothing_at_all_is_written() {
    let (_folder, root) = machine();
    let before = std::fs::read(root.path("/dev/vda")).unwrap();
    fixture::write(&root, &[("/sys/block/vdb/holders/md0", b"")]);
    let problem = go(&root, false).unwrap_err();
    assert_eq!(problem.code, Code::DiskInUse);
    assert!(problem.message.contains("/dev/vdb"), "{problem}");
    assert!(problem.message.contains("held by md0"), "{problem}");
    assert!(std::fs::read(root.path("/dev/vda")).unwrap() == before);
}

#[test]
fn what_is_not_the_hosts_own_or_cannot_be_written_is_left_alone() {
    let (_folder, root) = machine();
    let untouched = |name: &str| {
        let bytes = std::fs::read(root.path(name)).unwrap();
        assert_eq!(&bytes[512..520], b"EFI PART", "{name}");
    };
    fixture::write(&root, &[("/sys/block/vdb/removable", b"1")]);
    // A stick that somebody has mounted is left alone too, and does not stop the rest.
    fixture::write(&root, &[("/sys/block/vdb/holders/dm-0", b"")]);
    assert_eq!(go(&root, false).unwrap().len(), 1);
    untouched("/dev/vdb");
    fixture::write(&root, &[("/sys/block/vda/ro", b"1")]);
    assert_eq!(go(&root, false).unwrap_err().code, Code::NoDisk);
}

#[test]
fn the_boot_medium_is_left_alone() {
    let disk = |in_use: Option<&str>| Disk {
        name: "/dev/vda".into(),
        size_bytes: DISK,
        in_use: in_use.map(str::to_owned),
        ..Disk::default()
    };
    let disks = [disk(Some(block::BOOT_MEDIUM)), disk(None)];
    let targets = targets(&disks).unwrap();
    assert_eq!(targets, [&disks[1]]);
}

#[test]
fn a_cancelled_step_and_a_machine_without_disks_say_so() {
    let (_folder, root) = machine();
    assert_eq!(go(&root, true).unwrap_err().code, Code::StepCancelled);
    assert!(!zeros(&root.path("/dev/vda")).contains(&0));
    let folder = tempfile::tempdir().unwrap();
    let empty = Root::at(folder.path());
    assert_eq!(go(&empty, false).unwrap_err().code, Code::NoDisk);
}

#[test]
fn progress_is_that_of_all_disks_together() {
    let (_folder, root) = machine();
    let told = Mutex::new(Vec::new());
    let context = Context {
        root: &root,
        kernel: &NoKernel,
        progress: &|progress| told.lock().unwrap().push(progress),
        cancelled: &AtomicBool::new(false),
    };
    run(EraseMethod::Metadata, &context).unwrap();
    let told = told.into_inner().unwrap();
    assert_eq!(told[0].phase, "erasing 2 disks");
    assert_eq!(told[0].bytes_total, Some(14 * MIB));
    let most = told.iter().map(|progress| progress.bytes_done).max();
    assert_eq!(most, Some(14 * MIB));
}

#[test]
fn a_real_block_device_is_erased_with_either_sector() {
    for sector in [512_u32, 4096] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        let (head, table) = table_of(sector.into(), DISK);
        let disk = used_disk(&file, DISK);
        let (at, backup) = table.backup_bytes();
        disk.write_at(&head, 0).unwrap();
        disk.write_at(&backup, at).unwrap();
        drop(disk);
        let Some(device) = Loop::new(&file, sector) else {
            return;
        };
        let disk = Disk {
            name: device.name.clone(),
            ..Disk::default()
        };
        let context = Context {
            root: &Root::system(),
            kernel: &Linux,
            progress: &|_| {},
            cancelled: &AtomicBool::new(false),
        };
        // As the kernel itself claims a disk for a mount, a RAID or swap.
        let mut options = std::fs::File::options();
        let claim = options.read(true).custom_flags(libc::O_EXCL);
        let claim = claim.open(&device.name).unwrap();
        let problem = Plan::new(&disk, &context).unwrap_err();
        assert_eq!(problem.code, Code::DiskInUse, "{problem}");
        drop(claim);
        let plan = Plan::new(&disk, &context).unwrap();
        assert_eq!((plan.bytes(), plan.places()), (7 * MIB, 7));
        carry_out(vec![plan], &context).unwrap();
        assert_eq!(
            device.partitions(),
            [],
            "the kernel must have forgotten them"
        );
        drop(device);
        assert_eq!(zeros(&file), EDGES);
    }
}

proptest! {
    /// Whatever a table claims: on the disk, no byte twice, both edges of each, and in order.
    #[test]
    fn ranges_stay_on_the_disk_and_apart(
        disk in 0..40 * MIB,
        parts in proptest::collection::vec((0..48 * MIB, 0..64 * MIB), 0..8),
        wild in (any::<u64>(), any::<u64>()),
    ) {
        let mut parts: Vec<_> = parts
            .iter()
            .map(|(start, length)| *start..start + length)
            .collect();
        parts.push(wild.0..wild.1);
        let ranges = ranges(disk, &parts);
        let mut sorted = ranges.clone();
        sorted.sort_by_key(|range| range.start);
        prop_assert!(sorted.windows(2).all(|pair| pair[0].end <= pair[1].start));
        prop_assert!(ranges.iter().all(|r| r.start < r.end && r.end <= disk));
        prop_assert!(ranges.iter().all(|r| r.end - r.start <= MIB));
        let inside = |byte: u64| ranges.iter().any(|range| range.contains(&byte));
        if disk > 0 {
            prop_assert!(inside(0) && inside(disk - 1));
            prop_assert_eq!(ranges.last().unwrap().start, 0, "the start is the last");
        }
        if disk > MIB {
            prop_assert_eq!(ranges[ranges.len() - 2].end, disk, "before it, the end");
        }
        for part in parts.iter().filter(|part| part.start < part.end.min(disk)) {
            prop_assert!(inside(part.start));
            if part.end <= disk {
                prop_assert!(inside(part.end - 1));
            }
        }
    }
}

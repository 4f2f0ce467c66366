//! `erase`: makes every usable disk of the host forget what it held. By metadata: the first and
//! last MiB of the disk and of each of its partitions, so that nothing is found there, neither a
//! table, a file system, a RAID member nor a boot loader. The data between stays.

use std::sync::atomic::Ordering;

use ferrite_proto::hints::unusable;
use ferrite_proto::inventory::Disk;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::step::{EraseMethod, ErasedDisk, Outcome, Progress};

use super::Context;
use crate::disk::gpt::{HEAD, Table};
use crate::disk::{Device, EDGE, mbr};
use crate::inspect::block::{self, Extent};
use crate::stream::cancelled_problem;

/// Erases every disk that is not in use, not read-only and cannot be taken out; all at once.
pub(super) fn run(method: EraseMethod, context: &Context<'_>) -> Result<Outcome, Problem> {
    let EraseMethod::Metadata = method;
    let disks = block::all(context.root);
    let usable: Vec<Disk> = disks
        .into_iter()
        .filter(|disk| unusable(disk).is_none())
        .collect();
    if usable.is_empty() {
        return Err(Problem::new(
            Code::NoDisk,
            "the machine has no disk that can be erased",
            "check the host's drives, their cables and their controller's mode",
        ));
    }
    (context.progress)(Progress {
        phase: format!("erasing {} disks", usable.len()),
        ..Progress::default()
    });
    let results: Vec<Result<ErasedDisk, Problem>> = std::thread::scope(|scope| {
        let threads: Vec<_> = usable
            .iter()
            .map(|disk| scope.spawn(|| erase(disk, context)))
            .collect();
        threads.into_iter().map(joined).collect()
    });
    let disks = results.into_iter().collect::<Result<_, _>>()?;
    Ok(Outcome::Erased { disks })
}

fn joined(
    thread: std::thread::ScopedJoinHandle<'_, Result<ErasedDisk, Problem>>,
) -> Result<ErasedDisk, Problem> {
    thread.join().unwrap_or_else(|_| {
        Err(Problem::new(
            Code::Internal,
            "erasing a disk ended in a panic",
            "report this, with the host's log",
        ))
    })
}

/// Erases one disk.
pub(crate) fn erase(disk: &Disk, context: &Context<'_>) -> Result<ErasedDisk, Problem> {
    let path = context.root.path(&disk.name);
    let device = Device::open(&path, &disk.name, context.kernel)?;
    let ranges = ranges(disk, &device, context)?;
    let mut bytes = 0;
    // The disk's own edges come last in the list and last here: as long as its table stands,
    // a step that was cut off finds the partitions again.
    for range in &ranges {
        if context.cancelled.load(Ordering::Relaxed) {
            return Err(cancelled_problem());
        }
        device.write_zeros(range.start, range.bytes)?;
        bytes += range.bytes;
    }
    device.flush()?;
    for range in &ranges {
        let zeros = vec![0; usize::try_from(range.bytes).unwrap_or(0)];
        device.expect(&zeros, range.start)?;
    }
    device.finish()?;
    tracing::info!(disk = %disk.name, bytes, "tables and signatures erased");
    Ok(ErasedDisk {
        name: disk.name.clone(),
        serial: disk.serial.clone(),
        bytes,
    })
}

/// What is overwritten: each partition's edges, then the disk's.
pub(crate) fn ranges(
    disk: &Disk,
    device: &Device<'_>,
    context: &Context<'_>,
) -> Result<Vec<Extent>, Problem> {
    let size = device.bytes();
    let mut head = vec![0; HEAD.min(usize::try_from(size).unwrap_or(HEAD))];
    device.read_at(&mut head, 0)?;
    let kernel_name = disk.name.trim_start_matches("/dev/");
    let mut extents = block::partitions(context.root, kernel_name);
    extents.extend(on_disk(&head, device.sector()));
    extents.push(Extent {
        start: 0,
        bytes: size,
    });
    let mut ranges = Vec::new();
    for extent in extents {
        // A table may claim what it likes; only what is on the disk is touched.
        let end = extent.start.saturating_add(extent.bytes).min(size);
        let start = extent.start.min(end);
        let length = EDGE.min(end - start);
        let edges = [start, end - length];
        ranges.extend(edges.map(|start| Extent {
            start,
            bytes: length,
        }));
    }
    ranges.retain(|range| range.bytes > 0);
    let mut seen = std::collections::HashSet::new();
    ranges.retain(|range| seen.insert((range.start, range.bytes)));
    Ok(ranges)
}

/// The partitions that the disk's own table names, which the kernel need not have read.
fn on_disk(head: &[u8], sector: u64) -> Vec<Extent> {
    let extent = |first: u64, last: u64, sector: u64| Extent {
        start: first.saturating_mul(sector),
        bytes: (last - first).saturating_add(1).saturating_mul(sector),
    };
    if let Ok(Some(table)) = Table::read(head, sector) {
        let spans = table.partitions().map(|partition| partition.span);
        return spans
            .map(|span| extent(span.first, span.last, table.sector()))
            .collect();
    }
    let entries = mbr::read(head).unwrap_or_default();
    let spans = entries.into_iter().map(mbr::Entry::span);
    spans
        .map(|span| extent(span.first, span.last, sector))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fixture::{NoKernel, used_disk};
    use crate::disk::gpt::tests::table_of;
    use crate::inspect::fixture;
    use crate::root::Root;
    use ferrite_proto::step::Outcome;
    use std::sync::atomic::AtomicBool;

    const MIB: u64 = 1 << 20;

    fn machine() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        fixture::disks(
            &root,
            &[("vda", 24 * MIB), ("vdb", 24 * MIB), ("sr0", 24 * MIB)],
        );
        for name in ["vda", "vdb", "sr0"] {
            let disk = used_disk(&root.path(format!("/dev/{name}")), 24 * MIB);
            disk.write_at(&table_of(512, 24 * MIB).0, 0).unwrap();
        }
        (folder, root)
    }

    fn go(root: &Root, cancelled: bool) -> Result<Outcome, Problem> {
        let context = Context {
            root,
            kernel: &NoKernel,
            progress: &|_| {},
            cancelled: &AtomicBool::new(cancelled),
        };
        run(EraseMethod::Metadata, &context)
    }

    #[test]
    fn every_edge_of_every_usable_disk_is_zero_and_the_rest_is_not_touched() {
        let (_folder, root) = machine();
        let Outcome::Erased { disks } = go(&root, false).unwrap() else {
            panic!()
        };
        let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["/dev/vda", "/dev/vdb"]);
        assert_eq!(disks[0].serial.as_deref(), Some("vda-serial"));
        let bytes = std::fs::read(root.path("/dev/vda")).unwrap();
        let zero = |mib: usize| bytes[mib << 20..(mib + 1) << 20].iter().all(|&b| b == 0);
        let zeros: Vec<usize> = (0..24).filter(|&mib| zero(mib)).collect();
        // The disk 0-24, partition 14 at 1-2, partition 15 at 2-6, partition 1 at 6-12.
        assert_eq!(zeros, [0, 1, 2, 5, 6, 11, 23]);
        assert_eq!(disks[0].bytes, 7 * MIB);
        let medium = std::fs::read(root.path("/dev/sr0")).unwrap();
        assert_eq!(&medium[512..520], b"EFI PART");
    }

    #[test]
    fn a_cancelled_step_and_a_machine_without_disks_say_so() {
        let (_folder, root) = machine();
        assert_eq!(go(&root, true).unwrap_err().code, Code::StepCancelled);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            go(&Root::at(folder.path()), false).unwrap_err().code,
            Code::NoDisk
        );
    }
}

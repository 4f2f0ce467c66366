//! `erase`: makes every disk of the host forget what it held, by metadata: the first and last MiB
//! of each partition and of the disk, so that nothing is found there, neither a table, a file
//! system, a RAID member nor a boot loader. The data between stays.
//!
//! The partitions' edges go first, then the disk's end, then its start, and the disk confirms each
//! before the next: wherever power is lost, a table is left that tells the next attempt where the
//! partitions were. Nothing is written before every disk is known to be free.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;

use ferrite_proto::hints::unusable;
use ferrite_proto::inventory::Disk;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::step::{EraseMethod, ErasedDisk, Outcome, Progress};

use super::Context;
use crate::disk::gpt::{BadTable, HEAD, Table};
use crate::disk::{Device, DiskError, EDGE, mbr};
use crate::inspect::block;
use crate::stream::cancelled_problem;

/// Erases every disk that is the host's own, all at once.
pub(super) fn run(method: EraseMethod, context: &Context<'_>) -> Result<Outcome, Problem> {
    let EraseMethod::Metadata = method;
    let disks = block::all(context.root);
    let plans: Result<Vec<Plan<'_>>, Problem> = targets(&disks)?
        .into_iter()
        .map(|disk| Plan::new(disk, context))
        .collect();
    let disks = carry_out(plans?, context)?;
    Ok(Outcome::Erased { disks })
}

/// The disks that are the host's own. One that is in use is refused rather than passed over: who
/// asks for a clean host must not get one that still holds data.
fn targets(disks: &[Disk]) -> Result<Vec<&Disk>, Problem> {
    let mut targets = Vec::new();
    for disk in disks {
        let Some(why) = unusable(disk) else {
            targets.push(disk);
            continue;
        };
        let medium = disk.in_use.as_deref() == Some(block::BOOT_MEDIUM);
        if !(medium || disk.removable || disk.read_only || disk.size_bytes == 0) {
            return Err(Problem::new(
                Code::DiskInUse,
                format!("{} cannot be erased: {why}; nothing was written", disk.name),
                "release the disk (unmount it, stop RAID, LVM or swap on it), then try again",
            ));
        }
        tracing::info!(disk = disk.name, why, "not erased");
    }
    if targets.is_empty() {
        return Err(Problem::new(
            Code::NoDisk,
            "the machine has no disk that can be erased",
            "check the host's drives, their cables and their controller's mode",
        ));
    }
    Ok(targets)
}

/// What will be erased of one disk, which is held for us alone from here on.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    disk: &'a Disk,
    device: Device<'a>,
    ranges: Vec<Range<u64>>,
}

impl<'a> Plan<'a> {
    /// Opens the disk and looks for its partitions; writes nothing.
    pub(crate) fn new(disk: &'a Disk, context: &Context<'a>) -> Result<Self, Problem> {
        let path = context.root.path(&disk.name);
        let device = Device::open(&path, &disk.name, context.kernel)?;
        let partitions = partitions(&device, context)?;
        let ranges = ranges(device.bytes(), &partitions);
        Ok(Self {
            disk,
            device,
            ranges,
        })
    }

    /// How much is overwritten.
    pub(crate) fn bytes(&self) -> u64 {
        self.ranges
            .iter()
            .map(|range| range.end - range.start)
            .sum()
    }

    /// At how many places.
    pub(crate) const fn places(&self) -> usize {
        self.ranges.len()
    }

    fn carry_out(self, done: &Done, context: &Context<'_>) -> Result<ErasedDisk, Problem> {
        for range in &self.ranges {
            if context.cancelled.load(Ordering::Relaxed) {
                return Err(cancelled_problem());
            }
            let length = range.end - range.start;
            self.device.write_zeros(range.start, length)?;
            // Not only at the end: the disk may write in any order what is not flushed.
            self.device.flush()?;
            done.add(length, context);
        }
        self.verify()?;
        let bytes = self.bytes();
        self.device.finish()?;
        tracing::info!(disk = self.disk.name, bytes, "tables and signatures erased");
        Ok(ErasedDisk {
            name: self.disk.name.clone(),
            serial: self.disk.serial.clone(),
            bytes,
        })
    }

    /// The evidence: the medium itself must give zeros.
    fn verify(&self) -> Result<(), DiskError> {
        self.device.drop_cache()?;
        for range in &self.ranges {
            let zeros = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
            self.device.expect(&zeros, range.start)?;
        }
        Ok(())
    }
}

/// How far all disks together are.
struct Done {
    bytes: AtomicU64,
    total: u64,
    phase: String,
}

impl Done {
    fn add(&self, bytes: u64, context: &Context<'_>) {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        (context.progress)(Progress {
            phase: self.phase.clone(),
            bytes_done: before + bytes,
            bytes_total: Some(self.total),
            ..Progress::default()
        });
    }
}

/// Erases disks, all at once, and says what was overwritten. When one fails, the others still end.
pub(crate) fn carry_out(
    plans: Vec<Plan<'_>>,
    context: &Context<'_>,
) -> Result<Vec<ErasedDisk>, Problem> {
    let done = Done {
        bytes: AtomicU64::new(0),
        total: plans.iter().map(Plan::bytes).sum(),
        phase: match plans.len() {
            1 => "erasing 1 disk".to_owned(),
            count => format!("erasing {count} disks"),
        },
    };
    done.add(0, context);
    std::thread::scope(|scope| {
        let threads: Vec<_> = plans
            .into_iter()
            .map(|plan| scope.spawn(|| plan.carry_out(&done, context)))
            .collect();
        let results: Vec<_> = threads.into_iter().map(joined).collect();
        for problem in results.iter().filter_map(|result| result.as_ref().err()) {
            tracing::warn!(%problem, "a disk was not erased");
        }
        results.into_iter().collect()
    })
}

fn joined(
    thread: ScopedJoinHandle<'_, Result<ErasedDisk, Problem>>,
) -> Result<ErasedDisk, Problem> {
    thread.join().unwrap_or_else(|_| {
        Err(Problem::new(
            Code::Internal,
            "erasing a disk ended in a panic",
            "report this, with the host's log",
        ))
    })
}

/// Where partitions lie: all that the kernel sees, and that any table says which it may not have
/// read. A damaged table tells nothing; the other copy of it may.
fn partitions(device: &Device<'_>, context: &Context<'_>) -> Result<Vec<Range<u64>>, DiskError> {
    let (size, sector) = (device.bytes(), device.sector());
    let mut head = vec![0; HEAD.min(usize::try_from(size).unwrap_or(HEAD))];
    let mut tail = head.clone();
    device.read_at(&mut head, 0)?;
    let end = size - tail.len() as u64;
    device.read_at(&mut tail, end)?;
    let name = block::kernel_name(device.name());
    let seen = block::partitions(context.root, &name).into_iter();
    let mut found: Vec<Range<u64>> = seen
        .map(|extent| extent.start..extent.start.saturating_add(extent.bytes))
        .collect();
    let copies = [
        Table::read(&head, sector),
        Table::read_backup(&tail, size, sector),
    ];
    for table in copies.into_iter().filter_map(|copy| sound(copy, device)) {
        let spans = table.partitions().map(|partition| partition.span);
        found.extend(spans.map(|span| span.bytes(table.sector())));
    }
    // The entry that protects a GPT is no partition.
    let entries = mbr::read(&head).unwrap_or_default().into_iter();
    let entries = entries.filter(|entry| entry.kind != mbr::PROTECTIVE);
    found.extend(entries.map(|entry| entry.span().bytes(sector)));
    Ok(found)
}

fn sound(copy: Result<Option<Table>, BadTable>, device: &Device<'_>) -> Option<Table> {
    copy.unwrap_or_else(|why| {
        tracing::warn!(disk = device.name(), %why, "its partitions are looked for elsewhere");
        None
    })
}

/// What is overwritten, in this order: the partitions' edges, then the disk's end, then its start.
/// A table may claim what it likes: no two overlap, and all lie on the disk.
fn ranges(disk: u64, partitions: &[Range<u64>]) -> Vec<Range<u64>> {
    let low = EDGE.min(disk);
    let high = disk.saturating_sub(EDGE).max(low);
    let edges = partitions.iter().flat_map(|part| {
        let first = part.start.saturating_add(EDGE).min(part.end);
        let last = part.end.saturating_sub(EDGE).max(part.start);
        [part.start..first, last..part.end]
    });
    let mut inner: Vec<Range<u64>> = edges
        .map(|edge| edge.start.clamp(low, high)..edge.end.clamp(low, high))
        .collect();
    inner.sort_by_key(|edge| (edge.start, edge.end));
    let mut ranges = Vec::new();
    let mut reached = low;
    for edge in inner {
        // What is covered is cut off, never joined: a range stays as small as a MiB.
        let start = edge.start.max(reached);
        if start < edge.end {
            ranges.push(start..edge.end);
            reached = edge.end;
        }
    }
    ranges.extend(
        [high..disk, 0..low]
            .into_iter()
            .filter(|range| !range.is_empty()),
    );
    ranges
}

#[cfg(test)]
#[path = "erase_tests.rs"]
mod tests;

//! What makes an image bootable, held back until everything else is right: its first MiB, with the
//! partition table as it will stand on this disk, and the disk's last sectors, with the backup.
//!
//! Firmware and kernels recover a table from its backup, so the end is held back like the start.

use std::ops::Range;
use std::path::Path;

use ferrite_proto::image::ImageRef;
use ferrite_proto::problem::{Code, Problem};

use super::refusal::{format_problem, needed, too_large, truncated};
use crate::disk::aligned::Aligned;
use crate::disk::gpt::{self, BadTable, HEAD, Table};
use crate::disk::{Device, DiskError, EDGE, mbr};
use crate::steps::write_config_drive::{NoPlace, Place};

/// Sectors at a disk's end that a backup table takes, and one.
const TAIL: u64 = 34;

/// Both ends of a disk, as they will be.
pub(super) struct Edges {
    /// The image's first MiB.
    head: Aligned,
    /// The disk's last sectors, and where they begin.
    tail: Aligned,
    tail_at: u64,
    /// Whether there is anything to put at the disk's end.
    has_tail: bool,
    table: Option<Moved>,
    /// The image's size; compressed and without a table, what its partitions need.
    size: u64,
}

/// A partition table that has been fitted to this disk.
struct Moved {
    table: Table,
    /// Size of the disk that the image was made with.
    made_for: u64,
    /// The image's own backup.
    backup: Range<u64>,
}

impl Edges {
    /// Looks at the image's first bytes and refuses what cannot end well. `exact` is the image's
    /// size, where that is known; `room` has to stay free for the config drive.
    pub(super) fn new(
        image: &ImageRef,
        first: &[u8],
        exact: Option<u64>,
        device: &Device<'_>,
        room: u64,
    ) -> Result<Self, Problem> {
        let sector = usize::try_from(device.sector()).unwrap_or(4096);
        let used = first.len().min(HEAD);
        let mut head = Aligned::zeroed(used.next_multiple_of(sector));
        head[..used].copy_from_slice(&first[..used]);
        let damaged = |error: BadTable| format_problem(image, &error.to_string());
        let edges = match Table::read(&head, device.sector()).map_err(damaged)? {
            None => Self::without_table(image, head, exact, device, room)?,
            Some(table) => Self::with_table(image, head, table, exact, device, room)?,
        };
        edges.leave_room(image, device, room)?;
        Ok(edges)
    }

    fn without_table(
        image: &ImageRef,
        head: Aligned,
        exact: Option<u64>,
        device: &Device<'_>,
        room: u64,
    ) -> Result<Self, Problem> {
        let claimed = mbr::read(&head).unwrap_or_default();
        // Partitions may leave room within the image; without any, nothing in it is free.
        let behind = if claimed.is_empty() { room } else { 0 };
        let ends = claimed
            .into_iter()
            .map(|entry| (entry.span().last + 1).saturating_mul(512));
        let size = exact.or_else(|| ends.max()).unwrap_or(0);
        if size.saturating_add(behind) > device.bytes() {
            return Err(too_large(image, &needed(size, room), device.bytes()));
        }
        Ok(Self::around(head, None, size, device))
    }

    fn with_table(
        image: &ImageRef,
        mut head: Aligned,
        mut table: Table,
        exact: Option<u64>,
        device: &Device<'_>,
        room: u64,
    ) -> Result<Self, Problem> {
        let made_for = table.disk_bytes();
        if table.sector() != device.sector() {
            let (has, wants) = (device.sector(), table.sector());
            let name = device.name();
            let why = format!("it is made for sectors of {wants} bytes, but {name} has {has}");
            return Err(format_problem(image, &why));
        }
        let size = exact.unwrap_or(0).max(made_for);
        if size > device.bytes() {
            return Err(too_large(image, &needed(size, room), device.bytes()));
        }
        if let Some(total) = exact.filter(|&total| total < made_for) {
            return Err(truncated(image, total, made_for));
        }
        let backup = table.backup_range();
        let fitted = table.fit(device.bytes());
        fitted.map_err(|error| format_problem(image, &error.to_string()))?;
        table.patch_head(&mut head);
        let moved = Moved {
            table,
            made_for,
            backup,
        };
        Ok(Self::around(head, Some(moved), size, device))
    }

    fn around(head: Aligned, table: Option<Moved>, size: u64, device: &Device<'_>) -> Self {
        let end = device.bytes();
        let reserved = end.saturating_sub(TAIL * device.sector());
        let backup = table.as_ref().map(|moved| moved.table.backup_range().start);
        let tail_at = backup.map_or(reserved, |backup| backup.min(reserved));
        // Down to a whole sector: a plain file may end in the middle of one.
        let tail_at = (tail_at / device.sector() * device.sector()).max(head.len() as u64);
        let length = usize::try_from(end.saturating_sub(tail_at)).unwrap_or(0);
        let mut edges = Self {
            head,
            tail: Aligned::zeroed(length),
            tail_at,
            has_tail: table.is_some(),
            table,
            size,
        };
        edges.seal();
        edges
    }

    /// Refuses an image that leaves no place for the config drive: better now than when the disk
    /// has been overwritten.
    fn leave_room(&self, image: &ImageRef, device: &Device<'_>, room: u64) -> Result<(), Problem> {
        if room == 0 {
            return Ok(());
        }
        let mut head = Aligned::zeroed(HEAD);
        head[..self.head.len()].copy_from_slice(&self.head);
        let Err(none) = Place::find(head, device, room) else {
            return Ok(());
        };
        if let NoPlace::Space(why) = &none {
            let needs = needed(self.size, room);
            let mut problem = too_large(image, &needs, device.bytes());
            problem.message = format!("{}: {why}", problem.message);
            return Err(problem);
        }
        let message = format!("no config drive can follow the image {}: {none}", image.url);
        let advice = "use an image with a partition table that takes one more partition; nothing \
                      was written";
        Err(Problem::new(none.code(), message, advice))
    }

    /// The bytes of the disk between the edges, which are written as they come.
    pub(super) fn body(&self) -> Range<u64> {
        self.head.len() as u64..self.tail_at
    }

    /// Whether something within a range of the image is held back, or changed on this disk.
    pub(super) fn touch(&self, range: Range<u64>) -> bool {
        let backup = self.table.as_ref().map(|moved| &moved.backup);
        let meets_backup =
            backup.is_some_and(|backup| backup.start < range.end && range.start < backup.end);
        let body = self.body();
        range.start < body.start || range.end > body.end || meets_backup
    }

    /// Whether the disk has both edges as they shall be.
    pub(super) fn stand_on(&self, device: &Device<'_>) -> bool {
        let tail = !self.has_tail || device.holds(&self.tail, self.tail_at);
        tail && device.holds(&self.head, 0)
    }

    /// From where on the end of a disk is cleared before an image of so many bytes is written: all
    /// of the last MiB but what the image itself has there.
    pub(super) fn clear_from(&self, device: &Device<'_>, image_bytes: u64) -> u64 {
        let image_end = image_bytes.next_multiple_of(device.sector());
        let edge = device.bytes() - EDGE.min(device.bytes());
        edge.max(image_end.min(self.tail_at))
    }

    /// Takes what belongs to the disk's end out of a part of the image that begins at `start`, and
    /// blanks what does not belong on this disk. Zeros are left in its place.
    pub(super) fn hold(&mut self, part: &mut [u8], start: u64) {
        self.blank_backup(part, start);
        let own = within(self.tail_at..u64::MAX, part, start);
        if own.is_empty() {
            return;
        }
        let at = (start + own.start as u64).saturating_sub(self.tail_at);
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let held = self.tail.get_mut(at..).unwrap_or_default();
        let count = held.len().min(own.len());
        held[..count].copy_from_slice(&part[own.start..own.start + count]);
        part[own].fill(0);
        self.has_tail = true;
        self.seal();
    }

    /// Blanks the image's own backup table: the disk gets one at its own end.
    fn blank_backup(&self, part: &mut [u8], start: u64) {
        if let Some(moved) = &self.table {
            let range = within(moved.backup.clone(), part, start);
            part[range].fill(0);
        }
    }

    /// Puts the backup table over what the image has at the disk's end.
    fn seal(&mut self) {
        let Some(moved) = &self.table else {
            return;
        };
        let (at, backup) = moved.table.backup_bytes();
        let at = usize::try_from(at.saturating_sub(self.tail_at)).unwrap_or(usize::MAX);
        let place = self.tail.get_mut(at..).unwrap_or_default();
        let count = place.len().min(backup.len());
        place[..count].copy_from_slice(&backup[..count]);
    }

    /// The image must not be shorter than the disk that its table was made for.
    pub(super) fn check_length(&self, image: &ImageRef, length: u64) -> Result<(), Problem> {
        match &self.table {
            Some(moved) if length < moved.made_for => Err(truncated(image, length, moved.made_for)),
            _ => Ok(()),
        }
    }

    /// Makes the disk bootable: its end first, its first sector last.
    pub(super) fn commit(
        self,
        image: &ImageRef,
        device: Device<'_>,
        path: &Path,
    ) -> Result<(), Problem> {
        self.write(&device)?;
        device.finish()?;
        let Some(moved) = &self.table else {
            return Ok(());
        };
        gpt::confirm(&moved.table, path).map_err(|error| {
            Problem::new(
                Code::DiskIo,
                format!("after writing {}, {error}", image.url),
                "check the disk's health and cabling, replace it if need be, then retry",
            )
        })
    }

    fn write(&self, device: &Device<'_>) -> Result<(), DiskError> {
        if self.has_tail {
            device.write_at(&self.tail, self.tail_at)?;
            device.flush()?;
            device.expect(&self.tail, self.tail_at)?;
        }
        gpt::write_head(&self.head, device)
    }
}

/// The part of a range of the disk that lies in `part`, which begins at `start`.
fn within(range: Range<u64>, part: &[u8], start: u64) -> Range<usize> {
    let at = |byte: u64| {
        let at = usize::try_from(byte.saturating_sub(start)).unwrap_or(usize::MAX);
        at.min(part.len())
    };
    at(range.start)..at(range.end)
}

//! `write-image`: streams an image to the root disk, so that at no moment a half-written disk
//! could boot.
//!
//! 1. Everything that can be refused is refused before the first write: image, disk, server, the
//!    image's first bytes, what its partition table says of its size, and a disk without room for
//!    the config drive that comes next.
//! 2. The disk's first and last MiB are cleared, and the disk confirms it.
//! 3. The image is written, all but its first MiB and its backup table.
//! 4. Only when the length and the digest are right come the backup table, at the disk's own end,
//!    and last the first MiB; both are read back.

use std::path::Path;
use std::time::Instant;

use ferrite_proto::image::ImageRef;
use ferrite_proto::inventory::Disk;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::size::ByteSize;
use ferrite_proto::step::{ImageWritten, Outcome, RootDisk};

use super::write_config_drive::{self, NoPlace, Place};
use super::{Context, root_disk};
use crate::disk::aligned::Aligned;
use crate::disk::gpt::{self, BadTable, HEAD, Table};
use crate::disk::{Device, EDGE, mbr};
use crate::stream::fetch::Patience;
use crate::stream::meter::Meter;
use crate::stream::write::Writer;
use crate::stream::{Fetched, ImageStream, Piece};

/// Chooses the disk and writes the image to it.
pub(super) fn run(
    image: &ImageRef,
    root: &RootDisk,
    patience: Patience,
    context: &Context<'_>,
) -> Result<Outcome, Problem> {
    let disk = root_disk::find(context.root, root)?;
    let drive = write_config_drive::room(context)?;
    let written = write(image, &disk, drive, patience, context)?;
    Ok(Outcome::ImageWritten(written))
}

/// Writes an image to a disk that somebody has chosen. `room` is what has to stay free for the
/// config drive: nothing where none follows.
pub(crate) fn write(
    image: &ImageRef,
    disk: &Disk,
    room: u64,
    patience: Patience,
    context: &Context<'_>,
) -> Result<ImageWritten, Problem> {
    let started = Instant::now();
    image.validate().map_err(|error| {
        Problem::new(
            Code::ImageInvalid,
            error.to_string(),
            "correct the image's description",
        )
    })?;
    let path = context.root.path(&disk.name);
    let device = Device::open(&path, &disk.name, context.kernel)?;
    let stream = ImageStream::start(image, patience)?;
    let mut meter = Meter::new(context.progress, "fetching");
    meter.tick(0, None);
    let first = stream.next(context.cancelled)?;
    let first = first.ok_or_else(|| format_problem(image, "it is empty"))?;
    let head = Head::take(image, &stream, &first, &device, room)?;
    head.leave_room(image, &device)?;

    meter.enter("writing", 0, stream.total());
    device.clear_edges()?;
    let mut writing = Writing {
        image,
        head,
        device,
        meter,
    };
    let filled = writing.fill(stream, first, context);
    let (copied, fetched) = filled.inspect_err(|_| writing.give_up())?;
    writing
        .meter
        .enter("writing tables", fetched.bytes, Some(fetched.bytes));
    let memory_low_bytes = writing.meter.memory_low();
    writing.head.commit(image, writing.device, &path)?;
    let edges = copied.image.min(EDGE);
    let written = ImageWritten {
        disk: disk.name.clone(),
        serial: disk.serial.clone(),
        bytes_read: fetched.bytes,
        bytes_image: copied.image,
        bytes_written: copied.written + edges,
        bytes_zeroed: copied.zeroed,
        digest: fetched.digest.map(|digest| digest.to_string()),
        seconds: started.elapsed().as_secs_f64(),
        agent_peak_bytes: peak_memory(context),
        memory_low_bytes,
    };
    tracing::info!(disk = %written.disk, bytes = written.bytes_image, "image written");
    Ok(written)
}

/// What went to the disk.
struct Copied {
    image: u64,
    written: u64,
    zeroed: u64,
}

/// A disk that is being written, its edges cleared.
struct Writing<'a> {
    image: &'a ImageRef,
    head: Head,
    device: Device<'a>,
    meter: Meter<'a>,
}

impl Writing<'_> {
    /// Writes all but the head, and checks that it was the whole of the right file.
    fn fill(
        &mut self,
        stream: ImageStream,
        first: Piece,
        context: &Context<'_>,
    ) -> Result<(Copied, Fetched), Problem> {
        let copied = self.copy(&stream, first, context)?;
        self.head.check_length(self.image, copied.image)?;
        self.meter
            .enter("checking", stream.consumed(), stream.total());
        Ok((copied, stream.finish()?))
    }

    /// Writes everything but what [`Head`] holds back.
    fn copy(
        &mut self,
        stream: &ImageStream,
        first: Piece,
        context: &Context<'_>,
    ) -> Result<Copied, Problem> {
        let (limit, sector) = (self.device.bytes(), self.device.sector());
        let mut writer = Writer::new(&mut self.device, self.head.bytes.len() as u64);
        let mut length = 0;
        let mut next = Some(first);
        while let Some(mut piece) = next {
            let start = length;
            length += piece.length as u64;
            if length > limit {
                let needs = format!("at least {}", shown(length));
                return Err(too_large(self.image, &needs, limit));
            }
            // A disk takes whole sectors; behind the image's end, the last has zeros.
            let whole = piece
                .length
                .next_multiple_of(usize::try_from(sector).unwrap_or(4096));
            piece.buffer[piece.length..whole].fill(0);
            self.head.blank(&mut piece.buffer[..whole], start);
            let done = writer.position().saturating_sub(start);
            let done = usize::try_from(done).unwrap_or(whole).min(whole);
            writer.push(&piece.buffer[done..whole])?;
            stream.recycle(piece);
            self.meter.tick(stream.consumed(), stream.total());
            next = stream.next(context.cancelled)?;
        }
        let (written, zeroed) = writer.end()?;
        Ok(Copied {
            image: length,
            written,
            zeroed,
        })
    }

    /// Takes back what may lie at the disk's end, so that nothing is found at either.
    fn give_up(&self) {
        if let Err(error) = self.device.clear_edges() {
            let disk = self.device.name();
            tracing::warn!(disk, %error, "the disk's end cannot be cleared again");
        }
    }
}

/// What makes the image bootable, held back until everything else is right.
struct Head {
    /// Its first MiB.
    bytes: Aligned,
    /// Its table, as it will stand on this disk, and the size that the image was made with.
    table: Option<(Table, u64, std::ops::Range<u64>)>,
    /// The image's size; compressed and without a table, what its partitions need.
    size: u64,
    /// What the config drive needs besides.
    room: u64,
}

impl Head {
    /// Looks at the image's first bytes and refuses what cannot end well.
    fn take(
        image: &ImageRef,
        stream: &ImageStream,
        first: &Piece,
        device: &Device<'_>,
        room: u64,
    ) -> Result<Self, Problem> {
        let sector = usize::try_from(device.sector()).unwrap_or(4096);
        let used = first.length.min(HEAD);
        let mut bytes = Aligned::zeroed(used.next_multiple_of(sector));
        bytes[..used].copy_from_slice(&first.buffer[..used]);
        let damaged = |error: BadTable| format_problem(image, &error.to_string());
        let table = Table::read(&bytes, device.sector()).map_err(damaged)?;
        // Compressed files do not say how large the image is; raw ones do.
        let uncompressed = stream.total().filter(|_| stream.is_plain());
        let Some(mut table) = table else {
            let claimed = mbr::read(&bytes).unwrap_or_default();
            // Partitions may leave room within the image; without any, nothing in it is free.
            let behind = if claimed.is_empty() { room } else { 0 };
            let ends = claimed
                .into_iter()
                .map(|entry| (entry.span().last + 1).saturating_mul(512));
            let size = uncompressed.or_else(|| ends.max()).unwrap_or(0);
            if size.saturating_add(behind) > device.bytes() {
                return Err(too_large(image, &needed(size, room), device.bytes()));
            }
            return Ok(Self {
                bytes,
                table: None,
                size,
                room,
            });
        };
        let made_for = table.disk_bytes();
        if table.sector() != device.sector() {
            let (has, wants) = (device.sector(), table.sector());
            return Err(format_problem(
                image,
                &format!(
                    "it is made for sectors of {wants} bytes, but {} has {has}",
                    device.name()
                ),
            ));
        }
        let size = uncompressed.unwrap_or(0).max(made_for);
        if size > device.bytes() {
            return Err(too_large(image, &needed(size, room), device.bytes()));
        }
        if let Some(total) = uncompressed.filter(|&total| total < made_for) {
            return Err(truncated(image, total, made_for));
        }
        let backup = table.backup_range();
        table.fit(device.bytes()).map_err(damaged)?;
        Ok(Self {
            bytes,
            table: Some((table, made_for, backup)),
            size,
            room,
        })
    }

    /// Refuses an image that leaves no place for the config drive: better now than when the disk
    /// has been overwritten.
    fn leave_room(&self, image: &ImageRef, device: &Device<'_>) -> Result<(), Problem> {
        if self.room == 0 {
            return Ok(());
        }
        let mut head = Aligned::zeroed(HEAD);
        head[..self.bytes.len()].copy_from_slice(&self.bytes);
        if let Some((table, _, _)) = &self.table {
            table.patch_head(&mut head);
        }
        let Err(none) = Place::find(head, device, self.room) else {
            return Ok(());
        };
        if let NoPlace::Space(why) = &none {
            let needs = needed(self.size, self.room);
            let mut problem = too_large(image, &needs, device.bytes());
            problem.message = format!("{}: {why}", problem.message);
            return Err(problem);
        }
        let message = format!("no config drive can follow the image {}: {none}", image.url);
        let advice = "use an image with a partition table that takes one more partition; nothing \
                      was written";
        Err(Problem::new(none.code(), message, advice))
    }

    /// Blanks the image's own backup table: the disk gets one at its own end.
    fn blank(&self, piece: &mut [u8], start: u64) {
        let Some((_, _, backup)) = &self.table else {
            return;
        };
        let within = |byte: u64| {
            let at = usize::try_from(byte.saturating_sub(start)).unwrap_or(usize::MAX);
            at.min(piece.len())
        };
        let range = within(backup.start)..within(backup.end);
        piece[range].fill(0);
    }

    /// The image must not be shorter than the disk that its table was made for.
    fn check_length(&self, image: &ImageRef, length: u64) -> Result<(), Problem> {
        match &self.table {
            Some((_, made_for, _)) if length < *made_for => {
                Err(truncated(image, length, *made_for))
            }
            _ => Ok(()),
        }
    }

    /// Makes the disk bootable.
    fn commit(self, image: &ImageRef, device: Device<'_>, path: &Path) -> Result<(), Problem> {
        let Some((table, _, _)) = self.table else {
            gpt::write_head(&self.bytes, &device)?;
            return Ok(device.finish()?);
        };
        gpt::commit(&table, &self.bytes, &device)?;
        device.finish()?;
        gpt::confirm(&table, path).map_err(|error| {
            Problem::new(
                Code::DiskIo,
                format!("after writing {}, {error}", image.url),
                "check the disk's health and cabling, replace it if need be, then retry",
            )
        })
    }
}

fn shown(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", ByteSize(bytes))
}

fn needed(image: u64, room: u64) -> String {
    match room {
        0 => shown(image),
        _ => format!(
            "{}, and the config drive {} more",
            shown(image),
            shown(room)
        ),
    }
}

fn too_large(image: &ImageRef, needs: &str, has: u64) -> Problem {
    Problem::new(
        Code::ImageTooLarge,
        format!(
            "the image {} needs {needs}, but the disk has {}",
            image.url,
            shown(has)
        ),
        "choose a larger disk or a smaller image",
    )
}

fn truncated(image: &ImageRef, length: u64, wanted: u64) -> Problem {
    Problem::new(
        Code::ImageTruncated,
        format!(
            "the image {} ends at byte {length}, but its partition table is that of a disk of \
             {wanted} bytes",
            image.url
        ),
        "publish the whole image, and its digest with it",
    )
}

fn format_problem(image: &ImageRef, what: &str) -> Problem {
    Problem::new(
        Code::ImageFormat,
        format!("the image {} cannot be written: {what}", image.url),
        "use a raw disk image, made for this kind of disk; nothing was written",
    )
}

/// The most memory that this process ever used.
fn peak_memory(context: &Context<'_>) -> u64 {
    let status = context.root.text("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
#[path = "write_image_tests.rs"]
mod tests;

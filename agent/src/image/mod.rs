//! An image becomes what a disk holds, so that at no moment a half-written disk could boot.
//!
//! 1. Everything that can be refused is refused before the first write: image, disk, server, the
//!    image's first bytes, what its partition table says of its size, and a disk without room for
//!    the config drive that comes next.
//! 2. The disk's first MiB and its end are cleared, and the disk confirms it.
//! 3. The image is written, all but its [`edges`]: its first MiB and its backup table.
//! 4. Only when all of it is durable, and the length and the digest are right, come the backup
//!    table, at the disk's own end, and last the first MiB; both are read back.
//!
//! Each form of an image has a file: how its bytes come, and in which order. 1, 2 and 4 are the
//! same for all of them.

mod content;
mod edges;
mod packed;
mod plain;
mod qcow2;
mod read_back;
mod refusal;
mod zeros;

#[cfg(test)]
#[path = "fault_tests.rs"]
mod faults;
#[cfg(test)]
#[path = "fixture_tests.rs"]
mod fixture;
#[cfg(test)]
#[path = "hostile_tests.rs"]
mod hostile_tests;
#[cfg(test)]
#[path = "qcow2_tests.rs"]
mod qcow2_tests;
#[cfg(test)]
#[path = "server_tests.rs"]
mod server_tests;

use std::path::PathBuf;
use std::time::Instant;

use ferrite_proto::image::{Format, ImageRef};
use ferrite_proto::inventory::Disk;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::step::ImageWritten;

use crate::disk::{Device, EDGE};
use crate::steps::Context;
use crate::stream::Fetched;
use crate::stream::meter::Meter;
use crate::stream::resolve::resolve;
use crate::stream::terms::Terms;
use edges::Edges;

/// What is demanded besides the image itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Demand {
    /// What has to stay free for the config drive: nothing where none follows.
    pub(crate) room: u64,
    /// All of it is read back before the disk becomes bootable.
    pub(crate) verify: bool,
}

/// Writes an image to a disk that somebody has chosen.
pub(crate) fn write(
    image: &ImageRef,
    disk: &Disk,
    demand: Demand,
    terms: &Terms,
    context: &Context<'_>,
) -> Result<ImageWritten, Problem> {
    terms.check(image).map_err(|error| {
        Problem::new(
            Code::ImageInvalid,
            error.to_string(),
            "correct the image's description",
        )
    })?;
    let image = &resolve(image, terms, context.cancelled)?;
    let path = context.root.path(&disk.name);
    let target = Target {
        image,
        disk,
        demand,
        device: Device::open(&path, &disk.name, context.kernel)?,
        path,
        context,
        started: Instant::now(),
    };
    let written = match image.format {
        Format::Raw => plain::write(target, terms)?,
        Format::Packed => packed::write(target, terms)?,
        Format::Qcow2 => qcow2::write(target, terms)?,
    };
    tracing::info!(disk = %written.disk, bytes = written.bytes_image, "image written");
    Ok(written)
}

/// What is written where; the same for every form of image.
struct Target<'a> {
    image: &'a ImageRef,
    disk: &'a Disk,
    demand: Demand,
    device: Device<'a>,
    path: PathBuf,
    context: &'a Context<'a>,
    started: Instant,
}

impl Target<'_> {
    /// Looks at the image's first bytes and refuses what cannot end well. `exact` is its size,
    /// where that is known.
    fn edges(&self, first: &[u8], exact: Option<u64>) -> Result<Edges, Problem> {
        Edges::new(self.image, first, exact, &self.device, self.demand.room)
    }

    /// Takes back what may lie at the disk's edges, so that nothing is found at either.
    fn give_up(&self) {
        if let Err(error) = self.device.clear_edges() {
            let disk = self.device.name();
            tracing::warn!(disk, %error, "the disk's end cannot be cleared again");
        }
    }

    /// Makes the disk bootable: everything else is durable, and is what was demanded.
    fn commit(self, edges: Edges, written: ImageWritten) -> Result<ImageWritten, Problem> {
        edges.commit(self.image, self.device, &self.path)?;
        let seconds = self.started.elapsed().as_secs_f64();
        Ok(ImageWritten { seconds, ..written })
    }

    /// Ends what came as a stream.
    fn end(
        self,
        edges: Edges,
        placed: Placed,
        fetched: &Fetched,
        meter: &mut Meter<'_>,
    ) -> Result<ImageWritten, Problem> {
        meter.enter("writing tables", fetched.bytes, Some(fetched.bytes));
        let written = ImageWritten {
            bytes_read: fetched.bytes,
            bytes_image: placed.image,
            bytes_written: placed.written + placed.image.min(EDGE),
            bytes_zeroed: placed.zeroed,
            digest: fetched.digest.as_ref().map(ToString::to_string),
            memory_low_bytes: meter.memory_low(),
            ..self.report()
        };
        self.commit(edges, written)
    }

    /// The report, with what is the same for every form.
    fn report(&self) -> ImageWritten {
        ImageWritten {
            disk: self.disk.name.clone(),
            serial: self.disk.serial.clone(),
            verified: self.demand.verify,
            seconds: self.started.elapsed().as_secs_f64(),
            agent_peak_bytes: peak_memory(self.context),
            ..ImageWritten::default()
        }
    }
}

/// What became of a stream, but for the edges.
#[derive(Debug, Clone, Copy)]
struct Placed {
    image: u64,
    written: u64,
    zeroed: u64,
}

/// The most memory that this process ever used.
fn peak_memory(context: &Context<'_>) -> u64 {
    let status = context.root.text("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

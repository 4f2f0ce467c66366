//! A packed image: its index says what every part of the disk shall hold, so only what is not yet
//! right is fetched and written, by several threads at once.
//!
//! A first write looks at a few chunks, finds nothing right, and does not compare further. A
//! second write of the same image writes nothing at all; one that was cut off goes on. What is
//! written is believed chunk by chunk, because the index vouches for each, and the digest that a
//! person gave vouches for the index.

mod deeds;
mod file;
mod open;
mod signed;
mod tally;
mod work;

#[cfg(test)]
#[path = "../packed_tests.rs"]
mod tests;

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};

use ferrite_proto::problem::Problem;
use ferrite_proto::step::ImageWritten;

use super::edges::Edges;
use super::refusal::internal;
use super::{Target, refusal};
use crate::disk::DiskError;
use crate::stream::meter::Meter;
use crate::stream::source::Stop;
use crate::stream::terms::Terms;
use crate::stream::{GLANCE, cancelled_problem};
use file::File;
use open::{Held, Opened};
use tally::{Phase, Tally};
use work::{Hands, Work};

/// Chunks that are looked at before a disk is held to be another's: some at the image's start,
/// where a write that was cut off began, and some all over it.
const FIRST_PROBES: usize = 4;
const PROBES: usize = 12;

/// Writes what is not yet right.
pub(super) fn write(target: Target<'_>, terms: &Terms) -> Result<ImageWritten, Problem> {
    let tally = Tally::default();
    let stop = Stop::default();
    let mut meter = Meter::new(target.context.progress, "fetching");
    let filled = watched(&target, &stop, &tally, &mut meter, || {
        fill(&target, terms, &stop, &tally)
    })?;
    let done = tally.done();
    meter.enter("writing tables", done, Some(done));
    let written = ImageWritten {
        digest: target.image.digest.as_ref().map(ToString::to_string),
        memory_low_bytes: meter.memory_low(),
        ..tally.report(target.report())
    };
    if filled.changed {
        return target.commit(filled.edges, written);
    }
    target.device.finish()?;
    let seconds = target.started.elapsed().as_secs_f64();
    Ok(ImageWritten { seconds, ..written })
}

/// Runs the work on a thread of its own, tells how far it is, and stops it when nobody wants it.
fn watched<T: Send>(
    target: &Target<'_>,
    stop: &Stop,
    tally: &Tally,
    meter: &mut Meter<'_>,
    work: impl FnOnce() -> Result<T, Problem> + Send,
) -> Result<T, Problem> {
    let cancelled = target.context.cancelled;
    std::thread::scope(|scope| {
        let (done, result) = mpsc::channel();
        scope.spawn(move || done.send(work()));
        loop {
            if cancelled.load(Ordering::Relaxed) {
                stop.store(true, Ordering::Relaxed);
            }
            tally.tell(meter);
            match result.recv_timeout(GLANCE) {
                Ok(Err(_)) if cancelled.load(Ordering::Relaxed) => return Err(cancelled_problem()),
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(internal("the image's writer ended without a word"));
                }
            }
        }
    })
}

/// A disk that holds all of the image but its edges.
struct Filled {
    edges: Edges,
    /// Whether anything had to be written.
    changed: bool,
}

fn fill(target: &Target<'_>, terms: &Terms, stop: &Stop, tally: &Tally) -> Result<Filled, Problem> {
    let mut file = File::greet(target.image, terms, stop, tally)?;
    let Opened { index, edges, held } = open::open(target, &file, tally)?;
    file.let_go();
    let begun = Begun::new(target, &edges, index.image_bytes);
    let work = Work {
        target,
        file: &file,
        index: &index,
        edges: &edges,
        begun: &begun,
        tally,
        stop,
    };
    let result = make_right(&work, &held);
    let changed = begun.has_begun();
    if result.is_err() && changed {
        begun.give_up();
    }
    result?;
    Ok(Filled { edges, changed })
}

/// Writes all that is not yet right, but the edges, and waits until it is durable.
fn make_right(work: &Work<'_>, held: &[Held]) -> Result<(), Problem> {
    let (device, edges) = (&work.target.device, work.edges);
    let right = edges.stand_on(device);
    if !right {
        work.begun.begin()?;
    }
    for held in held {
        held.write(edges, device, work.begun, work.tally)?;
    }
    work.fill(right || probe(work)?)?;
    if work.begun.has_begun() {
        device.flush()?;
    }
    if work.target.demand.verify {
        work.tally.enter(Phase::Verifying);
        for held in held {
            held.expect(edges, device)?;
        }
        work.verify()?;
    }
    if work.target.image.raw_digest.is_some() {
        work.tally.enter(Phase::Verifying);
        work.check_content(held)?;
    }
    Ok(())
}

/// Whether the disk has any of the chunks that are looked at first.
fn probe(work: &Work<'_>) -> Result<bool, Problem> {
    let mut hands = Hands::new(work.index)?;
    let chunks = &work.index.chunks;
    // Zeros on an empty disk would say nothing.
    let telling = |number: &usize| !chunks[*number].zero && !work.is_held(*number);
    let first = (0..chunks.len()).filter(telling).take(FIRST_PROBES);
    let spread = (1..=PROBES).map(|part| part * (chunks.len() - 1) / PROBES);
    Ok(first
        .chain(spread.filter(telling))
        .any(|number| work.is_right(number, &mut hands)))
}

/// The moment before the first write: the disk's edges are cleared then, and not before.
struct Begun<'a> {
    target: &'a Target<'a>,
    /// From where on the disk's end is cleared.
    tail: u64,
    done: Mutex<bool>,
}

impl<'a> Begun<'a> {
    fn new(target: &'a Target<'a>, edges: &Edges, image_bytes: u64) -> Self {
        Self {
            target,
            tail: edges.clear_from(&target.device, image_bytes),
            done: Mutex::new(false),
        }
    }

    /// Called before each write; the first time it makes the disk unbootable.
    fn begin(&self) -> Result<(), DiskError> {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if !*done {
            // From here on the disk has to be made whole, even if clearing fails half-way.
            *done = true;
            self.target.device.clear_from(self.tail)?;
        }
        Ok(())
    }

    fn has_begun(&self) -> bool {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing was committed yet; this makes sure.
    fn give_up(&self) {
        if let Err(error) = self.target.device.clear_from(self.tail) {
            let disk = self.target.device.name();
            tracing::warn!(disk, %error, "the disk's edges cannot be cleared again");
        }
    }
}

//! A qcow2 image: its tables are read in parts, then the file comes once, as one stream, and each
//! cluster is written where it belongs as it comes by. Nothing is staged, on disk or in memory.
//!
//! The whole file passes the digest, as with every other image, so what is vouched for is what
//! `sha256sum` prints. The tables and the disk's first MiB, which were read before it, must be in
//! the stream what they were then; what the tables say nothing of is zeroed.

mod layout;
mod original;
mod place;
mod sort;

use std::io::{self, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ferrite_imaging::qcow2::BadQcow2;
use ferrite_proto::image::{Compression, ImageRef};
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::step::ImageWritten;

use super::zeros::Zeros;
use super::{Edges, Placed, Target};
use crate::disk::gpt::HEAD;
use crate::stream::meter::Meter;
use crate::stream::source::{FetchError, Source, Stop};
use crate::stream::terms::Terms;
use crate::stream::{Fetched, ImageStream, Piece, cancelled_problem};
use layout::{Layout, NoLayout};
use place::Place;
use sort::{Sorter, Unsorted};

/// How often it is looked whether the step has been cancelled.
const GLANCE: Duration = Duration::from_millis(100);

/// Writes all of it.
pub(super) fn write(target: Target<'_>, terms: &Terms) -> Result<ImageWritten, Problem> {
    let (image, context) = (target.image, target.context);
    check_declared(image)?;
    let mut meter = Meter::new(context.progress, "reading tables");
    meter.tick(0, None);
    let stop = Stop::default();
    let source = Source::new(image, terms, Stop::clone(&stop))?;
    let known = while_not_cancelled(context.cancelled, &stop, || {
        Known::read(image, &source, target.demand.verify)
    })?;
    let size = known.layout.image.size();
    let edges = target.edges(&known.head, Some(size))?;
    edges.check_length(image, size)?;
    let stream = ImageStream::over(image, source, stop)?;
    let first = stream.next(context.cancelled)?;
    let first = first.ok_or_else(|| unreadable(&image.url, "it is empty"))?;
    if !stream.is_plain() {
        return Err(changed(&image.url, "it is compressed all at once"));
    }

    meter.enter("writing", 0, stream.total());
    target.device.clear_edges()?;
    let mut writing = Writing {
        target: &target,
        known: &known,
        meter,
    };
    let filled = writing.fill(stream, first, edges);
    let (edges, placed, fetched) = filled.inspect_err(|_| target.give_up())?;
    let mut meter = writing.meter;
    target.end(edges, placed, &fetched, &mut meter)
}

/// What is read of a file before it comes as a stream.
struct Known {
    layout: Layout,
    /// The disk's first MiB.
    head: Vec<u8>,
}

impl Known {
    fn read(image: &ImageRef, source: &Source, verify: bool) -> Result<Self, Problem> {
        let url = &image.url;
        source.greet()?;
        let layout = Layout::read(source, verify).map_err(|error| no_layout(url, error))?;
        let mut head = Vec::new();
        let content = layout.image.content(source);
        let read = content.and_then(|content| content.take(HEAD as u64).read_to_end(&mut head));
        read.map_err(|error| match error.downcast::<BadQcow2>() {
            Ok(bad) => no_layout(url, bad.into()),
            Err(error) => from_source(url, error),
        })?;
        let known = Self { layout, head };
        if known
            .zeros_in_head()
            .any(|zeros| zeros.iter().any(|&byte| byte != 0))
        {
            return Err(changed(url, "its tables changed while they were read"));
        }
        Ok(known)
    }

    /// Where the disk shall have zeros: what the tables say nothing of, but what is held back.
    fn zeros(&self, edges: &Edges, sector: u64) -> Vec<Range<u64>> {
        let (body, size) = (edges.body(), self.layout.image.size());
        let zeros = self.layout.zeros.iter().map(|&(start, length)| {
            let end = start.saturating_add(length);
            // A disk takes whole sectors; behind the image's end, the last has zeros.
            let whole = if end == size {
                end.next_multiple_of(sector)
            } else {
                end
            };
            start.max(body.start)..whole.min(body.end)
        });
        zeros.filter(|range| !range.is_empty()).collect()
    }

    /// The parts of the disk's first MiB that the tables say nothing of.
    fn zeros_in_head(&self) -> impl Iterator<Item = &[u8]> {
        let at = |byte: u64| usize::try_from(byte).unwrap_or(HEAD).min(self.head.len());
        let zeros = self.layout.zeros.iter();
        zeros.map(move |(start, length)| &self.head[at(*start)..at(start.saturating_add(*length))])
    }
}

/// A stream whose file is sorted and placed.
struct Writing<'a, 'p> {
    target: &'a Target<'a>,
    known: &'a Known,
    meter: Meter<'p>,
}

impl Writing<'_, '_> {
    /// Writes all but the edges, and checks that it was the whole of the right file.
    fn fill(
        &mut self,
        stream: ImageStream,
        first: Piece,
        edges: Edges,
    ) -> Result<(Edges, Placed, Fetched), Problem> {
        let target = self.target;
        let zeros = self.known.zeros(&edges, target.device.sector());
        let place = Place {
            url: &target.image.url,
            device: &target.device,
            layout: &self.known.layout,
            head: &self.known.head,
            edges: Mutex::new(edges),
            read_back: target.demand.verify.then(Mutex::default),
            originals: target.image.raw_digest.as_ref().map(|_| Mutex::default()),
            failure: Mutex::default(),
            stop: AtomicBool::new(false),
            cancelled: target.context.cancelled,
        };
        let sort = |sorter: Sorter<'_>| self.sort(&stream, first, sorter, &place.stop);
        let done = place.by_workers(&Zeros::new(zeros.clone()), sort)?;
        self.meter
            .enter("checking", stream.consumed(), stream.total());
        let fetched = stream.finish()?;
        let edges = within(place.edges);
        if let Some(read_back) = place.read_back {
            let mut read_back = within(read_back);
            for zeros in zeros {
                read_back.remember_zeros(zeros);
            }
            let cancelled = target.context.cancelled;
            read_back.check(&target.device, &mut self.meter, cancelled)?;
        }
        let image = self.known.layout.image.size();
        if let Some(originals) = place.originals {
            within(originals).check(target, &edges, image, &mut self.meter)?;
        }
        let placed = Placed {
            image,
            written: done.written,
            zeroed: done.zeroed,
        };
        Ok((edges, placed, fetched))
    }

    /// Lets the file come by.
    fn sort(
        &mut self,
        stream: &ImageStream,
        first: Piece,
        mut sorter: Sorter<'_>,
        stop: &AtomicBool,
    ) -> Result<(), Problem> {
        let url = &self.target.image.url;
        let unsorted = |error: Unsorted| changed(url, &error.to_string());
        let mut next = Some(first);
        while let Some(piece) = next.filter(|_| !stop.load(Ordering::Relaxed)) {
            sorter
                .push(&piece.buffer[..piece.length])
                .map_err(unsorted)?;
            stream.recycle(piece);
            self.meter.tick(stream.consumed(), stream.total());
            next = stream.next(self.target.context.cancelled)?;
        }
        sorter.end().map_err(unsorted)
    }
}

/// What a lock was around.
fn within<T>(lock: Mutex<T>) -> T {
    lock.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What is not said, or said wrongly, of a file that is read in parts.
fn check_declared(image: &ImageRef) -> Result<(), Problem> {
    match image.compression {
        None | Some(Compression::None) => Ok(()),
        Some(how) => Err(whole_file_compressed(&image.url, &format!("{how:?}"))),
    }
}

fn whole_file_compressed(url: &str, how: &str) -> Problem {
    Problem::new(
        Code::ImageFormat,
        format!("the image {url} is qcow2 inside of another compression ({how})"),
        "qcow2 is read in parts: publish it as it is, with compressed clusters (qemu-img convert \
         -c) or packed (ferrite-image pack); nothing was written",
    )
}

/// Reads on another thread, so that a server that hangs keeps nobody from cancelling.
fn while_not_cancelled<T: Send>(
    cancelled: &AtomicBool,
    stop: &Stop,
    read: impl FnOnce() -> Result<T, Problem> + Send,
) -> Result<T, Problem> {
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::sync_channel(1);
        let reading = std::thread::Builder::new().name("tables".to_owned());
        let reading = reading.spawn_scoped(scope, move || {
            let _ = tell.send(read());
        });
        reading.map_err(|error| internal(&format!("no thread can be started: {error}")))?;
        loop {
            match told.recv_timeout(GLANCE) {
                Ok(read) => return read,
                Err(RecvTimeoutError::Disconnected) => return Err(internal("nothing was read")),
                Err(RecvTimeoutError::Timeout) if cancelled.load(Ordering::Relaxed) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(cancelled_problem());
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    })
}

fn no_layout(url: &str, error: NoLayout) -> Problem {
    match error {
        NoLayout::Bad(BadQcow2::Read { source, .. }) => from_source(url, source),
        NoLayout::Bad(error @ BadQcow2::Truncated { .. }) => Problem::new(
            Code::ImageTruncated,
            format!("the image {url} cannot be written: {error}"),
            "publish the whole image, and its digest with it; nothing was written",
        ),
        error => {
            let mut problem = unreadable(url, &error.to_string());
            problem.advice.push_str("; nothing was written");
            problem
        }
    }
}

/// What a source says of itself; else what the kernel says.
fn from_source(url: &str, error: io::Error) -> Problem {
    match error.downcast::<FetchError>() {
        Ok(error) => error.into(),
        Err(error) => Problem::new(
            Code::ImageUnreachable,
            format!("the image {url} cannot be read: {error}"),
            "check that it is whole and can be read; nothing was written",
        ),
    }
}

/// Its bytes are not what qcow2 is.
fn unreadable(url: &str, why: &str) -> Problem {
    Problem::new(
        Code::ImageFormat,
        format!("the image {url} cannot be written: {why}"),
        "make the image anew (qemu-img convert, or ferrite-image pack) and publish its digest with \
         it",
    )
}

/// Its server sends another file than a moment ago.
fn changed(url: &str, why: &str) -> Problem {
    Problem::new(
        Code::ImageTruncated,
        format!("the image {url} is not the same throughout: {why}"),
        "let nobody change a file that is being fetched, then retry; the disk does not boot until \
         an image has been written whole",
    )
}

fn internal(what: &str) -> Problem {
    Problem::new(Code::Internal, what, "report this, with the host's log")
}

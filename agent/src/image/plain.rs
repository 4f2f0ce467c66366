//! An image that comes as one stream, from its first byte to its last.

use ferrite_imaging::foreign;
use ferrite_proto::problem::Problem;
use ferrite_proto::step::ImageWritten;

use super::content::Content;
use super::read_back::ReadBack;
use super::refusal::{foreign_problem, format_problem, shown, too_large};
use super::{Edges, Placed, Target};
use crate::disk::gpt::HEAD;
use crate::stream::meter::{Meter, Parts};
use crate::stream::terms::Terms;
use crate::stream::write::Writer;
use crate::stream::{Fetched, ImageStream, Piece};

/// Writes all of it.
pub(super) fn write(target: Target<'_>, terms: &Terms) -> Result<ImageWritten, Problem> {
    let (image, context) = (target.image, target.context);
    let stream = ImageStream::start(image, terms)?;
    let mut meter = Meter::new(context.progress, "fetching");
    meter.tick(0, None);
    let first = stream.next(context.cancelled)?;
    let first = first.ok_or_else(|| format_problem(image, "it is empty"))?;
    // Compressed files do not say how large the image is; raw ones do.
    let exact = stream.total().filter(|_| stream.is_plain());
    let head = &first.buffer[..first.length.min(HEAD)];
    if let Some(form) = foreign(head) {
        return Err(foreign_problem(image, form));
    }
    let edges = target.edges(head, exact)?;

    meter.enter("writing", 0, stream.total());
    target.device.clear_edges()?;
    let mut writing = Writing {
        target: &target,
        edges,
        meter,
        read_back: target.demand.verify.then(ReadBack::default),
        content: Content::of(image),
    };
    let filled = writing.fill(stream, first);
    let (placed, fetched) = filled.inspect_err(|_| target.give_up())?;
    let Writing {
        edges, mut meter, ..
    } = writing;
    target.end(edges, placed, &fetched, &mut meter)
}

/// A disk that is being written, its edges cleared.
struct Writing<'a, 'p> {
    target: &'a Target<'a>,
    edges: Edges,
    meter: Meter<'p>,
    /// What was written, where it shall be read back.
    read_back: Option<ReadBack>,
    content: Content,
}

impl Writing<'_, '_> {
    /// Writes all but the edges, and checks that it was the whole of the right file.
    fn fill(&mut self, stream: ImageStream, first: Piece) -> Result<(Placed, Fetched), Problem> {
        let placed = self.copy(&stream, first)?;
        self.edges.check_length(self.target.image, placed.image)?;
        self.meter
            .enter("checking", stream.consumed(), stream.total());
        let fetched = stream.finish()?;
        std::mem::take(&mut self.content).check(self.target.image)?;
        if let Some(read_back) = &self.read_back {
            let cancelled = self.target.context.cancelled;
            read_back.check(&self.target.device, &mut self.meter, cancelled)?;
        }
        Ok((placed, fetched))
    }

    /// Writes everything but what [`Edges`] hold back.
    fn copy(&mut self, stream: &ImageStream, first: Piece) -> Result<Placed, Problem> {
        let device = &self.target.device;
        let limit = device.bytes();
        let mut writer = Writer::new(device, self.edges.body().start);
        let mut length = 0;
        let mut next = Some(first);
        while let Some(mut piece) = next {
            let start = length;
            self.content.update(&piece.buffer[..piece.length]);
            length += piece.length as u64;
            if length > limit {
                let needs = format!("at least {}", shown(length));
                return Err(too_large(self.target.image, &needs, limit));
            }
            self.put(&mut writer, &mut piece, start)?;
            stream.recycle(piece);
            self.meter.parts = Parts {
                fetched: stream.consumed(),
                decoded: length,
                written: writer.written,
                skipped: 0,
            };
            self.meter.tick(stream.consumed(), stream.total());
            next = stream.next(self.target.context.cancelled)?;
        }
        let (written, zeroed) = writer.end()?;
        Ok(Placed {
            image: length,
            written,
            zeroed,
        })
    }

    /// Writes a piece of the image that begins at `start`, but what is held back of it.
    fn put(
        &mut self,
        writer: &mut Writer<'_, '_>,
        piece: &mut Piece,
        start: u64,
    ) -> Result<(), Problem> {
        // A disk takes whole sectors; behind the image's end, the last has zeros.
        let sector = usize::try_from(self.target.device.sector()).unwrap_or(4096);
        let whole = piece.length.next_multiple_of(sector);
        let end = start + whole as u64;
        if piece.zero && self.read_back.is_none() && !self.edges.touch(start..end) {
            return Ok(writer.push_zeros(whole as u64)?);
        }
        piece.buffer[piece.length..whole].fill(0);
        self.edges.hold(&mut piece.buffer[..whole], start);
        let done = writer.position().saturating_sub(start);
        let done = usize::try_from(done).unwrap_or(whole).min(whole);
        let bytes = &piece.buffer[done..whole];
        if let Some(read_back) = &mut self.read_back {
            read_back.remember(bytes, writer.position());
        }
        Ok(writer.push(bytes)?)
    }
}

//! A packed image before the first write: its index, fetched and checked, and the chunks of which
//! something is held back or changed on this disk.

use std::sync::atomic::Ordering;

use ferrite_imaging::Hasher;
use ferrite_imaging::packed::{BadIndex, Index, Located, TAIL_BYTES, Unpacker, locate};
use ferrite_proto::image::ImageRef;
use ferrite_proto::problem::{Code, Problem};

use super::file::File;
use super::signed;
use super::tally::{Phase, Tally, add};
use super::work::unpack;
use super::{Begun, Target, internal, refusal};
use crate::disk::aligned::Aligned;
use crate::disk::gpt::HEAD;
use crate::disk::{Device, DiskError};
use crate::image::edges::Edges;
use crate::stream::write::Writer;

/// Most that the chunks held may take: a disk's edges and an image's own backup, each less than
/// two MiB, in chunks of two MiB.
const MOST_HELD: usize = 16 << 20;

/// All that can be known before the first write.
pub(super) struct Opened {
    pub(super) index: Index,
    pub(super) edges: Edges,
    pub(super) held: Vec<Held>,
}

/// A chunk of which something is held back or changed on this disk.
pub(super) struct Held {
    pub(super) start: u64,
    /// As the image has them, where a digest of its content is demanded; else none.
    pub(super) raw: Vec<u8>,
    /// As they shall be on the disk; zeros in place of what is held back.
    bytes: Aligned,
    length: u64,
}

/// Fetches and checks what vouches for the image, and refuses what cannot end well.
pub(super) fn open(target: &Target<'_>, file: &File, tally: &Tally) -> Result<Opened, Problem> {
    let index = fetch_index(target.image, file)?;
    let mut loader = Loader {
        image: target.image,
        file,
        index: &index,
        unpacker: Unpacker::new().map_err(|error| internal(&error.to_string()))?,
    };
    let chunk = index.chunk_bytes as usize;
    let first = HEAD.div_ceil(chunk).min(index.chunks.len());
    let mut loaded = Vec::new();
    for number in 0..first {
        loaded.push((number, loader.load(number, target.device.sector())?));
    }
    let head: Vec<u8> = loaded
        .iter()
        .flat_map(|(number, raw)| &raw[..index.length(*number) as usize])
        .take(HEAD)
        .copied()
        .collect();
    let mut edges = target.edges(&head, Some(index.image_bytes))?;
    for number in first..index.chunks.len() {
        if !is_held(&index, &edges, number) {
            continue;
        }
        if loaded.len() * chunk > MOST_HELD {
            return Err(refusal::format_problem(
                target.image,
                "its backup table is absurd",
            ));
        }
        loaded.push((number, loader.load(number, target.device.sector())?));
    }
    let held = loaded.into_iter().map(|(number, mut bytes)| {
        let start = index.start(number);
        let demanded = target.image.raw_digest.is_some();
        let raw = if demanded { bytes.to_vec() } else { Vec::new() };
        edges.hold(&mut bytes, start);
        let length = u64::from(index.length(number));
        Held {
            start,
            raw,
            bytes,
            length,
        }
    });
    let held = held.collect();
    tally.fetched.store(file.source.moved(), Ordering::Relaxed);
    tally.image.store(index.image_bytes, Ordering::Relaxed);
    tally.enter(Phase::Writing);
    Ok(Opened { index, edges, held })
}

/// Whether something of a chunk is held back or changed on this disk.
pub(super) fn is_held(index: &Index, edges: &Edges, number: usize) -> bool {
    let start = index.start(number);
    edges.touch(start..start + u64::from(index.length(number)))
}

/// The index, once its digest holds.
fn fetch_index(image: &ImageRef, file: &File) -> Result<Index, Problem> {
    let total = file
        .total()
        .ok_or_else(|| bad(image, "its server does not say how long it is"))?;
    let tail_at = total.saturating_sub(TAIL_BYTES as u64);
    let tail = file.bytes(tail_at..total)?;
    let Located {
        index: range,
        signature,
    } = locate(&tail, total).map_err(|error| not_packed(image, error))?;
    let frame = if range.start >= tail_at {
        let at = |byte: u64| usize::try_from(byte - tail_at).unwrap_or(usize::MAX);
        tail.get(at(range.start)..at(range.end))
            .unwrap_or_default()
            .to_vec()
    } else {
        file.bytes(range.clone())?
    };
    check_digest(image, &frame)?;
    signed::check(image, file, &frame, signature)?;
    let index = Index::parse(&frame).map_err(|error| not_packed(image, error))?;
    if index.packed_bytes() != range.start {
        return Err(bad(image, "its chunks do not end where its index begins"));
    }
    Ok(index)
}

fn check_digest(image: &ImageRef, frame: &[u8]) -> Result<(), Problem> {
    let Some(wanted) = &image.digest else {
        return Ok(());
    };
    let found = Hasher::of(wanted.algorithm(), frame);
    if found == *wanted {
        return Ok(());
    }
    Err(Problem::new(
        Code::ImageDigestMismatch,
        format!(
            "the index of {} has the digest {found}, but {wanted} was demanded",
            image.url
        ),
        "of a packed image, give the digest that `ferrite-image pack` or `info` prints; nothing \
         was written",
    ))
}

fn not_packed(image: &ImageRef, error: BadIndex) -> Problem {
    let advice = match error {
        BadIndex::NotPacked => {
            "say `raw` if it is a compressed raw image, else pack it; nothing was written"
        }
        _ => "pack and publish it again; nothing was written",
    };
    let url = &image.url;
    Problem::new(
        Code::ImageFormat,
        format!("the image {url} cannot be written: {error}"),
        advice,
    )
}

fn bad(image: &ImageRef, what: &str) -> Problem {
    let url = &image.url;
    Problem::new(
        Code::ImageFormat,
        format!("the packed image {url} cannot be written: {what}"),
        "pack and publish it again; nothing was written",
    )
}

/// Fetches single chunks.
struct Loader<'a> {
    image: &'a ImageRef,
    file: &'a File,
    index: &'a Index,
    unpacker: Unpacker,
}

impl Loader<'_> {
    /// A chunk, and zeros to the end of its last sector.
    fn load(&mut self, number: usize, sector: u64) -> Result<Aligned, Problem> {
        let chunk = self.index.chunks[number];
        let length = self.index.length(number) as usize;
        let sector = usize::try_from(sector).unwrap_or(4096);
        let mut raw = Aligned::zeroed(length.next_multiple_of(sector));
        if chunk.zero {
            return Ok(raw);
        }
        let bytes = chunk.offset..chunk.offset + u64::from(chunk.packed);
        let packed = self.file.bytes(bytes)?;
        let (url, unpacker) = (&self.image.url, &mut self.unpacker);
        unpack(
            url,
            self.index,
            number,
            unpacker,
            &packed,
            &mut raw[..length],
        )?;
        Ok(raw)
    }
}

impl Held {
    /// What of it is written before the edges are, and where.
    fn body(&self, edges: &Edges) -> (u64, &[u8]) {
        let (body, end) = (edges.body(), self.start + self.bytes.len() as u64);
        let start = self.start.max(body.start);
        let end = end.min(body.end).max(start);
        let at = |byte: u64| usize::try_from(byte - self.start).unwrap_or(usize::MAX);
        (
            start,
            self.bytes.get(at(start)..at(end)).unwrap_or_default(),
        )
    }

    /// Writes it unless the disk has it.
    pub(super) fn write(
        &self,
        edges: &Edges,
        device: &Device<'_>,
        begun: &Begun<'_>,
        tally: &Tally,
    ) -> Result<(), DiskError> {
        let (start, bytes) = self.body(edges);
        if device.holds(bytes, start) {
            add(&tally.skipped, self.length);
            return Ok(());
        }
        begun.begin()?;
        let mut writer = Writer::new(device, start);
        writer.push(bytes)?;
        let (_, zeroed) = writer.settled()?;
        let zeroed = zeroed.min(self.length);
        add(&tally.zeroed, zeroed);
        add(&tally.written, self.length - zeroed);
        Ok(())
    }

    /// Reads it back.
    pub(super) fn expect(&self, edges: &Edges, device: &Device<'_>) -> Result<(), DiskError> {
        let (start, bytes) = self.body(edges);
        device.expect(bytes, start)
    }
}

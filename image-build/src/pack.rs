//! `ferrite-image pack`: an image becomes a packed one, compressed on all processors.
//!
//! One thread reads and decompresses, some compress, and this one puts the chunks in order and
//! writes them. A fixed number of buffers goes round, so memory is the same whatever the image.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use ferrite_imaging::packed::{Chunk, Chunks, Packed, Packer, Sign, SigningKey, Writer};

use crate::source::Source;

/// What to pack.
pub(crate) struct Request<'a> {
    pub(crate) source: Source<'a>,
    pub(crate) out: &'a Path,
    pub(crate) level: i32,
    pub(crate) threads: usize,
    pub(crate) key: Option<&'a SigningKey>,
}

/// Packs into a file that appears under its name only when it is whole and on the disk.
pub(crate) fn pack(request: &Request<'_>) -> Result<Packed> {
    let partial = partial(request.out);
    let packed = write(request, &partial).inspect_err(|_| {
        // It was never anybody's image; what cannot be removed is overwritten the next time.
        let _ = std::fs::remove_file(&partial);
    })?;
    let named = std::fs::rename(&partial, request.out);
    named.with_context(|| format!("naming {}", request.out.display()))?;
    let folder = request
        .out
        .parent()
        .filter(|path| !path.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("syncing {}", folder.display()))?;
    Ok(packed)
}

fn partial(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

fn write(request: &Request<'_>, partial: &Path) -> Result<Packed> {
    let shown = partial.display();
    let file = File::create(partial).with_context(|| format!("creating {shown}"))?;
    let name = request.out.file_name().unwrap_or_default();
    let about = format!("file:{}", name.to_string_lossy().escape_debug());
    let sign = request.key.map(|key| {
        let about = about.as_str();
        move |frame: &[u8]| key.sign(frame, about)
    });
    let (out, packed) = request.source.read(|image| {
        let writer = Writer::new(BufWriter::with_capacity(1 << 20, file));
        let sign = sign.as_ref().map(|sign| sign as &Sign<'_>);
        pack_stream(image, writer, request.level, request.threads, sign)
    })?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error);
    file.and_then(|file| file.sync_all())
        .with_context(|| format!("writing {shown}"))?;
    Ok(packed)
}

/// A chunk on its way to a thread that compresses.
struct Raw {
    number: usize,
    bytes: Vec<u8>,
}

/// A chunk on its way back.
struct Done {
    raw: Raw,
    packed: io::Result<(Vec<u8>, Chunk)>,
}

fn pack_stream<W: Write + Send>(
    image: &mut dyn Read,
    writer: Writer<W>,
    level: i32,
    threads: usize,
    sign: Option<&Sign<'_>>,
) -> Result<(W, Packed)> {
    let (to_threads, raw) = mpsc::channel();
    let (to_writer, done) = mpsc::channel();
    let (to_reader, spare) = mpsc::channel();
    for _ in 0..threads * 2 + 2 {
        to_reader.send(Vec::new())?;
    }
    let raw = Mutex::new(raw);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (raw, to_writer) = (&raw, to_writer.clone());
            scope.spawn(move || compress(raw, &to_writer, level));
        }
        drop(to_writer);
        let putting = scope.spawn(move || {
            let mut writer = writer;
            put(&done, &to_reader, &mut writer)?;
            Ok::<_, anyhow::Error>(writer)
        });
        let cut = cut(image, &spare, &to_threads);
        drop(to_threads);
        let put = putting.join().map_err(|_| anyhow!("packing panicked"))?;
        // What cannot be written ends the reading too, and is the reason of both.
        let writer = put?;
        cut?;
        Ok(writer.finish(sign)?)
    })
}

/// Cuts the image into the buffers that come back, until there is no more of either.
fn cut(image: &mut dyn Read, spare: &Receiver<Vec<u8>>, to_threads: &Sender<Raw>) -> Result<()> {
    let mut chunks = Chunks::new(image);
    for (number, mut bytes) in spare.iter().enumerate() {
        if !chunks.next(&mut bytes)? || to_threads.send(Raw { number, bytes }).is_err() {
            break;
        }
    }
    Ok(())
}

fn compress(inlet: &Mutex<Receiver<Raw>>, to_writer: &Sender<Done>, level: i32) {
    let mut packer = Packer::new(level);
    loop {
        let next = inlet.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(raw) = next else { return };
        let packed = match &mut packer {
            Ok(packer) => packer.pack(&raw.bytes),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        if to_writer.send(Done { raw, packed }).is_err() {
            return;
        }
    }
}

/// Writes the chunks in the image's order, and gives their buffers back.
fn put<W: Write>(
    done: &Receiver<Done>,
    to_reader: &Sender<Vec<u8>>,
    writer: &mut Writer<W>,
) -> Result<()> {
    // As many as there are buffers, at most.
    let mut early = BTreeMap::new();
    let mut next = 0;
    for chunk in done {
        early.insert(chunk.raw.number, chunk);
        while let Some(Done { raw, packed }) = early.remove(&next) {
            let (frame, chunk) = packed.context("compressing")?;
            let written = writer.push(raw.bytes.len(), &frame, chunk);
            written.context("writing the packed image")?;
            // Nobody takes it at the image's end.
            let _ = to_reader.send(raw.bytes);
            next += 1;
        }
    }
    ensure!(early.is_empty(), "chunk {next} of the image got lost");
    Ok(())
}

#[cfg(test)]
#[path = "pack_tests.rs"]
mod tests;

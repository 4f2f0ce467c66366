//! An image becomes a packed one.
//!
//! Compressing is the work and can be done for many chunks at once: [`Packer`] does it for one,
//! [`Chunks`] cuts the image into them, [`Writer`] puts them together in order. [`pack`] does it
//! all on one thread.

use std::io::{self, Read, Write};

use super::index::{Chunk, Index};
use super::locate::seek_table;
use super::{CHUNK_BYTES, MOST_CHUNKS, MOST_SIGNATURE, SIGNATURE_MAGIC, skippable};
use crate::is_zero;

/// How hard zstd tries, unless told otherwise. An image is packed once and fetched often: of the
/// Debian image of the demo, 6 makes a file 6 % smaller than 3 for twice the time; 9 makes it 2 %
/// smaller than 6 for half as much again. Decompressing takes the same time for all of them.
pub const LEVEL: i32 = 6;

/// What was packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// The index.
    pub index: Index,
    /// Its frame, which the digest of the packed image is of.
    pub frame: Vec<u8>,
    /// Length of the file.
    pub file_bytes: u64,
}

/// Makes a signature's text of the index's frame.
pub type Sign<'a> = dyn Fn(&[u8]) -> io::Result<String> + 'a;

/// Compresses chunks, one after the other. Each thread has its own.
pub struct Packer {
    zstd: zstd::bulk::Compressor<'static>,
    /// The last chunk of zeros and its length: most are as long, and images have many.
    zeros: Option<(usize, Vec<u8>, Chunk)>,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl Packer {
    /// A compressor of a level that zstd knows.
    ///
    /// # Errors
    /// For want of memory.
    pub fn new(level: i32) -> io::Result<Self> {
        let zstd = zstd::bulk::Compressor::new(level)?;
        let zeros = None;
        Ok(Self { zstd, zeros })
    }

    /// Compresses a chunk; its place in the file is not known yet.
    ///
    /// # Errors
    /// When zstd has one.
    pub fn pack(&mut self, raw: &[u8]) -> io::Result<(Vec<u8>, Chunk)> {
        let zero = is_zero(raw);
        if let Some((length, frame, chunk)) = &self.zeros
            && zero
            && *length == raw.len()
        {
            return Ok((frame.clone(), *chunk));
        }
        let frame = self.zstd.compress(raw)?;
        let packed = u32::try_from(frame.len()).map_err(io::Error::other)?;
        let chunk = Chunk {
            offset: 0,
            packed,
            digest: blake3::hash(raw).into(),
            zero,
        };
        if zero {
            self.zeros = Some((raw.len(), frame.clone(), chunk));
        }
        Ok((frame, chunk))
    }
}

/// Cuts an image into chunks.
#[derive(Debug)]
pub struct Chunks<R> {
    image: R,
}

impl<R: Read> Chunks<R> {
    /// An image to be read from where it is to its end.
    pub fn new(image: R) -> Self {
        Self { image }
    }

    /// Reads the next chunk into `into` in place of what is there; `false` at the image's end.
    ///
    /// # Errors
    /// When the image cannot be read.
    pub fn next(&mut self, into: &mut Vec<u8>) -> io::Result<bool> {
        into.clear();
        into.reserve_exact(CHUNK_BYTES as usize);
        let mut chunk = self.image.by_ref().take(u64::from(CHUNK_BYTES));
        Ok(chunk.read_to_end(into)? > 0)
    }
}

/// Puts packed chunks together.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    index: Index,
    at: u64,
}

impl<W: Write> Writer<W> {
    /// A packed image without chunks yet.
    pub fn new(out: W) -> Self {
        let index = Index {
            image_bytes: 0,
            chunk_bytes: CHUNK_BYTES,
            chunks: Vec::new(),
        };
        Self { out, index, at: 0 }
    }

    /// Appends the next chunk of the image, of so many bytes.
    ///
    /// # Errors
    /// When the image is too large, or it cannot be written.
    pub fn push(&mut self, raw: usize, frame: &[u8], chunk: Chunk) -> io::Result<()> {
        if self.index.chunks.len() >= MOST_CHUNKS as usize {
            let what = "a packed image holds at most 512 GiB";
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
        }
        self.out.write_all(frame)?;
        self.index.image_bytes += raw as u64;
        self.index.chunks.push(Chunk {
            offset: self.at,
            ..chunk
        });
        self.at += frame.len() as u64;
        Ok(())
    }

    /// Ends the file. `sign` is what signs it, if anybody.
    ///
    /// # Errors
    /// When there was nothing to pack, it cannot be signed, or it cannot be written.
    pub fn finish(mut self, sign: Option<&Sign<'_>>) -> io::Result<(W, Packed)> {
        if self.index.chunks.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the image is empty",
            ));
        }
        let frame = self.index.encode();
        let mut seek: Vec<(u32, u32)> = Vec::with_capacity(self.index.chunks.len() + 2);
        for (number, chunk) in self.index.chunks.iter().enumerate() {
            seek.push((chunk.packed, self.index.length(number)));
        }
        self.append(&frame, &mut seek)?;
        if let Some(sign) = sign {
            let text = sign(&frame)?;
            if text.len() > MOST_SIGNATURE as usize {
                return Err(io::Error::other("the signature is too long"));
            }
            self.append(&skippable(SIGNATURE_MAGIC, text.as_bytes()), &mut seek)?;
        }
        let table = seek_table(&seek);
        self.out.write_all(&table)?;
        self.out.flush()?;
        let packed = Packed {
            index: self.index,
            frame,
            file_bytes: self.at + table.len() as u64,
        };
        Ok((self.out, packed))
    }

    fn append(&mut self, frame: &[u8], seek: &mut Vec<(u32, u32)>) -> io::Result<()> {
        let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
        seek.push((length, 0));
        self.at += u64::from(length);
        self.out.write_all(frame)
    }
}

/// Packs an image on this thread, without a signature.
///
/// # Errors
/// When the image cannot be read, is empty or too large, or the file cannot be written.
pub fn pack(image: &mut dyn Read, out: &mut dyn Write, level: i32) -> io::Result<Packed> {
    let mut packer = Packer::new(level)?;
    let mut writer = Writer::new(out);
    let mut chunks = Chunks::new(image);
    let mut raw = Vec::new();
    while chunks.next(&mut raw)? {
        let (frame, chunk) = packer.pack(&raw)?;
        writer.push(raw.len(), &frame, chunk)?;
    }
    writer.finish(None).map(|(_, packed)| packed)
}

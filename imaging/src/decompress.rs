//! Compressed files become what is in them, with a memory that the file cannot choose.
//!
//! What a file is compressed with is told by its first bytes ([`Compression::of`]), never by its
//! name. A file that ends too early is an [`ErrorKind::UnexpectedEof`], whatever its compression;
//! every other error of a decoder is damage, or a demand for more memory than there may be.

use std::io::{self, BufRead, ErrorKind, Read};

use ferrite_proto::image::Compression;
use lz4_flex::frame::FrameDecoder;

/// What a file may demand on a host: enough for `xz -9`, and for a zstd window of 64 MiB.
pub const MEMORY: u64 = 66 << 20;
/// What a file may demand where there is more: enough for `zstd --long` and `zstd --ultra -22`.
pub const MORE_MEMORY: u64 = 132 << 20;

/// A reader of what `source` holds, which takes at most about `memory` bytes for itself. Files of
/// several members, frames or streams are read to their end, as `cat` makes them.
///
/// # Errors
/// When a decoder cannot be made for want of memory.
pub fn decoder<'a, R: BufRead + 'a>(
    compression: Compression,
    source: R,
    memory: u64,
) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(source),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
            decoder.window_log_max(memory.max(1 << 10).ilog2())?;
            Box::new(decoder)
        }
        Compression::Xz => {
            let kib = u32::try_from(memory >> 10).unwrap_or(u32::MAX);
            Box::new(lzma_rust2::XzReader::new_mem_limit(source, true, kib))
        }
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(source)),
        Compression::Lz4 => Box::new(Lz4::new(source)),
    })
}

/// All frames of an lz4 file.
///
/// Its decoder ends alike where a frame ends and where the file ends in the middle of one: so
/// what it reads from tells whether the file's end was seen within a frame.
struct Lz4<R: BufRead> {
    frames: FrameDecoder<Ending<R>>,
}

impl<R: BufRead> Lz4<R> {
    fn new(source: R) -> Self {
        let ended = false;
        let frames = FrameDecoder::new(Ending { source, ended });
        Self { frames }
    }
}

impl<R: BufRead> Read for Lz4<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let count = self.frames.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            let ending = self.frames.get_mut();
            if ending.ended {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            // Between two frames, or behind the last. An empty file never gets here.
            if ending.source.fill_buf()?.is_empty() {
                return Ok(0);
            }
        }
    }
}

/// Remembers that its end was met by a reader who wanted more.
struct Ending<R> {
    source: R,
    ended: bool,
}

impl<R: BufRead> Read for Ending<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.ended |= count == 0 && !buffer.is_empty();
        Ok(count)
    }
}

#[cfg(test)]
#[path = "decompress_tests.rs"]
mod tests;

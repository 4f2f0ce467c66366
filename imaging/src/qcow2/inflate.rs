//! Compressed clusters: each by itself, and exactly a cluster long once decompressed.

use std::io;

use flate2::{Decompress, FlushDecompress};
use zstd::bulk::Decompressor;
use zstd::zstd_safe;

use super::{Compression, Qcow2};

/// Decompresses clusters of one image, one after the other. One a thread.
pub struct Inflater {
    how: How,
}

enum How {
    Deflate(Box<Decompress>),
    Zstd(Box<Decompressor<'static>>),
}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflater").finish_non_exhaustive()
    }
}

impl Inflater {
    /// # Errors
    /// When there is no memory for it.
    pub fn new(image: &Qcow2) -> io::Result<Self> {
        let how = match image.compression() {
            Compression::Deflate => How::Deflate(Box::new(Decompress::new(false))),
            Compression::Zstd => How::Zstd(Box::new(Decompressor::new()?)),
        };
        Ok(Self { how })
    }

    /// Fills `cluster`, which has a cluster's length. What follows the compressed data in `packed`
    /// is somebody else's and is not looked at.
    ///
    /// # Errors
    /// When it is something else than one compressed cluster, in the decoder's words.
    pub fn inflate(&mut self, packed: &[u8], cluster: &mut [u8]) -> Result<(), String> {
        let length = match &mut self.how {
            How::Deflate(decoder) => inflate(decoder, packed, cluster)?,
            How::Zstd(decoder) => unpack(decoder, packed, cluster)?,
        };
        if length == cluster.len() {
            return Ok(());
        }
        let wanted = cluster.len();
        Err(format!("it has {length} bytes, and a cluster has {wanted}"))
    }
}

fn inflate(decoder: &mut Decompress, packed: &[u8], cluster: &mut [u8]) -> Result<usize, String> {
    decoder.reset(false);
    let result = decoder.decompress(packed, cluster, FlushDecompress::Finish);
    result.map_err(|error| error.to_string())?;
    Ok(usize::try_from(decoder.total_out()).unwrap_or(0))
}

fn unpack(
    decoder: &mut Decompressor<'_>,
    packed: &[u8],
    cluster: &mut [u8],
) -> Result<usize, String> {
    let frame = zstd_safe::find_frame_compressed_size(packed);
    let frame = frame.map_err(|code| zstd_safe::get_error_name(code).to_owned())?;
    let frame = packed.get(..frame).unwrap_or(packed);
    let result = decoder.decompress_to_buffer(frame, cluster);
    result.map_err(|error| error.to_string())
}

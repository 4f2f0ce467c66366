//! The disk's bytes of an image file that is no qcow2 and not packed: decompressed as its first
//! bytes demand, and looked at before they are believed.

use std::io::{self, BufRead, Cursor, Read};

use ferrite_proto::image::Compression;

use crate::decompress::decoder;
use crate::qcow2;

/// Why a file is not read as a raw image.
#[derive(Debug, thiserror::Error)]
pub enum NotRaw {
    /// It cannot be read, or not be decompressed.
    #[error("it cannot be read as {0:?}")]
    Read(Compression, #[source] io::Error),
    /// Its bytes say otherwise than whoever named it.
    #[error("it is {found:?} by its first bytes, not {declared:?}")]
    OtherCompression {
        /// What was said.
        declared: Compression,
        /// What is there.
        found: Compression,
    },
    /// It would be written to a disk as it is.
    #[error("it holds a qcow2 image: say so (`--format qcow2`), and decompress it first")]
    Qcow2,
}

/// A raw image that is being read.
pub struct Raw<'a> {
    /// What it is compressed with.
    pub compression: Compression,
    bytes: Box<dyn Read + 'a>,
}

impl std::fmt::Debug for Raw<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Raw");
        shown.field("compression", &self.compression);
        shown.finish_non_exhaustive()
    }
}

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(buffer)
    }
}

/// Opens a raw image. Its decoder takes at most about `memory` bytes.
///
/// # Errors
/// When it cannot be read, is a qcow2, or is not compressed as `declared`.
pub fn raw<'a, R: BufRead + 'a>(
    mut source: R,
    declared: Option<Compression>,
    memory: u64,
) -> Result<Raw<'a>, NotRaw> {
    let unreadable = |found| move |error| NotRaw::Read(found, error);
    let first = source.fill_buf().map_err(unreadable(Compression::None))?;
    let found = Compression::of(first);
    if let Some(declared) = declared.filter(|declared| *declared != found) {
        return Err(NotRaw::OtherCompression { declared, found });
    }
    let mut image = decoder(found, source, memory).map_err(unreadable(found))?;
    let mut head = Vec::new();
    let read = image.by_ref().take(4).read_to_end(&mut head);
    read.map_err(unreadable(found))?;
    if head == qcow2::MAGIC {
        return Err(NotRaw::Qcow2);
    }
    Ok(Raw {
        compression: found,
        bytes: Box::new(Cursor::new(head).chain(image)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(bytes: &[u8], declared: Option<Compression>) -> Result<Vec<u8>, NotRaw> {
        let mut all = Vec::new();
        let mut image = raw(bytes, declared, 1 << 27)?;
        let read = image.read_to_end(&mut all);
        read.map_err(|error| NotRaw::Read(image.compression, error))?;
        Ok(all)
    }

    #[test]
    fn an_image_is_what_it_holds_and_not_what_it_is_called() {
        let packed = zstd::stream::encode_all(&b"disk"[..], 1).unwrap();
        assert_eq!(opened(&packed, None).unwrap(), b"disk");
        assert_eq!(opened(&packed, Some(Compression::Zstd)).unwrap(), b"disk");
        assert_eq!(opened(b"di", None).unwrap(), b"di");
        let other = opened(&packed, Some(Compression::Gzip)).unwrap_err();
        assert!(other.to_string().contains("Zstd"), "{other}");
        for qcow2 in [b"QFI\xfb\0\0\0\x03".to_vec(), {
            zstd::stream::encode_all(&b"QFI\xfb\0\0\0\x03"[..], 1).unwrap()
        }] {
            assert!(matches!(opened(&qcow2, None), Err(NotRaw::Qcow2)));
        }
        let cut = opened(&packed[..packed.len() - 3], None).unwrap_err();
        assert!(matches!(cut, NotRaw::Read(Compression::Zstd, _)), "{cut}");
    }
}

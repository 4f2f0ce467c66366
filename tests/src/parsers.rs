//! What must hold of every parser of images, whatever the bytes: it ends, within bounds, without a
//! panic; and what it accepts makes sense.

use std::io::{self, Read, Write};

use ferrite_imaging::packed::{Chunk, Index, TAIL_BYTES, Unpacker, locate};
use ferrite_imaging::qcow2::{Held, Qcow2};
use ferrite_proto::image::Compression;

/// So much of a disk or a file's content is read at most.
const MOST: u64 = 4 << 20;
/// What a decoder may take.
const MEMORY: u64 = 8 << 20;

/// A check of any bytes.
pub type Check = fn(&[u8]);

/// All of them, by the name of their target and of their corpus.
pub const CHECKS: [(&str, Check); 6] = [
    ("qcow2", qcow2),
    ("packed_index", packed_index),
    ("packed_file", packed_file),
    ("gpt", gpt),
    ("mbr", mbr),
    ("decompress", decompress),
];

/// A qcow2 file: its runs are the whole disk, one after the other, and lie within the file.
///
/// # Panics
/// When that does not hold.
pub fn qcow2(bytes: &[u8]) {
    let Ok(image) = Qcow2::open(&bytes) else {
        return;
    };
    let has = bytes.len() as u64;
    let mut guest = 0;
    let mut data = 0;
    for run in image.map(&bytes) {
        let Ok(run) = run else { return };
        assert_eq!(run.guest, guest, "no gap and nothing twice");
        assert!(run.length > 0, "it goes on");
        guest = run.guest.checked_add(run.length).expect("within numbers");
        match run.held {
            Held::Zero => {}
            Held::Data { host } => {
                assert!(host + run.length <= has, "within the file");
                data += run.length;
            }
            Held::Compressed { host, bytes } => {
                assert!(
                    bytes > 0 && host + u64::from(bytes) <= has,
                    "within the file"
                );
                assert!(run.length <= image.cluster_bytes(), "one cluster");
            }
        }
    }
    assert_eq!(guest, image.size(), "all of the disk");
    assert!(
        data <= has + image.cluster_bytes(),
        "no more than the file has"
    );
    if let Ok(content) = image.content(&bytes) {
        let read = io::copy(&mut content.take(MOST), &mut io::sink());
        assert!(read.is_err() || read.is_ok_and(|read| read == image.size().min(MOST)));
    }
}

/// The index of a packed image: what is accepted is written as it was read.
///
/// # Panics
/// When that does not hold.
pub fn packed_index(bytes: &[u8]) {
    let Ok(index) = Index::parse(bytes) else {
        return;
    };
    assert_eq!(index.encode(), bytes, "one form each");
    let mut at = 0;
    for (number, chunk) in index.chunks.iter().enumerate() {
        assert_eq!(chunk.offset, at, "one after the other");
        at += u64::from(chunk.packed);
        assert!((1..=index.chunk_bytes).contains(&index.length(number)));
    }
    let raw = (0..index.chunks.len()).map(|number| u64::from(index.length(number)));
    assert_eq!(raw.sum::<u64>(), index.image_bytes, "all of the image");
}

/// A packed file, found by its end, and each of its first chunks.
///
/// # Panics
/// When that does not hold.
pub fn packed_file(bytes: &[u8]) {
    let tail = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
    let has = bytes.len() as u64;
    if let Ok(located) = locate(tail, has) {
        assert!(located.index.start <= located.index.end && located.index.end <= has);
        if let Some(signature) = located.signature {
            assert!(located.index.end <= signature.start && signature.end <= has);
        }
        let frame = &bytes[at(located.index.start)..at(located.index.end)];
        if let Ok(index) = Index::parse(frame) {
            for (number, chunk) in index.chunks.iter().enumerate().take(4) {
                unpack(bytes, chunk, index.length(number));
            }
        }
    }
    let digest = [0; 32];
    let packed = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let chunk = Chunk {
        offset: 0,
        packed,
        digest,
        zero: false,
    };
    unpack(bytes, &chunk, 1 << 16);
}

fn unpack(file: &[u8], chunk: &Chunk, length: u32) {
    let start = at(chunk.offset).min(file.len());
    let end = start.saturating_add(chunk.packed as usize).min(file.len());
    let mut into = vec![0xa5; length as usize + 64];
    let (chunk_bytes, behind) = into.split_at_mut(length as usize);
    let mut unpacker = Unpacker::new().expect("memory");
    // Whether it is right is the digest's business.
    let _ = unpacker.unpack(chunk, &file[start..end], chunk_bytes);
    assert!(
        behind.iter().all(|&byte| byte == 0xa5),
        "nothing behind the chunk"
    );
}

/// A GUID partition table at a disk's start or end.
pub fn gpt(bytes: &[u8]) {
    ferrite_agent::parsers::gpt(bytes);
}

/// A master boot record.
pub fn mbr(bytes: &[u8]) {
    ferrite_agent::parsers::mbr(bytes);
}

/// Any compressed file, as what it says it is, and as each other compression.
///
/// # Panics
/// When that does not hold.
pub fn decompress(bytes: &[u8]) {
    let all = [
        Compression::None,
        Compression::Gzip,
        Compression::Zstd,
        Compression::Xz,
        Compression::Bzip2,
        Compression::Lz4,
    ];
    let said = Compression::of(bytes);
    for compression in all {
        if compression != said && bytes.len() > 256 {
            continue;
        }
        let decoder = ferrite_imaging::decompress::decoder(compression, bytes, MEMORY);
        let Ok(decoder) = decoder else { continue };
        let mut count = Count(0);
        // Damage is an error, never a panic.
        let _ = io::copy(&mut decoder.take(MOST), &mut count);
        assert!(count.0 <= MOST);
    }
}

struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn at(byte: u64) -> usize {
    usize::try_from(byte).unwrap_or(usize::MAX)
}

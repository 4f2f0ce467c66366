//! Each compression, as its own tool writes it and as it arrives in pieces, cut or damaged.

use std::io::Write;

use proptest::prelude::*;

use super::*;

const ALL: [Compression; 5] = [
    Compression::Gzip,
    Compression::Zstd,
    Compression::Xz,
    Compression::Bzip2,
    Compression::Lz4,
];

fn compress(how: Compression, bytes: &[u8]) -> Vec<u8> {
    fn with<W: Write>(mut encoder: W, bytes: &[u8]) -> W {
        encoder.write_all(bytes).unwrap();
        encoder
    }
    match how {
        Compression::None => bytes.to_vec(),
        Compression::Gzip => {
            let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            with(encoder, bytes).finish().unwrap()
        }
        Compression::Zstd => {
            let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
            encoder.include_checksum(true).unwrap();
            with(encoder, bytes).finish().unwrap()
        }
        Compression::Xz => {
            let options = lzma_rust2::XzOptions::with_preset(0);
            let encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
            with(encoder, bytes).finish().unwrap()
        }
        Compression::Bzip2 => {
            let encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            with(encoder, bytes).finish().unwrap()
        }
        Compression::Lz4 => {
            let mut info = lz4_flex::frame::FrameInfo::new();
            info.content_checksum = true;
            let encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
            with(encoder, bytes).finish().unwrap()
        }
    }
}

/// Reads a file in pieces of `step` bytes, as a network brings it.
fn read(how: Compression, file: &[u8], step: usize) -> io::Result<Vec<u8>> {
    let source = io::BufReader::with_capacity(step, file);
    let mut bytes = Vec::new();
    decoder(how, source, MEMORY)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn sample() -> Vec<u8> {
    let line = |number: u32| {
        format!(
            "line {number} of some text, {:x}\n",
            number.wrapping_mul(2_654_435_761)
        )
    };
    (0..4000).map(line).collect::<String>().into_bytes()
}

#[test]
fn files_of_several_parts_are_read_to_their_end() {
    let sample = sample();
    for how in ALL {
        let (a, b) = sample.split_at(sample.len() / 3);
        let parts = [a, &[], b].map(|part| compress(how, part));
        let file = parts.concat();
        assert_eq!(Compression::of(&file), how);
        for step in [1, 7, 64 << 10] {
            assert!(
                read(how, &file, step).unwrap() == sample,
                "{how:?} by {step}"
            );
        }
    }
}

#[test]
fn truncation_is_told_from_damage() {
    let sample = sample();
    for how in ALL {
        let file = [compress(how, &sample), compress(how, &sample)].concat();
        let boundary = file.len() / 2;
        for end in (1..file.len()).step_by(61).filter(|&end| end != boundary) {
            let error = read(how, &file[..end], 4096).expect_err("a part is no whole");
            assert_eq!(
                error.kind(),
                ErrorKind::UnexpectedEof,
                "{how:?} cut at {end}: {error}"
            );
        }
        let mut damaged = file.clone();
        damaged[boundary / 2] ^= 0x10;
        let error = read(how, &damaged, 4096).expect_err("the file is damaged");
        assert_ne!(error.kind(), ErrorKind::UnexpectedEof, "{how:?}: {error}");
    }
}

#[test]
fn more_memory_than_allowed_is_refused() {
    let wide = |log: u32| {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(&sample()).unwrap();
        encoder.finish().unwrap()
    };
    assert!(read(Compression::Zstd, &wide(26), 4096).is_ok());
    let error = read(Compression::Zstd, &wide(27), 4096).unwrap_err();
    assert!(error.to_string().contains("memory"), "{error}");
    let dictionary = |bytes: u32| {
        let mut options = lzma_rust2::XzOptions::with_preset(0);
        options.lzma_options.dict_size = bytes;
        let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        encoder.write_all(&sample()).unwrap();
        encoder.finish().unwrap()
    };
    assert!(read(Compression::Xz, &dictionary(64 << 20), 4096).is_ok());
    let error = read(Compression::Xz, &dictionary(128 << 20), 4096).unwrap_err();
    assert!(error.to_string().contains("mem"), "{error}");
}

proptest! {
    #[test]
    fn any_damage_is_answered(
        how in proptest::sample::select(&ALL[..]),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut file = compress(how, &sample()[..20_000]);
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        let source = &file[..];
        let mut out = decoder(how, source, MEMORY).unwrap().take(64 << 20);
        let _ = io::copy(&mut out, &mut io::sink());
    }
}

//! Packed images as they are made, and as hostile hands change them.

use proptest::prelude::*;

use super::*;

/// An image of `blocks`, each 64 KiB of one byte or of noise.
fn image(blocks: &[Option<u8>], tail: usize) -> Vec<u8> {
    let mut image = Vec::new();
    let mut noise = 1_u32;
    for block in blocks {
        let next = || {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noise.to_be_bytes()[0]
        };
        match block {
            Some(byte) => image.resize(image.len() + (64 << 10), *byte),
            None => image.extend(std::iter::repeat_with(next).take(64 << 10)),
        }
    }
    image.truncate(image.len().saturating_sub(tail).max(1));
    image
}

fn three_chunks() -> Vec<u8> {
    let mut blocks = vec![None; 2];
    blocks.resize(32, Some(7));
    blocks.resize(64, Some(0));
    blocks.resize(66, Some(9));
    image(&blocks, 100)
}

fn packed(image: &[u8], sign: Option<&Sign<'_>>) -> (Vec<u8>, Packed) {
    let mut packer = Packer::new(1).unwrap();
    let mut writer = Writer::new(Vec::new());
    let mut chunks = Chunks::new(image);
    let mut raw = Vec::new();
    while chunks.next(&mut raw).unwrap() {
        let (frame, chunk) = packer.pack(&raw).unwrap();
        writer.push(raw.len(), &frame, chunk).unwrap();
    }
    writer.finish(sign).unwrap()
}

fn tail(file: &[u8]) -> &[u8] {
    &file[file.len().saturating_sub(TAIL_BYTES)..]
}

fn part<'a>(file: &'a [u8], range: &std::ops::Range<u64>) -> &'a [u8] {
    &file[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
}

/// What a reader does that trusts nothing: the image, or that something was wrong.
fn read(file: &[u8], trusted: &[u8]) -> Option<Vec<u8>> {
    let located = locate(tail(file), file.len() as u64).ok()?;
    let frame = part(file, &located.index);
    if blake3::hash(frame) != blake3::hash(trusted) {
        return None;
    }
    let index = Index::parse(frame).ok()?;
    if index.packed_bytes() != located.index.start {
        return None;
    }
    let mut unpacker = Unpacker::new().unwrap();
    let mut image = Vec::new();
    for (number, chunk) in index.chunks.iter().enumerate() {
        let mut raw = vec![0xff; index.length(number) as usize];
        let range = chunk.offset..chunk.offset + u64::from(chunk.packed);
        unpacker.unpack(chunk, part(file, &range), &mut raw).ok()?;
        image.extend(raw);
    }
    Some(image)
}

#[test]
fn a_packed_image_is_the_image_to_us_and_to_zstd() {
    let image = three_chunks();
    let (file, done) = packed(&image, None);
    assert_eq!(done.file_bytes, file.len() as u64);
    assert_eq!(read(&file, &done.frame).unwrap(), image);
    assert_eq!(zstd::stream::decode_all(&file[..]).unwrap(), image);
    let zero: Vec<bool> = done.index.chunks.iter().map(|chunk| chunk.zero).collect();
    assert_eq!(zero, [false, true, false]);
    assert!(done.index.chunks[1].packed < 200, "{:?}", done.index);
    assert_eq!(Index::parse(&done.frame).unwrap(), done.index);
    let mut alone = Vec::new();
    let again = pack(&mut &image[..], &mut alone, 1).unwrap();
    assert_eq!((alone, again), (file, done));
}

#[test]
fn a_signature_lies_behind_the_index() {
    let image = three_chunks();
    let sign = |frame: &[u8]| Ok(format!("signed {}", frame.len()));
    let (file, done) = packed(&image, Some(&sign));
    let located = locate(tail(&file), file.len() as u64).unwrap();
    let text = signature_text(part(&file, &located.signature.unwrap())).unwrap();
    assert_eq!(text, format!("signed {}", done.frame.len()));
    assert_eq!(read(&file, &done.frame).unwrap(), image);
    assert_eq!(zstd::stream::decode_all(&file[..]).unwrap(), image);
}

#[test]
fn other_files_are_not_packed() {
    let plain = zstd::stream::encode_all(&three_chunks()[..], 1).unwrap();
    for file in [&plain[..], b"", b"x", &[0; 100]] {
        let found = locate(tail(file), file.len() as u64);
        assert_eq!(found, Err(BadIndex::NotPacked));
    }
    let error = pack(&mut &b""[..], &mut Vec::new(), 1).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_file_cut_anywhere_is_no_packed_image() {
    let (file, done) = packed(&three_chunks(), None);
    for end in (0..file.len())
        .step_by(97)
        .chain(file.len() - 60..file.len())
    {
        assert_eq!(read(&file[..end], &done.frame), None, "cut at {end}");
        assert_eq!(
            read(&file[end.max(1)..], &done.frame),
            None,
            "begun at {end}"
        );
    }
}

type Change = &'static dyn Fn(&mut Index);

/// What an index says is bounded even where a digest vouches for it.
#[test]
fn an_index_that_cannot_be_is_refused() {
    let (_, done) = packed(&three_chunks(), None);
    let refused = |change: Change| {
        let mut index = done.index.clone();
        change(&mut index);
        Index::parse(&index.encode()).unwrap_err().to_string()
    };
    let cases: [(Change, &str); 10] = [
        (&|index| index.chunk_bytes = 0, "power of two"),
        (&|index| index.chunk_bytes = 4 << 20, "power of two"),
        (&|index| index.chunk_bytes = 3 << 16, "power of two"),
        (&|index| index.chunks.clear(), "no chunk"),
        (&|index| index.image_bytes = 0, "length"),
        (&|index| index.image_bytes = u64::MAX, "length"),
        (&|index| index.image_bytes = 4 << 20, "length"),
        (&|index| index.chunks[0].packed = 0, "chunk 0 is empty"),
        (
            &|index| index.chunks[0].packed = 3 << 20,
            "chunk 0 is empty",
        ),
        (&|index| index.chunks[0].zero = true, "chunk 0 is said"),
    ];
    for (change, expected) in cases {
        let said = refused(change);
        assert!(said.contains(expected), "{said}");
    }
    let mut long = done.frame.clone();
    long.push(0);
    assert!(Index::parse(&long).is_err());
}

/// A frame that holds more than its chunk, or less, writes nothing behind it.
#[test]
fn a_bomb_stays_within_its_chunk() {
    let (_, done) = packed(&three_chunks(), None);
    let mut unpacker = Unpacker::new().unwrap();
    for (held, wanted) in [(64 << 20, 2 << 20), (1 << 20, 2 << 20), (5, 4), (0, 4)] {
        let bomb = zstd::bulk::compress(&vec![0; held], 1).unwrap();
        let mut memory = vec![0xa5; wanted + 8];
        let result = unpacker.unpack(&done.index.chunks[1], &bomb, &mut memory[..wanted]);
        assert!(result.is_err(), "{held} in {wanted}");
        assert_eq!(&memory[wanted..], [0xa5; 8]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_packed_is_unpacked(
        blocks in proptest::collection::vec(proptest::option::of(0_u8..3), 1..70),
        tail in 0_usize..65536,
    ) {
        let image = image(&blocks, tail);
        let (file, done) = packed(&image, None);
        prop_assert_eq!(read(&file, &done.frame).unwrap(), image);
    }

    /// Either the bit does not matter to what is read, or it is found.
    #[test]
    fn any_flipped_bit_is_found(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let image = image(&[Some(0), None, Some(3)], 5);
        let (mut file, done) = packed(&image, None);
        let at = at.index(file.len());
        file[at] ^= 1_u8 << bit;
        let read = read(&file, &done.frame);
        prop_assert!(read.is_none_or(|read| read == image), "bit {} of byte {}", bit, at);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..400), size: u64) {
        let _ = locate(&bytes, size);
        let _ = Index::parse(&bytes);
        let _ = signature_text(&bytes);
    }

    /// Damage behind the magics, which plain noise never passes.
    #[test]
    fn a_damaged_end_is_answered(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        size in prop_oneof![any::<u64>(), 0..2000_u64],
    ) {
        let (file, done) = packed(&vec![1; 70_000], None);
        let mut end = file[file.len() - 120..].to_vec();
        let mut frame = done.frame;
        for (at, byte) in changes {
            let at_end = at.index(end.len());
            end[at_end] = byte;
            let at_frame = at.index(frame.len());
            frame[at_frame] = byte;
        }
        if let Ok(located) = locate(&end, size) {
            prop_assert!(located.index.start <= located.index.end && located.index.end <= size);
        }
        if let Ok(index) = Index::parse(&frame) {
            prop_assert_eq!(index.encode(), frame);
        }
    }
}

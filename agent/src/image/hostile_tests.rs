//! Files made to hurt, by name: partition tables, compressed files, packed images. Each is refused
//! with its reason, before the first write where that can be; qcow2 has its own list.

use super::fixture::*;
use super::*;
use crate::disk::fixture::NoKernel;
use crate::stream::fixture::{Served, Server};

const DISK: usize = 24 * MIB;

type Spoil = fn(&mut Vec<u8>);

/// Writes a file; what is said of it, and whether the disk is as it was.
fn refused(name: &str, file: &[u8], format: Format) -> (String, bool) {
    let server = Server::start(vec![Served::whole(file)]);
    let machine = Machine::new(DISK);
    // Nothing is demanded, so that only the form is left to be refused.
    let described = ImageRef {
        digest: None,
        allow_unverified: true,
        format,
        ..raw_ref(server.url(), file)
    };
    let started = Instant::now();
    let Err(problem) = machine.write(&described, &NoKernel) else {
        panic!("{name} was written");
    };
    assert!(started.elapsed().as_secs() < 10, "{name}");
    assert!(
        problem.message.contains("http://127.0.0.1"),
        "{name}: {problem}"
    );
    assert!(!problem.advice.is_empty(), "{name}");
    assert!(
        machine.is_untouched() || !is_bootable(&machine.disk()),
        "{name}"
    );
    (problem.message, machine.is_untouched())
}

/// Sets a field of the table's header, and makes both checksums right again.
fn forge(image: &mut [u8], at: usize, value: u64) {
    image[512 + at..512 + at + 8].copy_from_slice(&value.to_le_bytes());
    seal(image);
}

fn forge_word(image: &mut [u8], at: usize, value: u32) {
    image[512 + at..512 + at + 4].copy_from_slice(&value.to_le_bytes());
    seal(image);
}

fn forge_partition(image: &mut [u8], at: usize, value: u64) {
    image[1024 + at..1024 + at + 8].copy_from_slice(&value.to_le_bytes());
    seal(image);
}

fn seal(image: &mut [u8]) {
    let entries = crc32fast::hash(&image[1024..1024 + 128 * 128]);
    image[512 + 88..512 + 92].copy_from_slice(&entries.to_le_bytes());
    image[512 + 16..512 + 20].fill(0);
    let header = crc32fast::hash(&image[512..512 + 92]);
    image[512 + 16..512 + 20].copy_from_slice(&header.to_le_bytes());
}

const TABLES: &[(&str, &str, Spoil)] = &[
    ("a wrong checksum", "header's checksum", |i| {
        i[512 + 60] ^= 1;
    }),
    ("entries with a wrong checksum", "entries' checksum", |i| {
        i[1024 + 40] ^= 1;
    }),
    ("another revision", "unknown revision", |i| {
        forge_word(i, 8, 0x0002_0000);
    }),
    ("a header of 4 GiB", "unknown revision", |i| {
        forge_word(i, 12, u32::MAX);
    }),
    ("no entries", "unusual size or number", |i| {
        forge_word(i, 80, 0);
    }),
    ("4 billion entries", "unusual size or number", |i| {
        forge_word(i, 80, u32::MAX);
    }),
    ("entries of no length", "unusual size or number", |i| {
        forge_word(i, 84, 0);
    }),
    ("entries of 4 GiB", "unusual size or number", |i| {
        forge_word(i, 84, u32::MAX);
    }),
    ("entries far away", "more than a MiB", |i| {
        forge(i, 72, 1 << 40);
    }),
    ("entries at the end of numbers", "more than a MiB", |i| {
        forge(i, 72, u64::MAX);
    }),
    ("a header that is elsewhere", "impossible sector", |i| {
        forge(i, 24, 7);
    }),
    ("a disk of 8 ZiB", "impossible sector", |i| {
        forge(i, 32, u64::MAX);
    }),
    ("a backup at the start", "overlaps", |i| forge(i, 32, 1)),
    ("no usable space", "overlaps", |i| forge(i, 40, 1 << 30)),
    ("usable space in the entries", "overlap", |i| {
        forge(i, 40, 3);
    }),
    ("usable space without an end", "impossible sector", |i| {
        forge(i, 48, u64::MAX);
    }),
    (
        "a partition that ends before it begins",
        "outside the usable",
        |i| {
            forge_partition(i, 40, 1);
        },
    ),
    ("a partition in the table", "outside the usable", |i| {
        forge_partition(i, 32, 1);
    }),
    ("a partition without an end", "outside the usable", |i| {
        forge_partition(i, 40, u64::MAX);
    }),
    ("a disk of a TiB", "needs 1.00 TiB", |i| {
        forge(i, 32, (1 << 31) - 1);
    }),
];

#[test]
fn hostile_partition_tables_are_refused_before_the_first_write() {
    for (name, words, spoil) in TABLES {
        let mut image = image(16, 1);
        spoil(&mut image);
        // Raw, and where nothing but the table tells the size.
        let packed = zstd::bulk::compress(&image, 1).unwrap();
        for file in [&image, &packed] {
            let (said, untouched) = refused(name, file, Format::Raw);
            assert!(said.contains(words), "{name}: {said}");
            assert!(untouched, "{name}: {said}");
        }
    }
}

/// Refused by their first bytes, which are all there are.
static BEGINNINGS: &[(&str, &[u8], &str)] = &[
    (
        "a zstd window of 2 GiB",
        b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00",
        "too much memory",
    ),
    (
        "zstd that is only a magic",
        b"\x28\xb5\x2f\xfd",
        "ends at byte 4",
    ),
    (
        "a block of a reserved kind",
        b"\x28\xb5\x2f\xfd\x00\x58\x07\x00\x00",
        "orruption",
    ),
    (
        "a skippable frame of 4 GiB",
        b"\x50\x2a\x4d\x18\xff\xff\xff\xff",
        "ends at byte 8",
    ),
    (
        "an unknown dictionary",
        b"\x28\xb5\x2f\xfd\x21\x07\x05\x29\x00\x00hello",
        "Dictionary",
    ),
    (
        "gzip that is only a magic",
        b"\x1f\x8b\x08\x00",
        "ends at byte 4",
    ),
    ("gzip with a name without end", &NAMED, "too long"),
    (
        "gzip of another method",
        b"\x1f\x8b\x09\x00\0\0\0\0\0\x03",
        "invalid gzip header",
    ),
    ("xz that is only a magic", b"\xfd7zXZ\0", "ends at byte 6"),
    (
        "xz with a wrong header",
        b"\xfd7zXZ\0\xff\xff\0\0\0\0",
        "header CRC32",
    ),
    (
        "bzip2 that is only a magic",
        b"BZh91AY&SY",
        "ends at byte 10",
    ),
    (
        "lz4 that is only a magic",
        b"\x04\x22\x4d\x18",
        "ends at byte 4",
    ),
    (
        "lz4 with a wrong header",
        b"\x04\x22\x4d\x18\x64\x40\x00\x00",
        "HeaderChecksum",
    ),
];

static NAMED: [u8; 200_000] = {
    let mut file = [b'a'; 200_000];
    let (head, _) = file.split_at_mut(10);
    head.copy_from_slice(b"\x1f\x8b\x08\x08\0\0\0\0\0\x03");
    file
};

#[test]
fn hostile_compressed_files_are_refused() {
    for (name, file, words) in BEGINNINGS {
        let (said, untouched) = refused(name, file, Format::Raw);
        assert!(said.contains(words), "{name}: {said}");
        assert!(untouched, "{name}: {said}");
    }
    // What begins well is found later; the disk then has no table.
    let image = image(16, 1);
    let zstd = zstd::bulk::compress(&image, 1).unwrap();
    let bomb = zstd::bulk::compress(&vec![0; 64 * MIB], 1).unwrap();
    let mut damaged = zstd.clone();
    noise(&mut damaged[4 * MIB..4 * MIB + 70_000], 3);
    damaged[zstd.len() / 2..].fill(0xff);
    for (name, file, words) in [
        ("a bomb", &bomb[..], "at least"),
        ("cut off", &zstd[..zstd.len() / 2], "ends at byte"),
        ("damaged", &damaged, "cannot be decompressed"),
    ] {
        let (said, _) = refused(name, file, Format::Raw);
        assert!(said.contains(words), "{name}: {said}");
    }
}

/// Where the index of the packed file begins.
fn index_of(file: &[u8]) -> usize {
    let magic = 0x184d_2a50_u32.to_le_bytes();
    let found = file.windows(4).rposition(|window| window == magic);
    found.unwrap()
}

fn set(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Of the index: its content begins 8 bytes behind its magic, its chunks 24 behind that.
fn set_index(file: &mut [u8], at: usize, bytes: &[u8]) {
    let index = index_of(file) + 8;
    set(file, index + at, bytes);
}

const PACKED: &[(&str, &str, Spoil)] = &[
    ("no end", "not a packed image", |f| {
        f.truncate(f.len() - 1);
    }),
    ("only an end", "damaged", |f| drop(f.drain(..f.len() - 9))),
    ("a seek table of 4 billion frames", "damaged", |f| {
        let at = f.len() - 9;
        set(f, at, &[0xff; 4]);
    }),
    ("a seek table of nothing", "not a packed image", |f| {
        let at = f.len() - 9;
        set(f, at, &[0; 4]);
    }),
    ("a seek table with checksums", "not a packed image", |f| {
        let at = f.len() - 5;
        f[at] = 0x80;
    }),
    ("an index of 4 GiB", "damaged", |f| {
        let at = f.len() - 9 - 8;
        set(f, at, &[0xff; 4]);
    }),
    ("an index of another version", "another version", |f| {
        set_index(f, 0, b"FerrPkd9");
    }),
    ("an image of 16 EiB", "damaged", |f| {
        set_index(f, 8, &[0xff; 8]);
    }),
    ("an image of nothing", "damaged", |f| {
        set_index(f, 8, &[0; 8]);
    }),
    ("chunks of a byte", "damaged", |f| {
        set_index(f, 16, &1_u32.to_le_bytes());
    }),
    ("chunks of 2 GiB", "damaged", |f| {
        set_index(f, 16, &(1_u32 << 31).to_le_bytes());
    }),
    ("4 billion chunks", "damaged", |f| {
        set_index(f, 20, &[0xff; 4]);
    }),
    ("a chunk without length", "damaged", |f| {
        set_index(f, 24, &[0; 4]);
    }),
    ("a chunk of 2 GiB", "damaged", |f| {
        set_index(f, 24, &[0xff, 0xff, 0xff, 0x7f]);
    }),
    (
        "a chunk that is longer than it is",
        "do not end where its index begins",
        |f| {
            let at = index_of(f) + 8 + 24;
            f[at] = f[at].wrapping_add(1);
        },
    ),
    ("a first chunk of noise", "chunk 0", |f| {
        noise(&mut f[4..400], 9);
    }),
    ("a first chunk with another digest", "chunk 0", |f| {
        set_index(f, 28, &[7; 32]);
    }),
];

#[test]
fn hostile_packed_images_are_refused_before_the_first_write() {
    let image = image(16, 1);
    for (name, words, spoil) in PACKED {
        let (mut file, _) = pack(&image);
        spoil(&mut file);
        let (said, untouched) = refused(name, &file, Format::Packed);
        assert!(said.contains(words), "{name}: {said}");
        assert!(untouched, "{name}: {said}");
    }
}

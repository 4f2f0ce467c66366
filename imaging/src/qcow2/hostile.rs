//! qcow2 files made to hurt, by name, each with words of the reason that it must be refused with.
//! Other crates' tests include this file too: whoever reads qcow2 refuses the same.

use super::made::{Made, Stored, get, put, put_word};

/// A file that must be refused.
#[derive(Debug)]
pub(crate) struct Hostile {
    pub(crate) name: &'static str,
    pub(crate) file: Vec<u8>,
    /// Words of the reason.
    pub(crate) words: &'static str,
    /// It is seen only when the data itself is read.
    pub(crate) late: bool,
}

/// Clusters of the disk that the files hold: a plain one, a compressed one, and so on.
const CLUSTERS: usize = 12;

fn base() -> (Made, Vec<u8>) {
    let made = Made::default();
    let mut disk = vec![0x5a; CLUSTERS * made.cluster()];
    for (at, byte) in disk.iter_mut().enumerate() {
        *byte ^= u8::try_from(at * 7 % 251).unwrap();
    }
    let file = made.file(&disk, |index, _| match index % 4 {
        0 | 1 => Stored::Plain,
        2 => Stored::Packed,
        _ => Stored::Hole,
    });
    (made, file)
}

type Spoil = fn(&Made, &mut Vec<u8>);

/// Seen in the header.
const HEADERS: &[(&str, &str, Spoil)] = &[
    ("empty", "does not begin", |_, f| f.clear()),
    ("only a magic", "cut off: its header", |_, f| f.truncate(4)),
    ("cut in the header", "cut off: its header", |_, f| {
        f.truncate(71);
    }),
    ("cut in the long header", "cut off: its header", |_, f| {
        f.truncate(110);
    }),
    ("another magic", "does not begin", |_, f| f[3] = 0),
    ("version 0", "version 0", |_, f| put_word(f, 4, 0)),
    ("version 1", "version 1", |_, f| put_word(f, 4, 1)),
    ("version 4", "version 4", |_, f| put_word(f, 4, 4)),
    ("a backing file", "backing file \"/etc/passwd\"", |_, f| {
        put(f, 8, 512);
        put_word(f, 16, 11);
        f[512..523].copy_from_slice(b"/etc/passwd");
    }),
    (
        "a backing file whose name lies nowhere",
        "backing file \"\"",
        |_, f| {
            put(f, 8, u64::MAX);
            put_word(f, 16, u32::MAX);
        },
    ),
    ("encrypted with AES", "encrypted (AES)", |_, f| {
        put_word(f, 32, 1);
    }),
    ("encrypted with LUKS", "encrypted (LUKS)", |_, f| {
        put_word(f, 32, 2);
    }),
    ("encrypted somehow", "encrypted (a method", |_, f| {
        put_word(f, 32, 77);
    }),
    ("marked corrupt", "marked it as corrupt", |_, f| {
        put(f, 72, 2);
    }),
    ("an external data file", "external data file", |_, f| {
        put(f, 72, 4);
    }),
    ("extended L2 entries", "extended L2", |_, f| put(f, 72, 16)),
    ("an unknown feature", "not known: bit 5", |_, f| {
        put(f, 72, 32);
    }),
    (
        "unknown features with names",
        "bit 9 (time travel), bit 63",
        |_, f| {
            put(f, 72, 1 << 63 | 1 << 9);
            put_word(f, 112, 0x6803_f857);
            put_word(f, 116, 48);
            f[121] = 9;
            f[122..133].copy_from_slice(b"time travel");
        },
    ),
    ("extensions without an end", "bit 5", |_, f| {
        put(f, 72, 32);
        for at in (112..65_536).step_by(8) {
            put_word(f, at, 1);
        }
    }),
    ("an extension that is too long", "bit 5", |_, f| {
        put(f, 72, 32);
        put_word(f, 112, 0x6803_f857);
        put_word(f, 116, u32::MAX);
    }),
    ("an unknown compression", "compression type 9", |_, f| {
        f[104] = 9;
    }),
    ("zstd that is not announced", "disagree", |_, f| f[104] = 1),
    ("zstd that is only announced", "disagree", |_, f| {
        put(f, 72, 8);
    }),
    ("a header without length", "impossible length", |_, f| {
        put_word(f, 100, 0);
    }),
    ("a header of 4 GiB", "impossible length", |_, f| {
        put_word(f, 100, u32::MAX);
    }),
    ("a header of odd length", "impossible length", |_, f| {
        put_word(f, 100, 107);
    }),
    (
        "clusters of 256 bytes",
        "clusters of an impossible",
        |_, f| put_word(f, 20, 8),
    ),
    ("clusters of 4 MiB", "clusters of an impossible", |_, f| {
        put_word(f, 20, 22);
    }),
    (
        "clusters of 2^4294967295",
        "clusters of an impossible",
        |_, f| put_word(f, 20, u32::MAX),
    ),
    (
        "a disk of 16 EiB",
        "disk is 18446744073709551615",
        |_, f| put(f, 24, u64::MAX),
    ),
    (
        "a disk that its L1 table cannot hold",
        "too short",
        |_, f| put(f, 24, 1 << 40),
    ),
    (
        "an L1 table of 32 GiB",
        "L1 table is 34359738360",
        |_, f| put_word(f, 36, u32::MAX),
    ),
    ("no L1 table", "too short", |_, f| put_word(f, 36, 0)),
    ("an L1 table in the header", "not where a table", |_, f| {
        put(f, 40, 0);
    }),
    (
        "an L1 table between clusters",
        "not where a table",
        |_, f| put(f, 40, 65_537),
    ),
    (
        "an L1 table behind the file",
        "cut off: its L1 table",
        |_, f| put(f, 40, 1 << 40),
    ),
    (
        "an L1 table at the end of numbers",
        "cut off: its L1 table",
        |_, f| {
            put(f, 40, u64::MAX << 16);
        },
    ),
];

/// Seen in the tables.
const TABLES: &[(&str, &str, Spoil)] = &[
    ("cut in the L1 table", "cut off: its L1 table", |m, f| {
        f.truncate(m.l1() + 7);
    }),
    ("cut in the L2 table", "cut off: its L2 table", |m, f| {
        f.truncate(m.l2() + 80);
    }),
    ("cut in the data", "cut off: its data", |m, f| {
        f.truncate(m.l2() + 3 * m.cluster() - 9);
    }),
    (
        "cut before compressed data",
        "cut off: its compressed data",
        |m, f| {
            // Plain clusters moved to the front, so that only compressed data is behind the end.
            for index in [1, 4, 5, 8, 9] {
                put(f, m.l2() + index * 8, 0);
            }
            f.truncate(m.l2() + 2 * m.cluster());
        },
    ),
    (
        "an L1 entry with reserved bits",
        "L1 entry has bits",
        |m, f| f[m.l1()] |= 0x40,
    ),
    ("an L1 entry with low bits", "L1 entry has bits", |m, f| {
        f[m.l1() + 7] = 1;
    }),
    (
        "an L2 table between clusters",
        "L2 table is not at",
        |m, f| put(f, m.l1(), 0x2_0200),
    ),
    (
        "an L2 table behind the file",
        "cut off: its L2 table",
        |m, f| put(f, m.l1(), 1 << 50),
    ),
    (
        "an L2 entry with reserved bits",
        "L2 entry has bits",
        |m, f| f[m.l2()] |= 0x20,
    ),
    ("an L2 entry with low bits", "L2 entry has bits", |m, f| {
        f[m.l2() + 7] = 0x80;
    }),
    ("data between clusters", "cluster is not at", |m, f| {
        put(f, m.l2(), 0x3_0200);
    }),
    ("data behind the file", "cut off: its data", |m, f| {
        put(f, m.l2(), 1 << 50);
    }),
    (
        "a zero cluster between clusters",
        "cluster is not at",
        |m, f| put(f, m.l2(), 0x3_0201),
    ),
    (
        "compressed data in the header",
        "lies in the header",
        |m, f| {
            put(f, m.l2(), 1 << 62 | 4096);
        },
    ),
    (
        "compressed data behind the file",
        "cut off: its compressed",
        |m, f| {
            put(f, m.l2(), 1 << 62 | 1 << 40);
        },
    ),
    (
        "compressed data at the end of numbers",
        "cut off: its compressed",
        |m, f| {
            put(f, m.l2(), (1 << 63) - 1);
        },
    ),
    ("random tables", "", |m, f| {
        let mut state = 0x1234_5678_9abc_def1_u64;
        for at in (m.l2()..m.l2() + CLUSTERS * 8).step_by(8) {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(99);
            put(f, at, state);
        }
    }),
];

/// Seen where the same place is used twice.
const TWICE: &[(&str, &str, Spoil)] = &[
    (
        "every cluster in one place",
        "one place of the file twice",
        |m, f| {
            put_word(f, 36, 1);
            put(f, 24, 8192 << 16);
            for index in 0..8192 {
                put(f, m.l2() + index * 8, 0x3_0000);
            }
        },
    ),
    (
        "every L2 table in one place",
        "one place of the file twice",
        |m, f| {
            put(f, 24, 8192_u64 << 29);
            put_word(f, 36, 8192);
            for index in 0..8192 {
                put(f, m.l1() + index * 8, 0x2_0000);
            }
            f[m.l2()..m.l2() + m.cluster()].fill(0);
        },
    ),
    (
        "an L2 table that is the L1 table",
        "twice (L2 table and L1 table)",
        |m, f| {
            let l1 = m.l1() as u64;
            put(f, m.l1(), l1);
        },
    ),
];

/// Seen when the data is decompressed.
const LATE: &[(&str, &str, Spoil)] = &[
    (
        "compressed data that is noise",
        "cannot be decompressed",
        |m, f| {
            let at = packed_at(m, f);
            for (at, byte) in f[at..at + 60].iter_mut().enumerate() {
                *byte = u8::try_from(at * 97 % 251).unwrap();
            }
        },
    ),
    (
        "compressed data cut off",
        "cannot be decompressed",
        |m, f| {
            // One sector, where there are several.
            let entry = get(f, m.l2() + 16) & !(0xff << 54);
            put(f, m.l2() + 16, entry);
            let at = packed_at(m, f);
            f[at..at + 512].copy_from_slice(&m.pack(&vec![3; 1 << 16]).repeat(9)[..512]);
            f[at] = 0xff;
        },
    ),
    (
        "a cluster that is too short",
        "and a cluster has 65536",
        |m, f| bomb(*m, f, 1000),
    ),
];

fn packed_at(made: &Made, file: &[u8]) -> usize {
    usize::try_from(get(file, made.l2() + 16) & ((1 << 54) - 1)).unwrap()
}

/// Another thing compressed, where a cluster is expected.
fn bomb(made: Made, file: &mut Vec<u8>, bytes: usize) {
    let packed = made.pack(&vec![0; bytes]);
    let at = file.len().next_multiple_of(made.cluster());
    file.resize(at, 0);
    file.extend(packed.iter().take(1 << 16));
    let more = packed.len().min(1 << 16) as u64 / 512;
    put(
        file,
        made.l2() + 16,
        at as u64 | more.min(255) << 54 | 1 << 62,
    );
}

/// All of them.
pub(crate) fn all() -> Vec<Hostile> {
    let lists = [
        (HEADERS, false),
        (TABLES, false),
        (TWICE, false),
        (LATE, true),
    ];
    let mut all = Vec::new();
    for (list, late) in lists {
        for (name, words, spoil) in list {
            let (made, mut file) = base();
            spoil(&made, &mut file);
            all.push(Hostile {
                name,
                file,
                words,
                late,
            });
        }
    }
    all.push(in_version_2());
    all.extend(in_zstd());
    all
}

fn in_version_2() -> Hostile {
    let made = Made {
        version: 2,
        ..Made::default()
    };
    let mut file = made.file(&vec![1; made.cluster()], |_, _| Stored::Plain);
    put(&mut file, made.l2(), 1);
    let words = "which version 2 does not have";
    Hostile {
        name: "a zero cluster in version 2",
        file,
        words,
        late: false,
    }
}

fn in_zstd() -> [Hostile; 2] {
    let made = Made {
        zstd: true,
        ..Made::default()
    };
    let disk = vec![9; 4 * made.cluster()];
    let mut bombed = made.file(&disk, |_, _| Stored::Packed);
    let mut noisy = bombed.clone();
    bomb(made, &mut bombed, 64 << 20);
    let at = packed_at(&made, &noisy);
    noisy[at] ^= 0xff;
    let words = "cannot be decompressed";
    [("a zstd bomb", bombed), ("zstd that is none", noisy)].map(|(name, file)| Hostile {
        name,
        file,
        words,
        late: true,
    })
}

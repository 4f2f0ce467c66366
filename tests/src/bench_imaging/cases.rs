//! What is compared with what, and what is expected of it: the bench as data, in the order of the
//! table.

use std::fmt;

use serde::Serialize;

use super::disk::Before;
use super::inputs::{DENSE, GUEST_DENSE, GUEST_SPARSE, SPARSE, UPGRADED};
use super::limit::{Limit, Load, NOTHING, Part};
use super::rivals::Way;

/// One way to write one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Contender {
    /// What the disk must hold at the end.
    pub(super) image: &'static str,
    /// What is fetched.
    pub(super) file: &'static str,
    pub(super) way: Way,
    pub(super) before: Before,
}

/// Known by it in figures, and by `--only`.
impl fmt::Display for Contender {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.file)?;
        if let Before::Holds(image) = self.before {
            write!(out, " over {image}")?;
        }
        write!(out, ": {}", self.way)
    }
}

/// What is asked of us.
#[derive(Debug, Clone, Copy)]
pub(super) enum Expect {
    /// So many times faster.
    Faster(f64),
    /// So many times faster, with no more processor time.
    FasterAndNoDearer(f64),
    /// Nothing is written, and less than a hundredth of the peer's bytes is fetched.
    NothingMoves,
    /// No more is fetched than so many times the chunks that changed.
    OnlyChanges(f64),
    /// No expectation was put down: for the picture.
    Shown,
}

/// Ours against others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) ours: Contender,
    pub(super) peers: &'static [(Contender, Expect)],
    pub(super) limit: Limit,
}

/// Each contender of some cases once, in their order.
pub(super) fn contenders(cases: &[Case]) -> Vec<Contender> {
    let mut all: Vec<Contender> = Vec::new();
    for case in cases {
        let peers = case.peers.iter().map(|(peer, _)| *peer);
        for contender in std::iter::once(case.ours).chain(peers) {
            if !all.contains(&contender) {
                all.push(contender);
            }
        }
    }
    all
}

const fn of(image: &'static str, file: &'static str, way: Way) -> Contender {
    let before = Before::Used;
    Contender {
        image,
        file,
        way,
        before,
    }
}

const fn over(held: &'static str, contender: Contender) -> Contender {
    Contender {
        before: Before::Holds(held),
        ..contender
    }
}

const PACKED: Way = Way::Ours(&["--format", "packed"]);
const QCOW2: Way = Way::Ours(&["--format", "qcow2"]);
const RAW: Way = Way::Ours(&[]);
const ZSTD: Way = Way::Pipe("zstd");

const DENSE_BY_PIPE: Contender = of(DENSE, "dense.raw.zst", ZSTD);
const SPARSE_PACKED: Contender = of(SPARSE, "debian.packed.zst", PACKED);
const SPARSE_BY_PIPE: Contender = of(SPARSE, "debian.raw.zst", ZSTD);
const SPARSE_BY_MAP: Contender = of(SPARSE, "debian.raw.zst", Way::Bmaptool("debian.bmap"));
const SPARSE_BY_IPA: Contender = of(SPARSE, "debian.raw", Way::Ipa);
const UPGRADED_PACKED: Contender = of(UPGRADED, "upgraded.packed.zst", PACKED);

/// Chunks are fetched, decoded, looked at and written by as many threads as there are cores.
const PACKED_CHUNKS: Limit = Limit {
    shared: |load| {
        [
            ("zstd", load.zstd(load.data)),
            ("BLAKE3", load.blake3(load.data)),
        ]
    },
    alone: |_| [NOTHING; 2],
};
/// One thread decodes, another one hashes what was fetched.
const STREAM_ZSTD: Limit = stream(|load| [("zstd", load.zstd_stream()), sha256(load)]);
const STREAM_GZIP: Limit = stream(|load| [("gzip", load.gzip(load.data)), sha256(load)]);
const STREAM_PLAIN: Limit = stream(|load| [NOTHING, sha256(load)]);
/// One thread hashes what was fetched; all decode clusters.
const CLUSTERS: Limit = Limit {
    shared: |load| [("zlib", load.zlib(load.data)), NOTHING],
    ..STREAM_PLAIN
};
/// All of the disk is read, and what is not zeros is hashed.
const COMPARED: Limit = Limit {
    shared: |load| {
        [
            ("reading back", load.read(load.bytes)),
            ("BLAKE3", load.blake3(load.data)),
        ]
    },
    alone: |_| [NOTHING; 2],
};

const fn stream(alone: fn(&Load) -> [Part; 2]) -> Limit {
    let shared = |_: &Load| [NOTHING; 2];
    Limit { shared, alone }
}

fn sha256(load: &Load) -> Part {
    ("SHA-256", load.sha256(load.fetched))
}

/// On this machine: to a loop device over memory.
pub(super) const CASES: [Case; 10] = [
    Case {
        name: "dense, packed",
        ours: of(DENSE, "dense.packed.zst", PACKED),
        peers: &[(DENSE_BY_PIPE, Expect::FasterAndNoDearer(1.6))],
        limit: PACKED_CHUNKS,
    },
    Case {
        name: "dense, plain .zst",
        ours: of(DENSE, "dense.raw.zst", RAW),
        peers: &[(DENSE_BY_PIPE, Expect::Faster(1.2))],
        limit: STREAM_ZSTD,
    },
    Case {
        name: "dense, plain .gz",
        ours: of(DENSE, "dense.raw.gz", RAW),
        peers: &[(
            of(DENSE, "dense.raw.gz", Way::Pipe("gzip")),
            Expect::Faster(1.2),
        )],
        limit: STREAM_GZIP,
    },
    Case {
        name: "sparse, packed",
        ours: SPARSE_PACKED,
        peers: &[
            (SPARSE_BY_PIPE, Expect::Faster(5.0)),
            (SPARSE_BY_MAP, Expect::Faster(1.3)),
            (SPARSE_BY_IPA, Expect::Shown),
        ],
        limit: PACKED_CHUNKS,
    },
    Case {
        name: "sparse, plain .zst",
        ours: of(SPARSE, "debian.raw.zst", RAW),
        peers: &[
            (SPARSE_BY_PIPE, Expect::Shown),
            (SPARSE_BY_MAP, Expect::Shown),
        ],
        limit: STREAM_ZSTD,
    },
    Case {
        name: "sparse, raw stream",
        ours: of(SPARSE, "debian.raw", RAW),
        peers: &[(SPARSE_BY_IPA, Expect::Faster(4.0))],
        limit: STREAM_PLAIN,
    },
    Case {
        name: "sparse, qcow2",
        ours: of(SPARSE, "debian.qcow2", QCOW2),
        peers: &[(
            of(SPARSE, "debian.qcow2", Way::QemuImg),
            Expect::Faster(1.5),
        )],
        limit: STREAM_PLAIN,
    },
    Case {
        name: "sparse, qcow2 compressed",
        ours: of(SPARSE, "debian-zlib.qcow2", QCOW2),
        peers: &[(
            of(SPARSE, "debian-zlib.qcow2", Way::QemuImg),
            Expect::Faster(1.5),
        )],
        limit: CLUSTERS,
    },
    Case {
        name: "the same image again",
        ours: over(SPARSE, SPARSE_PACKED),
        peers: &[(SPARSE_PACKED, Expect::NothingMoves)],
        limit: COMPARED,
    },
    Case {
        name: "an upgraded image over the old",
        ours: over(SPARSE, UPGRADED_PACKED),
        peers: &[(UPGRADED_PACKED, Expect::OnlyChanges(1.1))],
        limit: COMPARED,
    },
];

const GUEST_BY_PIPE: Contender = of(GUEST_DENSE, "guest-dense.raw.zst", ZSTD);
const GUEST_PACKED: Contender = of(GUEST_SPARSE, "guest-sparse.packed.zst", PACKED);
const GUEST_SPARSE_BY_PIPE: Contender = of(GUEST_SPARSE, "guest-sparse.raw.zst", ZSTD);

/// In a guest of QEMU, to its virtio disk. Python's programs are not in there.
pub(super) const GUEST_CASES: [Case; 6] = [
    Case {
        name: "guest: dense, packed",
        ours: of(GUEST_DENSE, "guest-dense.packed.zst", PACKED),
        peers: &[(GUEST_BY_PIPE, Expect::FasterAndNoDearer(1.6))],
        limit: PACKED_CHUNKS,
    },
    Case {
        name: "guest: dense, plain .zst",
        ours: of(GUEST_DENSE, "guest-dense.raw.zst", RAW),
        peers: &[(GUEST_BY_PIPE, Expect::Faster(1.2))],
        limit: STREAM_ZSTD,
    },
    Case {
        name: "guest: sparse, packed",
        ours: GUEST_PACKED,
        peers: &[(GUEST_SPARSE_BY_PIPE, Expect::Faster(5.0))],
        limit: PACKED_CHUNKS,
    },
    Case {
        name: "guest: sparse, plain .zst",
        ours: of(GUEST_SPARSE, "guest-sparse.raw.zst", RAW),
        peers: &[(GUEST_SPARSE_BY_PIPE, Expect::Shown)],
        limit: STREAM_ZSTD,
    },
    Case {
        name: "guest: sparse, qcow2",
        ours: of(GUEST_SPARSE, "guest-sparse.qcow2", QCOW2),
        peers: &[(
            of(GUEST_SPARSE, "guest-sparse.qcow2", Way::QemuImg),
            Expect::Faster(1.5),
        )],
        limit: STREAM_PLAIN,
    },
    Case {
        name: "guest: the same image again",
        ours: over(GUEST_SPARSE, GUEST_PACKED),
        peers: &[(GUEST_PACKED, Expect::NothingMoves)],
        limit: COMPARED,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_contenders_are_their_own() {
        let all = [contenders(&CASES), contenders(&GUEST_CASES)].concat();
        let names: std::collections::BTreeSet<_> = all.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), all.len());
        assert!(
            names.contains("debian.packed.zst over debian.raw: ours"),
            "{names:?}"
        );
    }
}

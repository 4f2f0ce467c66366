//! Who writes what, and what is expected of whom: the bench's table as data.

use serde::Serialize;

use super::disk::Before;
use super::inputs::{DENSE, SPARSE, UPGRADED};
use super::limit::Limit;
use super::rivals::Way;

/// One way to write one file.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Contender {
    pub(super) name: &'static str,
    /// What the disk must hold at the end.
    pub(super) image: &'static str,
    /// What is fetched.
    pub(super) file: &'static str,
    pub(super) way: Way,
    #[serde(skip)]
    pub(super) before: Before,
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
    pub(super) ours: &'static str,
    pub(super) peers: &'static [(&'static str, Expect)],
    pub(super) limit: Option<Limit>,
}

const fn blank(name: &'static str, image: &'static str, file: &'static str, way: Way) -> Contender {
    Contender {
        name,
        image,
        file,
        way,
        before: Before::Blank,
    }
}

const GIB: f64 = 1_073_741_824.0;
/// What goes to the disk of each image, zeros left out.
const DATA_DENSE: f64 = 2.0 * GIB;
const DATA_SPARSE: f64 = 1.06 * GIB;

const PACKED: Way = Way::Ours(&["--format", "packed"]);
const QCOW2: Way = Way::Ours(&["--format", "qcow2"]);
const RAW: Way = Way::Ours(&[]);

const fn over(held: &'static str, contender: Contender) -> Contender {
    Contender {
        before: Before::Holds(held),
        ..contender
    }
}

/// In the order in which they take turns.
pub(super) const CONTENDERS: [Contender; 18] = [
    blank("dense packed: ours", DENSE, "dense.packed.zst", PACKED),
    blank("dense zst: ours", DENSE, "dense.raw.zst", RAW),
    blank(
        "dense zst: curl, zstd, dd",
        DENSE,
        "dense.raw.zst",
        Way::Pipe("zstd"),
    ),
    blank("dense gz: ours", DENSE, "dense.raw.gz", RAW),
    blank(
        "dense gz: curl, gzip, dd",
        DENSE,
        "dense.raw.gz",
        Way::Pipe("gzip"),
    ),
    blank("sparse packed: ours", SPARSE, "debian.packed.zst", PACKED),
    blank("sparse zst: ours", SPARSE, "debian.raw.zst", RAW),
    blank(
        "sparse zst: curl, zstd, dd",
        SPARSE,
        "debian.raw.zst",
        Way::Pipe("zstd"),
    ),
    blank(
        "sparse zst: bmaptool",
        SPARSE,
        "debian.raw.zst",
        Way::Bmaptool("debian.bmap"),
    ),
    blank("sparse raw: ours", SPARSE, "debian.raw", RAW),
    blank("sparse raw: IPA", SPARSE, "debian.raw", Way::Ipa),
    blank("qcow2: ours", SPARSE, "debian.qcow2", QCOW2),
    blank(
        "qcow2: curl, qemu-img",
        SPARSE,
        "debian.qcow2",
        Way::QemuImg,
    ),
    blank("qcow2 zlib: ours", SPARSE, "debian-zlib.qcow2", QCOW2),
    blank(
        "qcow2 zlib: curl, qemu-img",
        SPARSE,
        "debian-zlib.qcow2",
        Way::QemuImg,
    ),
    over(
        SPARSE,
        blank("again packed: ours", SPARSE, "debian.packed.zst", PACKED),
    ),
    blank(
        "upgraded full: ours",
        UPGRADED,
        "upgraded.packed.zst",
        PACKED,
    ),
    over(
        SPARSE,
        blank(
            "upgraded packed: ours",
            UPGRADED,
            "upgraded.packed.zst",
            PACKED,
        ),
    ),
];

/// In the order of the table.
pub(super) const CASES: [Case; 10] = [
    Case {
        name: "dense, packed",
        ours: "dense packed: ours",
        peers: &[("dense zst: curl, zstd, dd", Expect::FasterAndNoDearer(1.6))],
        limit: Some(Limit::AllCores(
            |rates| rates.zstd_dense.seconds,
            DATA_DENSE,
        )),
    },
    Case {
        name: "dense, plain .zst",
        ours: "dense zst: ours",
        peers: &[("dense zst: curl, zstd, dd", Expect::Faster(1.2))],
        limit: Some(Limit::OneCore(|rates| rates.zstd_dense.seconds, DATA_DENSE)),
    },
    Case {
        name: "dense, plain .gz",
        ours: "dense gz: ours",
        peers: &[("dense gz: curl, gzip, dd", Expect::Faster(1.2))],
        limit: Some(Limit::OneCore(|rates| rates.gzip_dense.seconds, DATA_DENSE)),
    },
    Case {
        name: "sparse, packed",
        ours: "sparse packed: ours",
        peers: &[
            ("sparse zst: curl, zstd, dd", Expect::Faster(5.0)),
            ("sparse zst: bmaptool", Expect::Faster(1.3)),
            ("sparse raw: IPA", Expect::Shown),
        ],
        limit: Some(Limit::AllCores(
            |rates| rates.zstd_dense.of(DATA_SPARSE),
            DATA_SPARSE,
        )),
    },
    Case {
        name: "sparse, plain .zst",
        ours: "sparse zst: ours",
        peers: &[
            ("sparse zst: curl, zstd, dd", Expect::Shown),
            ("sparse zst: bmaptool", Expect::Shown),
        ],
        limit: Some(Limit::OneCore(
            |rates| rates.zstd_sparse.seconds,
            DATA_SPARSE,
        )),
    },
    Case {
        name: "sparse, raw stream",
        ours: "sparse raw: ours",
        peers: &[("sparse raw: IPA", Expect::Faster(4.0))],
        limit: Some(Limit::OneCore(
            |rates| rates.sha256.of(8.0 * GIB),
            DATA_SPARSE,
        )),
    },
    Case {
        name: "sparse, qcow2",
        ours: "qcow2: ours",
        peers: &[("qcow2: curl, qemu-img", Expect::Faster(1.5))],
        limit: Some(Limit::OneCore(
            |rates| rates.sha256.of(DATA_SPARSE),
            DATA_SPARSE,
        )),
    },
    Case {
        name: "sparse, qcow2 compressed",
        ours: "qcow2 zlib: ours",
        peers: &[("qcow2 zlib: curl, qemu-img", Expect::Faster(1.5))],
        limit: None,
    },
    Case {
        name: "the same image again",
        ours: "again packed: ours",
        peers: &[("sparse packed: ours", Expect::NothingMoves)],
        limit: None,
    },
    Case {
        name: "an upgraded image over the old",
        ours: "upgraded packed: ours",
        peers: &[("upgraded full: ours", Expect::OnlyChanges(1.1))],
        limit: None,
    },
];

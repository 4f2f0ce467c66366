//! qcow2 files from a real server to a plain file that stands for a disk.

#[path = "../../../imaging/src/qcow2/hostile.rs"]
mod hostile;

use super::fixture::made::{self, Made, Stored, get, put};
use super::fixture::{MIB, Machine, expected, image, is_bootable, raw_ref, sha256};
use super::*;
use crate::disk::fixture::NoKernel;
use crate::stream::fixture::{Served, Server};
use ferrite_proto::image::Compression;
use std::sync::atomic::Ordering;
use std::time::Duration;

const DISK: usize = 24 * MIB;

type Spoil = fn(&Made, &mut Vec<u8>);

fn describe(server: &Server, file: &[u8]) -> ImageRef {
    ImageRef {
        format: Format::Qcow2,
        ..raw_ref(server.url(), file)
    }
}

/// Stored as QEMU would: holes where there are zeros.
fn sparse(_: usize, bytes: &[u8]) -> Stored {
    if bytes.iter().all(|&byte| byte == 0) {
        Stored::Hole
    } else {
        Stored::Plain
    }
}

/// Every way there is, by turns.
fn mixed(index: usize, bytes: &[u8]) -> Stored {
    match (sparse(index, bytes), index % 3) {
        (Stored::Hole, 0) => Stored::Zero,
        (Stored::Hole, 1) => Stored::SetAside,
        (Stored::Plain, 0 | 1) => Stored::Packed,
        (other, _) => other,
    }
}

/// Whatever the disk has in its place: the backup table moved or not, edges held back, holes.
#[test]
fn a_digest_of_the_content_is_that_of_the_raw_image() {
    let disk = image(16, 1);
    for (bits, disk_mib) in [(16, 16), (16, 24), (9, 24), (20, 17)] {
        let made = Made {
            cluster_bits: bits,
            ..Made::default()
        };
        let store = if bits == 9 { sparse } else { mixed };
        let file = made.file(&disk, store);
        let server = Server::start(vec![Served::whole(&file)]);
        let with = |digest| ImageRef {
            raw_digest: Some(digest),
            ..describe(&server, &file)
        };
        let machine = Machine::new(disk_mib * MIB);
        let problem = machine.write(&with(sha256(b"other")), &NoKernel);
        let problem = problem.unwrap_err();
        assert_eq!(problem.code, Code::ImageDigestMismatch, "{problem}");
        assert!(problem.message.contains("the content of http"), "{problem}");
        assert!(!is_bootable(&machine.disk()), "{bits} {disk_mib}");
        let written = machine.write(&with(sha256(&disk)), &NoKernel);
        assert!(written.is_ok(), "{bits} {disk_mib}: {written:?}");
        let after = expected(&disk, vec![0xa5; disk_mib * MIB]);
        assert!(machine.disk() == after, "{bits} {disk_mib}");
    }
}

#[test]
fn qcow2_becomes_what_raw_would_have_become() {
    let disk = image(16, 1);
    let zlib = Made::default();
    let kinds = [
        ("plain", zlib, sparse as fn(usize, &[u8]) -> Stored),
        ("compressed", zlib, |_, _| Stored::Packed),
        ("all ways", zlib, mixed),
        ("version 2", Made { version: 2, ..zlib }, sparse),
        ("zstd", Made { zstd: true, ..zlib }, mixed),
        (
            "4 KiB",
            Made {
                cluster_bits: 12,
                ..zlib
            },
            mixed,
        ),
        (
            "512 bytes",
            Made {
                cluster_bits: 9,
                ..zlib
            },
            sparse,
        ),
        (
            "2 MiB",
            Made {
                cluster_bits: 21,
                zstd: true,
                ..zlib
            },
            mixed,
        ),
    ];
    for (name, made, how) in kinds {
        let file = made.file(&disk, how);
        let server = Server::start(vec![Served::whole(&file)]);
        let mut machine = Machine::new(DISK);
        machine.verify = made.zstd;
        let written = machine.write(&describe(&server, &file), &NoKernel).unwrap();
        assert!(
            machine.disk() == expected(&disk, vec![0xa5; DISK]),
            "{name}"
        );
        assert_eq!(written.bytes_image, disk.len() as u64, "{name}");
        assert_eq!(written.bytes_read, file.len() as u64, "{name}");
        assert_eq!(written.digest, Some(sha256(&file).to_string()), "{name}");
        let whole = server
            .ranges()
            .iter()
            .filter(|range| range.is_empty())
            .count();
        assert_eq!(whole, 1, "{name}: the file is fetched once");
    }
}

#[test]
fn clusters_in_any_order_find_their_place() {
    // The file's first data cluster is the disk's last, and so on.
    let disk = image(16, 2);
    let made = Made::default();
    let mut file = made.file(&disk, |_, _| Stored::Plain);
    let clusters = disk.len() / made.cluster();
    for index in 0..clusters / 2 {
        let (a, b) = (
            made.l2() + index * 8,
            made.l2() + (clusters - 1 - index) * 8,
        );
        let (first, second) = (get(&file, a), get(&file, b));
        put(&mut file, a, second);
        put(&mut file, b, first);
        let at = |entry: u64| usize::try_from(entry & !(1 << 63)).unwrap();
        let (first, second) = (at(first), at(second));
        for byte in 0..made.cluster() {
            file.swap(first + byte, second + byte);
        }
    }
    let server = Server::start(vec![Served::whole(&file)]);
    let machine = Machine::new(DISK);
    machine.write(&describe(&server, &file), &NoKernel).unwrap();
    assert!(machine.disk() == expected(&disk, vec![0xa5; DISK]));
}

#[test]
fn an_image_of_odd_length_without_a_table_is_written_as_it_is() {
    let disk = vec![0x33; 3 * MIB + 70_001];
    for how in [sparse, mixed] {
        let file = Made::default().file(&disk, how);
        let server = Server::start(vec![Served::whole(&file)]);
        let machine = Machine::new(DISK);
        machine.write(&describe(&server, &file), &NoKernel).unwrap();
        let found = machine.disk();
        let whole = disk.len().next_multiple_of(512);
        assert!(found[..disk.len()] == disk);
        assert!(found[disk.len()..whole].iter().all(|&byte| byte == 0));
        assert_eq!(found[whole], 0xa5);
    }
}

#[test]
fn hostile_files_leave_the_disk_as_it_was_or_without_a_table() {
    for hostile in hostile::all() {
        let (name, file) = (hostile.name, &hostile.file);
        let server = Server::start(vec![Served::whole(file)]);
        let machine = Machine::new(2 * MIB);
        let problem = machine
            .write(&describe(&server, file), &NoKernel)
            .unwrap_err();
        // Of no bytes no part can be fetched.
        let words = if file.is_empty() {
            "byte 0"
        } else {
            hostile.words
        };
        assert!(problem.message.contains(words), "{name}: {problem}");
        assert!(
            problem.message.contains("http://127.0.0.1"),
            "{name}: {problem}"
        );
        assert!(hostile.late || machine.is_untouched(), "{name}");
        assert!(
            machine.is_untouched() || !is_bootable(&machine.disk()),
            "{name}"
        );
    }
}

#[test]
fn parts_that_lie_over_one_another_are_refused() {
    let disk = vec![7; 8 << 16];
    let made = Made::default();
    let packed = made.file(&disk, |_, _| Stored::Packed);
    let plain = made.file(&disk, |_, _| Stored::Plain);
    let spoils: [(&str, &[u8], Spoil); 4] = [
        ("two clusters in one place", &plain, |m, f| {
            let first = get(f, m.l2());
            put(f, m.l2() + 8, first);
        }),
        ("two compressed clusters in one place", &packed, |m, f| {
            let first = get(f, m.l2());
            put(f, m.l2() + 8, first);
        }),
        ("compressed over a sector of the next", &packed, |m, f| {
            let first = get(f, m.l2());
            put(f, m.l2(), first | 40 << 54);
        }),
        ("data that is an L2 table", &plain, |m, f| {
            let table = m.l2() as u64;
            put(f, m.l2(), table);
        }),
    ];
    for (name, file, spoil) in spoils {
        let mut file = file.to_vec();
        spoil(&made, &mut file);
        let server = Server::start(vec![Served::whole(&file)]);
        let machine = Machine::new(DISK);
        let problem = machine
            .write(&describe(&server, &file), &NoKernel)
            .unwrap_err();
        assert!(problem.message.contains("twice"), "{name}: {problem}");
        assert!(machine.is_untouched(), "{name}");
    }
}

#[test]
fn what_fails_before_the_first_write_leaves_the_disk_as_it_was() {
    let disk = image(16, 3);
    let file = Made::default().file(&disk, sparse);
    let gzip = {
        use std::io::Write as _;
        let level = flate2::Compression::fast();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), level);
        gzip.write_all(&file).unwrap();
        gzip.finish().unwrap()
    };
    let refused = |served: Served, bytes: usize, code: Code, words: &str| {
        let server = Server::start(vec![served]);
        let machine = Machine::new(bytes);
        let problem = machine
            .write(&describe(&server, &file), &NoKernel)
            .unwrap_err();
        assert_eq!(problem.code, code, "{problem}");
        assert!(problem.message.contains(words), "{problem}");
        assert!(machine.is_untouched(), "{problem}");
    };
    refused(Served::status(404), DISK, Code::ImageNotFound, "404");
    refused(
        Served::whole(&file),
        12 * MIB,
        Code::ImageTooLarge,
        "16.0 MiB",
    );
    refused(
        Served::whole(&file).without_ranges(),
        DISK,
        Code::ImageInvalid,
        "parts",
    );
    refused(
        Served::whole(&disk),
        DISK,
        Code::ImageFormat,
        "does not begin as a qcow2",
    );
    refused(
        Served::whole(&gzip),
        DISK,
        Code::ImageFormat,
        "does not begin as a qcow2",
    );
    refused(
        Served::whole(&file[..file.len() - 9]),
        DISK,
        Code::ImageTruncated,
        "cut off",
    );
    let server = Server::start(vec![Served::whole(&file)]);
    let machine = Machine::new(DISK);
    let declared = ImageRef {
        compression: Some(Compression::Gzip),
        ..describe(&server, &file)
    };
    let problem = machine.write(&declared, &NoKernel).unwrap_err();
    assert!(problem.message.contains("inside of another"), "{problem}");
    assert!(machine.is_untouched());
}

#[test]
fn a_wrong_digest_never_becomes_bootable() {
    let disk = image(16, 4);
    let file = Made::default().file(&disk, mixed);
    let server = Server::start(vec![Served::whole(&file)]);
    let machine = Machine::new(DISK);
    let wrong = ImageRef {
        digest: Some(sha256(b"other")),
        ..describe(&server, &file)
    };
    let problem = machine.write(&wrong, &NoKernel).unwrap_err();
    assert_eq!(problem.code, Code::ImageDigestMismatch);
    assert!(!is_bootable(&machine.disk()));
    machine.write(&describe(&server, &file), &NoKernel).unwrap();
    assert!(machine.disk() == expected(&disk, vec![0xa5; DISK]));
}

/// A server that shows other tables, or another first MiB, than the file has that it sends after.
#[test]
fn a_file_that_changes_between_its_tables_and_its_stream_is_found_out() {
    let disk = image(16, 5);
    let made = Made::default();
    let file = made.file(&disk, sparse);
    // By the digest, too: here nothing is demanded, so that only the comparison is left.
    let changes: [(&str, usize); 3] = [
        ("header", 60),
        ("L2 table", made.l2() + 8 * 200 + 7),
        (
            "first MiB",
            usize::try_from(get(&file, made.l2()) & !(1 << 63)).unwrap() + 5,
        ),
    ];
    for (name, at) in changes {
        let mut other = file.clone();
        other[at] ^= 1;
        let server = Server::start(vec![Served::whole(&file).then_whole(&other)]);
        let machine = Machine::new(DISK);
        let unverified = ImageRef {
            digest: None,
            allow_unverified: true,
            ..describe(&server, &file)
        };
        let problem = machine.write(&unverified, &NoKernel).unwrap_err();
        assert!(
            problem.message.contains("not the same throughout"),
            "{name}: {problem}"
        );
        assert!(!is_bootable(&machine.disk()), "{name}");
    }
}

#[test]
fn a_cancel_ends_it_within_a_second() {
    let disk = image(16, 6);
    let file = Made::default().file(&disk, |_, _| Stored::Plain);
    for stall in [10, 100_000, 6_000_000] {
        let server = Server::start(vec![Served::whole(&file).stall_after(stall)]);
        let machine = Machine::new(DISK);
        let described = describe(&server, &file);
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| machine.write(&described, &NoKernel));
            std::thread::sleep(Duration::from_millis(700));
            assert!(!writing.is_finished(), "{stall}");
            let cancelled = Instant::now();
            machine.cancelled.store(true, Ordering::Relaxed);
            let problem = writing.join().unwrap().unwrap_err();
            assert_eq!(problem.code, Code::StepCancelled, "{stall}: {problem}");
            assert!(cancelled.elapsed() < Duration::from_secs(1), "{stall}");
        });
        assert!(machine.is_untouched() || !is_bootable(&machine.disk()));
    }
}

//! Tests of `write-image` from a real server to plain files and, as root, to a loop device.

use super::*;
use crate::disk::fixture::{Loop, NoKernel, used_disk};
use crate::disk::gpt::tests::{outside_opinion, table_of};
use crate::disk::gpt::{self, HEAD, Table};
use crate::disk::{EDGE, mbr};
use crate::kernel::Linux;
use crate::root::Root;
use crate::stream::fixture::{Served, Server};
use crate::stream::terms::Patience;
use ferrite_proto::address::Policy;
use ferrite_proto::digest::{Algorithm, Digest};
use ferrite_proto::image::{Compression, Format};
use ferrite_proto::inventory::Disk;
use ferrite_proto::problem::Code;
use ferrite_proto::step::ImageWritten;
use sha2::Digest as _;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const IMAGE: u64 = 16 * MIB;
const DISK: u64 = 24 * MIB;

/// An image of [`IMAGE`] bytes: a table, a partition with data and zeros, and a backup table.
fn gpt_image() -> Vec<u8> {
    let (head, table) = table_of(512, IMAGE);
    let mut image = vec![0; usize::try_from(IMAGE).unwrap()];
    image[..head.len()].copy_from_slice(&head);
    for (at, byte) in image[6 << 20..9 << 20].iter_mut().enumerate() {
        *byte = u8::try_from(at.wrapping_mul(2_654_435_761) >> 11 & 0xff).unwrap();
    }
    image[11 << 20..12 << 20].fill(0x77);
    let (at, backup) = table.backup_bytes();
    let at = usize::try_from(at).unwrap();
    image[at..at + backup.len()].copy_from_slice(&backup);
    image
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::new(Algorithm::Sha256, sha2::Sha256::digest(bytes).to_vec()).unwrap()
}

fn describe(url: String, digest: Digest) -> ImageRef {
    ImageRef {
        url,
        digest: Some(digest),
        mirrors: Vec::new(),
        digest_url: None,
        raw_digest: None,
        signed_by: None,
        format: Format::Raw,
        compression: None,
        allow_unverified: false,
    }
}

fn compress(how: Compression, bytes: &[u8]) -> Vec<u8> {
    match how {
        Compression::None => bytes.to_vec(),
        Compression::Gzip => {
            // Two members, as `cat a.gz b.gz` makes.
            let (a, b) = bytes.split_at(bytes.len() / 2);
            let member = |part: &[u8]| {
                let mut gzip =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(part).unwrap();
                gzip.finish().unwrap()
            };
            [member(a), member(b)].concat()
        }
        Compression::Zstd => {
            let (a, b) = bytes.split_at(bytes.len() / 3);
            let frame = |part| zstd::stream::encode_all(part, 1).unwrap();
            [frame(a), frame(b)].concat()
        }
        Compression::Xz => {
            let options = lzma_rust2::XzOptions::with_preset(0);
            let mut xz = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
            xz.write_all(bytes).unwrap();
            xz.finish().unwrap()
        }
        Compression::Bzip2 => {
            let (a, b) = bytes.split_at(bytes.len() / 3);
            let stream = |part: &[u8]| {
                let mut bzip2 =
                    bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
                bzip2.write_all(part).unwrap();
                bzip2.finish().unwrap()
            };
            [stream(a), stream(b)].concat()
        }
        Compression::Lz4 => {
            let (a, b) = bytes.split_at(bytes.len() / 3);
            let frame = |part: &[u8]| {
                let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
                lz4.write_all(part).unwrap();
                lz4.finish().unwrap()
            };
            [frame(a), frame(b)].concat()
        }
    }
}

/// A machine with one disk, a plain file that was in use before.
struct Machine {
    _folder: tempfile::TempDir,
    root: Root,
    cancelled: AtomicBool,
}

impl Machine {
    fn new(disk_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        std::fs::create_dir(root.path("/dev")).unwrap();
        drop(used_disk(&root.path("/dev/vda"), disk_bytes));
        Self {
            _folder: folder,
            root,
            cancelled: AtomicBool::new(false),
        }
    }

    fn write(&self, image: &ImageRef) -> Result<ImageWritten, Problem> {
        self.write_leaving(0, image)
    }

    fn write_leaving(&self, room: u64, image: &ImageRef) -> Result<ImageWritten, Problem> {
        let disk = Disk {
            name: "/dev/vda".into(),
            ..Disk::default()
        };
        let patience = Patience {
            connect: Duration::from_secs(2),
            read: Duration::from_secs(5),
            attempts: 3,
            pause: Duration::from_millis(10),
            from: Policy::OthersAndLoopback,
            ..Patience::default()
        };
        let terms = Terms {
            patience,
            ..Terms::default()
        };
        let context = Context {
            root: &self.root,
            kernel: &NoKernel,
            progress: &|_| {},
            cancelled: &self.cancelled,
        };
        write(
            image,
            &disk,
            Demand {
                room,
                verify: false,
            },
            &terms,
            &context,
        )
    }

    fn disk(&self) -> Vec<u8> {
        std::fs::read(self.root.path("/dev/vda")).unwrap()
    }

    fn is_untouched(&self) -> bool {
        self.disk().iter().all(|&byte| byte == 0xa5)
    }

    /// No firmware and no kernel finds anything at either end.
    fn is_cleared(&self) -> bool {
        let disk = self.disk();
        let edge = usize::try_from(EDGE).unwrap();
        let mut edges = disk[..edge].iter().chain(&disk[disk.len() - edge..]);
        edges.all(|&byte| byte == 0)
    }

    /// The disk holds the image, with the table moved to the disk's own end.
    fn holds(&self, image: &[u8]) {
        let disk = self.disk();
        let table = Table::read(&disk[..HEAD], 512).unwrap().unwrap();
        let made = Table::read(&image[..HEAD], 512).unwrap().unwrap();
        assert_eq!(table.disk_bytes(), disk.len() as u64);
        assert!(table.partitions().eq(made.partitions()));
        gpt::confirm(&table, &self.root.path("/dev/vda")).unwrap();
        let edge = usize::try_from(EDGE).unwrap();
        let backup = usize::try_from(made.backup_range().start).unwrap();
        assert_eq!(disk[..440], image[..440], "boot code");
        assert!(disk[edge..backup] == image[edge..backup], "partitions");
        if disk.len() > image.len() + edge {
            assert!(
                disk[backup..image.len()].iter().all(|&byte| byte == 0),
                "old backup"
            );
        }
    }
}

/// As long as in production, from this machine.
fn here() -> Terms {
    let patience = Patience {
        from: Policy::OthersAndLoopback,
        ..Patience::default()
    };
    Terms {
        patience,
        ..Terms::default()
    }
}

#[test]
fn nothing_is_fetched_from_the_own_machine_and_nothing_written() {
    let machine = Machine::new(DISK);
    let image = gpt_image();
    let server = Server::start(vec![Served::whole(&image)]);
    let disk = Disk {
        name: "/dev/vda".into(),
        ..Disk::default()
    };
    let context = Context {
        root: &machine.root,
        kernel: &NoKernel,
        progress: &|_| {},
        cancelled: &machine.cancelled,
    };
    let named = server.url().replace("127.0.0.1", "localhost");
    for url in [server.url(), named] {
        let described = describe(url, sha256(&image));
        let refused = write(
            &described,
            &disk,
            Demand::default(),
            &Terms::default(),
            &context,
        )
        .unwrap_err();
        assert_eq!(refused.code, Code::ImageInvalid, "{refused}");
        assert!(machine.is_untouched());
    }
    assert!(server.ranges().is_empty());
}

#[test]
fn an_image_is_written_in_every_compression() {
    let image = gpt_image();
    for how in [
        Compression::None,
        Compression::Gzip,
        Compression::Zstd,
        Compression::Xz,
        Compression::Bzip2,
        Compression::Lz4,
    ] {
        let file = compress(how, &image);
        let server = Server::start(vec![Served::whole(&file)]);
        let machine = Machine::new(DISK);
        let written = machine
            .write(&describe(server.url(), sha256(&file)))
            .unwrap();
        machine.holds(&image);
        assert_eq!(written.bytes_read, file.len() as u64, "{how:?}");
        assert_eq!(written.bytes_image, IMAGE);
        assert!(written.bytes_zeroed >= 3 * MIB, "{}", written.bytes_zeroed);
        assert_eq!(written.bytes_zeroed + written.bytes_written, IMAGE);
        assert_eq!(written.digest, Some(sha256(&file).to_string()));
        match outside_opinion(&machine.root.path("/dev/vda")) {
            Some(said) => assert!(said.contains("No problems found"), "{said}"),
            None => eprintln!("not checked with sgdisk: it is not installed (gdisk)"),
        }
    }
}

#[test]
fn a_disk_of_the_images_own_size_will_do() {
    let image = gpt_image();
    let server = Server::start(vec![Served::whole(&image)]);
    let machine = Machine::new(IMAGE);
    let digest = Digest::new(Algorithm::Sha512, sha2::Sha512::digest(&image).to_vec()).unwrap();
    machine.write(&describe(server.url(), digest)).unwrap();
    machine.holds(&image);
    assert!(machine.disk() == image);
}

#[test]
fn an_image_without_a_table_is_written_as_it_is() {
    let mut image = vec![0x33; 3 * 1_048_576 + 700];
    image[1_500_000..2_900_000].fill(0);
    let server = Server::start(vec![Served::whole(&image)]);
    let machine = Machine::new(DISK);
    machine
        .write(&describe(server.url(), sha256(&image)))
        .unwrap();
    let disk = machine.disk();
    assert!(disk[..image.len()] == image);
    assert!(
        disk[image.len()..image.len().next_multiple_of(512)]
            .iter()
            .all(|&b| b == 0)
    );
    assert_eq!(disk[image.len().next_multiple_of(512)], 0xa5);
}

#[test]
fn a_tiny_image_is_written_too() {
    let image = vec![0x33; 1000];
    let server = Server::start(vec![Served::whole(&image)]);
    let machine = Machine::new(DISK);
    machine
        .write(&describe(server.url(), sha256(&image)))
        .unwrap();
    assert!(machine.disk()[..1000] == image);
}

#[test]
fn what_fails_before_the_first_write_leaves_the_disk_as_it_was() {
    let image = gpt_image();
    let digest = || sha256(&image);
    let refused = |served: Served, disk: u64, code: Code, words: &str| {
        let server = Server::start(vec![served]);
        let machine = Machine::new(disk);
        let problem = machine
            .write(&describe(server.url(), digest()))
            .unwrap_err();
        assert_eq!(problem.code, code, "{problem}");
        assert!(problem.message.contains(words), "{problem}");
        assert!(problem.message.contains("http://127.0.0.1"), "{problem}");
        assert!(machine.is_untouched(), "{problem}");
    };
    refused(Served::status(404), DISK, Code::ImageNotFound, "404");
    refused(Served::status(503), DISK, Code::ImageUnreachable, "503");
    refused(
        Served::whole(&image),
        12 * MIB,
        Code::ImageTooLarge,
        "12.0 MiB",
    );
    let packed = compress(Compression::Zstd, &image);
    refused(
        Served::whole(&packed),
        12 * MIB,
        Code::ImageTooLarge,
        "16.0 MiB",
    );
    refused(
        Served::whole(&image[..9 << 20]),
        DISK,
        Code::ImageTruncated,
        "byte 9437184",
    );
    refused(Served::whole(&[]), DISK, Code::ImageTruncated, "is empty");
    let mut damaged = image.clone();
    damaged[600] ^= 1;
    refused(Served::whole(&damaged), DISK, Code::ImageFormat, "damaged");
    refused(
        Served::whole(b"\x1f\x8bnot gzip"),
        DISK,
        Code::ImageFormat,
        "Gzip",
    );
    let qcow2 = [b"QFI\xfb\0\0\0\x03", [0; 600].as_slice()].concat();
    for file in [qcow2.clone(), compress(Compression::Gzip, &qcow2)] {
        refused(
            Served::whole(&file),
            DISK,
            Code::ImageFormat,
            "content is qcow2",
        );
    }
    let (head, _) = table_of(4096, IMAGE);
    refused(
        Served::whole(&head),
        DISK,
        Code::ImageFormat,
        "sectors of 4096",
    );
}

#[test]
fn an_image_that_leaves_no_room_for_the_config_drive_is_refused_before_the_first_write() {
    let image = gpt_image();
    for file in [image.clone(), compress(Compression::Zstd, &image)] {
        // Its partitions end at 12 MiB, and the disk's last MiB has the table.
        let server = Server::start(vec![Served::whole(&file)]);
        let described = describe(server.url(), sha256(&file));
        let machine = Machine::new(DISK);
        let problem = machine.write_leaving(12 * MIB, &described).unwrap_err();
        assert_eq!(problem.code, Code::ImageTooLarge, "{problem}");
        for words in ["image http", "16.0 MiB", "12.0 MiB", "24.0 MiB", "11534336"] {
            assert!(problem.message.contains(words), "{words}: {problem}");
        }
        assert!(machine.is_untouched());
        machine.write_leaving(11 * MIB, &described).unwrap();
        machine.holds(&image);
    }
}

#[test]
fn an_image_that_no_config_drive_can_follow_is_refused_before_the_first_write() {
    let refused = |image: &[u8], room: u64, code: Code, words: &str| {
        let server = Server::start(vec![Served::whole(image)]);
        let machine = Machine::new(DISK);
        let described = describe(server.url(), sha256(image));
        let problem = machine.write_leaving(room, &described).unwrap_err();
        assert_eq!(problem.code, code, "{problem}");
        assert!(problem.message.contains(words), "{problem}");
        assert!(machine.is_untouched());
    };
    let plain = vec![0x33; 3 << 20];
    refused(&plain, 22 * MIB, Code::ImageTooLarge, "22.0 MiB");
    refused(&plain, MIB, Code::ConfigDrive, "no partition table");
    let mut record = plain;
    record[440..512].fill(0);
    record[510..512].copy_from_slice(&[0x55, 0xaa]);
    mbr::add(&mut record, 2048, 4096).unwrap();
    refused(&record, 22 * MIB, Code::ImageTooLarge, "22.0 MiB");
    record.resize(usize::try_from(DISK).unwrap(), 0);
    let server = Server::start(vec![Served::whole(&record)]);
    let inside =
        Machine::new(DISK).write_leaving(20 * MIB, &describe(server.url(), sha256(&record)));
    assert_eq!(inside.unwrap().bytes_image, DISK);
    record.truncate(3 << 20);
    for number in 1..4 {
        mbr::add(&mut record, 2048 * number, 2048).unwrap();
    }
    refused(&record, MIB, Code::ConfigDriveTooLarge, "all four");
}

#[test]
fn a_declared_compression_that_is_wrong_is_refused() {
    let image = gpt_image();
    let server = Server::start(vec![Served::whole(&image)]);
    let machine = Machine::new(DISK);
    let mut described = describe(server.url(), sha256(&image));
    described.compression = Some(Compression::Zstd);
    let problem = machine.write(&described).unwrap_err();
    assert_eq!(problem.code, Code::ImageFormat);
    assert!(machine.is_untouched());
}

#[test]
fn nobody_listening_is_unreachable() {
    let url = Server::start(vec![]).url();
    let machine = Machine::new(DISK);
    let problem = machine.write(&describe(url, sha256(b""))).unwrap_err();
    assert_eq!(problem.code, Code::ImageUnreachable, "{problem}");
    assert!(machine.is_untouched());
}

#[test]
fn a_wrong_digest_never_becomes_bootable() {
    let image = gpt_image();
    let server = Server::start(vec![Served::whole(&image)]);
    let machine = Machine::new(DISK);
    let problem = machine
        .write(&describe(server.url(), sha256(b"other")))
        .unwrap_err();
    assert_eq!(problem.code, Code::ImageDigestMismatch);
    let found = sha256(&image).to_string();
    assert!(problem.message.contains(&found), "{problem}");
    assert!(machine.is_cleared());
    // And once more with the right one: it can be retried.
    let server = Server::start(vec![Served::whole(&image)]);
    machine
        .write(&describe(server.url(), sha256(&image)))
        .unwrap();
    machine.holds(&image);
}

#[test]
fn a_compressed_file_that_ends_early_never_becomes_bootable() {
    let image = gpt_image();
    for how in [
        Compression::Gzip,
        Compression::Zstd,
        Compression::Xz,
        Compression::Bzip2,
        Compression::Lz4,
    ] {
        let file = compress(how, &image);
        let cut = &file[..file.len() * 3 / 4];
        let server = Server::start(vec![Served::whole(cut)]);
        let machine = Machine::new(DISK);
        let problem = machine
            .write(&describe(server.url(), sha256(cut)))
            .unwrap_err();
        assert_eq!(problem.code, Code::ImageTruncated, "{problem}");
        assert!(machine.is_cleared(), "{problem}");
    }
}

#[test]
fn a_connection_that_breaks_is_continued_where_it_broke() {
    let image = gpt_image();
    let server = Server::start(vec![
        Served::whole(&image).cut_after(5_000_001),
        Served::whole(&image).cut_after(4_000_000),
        Served::whole(&image),
    ]);
    let machine = Machine::new(DISK);
    let written = machine
        .write(&describe(server.url(), sha256(&image)))
        .unwrap();
    machine.holds(&image);
    assert_eq!(written.bytes_read, IMAGE);
    let ranges = server.ranges();
    assert_eq!(ranges, ["", "bytes=5000001-", "bytes=9000001-"]);
}

#[test]
fn a_file_that_changed_meanwhile_is_not_continued() {
    let image = gpt_image();
    let server = Server::start(vec![
        Served::whole(&image).cut_after(5_000_000),
        Served::whole(&image).tagged("\"other\""),
    ]);
    let machine = Machine::new(DISK);
    let problem = machine
        .write(&describe(server.url(), sha256(&image)))
        .unwrap_err();
    assert_eq!(problem.code, Code::ImageTruncated);
    assert!(
        problem.message.contains("byte 5000000 of 16777216"),
        "{problem}"
    );
    assert!(machine.is_cleared());
}

#[test]
fn a_server_that_always_breaks_off_is_given_up_at_its_byte() {
    let image = gpt_image();
    let server = Server::start(vec![
        Served::whole(&image).cut_after(5_000_000),
        Served::whole(&image).cut_after(0),
        Served::whole(&image).cut_after(0),
        Served::whole(&image).cut_after(0),
    ]);
    let machine = Machine::new(DISK);
    let problem = machine
        .write(&describe(server.url(), sha256(&image)))
        .unwrap_err();
    assert_eq!(problem.code, Code::ImageTruncated, "{problem}");
    assert!(problem.message.contains("byte 5000000"), "{problem}");
    assert!(machine.is_cleared());
}

#[test]
fn an_image_that_turns_out_too_large_never_becomes_bootable() {
    // No table tells its size beforehand, and its compression hides it.
    let image = vec![0x42; usize::try_from(DISK + MIB).unwrap()];
    let file = compress(Compression::Zstd, &image);
    let server = Server::start(vec![Served::whole(&file)]);
    let machine = Machine::new(DISK);
    let problem = machine
        .write(&describe(server.url(), sha256(&file)))
        .unwrap_err();
    assert_eq!(problem.code, Code::ImageTooLarge);
    assert!(machine.is_cleared());
}

#[test]
fn a_cancel_ends_it_within_a_second() {
    let image = gpt_image();
    let server = Server::start(vec![Served::whole(&image).stall_after(6_000_000)]);
    let machine = Machine::new(DISK);
    let described = describe(server.url(), sha256(&image));
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| machine.write(&described));
        std::thread::sleep(Duration::from_millis(700));
        assert!(!writing.is_finished());
        let cancelled = Instant::now();
        machine.cancelled.store(true, Ordering::Relaxed);
        let problem = writing.join().unwrap().unwrap_err();
        assert_eq!(problem.code, Code::StepCancelled);
        assert!(cancelled.elapsed() < Duration::from_secs(1));
    });
    assert!(machine.is_cleared());
}

#[test]
fn the_disk_that_is_meant_is_found_and_written() {
    use crate::inspect::fixture;
    let image = gpt_image();
    let server = Server::start(vec![Served::whole(&image)]);
    let folder = tempfile::tempdir().unwrap();
    let root = Root::at(folder.path());
    fixture::disks(&root, &[("vda", DISK), ("vdb", DISK)]);
    let context = Context {
        root: &root,
        kernel: &NoKernel,
        progress: &|_| {},
        cancelled: &AtomicBool::new(false),
    };
    fixture::write(&root, &[("/proc/self/exe", b"\x7fELF agent")]);
    let described = describe(server.url(), sha256(&image));
    let mut meant = RootDisk::default();
    let problem = run(&described, &meant, false, &here(), &context).unwrap_err();
    assert_eq!(problem.code, Code::SeveralDisksMatch);
    meant.hints.serial = Some("vdb-serial".into());
    // The agent itself goes to the config drive: 4 MiB of it are too much for this disk.
    let agent = std::fs::File::create(root.path("/proc/self/exe")).unwrap();
    agent.set_len(4 * MIB).unwrap();
    let problem = run(&described, &meant, false, &here(), &context).unwrap_err();
    assert_eq!(problem.code, Code::ImageTooLarge);
    assert!(problem.message.contains("14.0 MiB"), "{problem}");
    agent.set_len(MIB - 1).unwrap();
    let Outcome::ImageWritten(written) = run(&described, &meant, true, &here(), &context).unwrap()
    else {
        panic!("another outcome")
    };
    assert_eq!(written.disk, "/dev/vdb");
    assert_eq!(written.serial.as_deref(), Some("vdb-serial"));
    assert!(written.verified);
}

#[test]
fn a_real_block_device_is_written_with_either_sector() {
    for sector in [512_u32, 4096] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        drop(used_disk(&file, DISK));
        let Some(device) = Loop::new(&file, sector) else {
            return;
        };
        let (head, table) = table_of(sector.into(), IMAGE);
        let mut image = vec![0x5c; usize::try_from(IMAGE).unwrap()];
        image[8 << 20..12 << 20].fill(0);
        image[..head.len()].copy_from_slice(&head);
        let (at, backup) = table.backup_bytes();
        let at = usize::try_from(at).unwrap();
        image[at..at + backup.len()].copy_from_slice(&backup);
        let server = Server::start(vec![Served::whole(&image)]);
        let disk = Disk {
            name: device.name.clone(),
            ..Disk::default()
        };
        let context = Context {
            root: &Root::system(),
            kernel: &Linux,
            progress: &|_| {},
            cancelled: &AtomicBool::new(false),
        };
        let described = describe(server.url(), sha256(&image));
        let written = write(&described, &disk, Demand::default(), &here(), &context).unwrap();
        assert!(written.bytes_zeroed >= 4 * MIB);
        let on_disk = std::fs::read(&file).unwrap();
        assert!(on_disk[1 << 20..at] == image[1 << 20..at]);
        let moved = Table::read(&on_disk[..HEAD], sector.into())
            .unwrap()
            .unwrap();
        assert_eq!(moved.disk_bytes(), DISK);
        let seen = device.partitions();
        drop(device);
        // A kernel without GPT sees none on a fresh device either.
        let fresh = Loop::new(&file, sector).unwrap().partitions();
        assert_eq!(seen, fresh, "the kernel must have read the new table");
        if fresh.is_empty() {
            let _ = writeln!(
                std::io::stderr(),
                "skipped: partitions: this kernel reads no GPT"
            );
        }
    }
}

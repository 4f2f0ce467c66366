//! Tests of packed images: what is fetched, what is written, and what is left alone.

use super::super::fixture::*;
use super::super::*;
use crate::disk::fixture::{Loop, NoKernel, used_disk};
use crate::disk::gpt::tests::table_of;
use crate::kernel::{Change, Kernel, Linux};
use crate::stream::fixture::{Served, Server};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const CHUNK: usize = 2 << 20;

/// What a disk holds after a first write, and the machine.
fn written(image: &[u8], disk_mib: usize) -> (Machine, Server, ImageRef, Vec<u8>) {
    let (file, packed) = pack(image);
    let server = Server::start(vec![Served::whole(&file)]);
    let described = packed_ref(server.url(), &packed);
    let machine = Machine::new(disk_mib * MIB);
    let report = machine.write(&described, &NoKernel).unwrap();
    assert!(machine.disk() == expected(image, vec![0xa5; disk_mib * MIB]));
    assert_eq!(report.bytes_image, image.len() as u64);
    assert_eq!(
        report.bytes_written + report.bytes_zeroed + report.bytes_skipped,
        report.bytes_image
    );
    assert_eq!(report.bytes_skipped, 0, "{report:?}");
    // The file's end and a few first bytes come twice.
    let twice = report.bytes_read.saturating_sub(file.len() as u64);
    assert!(twice < 80 << 10, "{} of {}", report.bytes_read, file.len());
    (machine, server, described, file)
}

#[test]
fn a_packed_image_is_written_and_its_table_moved() {
    let (machine, ..) = written(&image(48, 1), 64);
    drop(machine);
    written(&image(48, 1), 48);
}

#[test]
fn the_same_image_again_writes_nothing_and_fetches_next_to_nothing() {
    for disk_mib in [48, 64] {
        let (machine, _server, described, file) = written(&image(48, 1), disk_mib);
        let before = machine.disk();
        let recorder = Recorder::default();
        let report = machine.write(&described, &recorder).unwrap();
        assert_eq!(recorder.bytes(), 0);
        assert!(machine.disk() == before);
        assert_eq!((report.bytes_written, report.bytes_zeroed), (0, 0));
        assert_eq!(report.bytes_skipped, 48 * MIB as u64);
        let fetched = usize::try_from(report.bytes_read).unwrap();
        assert!(fetched * 100 < file.len(), "{fetched} of {}", file.len());
    }
}

#[test]
fn of_a_changed_image_only_what_changed_is_fetched_and_written() {
    let old = image(48, 1);
    let (machine, ..) = written(&old, 64);
    let mut new = old;
    // Three chunks get other data, one becomes zeros, one was zeros.
    for chunk in [5, 9, 10] {
        noise(
            &mut new[chunk * CHUNK..(chunk + 1) * CHUNK],
            77 + chunk as u64,
        );
    }
    new[13 * CHUNK..14 * CHUNK].fill(0);
    noise(&mut new[20 * CHUNK + 5..20 * CHUNK + MIB], 99);
    let (file, packed) = pack(&new);
    let server = Server::start(vec![Served::whole(&file)]);
    let described = packed_ref(server.url(), &packed);
    let changed = [5, 9, 10, 20].map(|chunk| u64::from(packed.index.chunks[chunk].packed));
    let changed: u64 = changed.iter().sum();
    let recorder = Recorder::default();
    let report = machine.write(&described, &recorder).unwrap();
    assert!(machine.disk() == expected(&new, vec![0xa5; 64 * MIB]));
    assert!(
        report.bytes_read * 10 <= changed * 11,
        "{} for {changed}",
        report.bytes_read
    );
    assert_eq!(report.bytes_skipped, (48 * MIB - 5 * CHUNK) as u64);
    // The chunks, and the edges: cleared and written.
    assert!(
        recorder.bytes() < 5 * CHUNK + 4 * MIB,
        "{}",
        recorder.bytes()
    );
}

#[test]
fn an_image_of_odd_length_without_a_table_is_written_as_it_is() {
    let mut image = vec![0; 9 * MIB + 777];
    noise(&mut image[2 * MIB..], 5);
    let (file, packed) = pack(&image);
    let server = Server::start(vec![Served::whole(&file)]);
    let described = packed_ref(server.url(), &packed);
    let machine = Machine::new(16 * MIB);
    for again in [false, true] {
        let report = machine.write(&described, &NoKernel).unwrap();
        let disk = machine.disk();
        assert!(disk[..image.len()] == image);
        let whole = image.len().next_multiple_of(512);
        assert!(disk[image.len()..whole].iter().all(|&byte| byte == 0));
        assert_eq!(disk[whole], 0xa5);
        assert_eq!(report.bytes_skipped == image.len() as u64, again);
    }
}

/// Once for its index, once for its chunks; and the second time as if it had changed.
#[test]
fn a_server_without_ranges_gives_the_file_twice() {
    let image = image(16, 1);
    let (file, packed) = pack(&image);
    let plain = || Served::whole(&file).without_ranges();
    let server = Server::start(vec![plain()]);
    let described = packed_ref(server.url(), &packed);
    let machine = Machine::new(24 * MIB);
    let after = expected(&image, vec![0xa5; 24 * MIB]);
    let report = machine.write(&described, &NoKernel).unwrap();
    assert!(machine.disk() == after);
    assert!(report.bytes_read > file.len() as u64 * 3 / 2, "{report:?}");
    // Nothing is to be written: nothing is fetched for it.
    let again = machine.write(&described, &NoKernel).unwrap();
    assert_eq!((again.bytes_written, again.bytes_zeroed), (0, 0));
    assert!(again.bytes_read <= file.len() as u64, "{again:?}");
    // One chunk is wrong, and one of zeros.
    let mut disk = after.clone();
    disk[5 * MIB] ^= 1;
    disk[14 * MIB] ^= 1;
    machine.set_disk(&disk);
    let mended = machine.write(&described, &NoKernel).unwrap();
    assert!(machine.disk() == after);
    assert!(mended.bytes_written < 6 * MIB as u64, "{mended:?}");
}

#[test]
fn a_file_that_changes_before_it_comes_again_never_boots() {
    let image = image(16, 1);
    let (file, packed) = pack(&image);
    let mut other = file.clone();
    let middle = usize::try_from(packed.index.packed_bytes()).unwrap() / 2;
    other[middle..middle + 100].fill(7);
    let plain = |file: &[u8]| Served::whole(file).without_ranges();
    for (second, code) in [
        (plain(&other), Code::ImageDigestMismatch),
        (plain(&other).tagged("\"two\""), Code::ImageTruncated),
        (plain(&file[..file.len() / 2]), Code::ImageTruncated),
    ] {
        // The first asks for a range, the second is for the index.
        let server = Server::start(vec![plain(&file), plain(&file), second]);
        let machine = Machine::new(24 * MIB);
        let problem = machine.write(&packed_ref(server.url(), &packed), &NoKernel);
        let problem = problem.unwrap_err();
        assert_eq!(problem.code, code, "{problem}");
        assert!(!is_bootable(&machine.disk()), "{problem}");
    }
}

#[test]
fn what_cannot_end_well_is_refused_before_the_first_write() {
    let image = image(16, 1);
    let (file, packed) = pack(&image);
    let refused = |served: Served, described: &ImageRef, code: Code, words: &str| {
        let server = Server::start(vec![served]);
        let machine = Machine::new(24 * MIB);
        let described = ImageRef {
            url: server.url(),
            ..described.clone()
        };
        let problem = machine.write(&described, &NoKernel).unwrap_err();
        assert_eq!(problem.code, code, "{problem}");
        let all = format!("{problem} {}", problem.advice);
        assert!(all.contains(words) && all.contains("http://"), "{all}");
        assert!(machine.is_untouched(), "{problem}");
    };
    let named = packed_ref(String::new(), &packed);
    let other = ImageRef {
        digest: Some(sha256(&file)),
        ..named.clone()
    };
    let whole = || Served::whole(&file);
    refused(whole(), &other, Code::ImageDigestMismatch, "ferrite-image");
    refused(Served::whole(&image), &named, Code::ImageFormat, "pack");
    refused(Served::whole(b"x"), &named, Code::ImageFormat, "pack");
    refused(Served::status(404), &named, Code::ImageNotFound, "404");
    let mut damaged = file.clone();
    let at = usize::try_from(packed.index.packed_bytes()).unwrap() + 40;
    damaged[at] ^= 1;
    refused(
        Served::whole(&damaged),
        &named,
        Code::ImageDigestMismatch,
        "digest",
    );
    let unverified = ImageRef {
        digest: None,
        allow_unverified: true,
        ..named.clone()
    };
    damaged[at - 30] ^= 0x10;
    refused(
        Served::whole(&damaged),
        &unverified,
        Code::ImageFormat,
        "damaged",
    );
}

/// An image signed by the key whose bytes are all `seed`, and that key's public half.
fn signed(image: &[u8], seed: u8) -> (Vec<u8>, String) {
    use base64::engine::{Engine as _, general_purpose::STANDARD as BASE64};
    use ferrite_imaging::packed::{Chunks, Packer, Writer};
    use ring::signature::{Ed25519KeyPair, KeyPair as _};

    let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
    let written = |bytes: &[u8]| BASE64.encode([b"Ed12345678", bytes].concat());
    let sign = |frame: &[u8]| {
        let signature = pair.sign(frame);
        let whole = pair.sign(&[signature.as_ref(), b"test"].concat());
        let (head, whole) = (written(signature.as_ref()), BASE64.encode(whole));
        Ok(format!(
            "untrusted comment: \n{head}\ntrusted comment: test\n{whole}\n"
        ))
    };
    let mut writer = Writer::new(Vec::new());
    let (mut chunks, mut raw) = (Chunks::new(image), Vec::new());
    let mut packer = Packer::new(1).unwrap();
    while chunks.next(&mut raw).unwrap() {
        let (frame, chunk) = packer.pack(&raw).unwrap();
        writer.push(raw.len(), &frame, chunk).unwrap();
    }
    let (file, _) = writer.finish(Some(&sign)).unwrap();
    (file, written(pair.public_key().as_ref()))
}

#[test]
fn a_signature_vouches_in_place_of_a_digest_and_only_its_own_key() {
    let image = image(16, 1);
    let (unsigned, packed) = pack(&image);
    let (file, key) = signed(&image, 1);
    let (other, _) = signed(&image, 2);
    let write = |file: &[u8], key: &str| {
        let server = Server::start(vec![Served::whole(file)]);
        let described = ImageRef {
            digest: None,
            signed_by: Some(key.to_owned()),
            ..packed_ref(server.url(), &packed)
        };
        let machine = Machine::new(24 * MIB);
        let result = machine.write(&described, &NoKernel);
        (result, machine)
    };
    let (result, machine) = write(&file, &key);
    result.unwrap();
    assert!(machine.disk() == expected(&image, vec![0xa5; 24 * MIB]));
    for (file, key, code, words) in [
        (
            &other,
            key.as_str(),
            Code::ImageDigestMismatch,
            "not of this key",
        ),
        (&unsigned, &key, Code::ImageDigestMismatch, "no signature"),
        (&file, "RWnonsense", Code::ImageInvalid, "public key"),
    ] {
        let (result, machine) = write(file, key);
        let problem = result.unwrap_err();
        assert_eq!(problem.code, code, "{problem}");
        assert!(problem.to_string().contains(words), "{problem}");
        assert!(machine.is_untouched(), "{problem}");
    }
}

#[test]
fn a_chunk_that_is_not_what_the_index_says_is_named_and_never_boots() {
    let image = image(48, 1);
    let (file, packed) = pack(&image);
    for number in [0, 7] {
        let chunk = packed.index.chunks[number];
        let mut damaged = file.clone();
        damaged[usize::try_from(chunk.offset).unwrap() + chunk.packed as usize / 2] ^= 4;
        let server = Server::start(vec![Served::whole(&damaged)]);
        let machine = Machine::new(64 * MIB);
        let problem = machine
            .write(&packed_ref(server.url(), &packed), &NoKernel)
            .unwrap_err();
        assert_eq!(problem.code, Code::ImageDigestMismatch, "{problem}");
        assert!(
            problem.message.contains(&format!("chunk {number} ")),
            "{problem}"
        );
        assert!(!is_bootable(&machine.disk()));
        // The right file is then written over it, and what was written before is used.
        let server = Server::start(vec![Served::whole(&file)]);
        machine
            .write(&packed_ref(server.url(), &packed), &NoKernel)
            .unwrap();
        assert!(machine.disk() == expected(&image, vec![0xa5; 64 * MIB]));
    }
}

#[test]
fn connections_that_are_cut_are_continued() {
    let image = image(16, 1);
    let (file, packed) = pack(&image);
    for part in 1..20 {
        let cut = file.len() * part / 20;
        let mut scripts = vec![Served::whole(&file).cut_after(cut % 300_000 + 1000); 2];
        scripts.push(Served::whole(&file).cut_after(cut.max(70 << 10)));
        let server = Server::start(scripts);
        let machine = Machine::new(24 * MIB);
        machine
            .write(&packed_ref(server.url(), &packed), &NoKernel)
            .unwrap();
        assert!(
            machine.disk() == expected(&image, vec![0xa5; 24 * MIB]),
            "{cut}"
        );
    }
}

#[test]
fn a_cancel_ends_it_within_a_second() {
    let image = image(48, 1);
    let (file, packed) = pack(&image);
    let server = Server::start(vec![
        Served::whole(&file),
        Served::whole(&file),
        Served::whole(&file).stall_after(100_000),
    ]);
    let machine = Machine::new(64 * MIB);
    let described = packed_ref(server.url(), &packed);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| machine.write(&described, &NoKernel));
        std::thread::sleep(Duration::from_millis(700));
        assert!(!writing.is_finished());
        let cancelled = Instant::now();
        machine.cancelled.store(true, Ordering::Relaxed);
        let problem = writing.join().unwrap().unwrap_err();
        assert_eq!(problem.code, Code::StepCancelled, "{problem}");
        assert!(cancelled.elapsed() < Duration::from_secs(1));
    });
    assert!(!is_bootable(&machine.disk()));
}

/// A disk that forgets: a byte of it changes when it is told to make all durable.
#[derive(Debug)]
struct Forgetful {
    path: PathBuf,
    at: u64,
    flushes: AtomicUsize,
}

impl Kernel for Forgetful {
    fn changing(&self, change: Change<'_>) -> io::Result<()> {
        // The first flush is that of the cleared edges, the second that of the data.
        if matches!(change, Change::Flush) && self.flushes.fetch_add(1, Ordering::Relaxed) == 1 {
            let disk = std::fs::File::options().write(true).open(&self.path)?;
            disk.write_all_at(&[0x13], self.at)?;
        }
        Ok(())
    }
}

#[test]
fn a_disk_that_does_not_keep_what_was_written_is_found_before_it_boots() {
    let image = image(16, 1);
    let (file, packed) = pack(&image);
    let raw = Server::start(vec![Served::whole(&image)]);
    let server = Server::start(vec![Served::whole(&file)]);
    for described in [
        raw_ref(raw.url(), &image),
        packed_ref(server.url(), &packed),
    ] {
        // In data, in zeros, and in the chunk of the head.
        for at in [7 * MIB, 13 * MIB, MIB + 5] {
            let mut machine = Machine::new(24 * MIB);
            machine.verify = true;
            let forgetful = Forgetful {
                path: machine.folder().join("dev/vda"),
                at: at as u64,
                flushes: AtomicUsize::new(0),
            };
            let problem = machine.write(&described, &forgetful).unwrap_err();
            assert_eq!(problem.code, Code::DiskIo, "{at}: {problem}");
            assert!(problem.message.contains("does not return"), "{problem}");
            assert!(!is_bootable(&machine.disk()));
            machine.write(&described, &NoKernel).unwrap();
            assert!(machine.disk() == expected(&image, vec![0xa5; 24 * MIB]));
        }
    }
}

#[test]
fn a_digest_of_the_content_is_checked_before_the_disk_boots() {
    let image = image(16, 1);
    let (file, packed) = pack(&image);
    let raw = Server::start(vec![Served::whole(&image)]);
    let server = Server::start(vec![Served::whole(&file)]);
    for described in [
        raw_ref(raw.url(), &image),
        packed_ref(server.url(), &packed),
    ] {
        let with = |digest| ImageRef {
            raw_digest: Some(digest),
            ..described.clone()
        };
        let machine = Machine::new(24 * MIB);
        let problem = machine.write(&with(sha256(b"other")), &NoKernel);
        let problem = problem.unwrap_err();
        assert_eq!(problem.code, Code::ImageDigestMismatch, "{problem}");
        assert!(problem.message.contains("the content of http"), "{problem}");
        assert!(!is_bootable(&machine.disk()));
        machine.write(&with(sha256(&image)), &NoKernel).unwrap();
        assert!(machine.disk() == expected(&image, vec![0xa5; 24 * MIB]));
    }
}

#[test]
fn a_real_block_device_is_written_with_either_sector() {
    for sector in [512_u32, 4096] {
        let machine = Machine::new(MIB);
        let file = machine.folder().join("backing");
        drop(used_disk(&file, 64 * MIB as u64));
        let Some(device) = Loop::new(&file, sector) else {
            return;
        };
        let (head, table) = table_of(sector.into(), 48 * MIB as u64);
        let mut image = vec![0; 48 * MIB];
        noise(&mut image[2 * MIB..30 * MIB], 3);
        image[..head.len()].copy_from_slice(&head);
        let (at, backup) = table.backup_bytes();
        let at = usize::try_from(at).unwrap();
        image[at..at + backup.len()].copy_from_slice(&backup);
        let (packed_file, packed) = pack(&image);
        let server = Server::start(vec![Served::whole(&packed_file)]);
        let described = packed_ref(server.url(), &packed);
        // The device's own name, in the machine's folder.
        let name = machine.folder().join("dev/vda");
        std::fs::remove_file(&name).unwrap();
        std::os::unix::fs::symlink(&device.name, &name).unwrap();
        let report = machine.write(&described, &Linux).unwrap();
        assert_eq!(report.bytes_skipped, 0, "{report:?}");
        let on_disk = std::fs::read(&file).unwrap();
        assert!(on_disk[MIB..at] == image[MIB..at], "sectors of {sector}");
        let again = machine.write(&described, &Linux).unwrap();
        assert_eq!(
            (again.bytes_written, again.bytes_zeroed),
            (0, 0),
            "{again:?}"
        );
    }
}

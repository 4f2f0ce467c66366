//! What must never happen: a disk that boots and is not whole. Power cuts, a killed agent, disks
//! that fail; for each form of image.

use super::fixture::made::{Made, Stored};
use super::fixture::*;
use super::*;
use crate::disk::fixture::NoKernel;
use crate::kernel::{Change, Kernel};
use crate::stream::fixture::{Served, Server};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Sizes of images and disks, MiB.
const IMAGE: usize = 16;
const DISK: usize = 24;
/// What a child of a test is told in its environment.
const KILL_AFTER: &str = "FERRITE_TEST_KILL_AFTER";
const FOLDER: &str = "FERRITE_TEST_FOLDER";
const WHAT: &str = "FERRITE_TEST_IMAGE";

/// Each form of an image: what is served, and what names it.
fn forms(image: &[u8]) -> Vec<(&'static str, Server, ImageRef, usize)> {
    let raw = Server::start(vec![Served::whole(image)]);
    let raw_ref = raw_ref(raw.url(), image);
    let (file, packed) = pack(image);
    let server = Server::start(vec![Served::whole(&file)]);
    let packed_ref = packed_ref(server.url(), &packed);
    let qcow2 = Made::default().file(image, |index, bytes| {
        match (bytes.iter().all(|&byte| byte == 0), index % 2) {
            (true, _) => Stored::Hole,
            (false, 0) => Stored::Plain,
            (false, _) => Stored::Packed,
        }
    });
    let clusters = Server::start(vec![Served::whole(&qcow2)]);
    let qcow2_ref = ImageRef {
        format: Format::Qcow2,
        ..super::fixture::raw_ref(clusters.url(), &qcow2)
    };
    vec![
        ("raw", raw, raw_ref, image.len()),
        ("packed", server, packed_ref, file.len()),
        ("qcow2", clusters, qcow2_ref, qcow2.len()),
    ]
}

/// Small, even, and the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

/// Makes a change, or the part of it that reached the medium: whole, torn at a sector, or not.
fn reach(disk: &mut [u8], change: &Recorded, dice: &mut Dice, torn: bool) {
    let (offset, length) = match change {
        Recorded::Write { offset, bytes } => (*offset, bytes.len()),
        Recorded::Zero { offset, length } => (*offset, *length),
        Recorded::Flush => return,
    };
    let sectors = length / 512;
    let range = match dice.roll(4) {
        _ if !torn => 0..length,
        0 => 0..0,
        1 => 0..length,
        2 => 0..dice.roll(sectors.max(1)) * 512,
        _ => dice.roll(sectors.max(1)) * 512..length,
    };
    let place = &mut disk[offset + range.start..offset + range.end];
    match change {
        Recorded::Write { bytes, .. } => place.copy_from_slice(&bytes[range]),
        _ => place.fill(0),
    }
}

/// Cuts the power at so many points of a recording, and looks at what the disk holds then.
fn cut_power(form: &str, before: &[u8], changes: &[Recorded], after: &[u8], points: usize) {
    let body = MIB..before.len() - MIB;
    let mut dice = Dice(7);
    let (mut durable, mut flushed) = (before.to_vec(), 0);
    let each = points.div_ceil(changes.len() + 1);
    let (mut dark, mut cuts) = (0, 0);
    for upto in 0..=changes.len() {
        for _ in 0..each {
            let mut disk = durable.clone();
            for change in &changes[flushed..upto] {
                reach(&mut disk, change, &mut dice, true);
            }
            cuts += 1;
            if !is_bootable(&disk) {
                dark += 1;
                continue;
            }
            let old = disk[body.clone()] == before[body.clone()];
            let new = disk[body.clone()] == after[body.clone()];
            assert!(
                old || new,
                "{form}: boots half-written after {upto} changes"
            );
        }
        if matches!(changes.get(upto), Some(Recorded::Flush)) {
            for change in &changes[flushed..upto] {
                reach(&mut durable, change, &mut dice, false);
            }
            flushed = upto + 1;
        }
    }
    assert!(
        cuts >= points && dark > cuts / 4,
        "{form}: {dark} of {cuts} were dark"
    );
    assert!(
        durable == after,
        "{form}: what was flushed is not the whole"
    );
}

#[test]
fn a_power_cut_leaves_the_old_the_new_or_nothing_that_boots() {
    let new = image(IMAGE, 1);
    for disk_mib in [IMAGE, DISK] {
        let before = expected(&image(IMAGE, 2), vec![0xa5; disk_mib * MIB]);
        let after = expected(&new, before.clone());
        for (form, _server, image, _) in forms(&new) {
            let machine = Machine::new(disk_mib * MIB);
            machine.set_disk(&before);
            let recorder = Recorder::default();
            machine.write(&image, &recorder).unwrap();
            assert!(machine.disk() == after, "{form}");
            cut_power(form, &before, &recorder.changes(), &after, 500);
        }
    }
}

#[test]
fn an_image_without_a_table_is_held_back_at_both_ends_too() {
    // A GPT's backup without its first copy: firmware would recover it.
    let whole = image(IMAGE, 1);
    let mut new = whole.clone();
    new[..MIB].fill(0x11);
    new[510..512].copy_from_slice(&[0x55, 0xaa]);
    let before = image(IMAGE, 2);
    for (form, _server, image, _) in forms(&new) {
        let machine = Machine::new(IMAGE * MIB);
        machine.set_disk(&before);
        let recorder = Recorder::default();
        machine.write(&image, &recorder).unwrap();
        assert!(machine.disk() == new, "{form}");
        cut_power(form, &before, &recorder.changes(), &new, 500);
    }
}

/// A kernel that kills its process after so many bytes of changes.
#[derive(Debug)]
struct Killer {
    after: u64,
    seen: AtomicU64,
}

impl Kernel for Killer {
    fn changing(&self, change: Change<'_>) -> io::Result<()> {
        let bytes = match change {
            Change::Write { bytes, .. } => bytes.len() as u64,
            Change::Zero { length, .. } => length,
            Change::Flush => 0,
        };
        if self.seen.fetch_add(bytes, Ordering::Relaxed) + bytes > self.after {
            let own = nix::unistd::Pid::this();
            nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        Ok(())
    }
}

/// Not a test of its own: what the next one starts as a process and has killed.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Ok(after) = std::env::var(KILL_AFTER) else {
        return;
    };
    let image = serde_json::from_str(&std::env::var(WHAT).unwrap()).unwrap();
    let folder = std::env::var(FOLDER).unwrap();
    let killer = Killer {
        after: after.parse().unwrap(),
        seen: AtomicU64::new(0),
    };
    let never = AtomicBool::new(false);
    let _ = write_at(Path::new(&folder), &image, &killer, false, &never);
}

fn killed_after(bytes: usize, machine: &Machine, image: &ImageRef) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "image::faults::child_that_writes_until_it_is_killed",
        ])
        .env(KILL_AFTER, bytes.to_string())
        .env(FOLDER, machine.folder())
        .env(WHAT, serde_json::to_string(image).unwrap())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(9), "after {bytes} bytes: {status}");
}

/// A machine is killed after so many bytes of changes; then the image is written again.
fn killed_and_again(
    machine: &Machine,
    bytes: usize,
    image: &ImageRef,
    after: &[u8],
) -> ImageWritten {
    killed_after(bytes, machine, image);
    // Nothing boots until the tables are written, and these come when all else is there.
    let (cut, body) = (machine.disk(), MIB..after.len() - MIB);
    let whole = cut[body.clone()] == after[body];
    assert!(!is_bootable(&cut) || whole, "killed after {bytes}");
    let written = machine.write(image, &NoKernel).unwrap();
    assert!(machine.disk() == after, "killed after {bytes}");
    written
}

/// Bytes of changes before the last sector, which is what makes a disk boot.
fn changes_of(image: &ImageRef, disk: usize) -> usize {
    let recorder = Recorder::default();
    Machine::new(disk).write(image, &recorder).unwrap();
    recorder.bytes() - 512
}

#[test]
fn killed_at_each_fiftieth_it_never_boots_and_the_retry_fetches_less() {
    let (disk, new) = (40 * MIB, image(32, 1));
    let (_, server, image, file) = forms(&new).remove(1);
    let all = changes_of(&image, disk);
    let after = expected(&new, vec![0xa5; disk]);
    let fetched = (0..50).map(|part| {
        let machine = Machine::new(disk);
        let written = killed_and_again(&machine, all * part / 50, &image, &after);
        usize::try_from(written.bytes_read).unwrap()
    });
    let fetched: Vec<usize> = fetched.collect();
    drop(server);
    // What each thread had in hand is fetched again.
    assert!(
        fetched[45..].iter().all(|&bytes| bytes < file / 2),
        "{fetched:?} of {file}"
    );
}

#[test]
fn a_stream_killed_anywhere_never_boots_and_can_be_written_again() {
    let (disk, new) = (DISK * MIB, image(IMAGE, 1));
    let after = expected(&new, vec![0xa5; disk]);
    for (form, _server, image, _) in forms(&new) {
        if form == "packed" {
            continue;
        }
        let all = changes_of(&image, disk);
        // `FERRITE_LONG=1`: each 2 %; else each 10 %.
        let parts = if std::env::var_os("FERRITE_LONG").is_some() {
            50
        } else {
            10
        };
        for part in 0..parts {
            killed_and_again(&Machine::new(disk), all * part / parts, &image, &after);
        }
    }
}

#[test]
fn a_disk_that_fails_anywhere_is_named_and_does_not_boot() {
    let new = image(IMAGE, 1);
    let mut dice = Dice(3);
    for (form, _server, image, _) in forms(&new) {
        let recorder = Recorder::default();
        Machine::new(DISK * MIB).write(&image, &recorder).unwrap();
        let changes = recorder.changes().len();
        for how in [libc::EIO, libc::ENOSPC] {
            for _ in 0..12 {
                let at = dice.roll(changes);
                let machine = Machine::new(DISK * MIB);
                let failing = Recorder::failing(at, how);
                let problem = machine.write(&image, &failing).unwrap_err();
                assert_eq!(problem.code, Code::DiskIo, "{form} at {at}: {problem}");
                assert!(problem.message.contains("/dev/vda"), "{problem}");
                let cut = machine.disk();
                let after = expected(&new, vec![0xa5; DISK * MIB]);
                let whole = cut[MIB..23 * MIB] == after[MIB..23 * MIB];
                assert!(!is_bootable(&cut) || whole, "{form} at {at}");
                machine.write(&image, &NoKernel).unwrap();
                assert!(machine.disk() == after, "{form} at {at}");
            }
        }
    }
}

#[test]
fn a_disk_that_is_one_sector_too_small_is_left_as_it_was() {
    let new = image(IMAGE, 1);
    for (form, _server, image, _) in forms(&new) {
        let machine = Machine::new(IMAGE * MIB - 512);
        let recorder = Recorder::default();
        let problem = machine.write(&image, &recorder).unwrap_err();
        assert_eq!(problem.code, Code::ImageTooLarge, "{form}: {problem}");
        assert!(machine.is_untouched() && recorder.changes().is_empty());
    }
}

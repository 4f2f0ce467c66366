//! Servers that send something else than what was described, for each form of image: wrong bytes,
//! too few, too many, another file from the middle on; and images that are cut off at each of their
//! structures. None of it may boot, and the right file can be written afterwards.

use super::fixture::made::{Made, Stored};
use super::fixture::*;
use super::*;
use crate::disk::fixture::NoKernel;
use crate::stream::fixture::{Served, Server};

/// Sizes of images and disks, MiB.
const IMAGE: usize = 16;
const DISK: usize = 24;

/// Each form: the file, and what describes it but for its URL.
fn forms(image: &[u8]) -> Vec<(&'static str, Vec<u8>, ImageRef)> {
    let (packed_file, packed) = pack(image);
    let qcow2 = Made::default().file(image, |_, bytes| {
        if bytes.iter().all(|&byte| byte == 0) {
            Stored::Hole
        } else {
            Stored::Plain
        }
    });
    let zstd = zstd::bulk::compress(image, 1).unwrap();
    let described = |file: &[u8]| raw_ref(String::new(), file);
    let qcow2_ref = ImageRef {
        format: Format::Qcow2,
        ..described(&qcow2)
    };
    vec![
        ("raw", image.to_vec(), described(image)),
        ("zstd", zstd.clone(), described(&zstd)),
        ("qcow2", qcow2, qcow2_ref),
        ("packed", packed_file, packed_ref(String::new(), &packed)),
    ]
}

fn at(server: &Server, described: &ImageRef) -> ImageRef {
    ImageRef {
        url: server.url(),
        ..described.clone()
    }
}

/// The disk is as it was, or nothing boots from it.
fn is_dark(machine: &Machine) -> bool {
    machine.is_untouched() || !is_bootable(&machine.disk())
}

type Spoil = fn(&mut Vec<u8>);

const SPOILS: [(&str, Spoil); 5] = [
    ("a wrong byte", |file| {
        let middle = file.len() / 2;
        file[middle] ^= 4;
    }),
    ("a byte too few", |file| file.truncate(file.len() - 1)),
    ("half of it", |file| file.truncate(file.len() / 2)),
    ("a byte too many", |file| file.push(7)),
    ("a MiB too many", |file| {
        file.resize(file.len() + MIB, 0x5a);
    }),
];

#[test]
fn other_bytes_fewer_and_more_do_not_boot() {
    let image = image(IMAGE, 1);
    for (form, file, described) in forms(&image) {
        for (name, spoil) in SPOILS {
            let mut other = file.clone();
            spoil(&mut other);
            let server = Server::start(vec![Served::whole(&other)]);
            let machine = Machine::new(DISK * MIB);
            let written = machine.write(&at(&server, &described), &NoKernel);
            let problem = written.expect_err(&format!("{form}, {name}: was written"));
            let named = problem.message.contains("http://127.0.0.1");
            assert!(named, "{form}, {name}: {problem}");
            assert!(is_dark(&machine), "{form}, {name}: {problem}");
            // Behind the image there may be what was too much.
            let right = expected(&image, machine.disk());
            let server = Server::start(vec![Served::whole(&file)]);
            machine.write(&at(&server, &described), &NoKernel).unwrap();
            assert!(machine.disk() == right, "{form}, {name}");
        }
    }
}

#[test]
fn another_file_from_the_middle_on_is_found_out() {
    let image = image(IMAGE, 1);
    for (form, file, described) in forms(&image) {
        // The new file is as long, and differs where the old one would be continued.
        let mut other = file.clone();
        for byte in &mut other[file.len() / 2..file.len() / 2 + 4096] {
            *byte ^= 0x55;
        }
        let mut found_out = 0;
        for first in 1..6 {
            let old = Served::whole(&file).cut_after(file.len() / 3);
            let mut scripts = vec![old; first];
            scripts.push(Served::whole(&other).tagged("\"two\""));
            let server = Server::start(scripts);
            let machine = Machine::new(DISK * MIB);
            let Err(problem) = machine.write(&at(&server, &described), &NoKernel) else {
                // All of it came before the file was another one.
                let right = machine.disk() == expected(&image, vec![0xa5; DISK * MIB]);
                assert!(right, "{form}, {first}");
                continue;
            };
            found_out += 1;
            assert!(is_dark(&machine), "{form}, {first}: {problem}");
            let named = problem.message.contains("http://127.0.0.1");
            assert!(named, "{form}, {first}: {problem}");
        }
        assert!(found_out > 0, "{form} never met the other file");
    }
}

#[test]
fn an_image_that_is_cut_off_at_a_structure_does_not_boot() {
    let image = image(IMAGE, 1);
    let (entries, table) = (1024, 34 * 512);
    let backup = image.len() - 33 * 512;
    let cuts = [
        ("in its header", 600),
        ("before its entries", entries),
        ("in its entries", entries + 300),
        ("behind its table", table),
        ("at a MiB", MIB),
        ("in its data", 5 * MIB + 1),
        ("before its backup", backup),
        ("in its backup's entries", backup + 700),
        ("before its backup's header", image.len() - 512),
        ("a byte before its end", image.len() - 1),
    ];
    for (name, cut) in cuts {
        let file = image[..cut].to_vec();
        let packed = zstd::bulk::compress(&file, 1).unwrap();
        // Its digest is right: somebody published it so.
        for file in [file, packed] {
            let server = Server::start(vec![Served::whole(&file)]);
            let machine = Machine::new(DISK * MIB);
            let described = raw_ref(server.url(), &file);
            let written = machine.write(&described, &NoKernel);
            let problem = written.expect_err(&format!("cut off {name}: was written"));
            assert!(is_dark(&machine), "{name}: {problem}");
            assert!(problem.message.contains("byte") || !problem.advice.is_empty());
        }
    }
}

//! What `qemu-img` writes is read as `qemu-img` reads it; and made by hand, what it does not write.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use super::made::{Made, Stored};
use super::*;

const MIB: usize = 1 << 20;

/// A disk with text, noise, zeros and a length that is no multiple of anything.
fn disk(bytes: usize) -> Vec<u8> {
    let mut disk = vec![0; bytes];
    for (at, part) in disk.chunks_mut(300_007).enumerate() {
        match at % 4 {
            0 => fill(part, b"Nothing is written before all is known. "),
            1 => noise(part, at as u64),
            2 => {}
            _ => fill(part, b"a"),
        }
    }
    disk
}

fn fill(part: &mut [u8], with: &[u8]) {
    part.iter_mut()
        .zip(with.iter().cycle())
        .for_each(|(to, from)| *to = *from);
}

fn noise(part: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in part {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state.to_le_bytes()[3];
    }
}

fn content(file: &dyn ReadAt) -> io::Result<Vec<u8>> {
    let image = Qcow2::open(file)?;
    let mut bytes = Vec::new();
    image.content(file)?.read_to_end(&mut bytes)?;
    assert_eq!(bytes.len() as u64, image.size());
    Ok(bytes)
}

/// Runs `qemu-img`; false, with a line that says so, where it is not installed.
fn qemu(program: &str, args: &[&str]) -> bool {
    match Command::new(program).args(args).output() {
        Ok(done) => {
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(done.status.success(), "{program} {args:?}: {said}");
            true
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "skipped: {program}: {error}");
            false
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_qemu_converts_is_read_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, made) = (folder.path().join("raw"), folder.path().join("made"));
    let disk = disk(9 * MIB + 512);
    std::fs::write(&raw, &disk).unwrap();
    for options in [
        "compat=0.10",
        "compat=1.1",
        "compat=0.10,cluster_size=512",
        "cluster_size=512",
        "cluster_size=4096",
        "cluster_size=1M",
        "cluster_size=2M",
        "preallocation=metadata",
        "preallocation=falloc",
        "preallocation=full",
        "lazy_refcounts=on",
        "refcount_bits=1",
        "compression_type=zstd",
    ] {
        for compressed in [&[][..], &["-c"]] {
            if options.starts_with("prealloc") && !compressed.is_empty() {
                continue;
            }
            let args = ["convert", "-f", "raw", "-O", "qcow2", "-o", options];
            let ends = [text(&raw), text(&made)];
            if !qemu("qemu-img", &[&args, compressed, &ends].concat()) {
                return;
            }
            let found = content(&File::open(&made).unwrap()).unwrap();
            assert!(found == disk, "{options} {compressed:?}");
        }
    }
}

#[test]
fn what_qemu_writes_and_takes_back_is_read_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, made) = (folder.path().join("raw"), folder.path().join("made"));
    for options in ["compat=0.10", "compat=1.1", "cluster_size=4k"] {
        // A size that is not whole clusters, snapshots that share them, data out of order.
        let create = [
            "create",
            "-f",
            "qcow2",
            "-o",
            options,
            text(&made),
            "10000384",
        ];
        if !qemu("qemu-img", &create) {
            return;
        }
        let written = [
            "write -P 7 5M 3M",
            "write -P 9 100k 70k",
            "write -z 6M 128k",
            "discard 7M 512k",
            "write -P 3 9999872 512",
            "write -P 4 1000000 512",
        ];
        for command in written {
            assert!(qemu(
                "qemu-io",
                &["-f", "qcow2", "-c", command, text(&made)]
            ));
        }
        assert!(qemu("qemu-img", &["snapshot", "-c", "before", text(&made)]));
        let after = ["-f", "qcow2", "-c", "write -P 5 5M 64k", text(&made)];
        assert!(qemu("qemu-io", &after));
        let back = [
            "convert",
            "-f",
            "qcow2",
            "-O",
            "raw",
            text(&made),
            text(&raw),
        ];
        assert!(qemu("qemu-img", &back));
        let found = content(&File::open(&made).unwrap()).unwrap();
        assert!(found == std::fs::read(&raw).unwrap(), "{options}");
    }
}

#[test]
fn every_way_to_store_a_cluster_is_read() {
    for (version, cluster_bits, zstd) in [
        (2, 9, false),
        (2, 16, false),
        (3, 9, true),
        (3, 12, false),
        (3, 16, true),
        (3, 21, true),
    ] {
        let made = Made {
            version,
            cluster_bits,
            zstd,
        };
        let mut disk = disk(3 * MIB + 777);
        let how = |index: usize, _: &[u8]| match index % 6 {
            0 => Stored::Hole,
            1 | 4 => Stored::Packed,
            2 if version == 3 => Stored::Zero,
            3 if version == 3 => Stored::SetAside,
            _ => Stored::Plain,
        };
        for (index, part) in disk.chunks_mut(made.cluster()).enumerate() {
            if matches!(
                how(index, part),
                Stored::Hole | Stored::Zero | Stored::SetAside
            ) {
                part.fill(0);
            }
        }
        let file = made.file(&disk, how);
        assert!(content(&&file[..]).unwrap() == disk, "{made:?}");
    }
}

#[test]
fn the_map_is_the_whole_disk_in_as_few_runs_as_there_are() {
    let made = Made::default();
    let disk = vec![5; 20 * made.cluster() - 100];
    let file = made.file(&disk, |index, _| match index {
        3..5 => Stored::Zero,
        5..7 => Stored::Hole,
        7 => Stored::Packed,
        _ => Stored::Plain,
    });
    let image = Qcow2::open(&&file[..]).unwrap();
    let runs: Vec<Run> = image.map(&&file[..]).map(Result::unwrap).collect();
    let lengths: Vec<u64> = runs.iter().map(|run| run.length / 65_536).collect();
    assert_eq!(lengths, [3, 4, 1, 11], "{runs:?}");
    assert!(matches!(runs[0].held, Held::Data { host: 0x3_0000 }));
    assert!(matches!(
        (runs[1].held, runs[2].held),
        (Held::Zero, Held::Compressed { .. })
    ));
    let mut ends = runs.iter().map(|run| run.guest + run.length);
    assert!(
        runs[1..]
            .iter()
            .map(|run| run.guest)
            .eq(ends.clone().take(3))
    );
    assert_eq!(ends.next_back(), Some(image.size()));
}

#[test]
fn an_empty_disk_has_no_runs() {
    let file = Made::default().file(&[], |_, _| Stored::Hole);
    let image = Qcow2::open(&&file[..]).unwrap();
    assert_eq!((image.size(), image.map(&&file[..]).count()), (0, 0));
}

#[test]
fn a_huge_empty_disk_costs_nothing() {
    let mut file = Made {
        cluster_bits: 21,
        ..Made::default()
    }
    .file(&[0; 512], |_, _| Stored::Hole);
    made::put(&mut file, 24, 1 << 50);
    made::put_word(&mut file, 36, 1 << 11);
    made::put(&mut file, 1 << 21, 0);
    let image = Qcow2::open(&&file[..]).unwrap();
    let runs: Vec<Run> = image.map(&&file[..]).map(Result::unwrap).collect();
    assert_eq!(
        runs,
        [Run {
            guest: 0,
            length: 1 << 50,
            held: Held::Zero
        }]
    );
}

#[test]
fn hostile_files_are_refused_by_name() {
    let all = hostile::all();
    assert!(all.len() >= 60, "{}", all.len());
    for hostile::Hostile {
        name,
        file,
        words,
        late,
    } in all
    {
        let source: &[u8] = &file;
        let started = std::time::Instant::now();
        let mapped = Qcow2::open(&source)
            .and_then(|image| image.map(&source).try_for_each(|run| run.map(drop)));
        // To nowhere: some would be a terabyte.
        let read = || {
            let image = Qcow2::open(&source)?;
            io::copy(&mut image.content(&source)?, &mut io::sink())
        };
        let error = match mapped {
            Err(error) => error.to_string(),
            Ok(()) if late => read().unwrap_err().to_string(),
            Ok(()) => panic!("{name}: not refused by its tables"),
        };
        assert!(error.contains(words), "{name}: {error}");
        assert!(started.elapsed().as_secs() < 10, "{name}");
    }
}

#[test]
fn a_source_that_fails_is_named_as_such() {
    #[derive(Debug)]
    struct Failing(Vec<u8>, u64);
    impl ReadAt for Failing {
        fn size(&self) -> io::Result<u64> {
            Ok(self.0.len() as u64)
        }
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            if offset >= self.1 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.0.as_slice().read_exact_at(buffer, offset)
        }
    }
    let made = Made::default();
    let file = made.file(&vec![1; made.cluster()], |_, _| Stored::Plain);
    for (from, words) in [
        (0, "its header at byte 0"),
        (65_536, "its L1 table"),
        (131_072, "its L2 table"),
    ] {
        let error = content(&Failing(file.clone(), from)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_cluster_that_goes_on_ends_where_a_cluster_ends() {
    // As QEMU takes it; with zstd it is refused, there as here.
    let made = Made::default();
    let image = Qcow2::open(&&made.file(&[0; 512], |_, _| Stored::Hole)[..]).unwrap();
    let bomb = made.pack(&vec![7; 64 << 20]);
    let mut cluster = vec![0; made.cluster()];
    Inflater::new(&image)
        .unwrap()
        .inflate(&bomb, &mut cluster)
        .unwrap();
    assert!(cluster.iter().all(|&byte| byte == 7));
}

//! Builds the ramdisk's kernel and initramfs from the profile, a kernel package and the agent. The
//! formats are elsewhere (`initramfs.rs`, `artifacts.rs`); the agent is a file like any other here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use lzma_rust2::{CheckType, XzOptions, XzWriter};
use sha2::{Digest, Sha256};

use crate::artifacts::{self, Manifest};
use crate::initramfs::{self, Tree};
use crate::kernel::{self, Kernel};
use crate::modules::{self, ModuleIndex};
use crate::{firmware, profile};

/// What a person asked for.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) agent: &'a Path,
    pub(crate) out: &'a Path,
    pub(crate) kernel_deb: Option<&'a Path>,
    pub(crate) cache: &'a Path,
    pub(crate) firmware: &'a [PathBuf],
}

/// A file of the ramdisk before and after its compression.
struct Packed {
    name: String,
    bytes: Vec<u8>,
}

/// Writes `vmlinuz` and `initramfs.img` and returns the manifest that describes them.
pub(crate) fn build(request: &Request<'_>) -> Result<Manifest> {
    let source = request
        .kernel_deb
        .map_or(kernel::Source::Archive, kernel::Source::Package);
    let kernel = kernel::obtain(source, request.cache)?;
    let index = ModuleIndex::read(&kernel.modules)?;
    let selection = index.select(profile::modules());
    if !selection.absent.is_empty() {
        tracing::warn!(absent = ?selection.absent, "this kernel lacks modules of the profile");
    }
    let firmware = firmware::collect(
        &wanted_firmware(&kernel, &selection.paths)?,
        request.firmware,
    );

    let boot = boot_tree(request.agent, &kernel.release, &index, &selection.paths)?;
    let tail = payload_tree(&kernel, &selection.paths, &firmware.files, request.cache)?;
    let image = initramfs::pack(&boot, &tail)?;

    std::fs::create_dir_all(request.out)
        .with_context(|| format!("making {}", request.out.display()))?;
    let vmlinuz = std::fs::read(&kernel.vmlinuz)
        .with_context(|| format!("reading {}", kernel.vmlinuz.display()))?;
    let (kernel_path, image_path) = (
        request.out.join("vmlinuz"),
        request.out.join("initramfs.img"),
    );
    artifacts::write_whole(&kernel_path, &vmlinuz)?;
    artifacts::write_whole(&image_path, &image)?;

    let mut manifest = Manifest::new(&kernel.release);
    manifest.files.kernel = Some(artifacts::describe(&kernel_path)?);
    manifest.files.initramfs = Some(artifacts::describe(&image_path)?);
    manifest.modules_absent = selection.absent;
    manifest.set_missing_firmware(&firmware.missing);
    Ok(manifest)
}

/// The compressed archive: the agent and what it needs to find the rest.
fn boot_tree(
    agent: &Path,
    release: &str,
    index: &ModuleIndex,
    paths: &BTreeSet<String>,
) -> Result<Tree> {
    let bytes = std::fs::read(agent)
        .with_context(|| format!("reading the agent binary {}", agent.display()))?;
    ensure!(
        bytes.starts_with(b"\x7fELF"),
        "{} is not an ELF binary",
        agent.display()
    );
    let mut tree = initramfs::skeleton();
    tree.add_file("init", 0o755, bytes);
    for (name, text) in index.shipped_indexes(paths) {
        tree.add_file(
            &format!("lib/modules/{release}/{name}"),
            0o644,
            text.into_bytes(),
        );
    }
    Ok(tree)
}

/// The archive that is not compressed as a whole: modules and firmware, each compressed alone.
fn payload_tree(
    kernel: &Kernel,
    paths: &BTreeSet<String>,
    firmware: &BTreeMap<String, PathBuf>,
    cache: &Path,
) -> Result<Tree> {
    let shelf = cache.join("zst");
    std::fs::create_dir_all(&shelf).with_context(|| format!("making {}", shelf.display()))?;
    let mut tree = Tree::default();
    let paths: Vec<&String> = paths.iter().collect();
    let packed = in_parallel(&paths, |path| {
        let from = kernel.modules.join(path.as_str());
        let bytes = std::fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
        let name = format!(
            "lib/modules/{}/{path}{}",
            kernel.release,
            modules::SHIPPED_SUFFIX
        );
        Ok(Packed {
            name,
            bytes: shelved(&shelf, &bytes)?,
        })
    })?;
    for Packed { name, bytes } in packed {
        tree.add_file(&name, 0o644, bytes);
    }
    for (name, path) in firmware {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let (name, bytes) = as_loadable(name, bytes)?;
        tree.add_file(&format!("lib/firmware/{name}"), 0o644, bytes);
    }
    Ok(tree)
}

/// Compressing two hundred modules takes half a minute and they change only with the kernel, so the
/// results are kept.
fn shelved(shelf: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    let path = shelf.join(artifacts::hex(&Sha256::digest(bytes)));
    if let Ok(known) = std::fs::read(&path) {
        return Ok(known);
    }
    let packed = initramfs::compress_one(bytes).context("compressing a module")?;
    artifacts::write_whole(&path, &packed)?;
    Ok(packed)
}

/// Debian's kernel loads firmware plain or as xz with a CRC-32; it is built without zstd for
/// firmware.
fn as_loadable(name: &str, bytes: Vec<u8>) -> Result<(String, Vec<u8>)> {
    use std::io::Write as _;
    if Path::new(name).extension().is_some_and(|ext| ext == "xz") {
        return Ok((name.to_owned(), bytes));
    }
    let mut options = XzOptions::with_preset(9);
    options.set_check_sum_type(CheckType::Crc32);
    // The kernel's decoder allocates the whole dictionary; firmware files are small.
    options.lzma_options.dict_size = 1 << 20;
    let mut writer = XzWriter::new(Vec::new(), options).context("starting xz")?;
    writer
        .write_all(&bytes)
        .with_context(|| format!("compressing {name}"))?;
    let packed = writer
        .finish()
        .with_context(|| format!("compressing {name}"))?;
    Ok((format!("{name}.xz"), packed))
}

fn wanted_firmware(
    kernel: &Kernel,
    paths: &BTreeSet<String>,
) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut wanted = BTreeMap::new();
    for path in paths {
        let file = kernel.modules.join(path);
        let bytes = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let names = firmware::wanted_by(&bytes)
            .with_context(|| format!("looking for firmware names in {}", file.display()))?;
        if !names.is_empty() {
            wanted.insert(modules::name_of(path), names);
        }
    }
    Ok(wanted)
}

/// Applies `work` to each item on every core; the order of the results is the order of the items.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((at, item)) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    items.get(at).map(|item| (at, item))
                } {
                    let result = work(item);
                    done.lock()
                        .expect("no thread panics while it holds the list")
                        .push((at, result));
                }
            });
        }
    });
    let mut done = done
        .into_inner()
        .expect("no thread panics while it holds the list");
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parallel_results_keep_their_order_and_errors_come_through() {
        let items: Vec<u32> = (0..100).collect();
        let doubled = in_parallel(&items, |n| Ok(n * 2)).unwrap();
        assert_eq!(doubled, (0..100).map(|n| n * 2).collect::<Vec<_>>());
        let failed = in_parallel(&items, |n| {
            ensure!(*n != 57, "fifty-seven");
            Ok(())
        });
        assert_eq!(failed.unwrap_err().to_string(), "fifty-seven");
    }

    #[test]
    fn firmware_is_xz_with_crc32_and_xz_is_left_alone() {
        let (name, bytes) = as_loadable("a/b.fw", vec![7; 10_000]).unwrap();
        assert_eq!(name, "a/b.fw.xz");
        // Stream header: magic, then two bytes of flags; 1 is CRC-32.
        assert_eq!(&bytes[..8], b"\xfd7zXZ\0\x00\x01");
        let (name, bytes) = as_loadable("c.fw.xz", vec![1, 2]).unwrap();
        assert_eq!((name.as_str(), bytes), ("c.fw.xz", vec![1, 2]));
    }

    #[test]
    fn an_agent_that_is_no_elf_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        std::fs::write(&path, "#!/bin/sh").unwrap();
        let index = ModuleIndex::default();
        let error = boot_tree(&path, "6.1", &index, &BTreeSet::new()).unwrap_err();
        assert!(error.to_string().contains("not an ELF binary"));
    }
}

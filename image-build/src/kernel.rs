//! Gets Debian's kernel: the package from the archive or a file, unpacked and indexed in the cache.
//! Which of its modules ship is `modules.rs`; nothing here knows what a ramdisk is.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::command;

/// The package whose only job is to depend on the current kernel.
const META_PACKAGE: &str = "linux-image-amd64";

/// An unpacked kernel package with depmod's indexes.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) release: String,
    pub(crate) vmlinuz: PathBuf,
    /// `…/lib/modules/RELEASE`
    pub(crate) modules: PathBuf,
}

/// Where the kernel package comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Source<'a> {
    Package(&'a Path),
    Archive,
}

/// Gets, unpacks and indexes the kernel; every step is skipped when the cache already has its
/// result.
pub(crate) fn obtain(source: Source<'_>, cache: &Path) -> Result<Kernel> {
    std::fs::create_dir_all(cache)
        .with_context(|| format!("making the cache directory {}", cache.display()))?;
    let package = match source {
        Source::Package(path) => path.to_owned(),
        Source::Archive => download(cache)?,
    };
    let stem = package.file_stem().and_then(|s| s.to_str());
    let stem = stem.with_context(|| format!("{} is not a .deb file", package.display()))?;
    let tree = cache.join(format!("kernel-{stem}"));
    if !tree.exists() {
        unpack(&package, &tree)?;
    }
    open(&tree)
}

/// Asks apt for the current kernel. Without an answer (no network, no lists) a package cached
/// earlier is as good.
fn download(cache: &Path) -> Result<PathBuf> {
    let name = match current_package() {
        Ok(name) => name,
        Err(error) => {
            let cached = newest_cached(cache, "linux-image-")?;
            let Some(path) = cached else {
                return Err(error.context("no kernel package is cached; `apt-get update` may help"));
            };
            tracing::warn!(package = %path.display(), "apt knows no kernel, using the cached one");
            return Ok(path);
        }
    };
    if let Some(path) = newest_cached(cache, &format!("{name}_"))? {
        return Ok(path);
    }
    tracing::info!(package = name, "downloading the kernel package");
    // apt drops to the user _apt, who may not write here; the check of signatures stays the same.
    let mut apt = Command::new("apt-get");
    apt.args(["-o", "APT::Sandbox::User=root", "download", &name])
        .current_dir(cache);
    command::run(&mut apt)?;
    let path = newest_cached(cache, &format!("{name}_"))?;
    path.with_context(|| format!("apt-get left no {name}_*.deb in {}", cache.display()))
}

fn current_package() -> Result<String> {
    let mut apt = Command::new("apt-cache");
    let text = command::output(apt.args(["show", "--no-all-versions", META_PACKAGE]))?;
    let name = depended_kernel(&String::from_utf8_lossy(&text));
    name.with_context(|| format!("{META_PACKAGE} depends on no kernel package"))
}

/// Finds `linux-image-6.1.0-56-amd64` in the meta package's control paragraph.
fn depended_kernel(control: &str) -> Option<String> {
    let depends = control
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))?;
    let names = depends
        .split(',')
        .filter_map(|d| d.split_whitespace().next());
    names
        .map(str::to_owned)
        .find(|name| name.starts_with("linux-image-"))
}

fn newest_cached(cache: &Path, prefix: &str) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    for entry in cache
        .read_dir()
        .with_context(|| format!("listing {}", cache.display()))?
    {
        let path = entry?.path();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        let debian = path.extension().is_some_and(|ext| ext == "deb");
        // The cloud kernel may lie in the same cache; it lacks the drivers of real machines.
        if name.starts_with(prefix) && debian && !name.contains("-cloud-") {
            found.push((path.metadata()?.modified()?, path));
        }
    }
    Ok(found.into_iter().max().map(|(_, path)| path))
}

/// Unpacks beside the final place and renames, so that an interrupted unpacking is never taken for
/// a tree.
fn unpack(package: &Path, tree: &Path) -> Result<()> {
    let partial = tree.with_extension("partial");
    if partial.exists() {
        std::fs::remove_dir_all(&partial)
            .with_context(|| format!("removing {}", partial.display()))?;
    }
    tracing::info!(package = %package.display(), "unpacking the kernel");
    command::run(
        Command::new("dpkg-deb")
            .arg("-x")
            .arg(package)
            .arg(&partial),
    )?;
    let release = release_in(&partial)?;
    command::run(Command::new("depmod").arg("-b").arg(&partial).arg(&release))?;
    std::fs::rename(&partial, tree).with_context(|| format!("naming {}", tree.display()))
}

fn open(tree: &Path) -> Result<Kernel> {
    let release = release_in(tree)?;
    let vmlinuz = tree.join("boot").join(format!("vmlinuz-{release}"));
    ensure!(
        vmlinuz.is_file(),
        "{} is not there: is this a kernel package?",
        vmlinuz.display()
    );
    let modules = tree.join("lib/modules").join(&release);
    Ok(Kernel {
        release,
        vmlinuz,
        modules,
    })
}

fn release_in(tree: &Path) -> Result<String> {
    let dir = tree.join("lib/modules");
    let entries = dir
        .read_dir()
        .with_context(|| format!("listing {}", dir.display()))?;
    let names: Vec<_> = entries
        .filter_map(Result::ok)
        .map(|e| e.file_name())
        .collect();
    let [name] = names.as_slice() else {
        bail!(
            "{} has {} kernels, one was expected",
            dir.display(),
            names.len()
        );
    };
    Ok(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meta_package_names_the_kernel() {
        let control = "Package: linux-image-amd64\nVersion: 6.1.192-2\n\
            Depends: linux-image-6.1.0-56-amd64 (= 6.1.192-2), other\nSection: kernel\n";
        assert_eq!(
            depended_kernel(control).unwrap(),
            "linux-image-6.1.0-56-amd64"
        );
        assert_eq!(depended_kernel("Package: x\nDepends: libc6\n"), None);
    }

    #[test]
    fn the_cloud_kernel_is_not_taken_for_the_full_one() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["linux-image-6.1.0-9-cloud-amd64_6.1_amd64.deb", "notes.txt"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        assert_eq!(newest_cached(dir.path(), "linux-image-").unwrap(), None);
        let full = dir.path().join("linux-image-6.1.0-9-amd64_6.1_amd64.deb");
        std::fs::write(&full, "x").unwrap();
        assert_eq!(
            newest_cached(dir.path(), "linux-image-").unwrap(),
            Some(full)
        );
    }
}

//! The root tree: Debian from its packages, then our configuration.
//! The bootstrapped tree is kept as a tar file in the cache, so that a rebuild downloads nothing.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::configuration::{
    APT_SOURCES, ENABLED, EXCLUDED_PATHS, FILES, MASKED, MASKED_GENERATORS, PACKAGES, REMOVED, Text,
};
use super::node;
use crate::{artifacts, command};

/// Bootstraps, or takes the cached result of the same arguments; returns the tar file.
pub(crate) fn bootstrap(cache: &Path, is_node: bool) -> Result<PathBuf> {
    let arguments = bootstrap_arguments(is_node);
    let key = artifacts::hex(&Sha256::digest(arguments.join("\n")))[..16].to_owned();
    let tar = cache.join(format!("rootfs-{key}.tar"));
    if tar.exists() {
        return Ok(tar);
    }
    tracing::info!(is_node, "bootstrapping Debian");
    let partial = cache.join(format!("rootfs-{key}.partial.tar"));
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(&arguments)
        .arg("bookworm")
        .arg(&partial)
        .args(APT_SOURCES);
    command::run(&mut mmdebstrap)?;
    std::fs::rename(&partial, &tar).with_context(|| format!("naming {}", tar.display()))?;
    Ok(tar)
}

fn bootstrap_arguments(is_node: bool) -> Vec<String> {
    let mut all: Vec<String> = ["--mode=root", "--variant=minbase", "--format=tar"]
        .map(str::to_owned)
        .into();
    let (more, paths) = if is_node {
        (&node::PACKAGES[..], &node::PATHS[..])
    } else {
        (&[][..], &[][..])
    };
    let packages = [&PACKAGES[..], more].concat();
    all.push(format!("--include={}", packages.join(",")));
    all.extend(
        EXCLUDED_PATHS
            .iter()
            .map(|path| format!("--dpkgopt=path-exclude={path}")),
    );
    all.extend(paths.iter().map(|rule| format!("--dpkgopt={rule}")));
    all.push("--aptopt=APT::Install-Recommends false".to_owned());
    all
}

/// Unpacks the tree into an empty directory.
pub(crate) fn unpack(tar: &Path, into: &Path) -> Result<()> {
    std::fs::create_dir_all(into).with_context(|| format!("making {}", into.display()))?;
    let mut command = Command::new("tar");
    command
        .args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"])
        .arg(tar);
    command::run(command.arg("-C").arg(into))
}

/// Makes the tree a bootable system and returns its kernel release.
pub(crate) fn configure(root: &Path, root_uuid: &str) -> Result<String> {
    for Text {
        path,
        mode,
        content,
    } in FILES
    {
        write(root, path, *mode, content)?;
    }
    // No check at boot: ext4 replays its journal, and a check makes systemd wait for udev first.
    let fstab = format!("UUID={root_uuid} / ext4 errors=remount-ro 0 0\n");
    write(root, "etc/fstab", 0o644, &fstab)?;
    choose_units(root)?;
    link(
        Path::new("../run/systemd/resolve/stub-resolv.conf"),
        &root.join("etc/resolv.conf"),
    )?;
    in_tree(root, "/usr/sbin/update-initramfs", &["-u", "-k", "all"])?;
    clean(root)?;
    kernel_release(root)
}

/// Enables what the image needs and masks what only costs time.
fn choose_units(root: &Path) -> Result<()> {
    let masked = [
        ("etc/systemd/system", MASKED),
        ("etc/systemd/system-generators", MASKED_GENERATORS),
    ];
    for (dir, names) in masked {
        let dir = root.join(dir);
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        for name in names {
            link(Path::new("/dev/null"), &dir.join(name))?;
        }
    }
    enable(root, ENABLED)
}

/// Enables units, with the tree's own systemctl: the machine that builds may have no systemd.
pub(crate) fn enable(root: &Path, units: &[&str]) -> Result<()> {
    let arguments: Vec<&str> = ["enable"].iter().chain(units).copied().collect();
    in_tree(root, "/usr/bin/systemctl", &arguments)
}

/// Runs a program of the tree. Only here, while the image is made: the ramdisk never does this.
fn in_tree(root: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    let mut chroot = Command::new("chroot");
    chroot.arg(root).arg(program).args(arguments);
    chroot
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8");
    command::run(&mut chroot)
}

/// Removes what the bootstrap left and nobody needs.
fn clean(root: &Path) -> Result<()> {
    for dir in REMOVED.map(|dir| root.join(dir)) {
        std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    for dir in [
        "var/lib/apt/lists",
        "var/cache/apt",
        "var/cache/debconf",
        "var/log/apt",
    ] {
        let dir = root.join(dir);
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
            std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        }
    }
    Ok(())
}

fn kernel_release(root: &Path) -> Result<String> {
    let boot = root.join("boot");
    for entry in boot
        .read_dir()
        .with_context(|| format!("listing {}", boot.display()))?
    {
        let name = entry.context("listing /boot")?.file_name();
        if let Some(release) = name.to_str().and_then(|name| name.strip_prefix("vmlinuz-")) {
            return Ok(release.to_owned());
        }
    }
    bail!("{} has no kernel", boot.display())
}

/// Writes a file and the directories above it.
pub(crate) fn write(root: &Path, path: &str, mode: u32, text: &str) -> Result<()> {
    let path = root.join(path);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    set_mode(&path, mode)
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("setting the mode of {}", path.display()))
}

fn link(target: &Path, at: &Path) -> Result<()> {
    if at.symlink_metadata().is_ok() {
        std::fs::remove_file(at).with_context(|| format!("removing {}", at.display()))?;
    }
    symlink(target, at).with_context(|| format!("linking {}", at.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_makes_directories_and_sets_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "etc/a/b.conf", 0o444, "x").unwrap();
        let mode = dir
            .path()
            .join("etc/a/b.conf")
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o444);
    }

    #[test]
    fn a_link_replaces_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("resolv.conf");
        std::fs::write(&at, "nameserver 192.0.2.1").unwrap();
        link(Path::new("../run/x"), &at).unwrap();
        assert_eq!(std::fs::read_link(&at).unwrap(), Path::new("../run/x"));
    }

    #[test]
    fn the_kernel_release_comes_from_boot() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "boot/config-6.1.0-9", 0o644, "").unwrap();
        assert!(kernel_release(dir.path()).is_err());
        write(dir.path(), "boot/vmlinuz-6.1.0-9", 0o644, "").unwrap();
        assert_eq!(kernel_release(dir.path()).unwrap(), "6.1.0-9");
    }
}

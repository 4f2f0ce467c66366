//! Builds the small Debian image that the demo and the tests deploy: raw, sparse, bootable under
//! UEFI and BIOS. This file is the sequence; the parts are below it. No loop devices and no mounts:
//! it works in a container.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command;
use crate::esp::{self, EspFile};

mod configuration;
mod disk;
mod filler;
mod grub;
mod node;
mod rootfs;
mod variants;

pub(crate) use node::Node;
pub(crate) use variants::{Compression, ImageInfo};

/// Fixed: an image is known by what it is, not by when it was built.
const ROOT_UUID: &str = "46657272-6974-4000-8000-0000000000ff";
const ESP_ID: u32 = 0x4665_7272;
const ESP_BYTES: u64 = 16 << 20;

/// What a person asked for.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) out: &'a Path,
    pub(crate) size: u64,
    /// How much data the root file system is filled up to; none: as it comes.
    pub(crate) data: Option<u64>,
    /// The programs of a Kubernetes node, and with them all that it needs.
    pub(crate) node: Option<Node<'a>>,
    pub(crate) cache: &'a Path,
    pub(crate) compress: &'a [Compression],
}

/// Builds the image, its compressed variants and the JSON file that describes them.
pub(crate) fn build(request: &Request<'_>) -> Result<ImageInfo> {
    ensure_root()?;
    for dir in [request.cache, request.out.parent().unwrap_or(request.cache)] {
        std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let layout = disk::Layout::new(request.size, ESP_BYTES)?;
    let tar = rootfs::bootstrap(request.cache, request.node.is_some())?;
    let work = WorkDir::new(request.cache)?;
    let root = work.path.join("root");
    tracing::info!("configuring the tree");
    rootfs::unpack(&tar, &root)?;
    let release = rootfs::configure(&root, ROOT_UUID)?;
    if let Some(node) = &request.node {
        node::configure(&root, node)?;
    }
    let config = grub::config(ROOT_UUID, &release, configuration::KERNEL_ARGUMENTS);
    rootfs::write(&root, "boot/grub/grub.cfg", 0o444, &config)?;

    if let Some(data) = request.data {
        tracing::info!(bytes = data, "filling the tree");
        filler::fill(&root, data)?;
    }
    tracing::info!(bytes = layout.size, "writing the image");
    let partial = work.path.join("disk.raw");
    let file = disk::create(&partial, layout.size)?;
    make_root_fs(&partial, &layout, &root)?;
    disk::write_boot(file, &layout, boot_parts(&work.path)?)?;
    std::fs::rename(&partial, request.out)
        .with_context(|| format!("moving the image to {}", request.out.display()))?;
    variants::finish(request.out, request.compress)
}

/// Packages have owners and device nodes; only root can make them.
fn ensure_root() -> Result<()> {
    let owner = std::fs::metadata("/proc/self").map(|m| std::os::unix::fs::MetadataExt::uid(&m));
    ensure!(
        owner.unwrap_or(0) == 0,
        "building an OS image needs root: run it with sudo"
    );
    Ok(())
}

/// Formats the root partition in place and fills it from the tree.
fn make_root_fs(image: &Path, layout: &disk::Layout, root: &Path) -> Result<()> {
    let blocks = layout.root.length / 1024;
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-L", "root", "-U", ROOT_UUID, "-m", "1", "-E"]);
    // Inode tables are zero in a fresh file; the first boot need not write them again.
    mkfs.arg(format!(
        "offset={},lazy_itable_init=0,lazy_journal_init=0",
        layout.root.start
    ));
    command::run(
        mkfs.arg("-d")
            .arg(root)
            .arg(image)
            .arg(format!("{blocks}k")),
    )
}

fn boot_parts(work: &Path) -> Result<disk::BootParts> {
    let loader = grub::image(grub::Platform::Uefi, ROOT_UUID, work)?;
    let files = [EspFile {
        path: "EFI/BOOT/BOOTX64.EFI",
        bytes: &loader,
    }];
    let size = usize::try_from(ESP_BYTES).context("sizing the ESP")?;
    Ok(disk::BootParts {
        boot: grub::boot_sector()?,
        core: grub::image(grub::Platform::Bios, ROOT_UUID, work)?,
        esp: esp::image(size, "ESP", ESP_ID, &files)?,
    })
}

/// A directory beside the cache that is gone when the build is, however it ends.
struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    fn new(cache: &Path) -> Result<Self> {
        let path = cache.join(format!("os-work-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the work directory stays");
        }
    }
}

//! Packs the ramdisk: two cpio archives one after the other, which is how the kernel wants several.
//!
//! The first is zstd-compressed and has what every boot needs: the agent as `/init`, device nodes,
//! module indexes. The second is not compressed, because each of its files already is: a host loads
//! a dozen of some two hundred modules, and on a slow machine decompressing the rest would be most
//! of the boot. The same inputs give the same bytes: sorted names, no times, fixed inode numbers.

use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};

/// Highest level that needs no more memory to decompress than level 3 on these sizes.
const ZSTD_LEVEL: i32 = 19;
/// The kernel looks for the next archive at a multiple of four; whole sectors keep hexdumps
/// readable.
const ARCHIVE_ALIGN: usize = 512;

/// One thing in the tree, by absolute name without the leading slash.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Directory,
    File { mode: u32, bytes: Vec<u8> },
    CharDevice { mode: u32, major: u32, minor: u32 },
    Link { to: String },
}

/// A tree to pack; the map's order is the archive's order, parents before children.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree(BTreeMap<String, Node>);

impl Tree {
    /// Adds a node and the directories above it.
    pub(crate) fn add(&mut self, name: &str, node: Node) {
        for (at, _) in name.match_indices('/') {
            self.0
                .entry(name[..at].to_owned())
                .or_insert(Node::Directory);
        }
        self.0.insert(name.to_owned(), node);
    }

    pub(crate) fn add_file(&mut self, name: &str, mode: u32, bytes: Vec<u8>) {
        self.add(name, Node::File { mode, bytes });
    }

    /// Adds a node where there is none yet.
    pub(crate) fn add_unless_there(&mut self, name: &str, node: Node) {
        if !self.0.contains_key(name) {
            self.add(name, node);
        }
    }

    #[cfg(test)]
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Writes the newc archive, trailer and padding included.
    pub(crate) fn pack(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for (inode, (name, node)) in (1_u32..).zip(&self.0) {
            write_node(&mut out, name, node, inode).with_context(|| format!("packing {name}"))?;
        }
        trailer(&mut out).context("writing the cpio trailer")?;
        pad(&mut out);
        Ok(out)
    }
}

/// The whole initramfs from its two trees.
pub(crate) fn pack(boot: &Tree, modules: &Tree) -> Result<Vec<u8>> {
    let mut out = zstd::bulk::compress(&boot.pack()?, ZSTD_LEVEL).context("compressing")?;
    pad(&mut out);
    out.extend(modules.pack()?);
    Ok(out)
}

/// One more archive, compressed, to stand behind another.
pub(crate) fn pack_one(tree: &Tree) -> Result<Vec<u8>> {
    let mut out = compress_one(&tree.pack()?).context("compressing")?;
    pad(&mut out);
    Ok(out)
}

/// The directories and nodes that the agent expects before it has mounted anything.
pub(crate) fn skeleton() -> Tree {
    let mut tree = Tree::default();
    for name in ["dev", "etc", "mnt", "proc", "run", "sys", "tmp"] {
        tree.add(name, Node::Directory);
    }
    // The kernel opens /dev/console for PID 1 before devtmpfs can be mounted.
    tree.add(
        "dev/console",
        Node::CharDevice {
            mode: 0o600,
            major: 5,
            minor: 1,
        },
    );
    tree.add(
        "dev/null",
        Node::CharDevice {
            mode: 0o666,
            major: 1,
            minor: 3,
        },
    );
    tree
}

/// Compresses one module or file as the kernel's users expect a `.zst`.
pub(crate) fn compress_one(bytes: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::compress(bytes, ZSTD_LEVEL)
}

fn write_node(out: &mut Vec<u8>, name: &str, node: &Node, inode: u32) -> Result<()> {
    let entry = Builder::new(name).ino(inode);
    match node {
        Node::Directory => {
            let entry = entry
                .mode(0o755)
                .nlink(2)
                .set_mode_file_type(ModeFileType::Directory);
            entry.write(out, 0).finish()?;
        }
        Node::CharDevice { mode, major, minor } => {
            let entry = entry.mode(*mode).set_mode_file_type(ModeFileType::Char);
            entry
                .rdev_major(*major)
                .rdev_minor(*minor)
                .write(out, 0)
                .finish()?;
        }
        Node::Link { to } => {
            let size = u32::try_from(to.len()).context("larger than cpio can say")?;
            let entry = entry.mode(0o777).set_mode_file_type(ModeFileType::Symlink);
            let mut writer = entry.write(out, size);
            writer.write_all(to.as_bytes())?;
            writer.finish()?;
        }
        Node::File { mode, bytes } => {
            let size = u32::try_from(bytes.len()).context("larger than cpio can say")?;
            let entry = entry.mode(*mode).set_mode_file_type(ModeFileType::Regular);
            let mut writer = entry.write(out, size);
            writer.write_all(bytes)?;
            writer.finish()?;
        }
    }
    Ok(())
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(ARCHIVE_ALIGN), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;

    fn trees() -> (Tree, Tree) {
        let mut boot = skeleton();
        boot.add_file("init", 0o755, b"\x7fELF agent".to_vec());
        let mut modules = Tree::default();
        modules.add_file(
            "lib/modules/6.1/kernel/a.ko.zst",
            0o644,
            compress_one(b"a").unwrap(),
        );
        (boot, modules)
    }

    fn names(mut archive: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        loop {
            let reader = Reader::new(archive).unwrap();
            if reader.entry().is_trailer() {
                return names;
            }
            names.push(reader.entry().name().to_owned());
            archive = reader.finish().unwrap();
        }
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let (boot, modules) = trees();
        let (again, others) = trees();
        assert_eq!(
            pack(&boot, &modules).unwrap(),
            pack(&again, &others).unwrap()
        );
    }

    #[test]
    fn parents_come_before_children_and_archives_are_aligned() {
        let (boot, modules) = trees();
        let tail = modules.pack().unwrap();
        assert_eq!(
            names(&tail),
            [
                "lib",
                "lib/modules",
                "lib/modules/6.1",
                "lib/modules/6.1/kernel",
                "lib/modules/6.1/kernel/a.ko.zst"
            ]
        );
        let whole = pack(&boot, &modules).unwrap();
        assert_eq!(whole.len() % ARCHIVE_ALIGN, 0);
        assert!(
            whole.ends_with(&tail),
            "the second archive is there as it is"
        );
        assert_eq!((whole.len() - tail.len()) % ARCHIVE_ALIGN, 0);
    }

    #[test]
    fn the_first_archive_has_init_and_the_console() {
        let (boot, modules) = trees();
        let whole = pack(&boot, &modules).unwrap();
        let head = &whole[..whole.len() - modules.pack().unwrap().len()];
        let frame = zstd::stream::decode_all(io::Cursor::new(head).by_ref()).ok();
        // The zero padding after the frame is not zstd; take the frame alone.
        let size = zstd::zstd_safe::find_frame_compressed_size(head).unwrap();
        let plain = zstd::stream::decode_all(&head[..size]).unwrap();
        assert!(frame.is_none() || frame.as_deref() == Some(&plain[..]));
        let names = names(&plain);
        assert!(names.contains(&"init".to_owned()) && names.contains(&"dev/console".to_owned()));
    }

    use std::io::Read as _;
}

//! What the guest boots: the ramdisk's own archives, for their kernel modules, and one more behind
//! them with this program, our agent and the peers, each with the libraries that it names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cpio::newc::{Builder, ModeFileType, trailer};

use crate::command::run;

/// This machine's own; `busybox` for what is done once, such as a network address.
const PROGRAMS: [&str; 10] = [
    "blockdev",
    "busybox",
    "curl",
    "dd",
    "gzip",
    "openssl",
    "qemu-img",
    "sha256sum",
    "tee",
    "zstd",
];
const FOLDERS: [&str; 7] = ["dev", "etc", "proc", "ram", "run", "sys", "tmp"];
const PATHS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
/// Where this program lies in it.
pub(super) const LAB: &str = "bin/ferrite-lab";
pub(super) const AGENT: &str = "bin/ferrite-agent";

/// Writes it to `out`.
pub(super) fn build(ramdisk: &Path, agent: &Path, out: &Path) -> Result<()> {
    let shown = ramdisk.display();
    let mut archive =
        fs::read(ramdisk).with_context(|| format!("{shown}: `make boot` makes it"))?;
    let mut tree = Tree::default();
    for folder in FOLDERS {
        tree.folder(folder)?;
    }
    tree.program(LAB, &std::env::current_exe()?)?;
    tree.program(AGENT, agent)?;
    for name in PROGRAMS {
        tree.program(&format!("bin/{name}"), &found(name)?)?;
    }
    archive.extend(tree.packed()?);
    fs::write(out, archive).with_context(|| format!("writing {}", out.display()))
}

#[derive(Debug, Default)]
struct Tree {
    bytes: Vec<u8>,
    taken: BTreeSet<String>,
}

impl Tree {
    fn folder(&mut self, name: &str) -> Result<()> {
        if !self.taken.insert(name.to_owned()) {
            return Ok(());
        }
        let entry = Builder::new(name).mode(0o755).nlink(2);
        let entry = entry.set_mode_file_type(ModeFileType::Directory);
        entry.write(&mut self.bytes, 0).finish().map(drop)?;
        Ok(())
    }

    /// A program, and its libraries where they lie on this machine.
    fn program(&mut self, name: &str, from: &Path) -> Result<()> {
        self.file(name, from)?;
        let path = from.to_str().context("the path is not UTF-8")?;
        // A static one is refused by `ldd`, and needs none.
        let libraries = run(&["ldd", path]).unwrap_or_default();
        for library in libraries.lines().filter_map(library) {
            self.file(library.trim_start_matches('/'), Path::new(library))?;
        }
        Ok(())
    }

    fn file(&mut self, name: &str, from: &Path) -> Result<()> {
        for (at, _) in name.match_indices('/') {
            self.folder(&name[..at])?;
        }
        if !self.taken.insert(name.to_owned()) {
            return Ok(());
        }
        let bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
        let size = u32::try_from(bytes.len()).context("larger than cpio can say")?;
        let entry = Builder::new(name).mode(0o755);
        let entry = entry.set_mode_file_type(ModeFileType::Regular);
        let mut writer = entry.write(&mut self.bytes, size);
        std::io::Write::write_all(&mut writer, &bytes)?;
        writer.finish().map(drop)?;
        Ok(())
    }

    fn packed(mut self) -> Result<Vec<u8>> {
        trailer(&mut self.bytes)?;
        Ok(self.bytes)
    }
}

/// The path in a line of `ldd`: `libm.so.6 => /lib/libm.so.6 (0x…)`, or the loader's own.
fn library(line: &str) -> Option<&str> {
    let line = line.split_once("=> ").map_or(line, |(_, path)| path).trim();
    let path = line.split(' ').next()?;
    path.starts_with('/').then_some(path)
}

fn found(name: &str) -> Result<PathBuf> {
    let paths = PATHS.iter().map(|dir| Path::new(dir).join(name));
    let mut there = paths.filter(|path| path.exists());
    there
        .next()
        .with_context(|| format!("{name} is not installed: make deps"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_prints() {
        let lines = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibm.so.6 => /lib/libm.so.6 (0x00007f)\n\
                     \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibnone.so => not found";
        let found: Vec<_> = lines.lines().filter_map(library).collect();
        assert_eq!(found, ["/lib/libm.so.6", "/lib64/ld-linux-x86-64.so.2"]);
    }
}

//! What the rescue ramdisk has beyond the ordinary one: a shell, an SSH server, tools for disks.
//!
//! It is one more archive behind the initramfs, served to hosts in rescue and to nobody else. The
//! programs are this machine's own, with the libraries that they name; who may log in is not in
//! here, the agent is told that by the conductor.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::elf::{DT_NEEDED, FileHeader64, PT_INTERP};
use object::endian::LittleEndian;
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};

use crate::initramfs::{self, Node, Tree};
use crate::{command, profile};

/// Where the loader looks for libraries, here and in the ramdisk.
const LIBRARIES: &[&str] = &["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64"];
const BUSYBOX: &str = "bin/busybox";

/// The archive, compressed as the kernel reads it behind another one.
pub(crate) fn build() -> Result<Vec<u8>> {
    let mut tree = programs(Path::new("/"), profile::RESCUE_PROGRAMS)?;
    for applet in applets()? {
        tree.add_unless_there(
            &applet,
            Node::Link {
                to: format!("/{BUSYBOX}"),
            },
        );
    }
    for folder in ["root", "etc/dropbear", "var/run", "dev/pts", "dev/shm"] {
        tree.add_unless_there(folder, Node::Directory);
    }
    initramfs::pack_one(&tree)
}

/// The programs, and every library that they or their libraries name.
fn programs(root: &Path, names: &[&str]) -> Result<Tree> {
    let mut tree = Tree::default();
    let mut wanted: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut taken = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        if !taken.insert(name.clone()) {
            continue;
        }
        let path = root.join(&name);
        let bytes = std::fs::read(&path).with_context(|| {
            format!(
                "reading {}; `make deps` installs its package",
                path.display()
            )
        })?;
        let needs = needs(&bytes).with_context(|| format!("{} as ELF", path.display()))?;
        for library in needs.libraries {
            wanted.push(find(root, &library)?);
        }
        wanted.extend(needs.loader);
        tree.add_file(&name, 0o755, bytes);
    }
    Ok(tree)
}

/// What an ELF file cannot run without.
#[derive(Debug, Default, PartialEq)]
struct Needs {
    loader: Option<String>,
    libraries: Vec<String>,
}

fn needs(bytes: &[u8]) -> Result<Needs> {
    let header = FileHeader64::<LittleEndian>::parse(bytes)?;
    let endian = header.endian()?;
    let mut needs = Needs::default();
    for segment in header.program_headers(endian, bytes)? {
        if segment.p_type(endian) == PT_INTERP {
            let name = segment.data(endian, bytes).unwrap_or_default();
            let name = String::from_utf8_lossy(name);
            let name = name.trim_end_matches('\0').trim_start_matches('/');
            needs.loader = Some(name.to_owned());
        }
    }
    let sections = header.sections(endian, bytes)?;
    let Some((dynamic, link)) = sections.dynamic(endian, bytes)? else {
        return Ok(needs);
    };
    let strings = sections.strings(endian, bytes, link)?;
    for entry in dynamic {
        if entry.tag(endian) == DT_NEEDED {
            let name = entry.string(endian, strings)?;
            needs
                .libraries
                .push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Ok(needs)
}

fn find(root: &Path, library: &str) -> Result<String> {
    let names = LIBRARIES.iter().map(|folder| format!("{folder}/{library}"));
    let mut there = names.filter(|name| root.join(name).is_file());
    match there.next() {
        Some(name) => Ok(name),
        None => bail!("no {library} in {LIBRARIES:?}"),
    }
}

/// Busybox's own list of names it goes by.
fn applets() -> Result<Vec<String>> {
    let busybox = PathBuf::from("/").join(BUSYBOX);
    let list = command::output(Command::new(busybox).arg("--list-full"))?;
    let list = String::from_utf8_lossy(&list).into_owned();
    Ok(list
        .lines()
        .filter(|name| *name != BUSYBOX && !name.contains('['))
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_brings_its_loader_and_its_libraries() {
        let tree = programs(Path::new("/"), &["usr/bin/dpkg"]).unwrap();
        let names: Vec<_> = tree.names().collect();
        assert!(names.contains(&"usr/bin/dpkg"), "{names:?}");
        assert!(names.contains(&"lib64/ld-linux-x86-64.so.2"), "{names:?}");
        let libc = names.iter().filter(|name| name.ends_with("libc.so.6"));
        assert_eq!(libc.count(), 1, "{names:?}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = programs(Path::new("/"), &["usr/sbin/no-such"]).unwrap_err();
        assert!(error.to_string().contains("/usr/sbin/no-such"), "{error}");
        let error = programs(Path::new("/"), &["etc/passwd"]).unwrap_err();
        assert!(error.to_string().contains("ELF"), "{error}");
    }
}

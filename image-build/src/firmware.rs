//! Which firmware files the shipped modules ask for, and which of them a directory has.
//! It reads `.modinfo`; it does not judge licences and downloads nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use object::{Object, ObjectSection};

/// Suffixes under which a file may lie in a firmware directory, as the kernel itself would look for
/// it.
const SUFFIXES: [&str; 2] = ["", ".xz"];

/// What the drivers ask for, split by whether it is there.
#[derive(Debug, Default)]
pub(crate) struct Firmware {
    /// Name below /lib/firmware (with suffix) and where its bytes are.
    pub(crate) files: BTreeMap<String, PathBuf>,
    /// Module name to the firmware that it asks for and that is not there.
    pub(crate) missing: BTreeMap<String, Vec<String>>,
}

/// The firmware names in a module's `.modinfo` section.
pub(crate) fn wanted_by(module: &[u8]) -> Result<BTreeSet<String>> {
    let file = object::File::parse(module).context("parsing it as ELF")?;
    let Some(section) = file.section_by_name(".modinfo") else {
        return Ok(BTreeSet::new());
    };
    Ok(parse_modinfo(section.data().context("reading .modinfo")?))
}

/// `.modinfo` is a run of NUL-terminated `key=value` strings.
fn parse_modinfo(section: &[u8]) -> BTreeSet<String> {
    let strings = section
        .split(|&b| b == 0)
        .filter_map(|s| std::str::from_utf8(s).ok());
    let names = strings.filter_map(|s| s.strip_prefix("firmware="));
    names
        .filter(|name| is_plain(name))
        .map(str::to_owned)
        .collect()
}

/// A name that stays below /lib/firmware.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('/') && !name.split('/').any(|part| part == "..")
}

/// Looks up what each module wants in the directories given, in the layout of linux-firmware.
pub(crate) fn collect(wanted: &BTreeMap<String, BTreeSet<String>>, dirs: &[PathBuf]) -> Firmware {
    let mut result = Firmware::default();
    for (module, names) in wanted {
        for name in names {
            match find(name, dirs) {
                Some((name, path)) => drop(result.files.insert(name, path)),
                None => result
                    .missing
                    .entry(module.clone())
                    .or_default()
                    .push(name.clone()),
            }
        }
    }
    result
}

fn find(name: &str, dirs: &[PathBuf]) -> Option<(String, PathBuf)> {
    let candidates = dirs.iter().flat_map(|dir| {
        SUFFIXES.map(|suffix| {
            (
                format!("{name}{suffix}"),
                dir.join(format!("{name}{suffix}")),
            )
        })
    });
    candidates.into_iter().find(|(_, path)| Path::is_file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modinfo_firmware_lines_are_found_and_unsafe_names_dropped() {
        let section = b"license=GPL\0firmware=bnx2/a.fw\0\0firmware=../etc/passwd\0firmware=/abs\0\
            depends=x\0firmware=qed/b.bin\0";
        let names: Vec<_> = parse_modinfo(section).into_iter().collect();
        assert_eq!(names, ["bnx2/a.fw", "qed/b.bin"]);
    }

    #[test]
    fn what_is_there_ships_and_what_is_not_is_listed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bnx2")).unwrap();
        std::fs::write(dir.path().join("bnx2/a.fw"), "a").unwrap();
        std::fs::write(dir.path().join("bnx2/b.fw.xz"), "b").unwrap();
        let names = ["bnx2/a.fw", "bnx2/b.fw", "bnx2/c.fw"].map(str::to_owned);
        let wanted = BTreeMap::from([("bnx2".to_owned(), BTreeSet::from(names))]);
        let got = collect(&wanted, &[dir.path().to_owned()]);
        let shipped: Vec<_> = got.files.keys().cloned().collect();
        assert_eq!(shipped, ["bnx2/a.fw", "bnx2/b.fw.xz"]);
        assert_eq!(got.missing["bnx2"], ["bnx2/c.fw"]);
    }

    #[test]
    fn bytes_that_are_no_elf_file_are_an_error() {
        assert!(wanted_by(b"not an ELF file").is_err());
    }
}

//! Which modules to ship: names from the profile, closed over dependencies. Reads depmod's indexes
//! as text and writes them back, cut down to what is shipped; it opens no module file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

/// Suffix of a module as shipped: each one is compressed alone, so that only what is loaded is ever
/// decompressed.
pub(crate) const SHIPPED_SUFFIX: &str = ".zst";

/// depmod's indexes of one kernel.
#[derive(Debug, Default)]
pub(crate) struct ModuleIndex {
    /// Path below /lib/modules/RELEASE to the paths it needs, all of them (depmod writes the
    /// closure).
    dependencies: BTreeMap<String, Vec<String>>,
    paths_by_name: BTreeMap<String, String>,
    /// Alias pattern and module name, in depmod's order.
    aliases: Vec<(String, String)>,
    softdeps: Vec<(String, String)>,
    builtin: BTreeSet<String>,
    builtin_text: String,
}

/// The answer to a profile.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Paths below /lib/modules/RELEASE, sorted.
    pub(crate) paths: BTreeSet<String>,
    /// Names that this kernel has neither as a module nor built in.
    pub(crate) absent: Vec<String>,
}

impl ModuleIndex {
    /// Reads the indexes that depmod and the kernel package left in `/lib/modules/RELEASE`.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let text = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let (dep, alias) = (text("modules.dep")?, text("modules.alias")?);
        Ok(Self::parse(
            &dep,
            &alias,
            &text("modules.softdep")?,
            &text("modules.builtin")?,
        ))
    }

    fn parse(dep: &str, alias: &str, softdep: &str, builtin: &str) -> Self {
        let mut index = Self {
            builtin_text: builtin.to_owned(),
            ..Self::default()
        };
        for (path, needs) in dep.lines().filter_map(|line| line.split_once(':')) {
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            index.paths_by_name.insert(name_of(path), path.to_owned());
            index.dependencies.insert(path.to_owned(), needs);
        }
        // A pattern may contain spaces (names of boards); a module's name does not.
        let words = alias
            .lines()
            .filter_map(|line| line.strip_prefix("alias ")?.trim_end().rsplit_once(' '));
        index.aliases = words
            .map(|(pattern, name)| (pattern.into(), name.into()))
            .collect();
        let words = softdep
            .lines()
            .filter_map(|l| l.strip_prefix("softdep ")?.split_once(' '));
        index.softdeps = words
            .map(|(name, rest)| (name.into(), rest.trim().into()))
            .collect();
        index.builtin = builtin.lines().map(name_of).collect();
        index
    }

    /// The wanted modules, all they depend on, and what their soft dependencies name (ext4 loads
    /// without crc32c, but then refuses to mount).
    pub(crate) fn select<'a>(&self, wanted: impl Iterator<Item = &'a str>) -> Selection {
        let mut queue: Vec<String> = wanted.map(normal).collect();
        let mut paths = BTreeSet::new();
        let mut absent = BTreeSet::new();
        while let Some(name) = queue.pop() {
            let found = self.paths_of(&name);
            if found.is_empty() && !self.builtin.contains(&name) {
                absent.insert(name);
                continue;
            }
            for path in found {
                let needs = self.dependencies.get(path).into_iter().flatten();
                for path in needs.chain([path]) {
                    if paths.insert(path.clone()) {
                        queue.extend(self.soft_names(&name_of(path)));
                    }
                }
            }
        }
        Selection {
            paths,
            absent: absent.into_iter().collect(),
        }
    }

    /// A module of that name, else every module that has the name as an alias without wildcards.
    fn paths_of(&self, name: &str) -> Vec<&String> {
        if let Some(path) = self.paths_by_name.get(name) {
            return vec![path];
        }
        let aliased = self
            .aliases
            .iter()
            .filter(|(pattern, _)| normal(pattern) == name);
        aliased
            .filter_map(|(_, module)| self.paths_by_name.get(&normal(module)))
            .collect()
    }

    fn soft_names(&self, name: &str) -> Vec<String> {
        let lines = self
            .softdeps
            .iter()
            .filter(|(module, _)| normal(module) == name);
        let words = lines.flat_map(|(_, rest)| rest.split_whitespace());
        let names: BTreeSet<String> = words.filter(|w| !w.ends_with(':')).map(normal).collect();
        // A soft dependency that this kernel lacks is the kernel's business, not an error of the
        // profile.
        let known = |n: &String| !self.paths_of(n).is_empty();
        names.into_iter().filter(known).collect()
    }

    /// The index files of the ramdisk: same formats as depmod's, only the shipped modules, with
    /// their shipped names.
    pub(crate) fn shipped_indexes(&self, paths: &BTreeSet<String>) -> Vec<(&'static str, String)> {
        let names: BTreeSet<String> = paths.iter().map(|path| name_of(path)).collect();
        let ships = |name: &str| names.contains(&normal(name));
        let mut dep = String::new();
        for path in paths {
            let needs = self.dependencies.get(path).into_iter().flatten();
            let needs: String = needs.fold(String::new(), |all, n| all + " " + n + SHIPPED_SUFFIX);
            let _ = writeln!(dep, "{path}{SHIPPED_SUFFIX}:{needs}");
        }
        let mut alias = String::new();
        for (pattern, name) in self.aliases.iter().filter(|(_, name)| ships(name)) {
            let _ = writeln!(alias, "alias {pattern} {name}");
        }
        let mut soft = String::new();
        for (name, rest) in self.softdeps.iter().filter(|(name, _)| ships(name)) {
            let _ = writeln!(soft, "softdep {name} {rest}");
        }
        let builtin = self.builtin_text.clone();
        let texts = [dep, alias, soft, builtin];
        [
            "modules.dep",
            "modules.alias",
            "modules.softdep",
            "modules.builtin",
        ]
        .into_iter()
        .zip(texts)
        .collect()
    }
}

/// `kernel/drivers/net/xen-netfront.ko` is the module `xen_netfront`.
pub(crate) fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normal(file.split(".ko").next().unwrap_or(file))
}

/// The kernel does not tell `-` from `_` in module names.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/lib/crc16.ko:
kernel/lib/libcrc32c.ko:
kernel/crypto/crc32c_generic.ko:
kernel/arch/x86/crypto/crc32c-intel.ko:
kernel/fs/jbd2/jbd2.ko:
kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/jbd2/jbd2.ko
kernel/drivers/net/xen-netfront.ko: kernel/lib/libcrc32c.ko
kernel/drivers/sound/loud.ko: kernel/lib/crc16.ko
";
    const ALIAS: &str = "\
# Aliases extracted from modules themselves.
alias crc32c crc32c_generic
alias crypto-crc32c crc32c_generic
alias crc32c crc32c_intel
alias fs-ext4 ext4
alias pci:v00001AF4d*sv*sd*bc*sc*i* loud
alias dmi*:svnSome Vendor:pn* jbd2
";
    const SOFT: &str = "softdep ext4 pre: crc32c\nsoftdep loud pre: nothing-here\n";
    const BUILTIN: &str = "kernel/drivers/input/serio/i8042.ko\n";

    fn index() -> ModuleIndex {
        ModuleIndex::parse(DEP, ALIAS, SOFT, BUILTIN)
    }

    #[test]
    fn dependencies_and_soft_dependencies_are_followed() {
        let picked = index().select(["ext4"].into_iter());
        let names: Vec<String> = picked.paths.iter().map(|p| name_of(p)).collect();
        assert_eq!(
            names,
            ["crc32c_intel", "crc32c_generic", "ext4", "jbd2", "crc16"]
        );
        assert!(picked.absent.is_empty());
    }

    #[test]
    fn dashes_and_builtins_are_understood_and_the_absent_named() {
        let picked = index().select(["xen_netfront", "i8042", "not-there"].into_iter());
        assert_eq!(picked.paths.len(), 2);
        assert_eq!(picked.absent, ["not_there"]);
    }

    #[test]
    fn shipped_indexes_have_only_the_shipped() {
        let index = index();
        let picked = index.select(["ext4"].into_iter());
        let files: BTreeMap<_, _> = index.shipped_indexes(&picked.paths).into_iter().collect();
        assert!(files["modules.dep"].contains(
            "kernel/fs/ext4/ext4.ko.zst: kernel/lib/crc16.ko.zst kernel/fs/jbd2/jbd2.ko.zst\n"
        ));
        assert!(!files["modules.dep"].contains("loud"));
        assert!(!files["modules.alias"].contains("loud"));
        assert!(files["modules.alias"].contains("alias fs-ext4 ext4\n"));
        assert!(files["modules.alias"].contains("alias dmi*:svnSome Vendor:pn* jbd2\n"));
        assert_eq!(files["modules.softdep"], "softdep ext4 pre: crc32c\n");
        assert_eq!(files["modules.builtin"], BUILTIN);
    }
}

//! Chooses what the image would boot: a UKI, else a boot loader entry, else `grub.cfg`'s default.

use std::fmt;
use std::path::Path;

use super::bls::{self, compare_versions};
use super::grub_cfg::{self, Surroundings};
use super::uki::{self, Uki};
use super::volume::Volume;
use super::{Entry, NoKexec};

/// Folders of boot loader entries, and what their paths are relative to.
const BLS_FOLDERS: &[&str] = &["/loader/entries", "/boot/loader/entries"];
/// Where `grub.cfg` lies: on a root volume, or on one of its own for `/boot`.
const GRUB_FOLDERS: &[&str] = &["/boot/grub", "/boot/grub2", "/grub", "/grub2"];
/// Where UKIs lie.
const UKI_FOLDER: &str = "/EFI/Linux";

/// What is started from where.
#[derive(Debug)]
pub(crate) struct Choice<'a> {
    /// Where its files are.
    pub(crate) volume: &'a Volume,
    /// The kernel's arguments.
    pub(crate) options: String,
    /// Its files.
    pub(crate) parts: Parts,
    title: String,
}

/// The files of a choice.
#[derive(Debug)]
pub(crate) enum Parts {
    /// Separate ones.
    Files {
        /// The kernel.
        linux: String,
        /// Its ramdisks.
        initrds: Vec<String>,
    },
    /// All in one.
    Uki {
        /// The file.
        file: String,
        /// Where its parts lie.
        uki: Uki,
    },
}

impl fmt::Display for Choice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = match &self.parts {
            Parts::Files { linux, .. } => linux,
            Parts::Uki { file, .. } => file,
        };
        let title = if self.title.is_empty() {
            "Linux"
        } else {
            &self.title
        };
        write!(f, "{title} ({file} on {})", self.volume.name)
    }
}

/// The default of the first kind of boot loader that is there.
pub(crate) fn choose(volumes: &[Volume], uefi: bool) -> Result<Choice<'_>, NoKexec> {
    for volume in volumes.iter().filter(|_| uefi) {
        if let Some(choice) = unified(volume)? {
            return Ok(choice);
        }
    }
    let environment = volumes.iter().find_map(grub_environment);
    for volume in volumes {
        if let Some(choice) = from_bls(volume, environment.as_deref())? {
            return Ok(choice);
        }
    }
    for volume in volumes {
        if let Some(choice) = from_grub(volume, uefi)? {
            return Ok(choice);
        }
    }
    let names: Vec<_> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    Err(NoKexec::NoLoader {
        volumes: names.join(", "),
    })
}

fn unified(volume: &Volume) -> Result<Option<Choice<'_>>, NoKexec> {
    let mut names = volume.names(UKI_FOLDER);
    names.retain(|name| name.to_ascii_lowercase().ends_with(".efi"));
    let newest = names
        .into_iter()
        .max_by(|one, other| compare_versions(one, other));
    let Some(name) = newest else { return Ok(None) };
    let file = format!("{UKI_FOLDER}/{name}");
    let read = volume.open(&file).and_then(|open| uki::read(&open));
    let uki = read.map_err(|error| not_understood(volume, &file, &error))?;
    let options = uki.line.clone();
    Ok(Some(Choice {
        volume,
        options,
        parts: Parts::Uki { file, uki },
        title: name,
    }))
}

fn from_bls<'a>(
    volume: &'a Volume,
    environment: Option<&str>,
) -> Result<Option<Choice<'a>>, NoKexec> {
    let variable = |wanted: &str| {
        let mut known = grub_cfg::environment(environment?);
        known
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| value.to_owned())
    };
    for folder in BLS_FOLDERS {
        let mut entries = Vec::new();
        for name in volume.names(folder).iter().filter(|name| {
            Path::new(name)
                .extension()
                .is_some_and(|kind| kind == "conf")
        }) {
            let file = format!("{folder}/{name}");
            let text = volume
                .text(&file)
                .map_err(|error| not_understood(volume, &file, &error))?;
            let entry = bls::parse(name, &text, &variable);
            entries.push(entry.map_err(|error| not_understood(volume, &file, &error))?);
        }
        let wanted = loader_default(volume).or_else(|| variable("saved_entry"));
        if let Some(entry) = bls::choose(entries, wanted.as_deref()) {
            return Ok(Some(files(volume, entry)));
        }
    }
    Ok(None)
}

/// `default` of systemd-boot's `loader.conf`.
fn loader_default(volume: &Volume) -> Option<String> {
    let text = volume.text("/loader/loader.conf").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("default"))?;
    Some(line.trim().to_owned())
}

fn from_grub(volume: &Volume, uefi: bool) -> Result<Option<Choice<'_>>, NoKexec> {
    for prefix in GRUB_FOLDERS {
        let file = format!("{prefix}/grub.cfg");
        if !volume.has(&file) {
            continue;
        }
        let text = volume
            .text(&file)
            .map_err(|error| not_understood(volume, &file, &error))?;
        let environment = volume.text(&format!("{prefix}/grubenv")).ok();
        let around = Surroundings {
            prefix,
            environment: environment.as_deref(),
            uefi,
            exists: &|path| volume.has(path),
        };
        let entry = grub_cfg::default_entry(&text, &around);
        let entry = entry.map_err(|error| not_understood(volume, &file, &error))?;
        return Ok(Some(files(volume, entry)));
    }
    Ok(None)
}

fn grub_environment(volume: &Volume) -> Option<String> {
    GRUB_FOLDERS
        .iter()
        .find_map(|folder| volume.text(&format!("{folder}/grubenv")).ok())
}

/// Paths are relative to the volume, or, where `/boot` is no volume of its own, to that folder.
fn files(volume: &Volume, entry: Entry) -> Choice<'_> {
    let Entry {
        linux,
        initrds,
        options,
        title,
    } = entry;
    let place = |path: String| {
        let below_boot = format!("/boot/{}", path.trim_start_matches('/'));
        if !volume.has(&path) && volume.has(&below_boot) {
            below_boot
        } else {
            path
        }
    };
    let parts = Parts::Files {
        linux: place(linux),
        initrds: initrds.into_iter().map(place).collect(),
    };
    Choice {
        volume,
        options,
        parts,
        title,
    }
}

fn not_understood(volume: &Volume, file: &str, why: &dyn fmt::Display) -> NoKexec {
    NoKexec::Loader {
        volume: volume.name.clone(),
        file: file.to_owned(),
        why: why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(folder: &Path, name: &str, files: &[(&str, &str)]) -> Volume {
        let folder = folder.join(name);
        for (path, text) in files {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Volume::at(&folder, name).unwrap()
    }

    const GRUB: (&str, &str) = ("boot/grub/grub.cfg", "menuentry 'G' {\nlinux /boot/g\n}\n");
    const BLS: &str = "title B\nlinux /b\noptions ro\n";

    #[test]
    fn entries_come_before_grub_and_paths_below_boot_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let entry = ("boot/loader/entries/b.conf", BLS);
        let files = [GRUB, entry, ("boot/b", "K")];
        let volumes = [volume(folder.path(), "vda2", &files)];
        assert_eq!(
            choose(&volumes, true).unwrap().to_string(),
            "B (/boot/b on vda2)"
        );
    }

    #[test]
    fn grub_is_used_where_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let esp = volume(folder.path(), "vda1", &[("EFI/BOOT/BOOTX64.EFI", "x")]);
        let volumes = [esp, volume(folder.path(), "vda2", &[GRUB, ("boot/g", "K")])];
        assert_eq!(
            choose(&volumes, true).unwrap().to_string(),
            "G (/boot/g on vda2)"
        );
    }

    #[test]
    fn a_broken_uki_is_an_error_under_uefi_and_not_looked_at_under_bios() {
        let folder = tempfile::tempdir().unwrap();
        let esp = volume(
            folder.path(),
            "vda1",
            &[("EFI/Linux/linux-6.efi", "not one")],
        );
        let volumes = [esp, volume(folder.path(), "vda2", &[GRUB, ("boot/g", "K")])];
        let error = choose(&volumes, true).unwrap_err().to_string();
        assert!(error.contains("/EFI/Linux/linux-6.efi on vda1"), "{error}");
        assert!(choose(&volumes, false).is_ok());
    }

    #[test]
    fn an_image_of_another_kind_says_what_was_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = [volume(folder.path(), "vda1", &[("etc/fstab", "x")])];
        let error = choose(&volumes, true).unwrap_err().to_string();
        assert!(error.contains("no grub.cfg on vda1"), "{error}");
    }

    #[test]
    fn a_default_of_loader_conf_counts() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            ("loader/loader.conf", "timeout 3\ndefault old*\n"),
            ("loader/entries/new.conf", "linux /n\nsort-key a\n"),
            ("loader/entries/old-1.conf", "linux /o\n"),
        ];
        let volumes = [volume(folder.path(), "vda1", &files)];
        assert_eq!(
            choose(&volumes, true).unwrap().to_string(),
            "Linux (/o on vda1)"
        );
    }
}

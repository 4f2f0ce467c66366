//! Finds the kernel that the deployed image would boot, without running anything of it, and puts
//! it in memory for kexec. What is not understood is an error, and the host reboots instead.

mod bls;
mod choose;
mod file_system;
mod grub_cfg;
mod grub_script;
mod uki;
mod volume;

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use nix::sys::memfd::{MFdFlags, memfd_create};

use self::choose::{Choice, Parts};
use self::volume::Volume;
use crate::kernel::{Kernel, Mount};
use crate::ramdisk::modules::Modules;
use crate::root::Root;

/// Where partitions are mounted, each by its kernel name.
const MOUNTS: &str = "/run/ferrite/disk";
/// Longest command line that x86's kernel takes, with its NUL (`COMMAND_LINE_SIZE`).
const LINE_LIMIT: usize = 2048;

/// What UEFI firmware starts on a disk that it knows nothing of.
pub(crate) const FALLBACK_LOADER: &str = "/EFI/BOOT/BOOTX64.EFI";
/// What distributions install, the one that Secure Boot wants first.
const LOADERS: [&str; 3] = ["shimx64.efi", "grubx64.efi", "systemd-bootx64.efi"];

/// What a boot loader would start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The kernel's path on its volume.
    pub(crate) linux: String,
    /// The initial ramdisks' paths, in their order.
    pub(crate) initrds: Vec<String>,
    /// The kernel's arguments, as the entry has them.
    pub(crate) options: String,
    /// The entry's title.
    pub(crate) title: String,
}

/// Why kexec is not possible.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoKexec {
    /// The partitions cannot be read.
    #[error("no file system of {disk} can be read")]
    NoVolume {
        /// The disk.
        disk: String,
    },
    /// No boot loader that we know.
    #[error("no UKI, no boot loader entry and no grub.cfg on {volumes}")]
    NoLoader {
        /// What was looked at.
        volumes: String,
    },
    /// A boot loader's configuration that is not understood.
    #[error("{file} on {volume}: {why}")]
    Loader {
        /// The partition.
        volume: String,
        /// The file.
        file: String,
        /// What is not understood.
        why: String,
    },
    /// A file that the entry names is not there.
    #[error("{path} on {volume} cannot be read ({error})")]
    Missing {
        /// The partition.
        volume: String,
        /// The file.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// Arguments that the kernel would cut off or refuse.
    #[error("the kernel's arguments are longer than {LINE_LIMIT} bytes or not text")]
    Line,
    /// The running kernel refuses.
    #[error("the kernel refuses to load {what} ({error})")]
    Refused {
        /// Which kernel.
        what: String,
        /// Why.
        error: io::Error,
    },
}

/// Loads the kernel of the image on a disk (`/dev/vda`); returns what it is, for people.
pub(crate) fn load(root: &Root, kernel: &dyn Kernel, disk: &str) -> Result<String, NoKexec> {
    let name = disk.trim_start_matches("/dev/");
    let mounts = Mounts::of_disk(root, kernel, name);
    if mounts.volumes.is_empty() {
        return Err(NoKexec::NoVolume {
            disk: disk.to_owned(),
        });
    }
    let uefi = root.path("/sys/firmware/efi").exists();
    let choice = choose::choose(&mounts.volumes, uefi)?;
    load_choice(kernel, &choice)
}

/// The boot loader on a disk's EFI system partition: a distribution's own, else the fallback.
pub(crate) fn efi_loader(
    root: &Root,
    kernel: &dyn Kernel,
    disk: &str,
    number: u32,
) -> Option<String> {
    let mounts = Mounts::of_disk(root, kernel, disk);
    let is_it = |volume: &&Volume| {
        let file = format!("/sys/class/block/{disk}/{}/partition", volume.name);
        root.text(file).is_ok_and(|text| text == number.to_string())
    };
    find_loader(mounts.volumes.iter().find(is_it)?)
}

fn find_loader(volume: &Volume) -> Option<String> {
    for loader in LOADERS {
        for folder in volume.names("/EFI") {
            let path = format!("/EFI/{folder}/{loader}");
            if !folder.eq_ignore_ascii_case("boot") && volume.has(&path) {
                return Some(path);
            }
        }
    }
    volume
        .has(FALLBACK_LOADER)
        .then(|| FALLBACK_LOADER.to_owned())
}

fn load_choice(kernel: &dyn Kernel, choice: &Choice<'_>) -> Result<String, NoKexec> {
    let line = CString::new(choice.options.as_str()).map_err(|_| NoKexec::Line)?;
    if line.as_bytes_with_nul().len() > LINE_LIMIT || choice.options.contains('\n') {
        return Err(NoKexec::Line);
    }
    let missing = |path: &str, error| NoKexec::Missing {
        volume: choice.volume.name.clone(),
        path: path.to_owned(),
        error,
    };
    let (image, initrd) = match &choice.parts {
        Parts::Files { linux, initrds } => {
            let image = choice
                .volume
                .open(linux)
                .map_err(|error| missing(linux, error))?;
            (image, initrd_of(choice.volume, initrds, &missing)?)
        }
        Parts::Uki { file, uki } => {
            let open = choice
                .volume
                .open(file)
                .map_err(|error| missing(file, error))?;
            let part = |at| copy_part(&open, at).map_err(|error| missing(file, error));
            (part(uki.linux)?, uki.initrd.map(part).transpose()?)
        }
    };
    kernel
        .load_kexec(&image, initrd.as_ref(), &line)
        .map_err(|error| NoKexec::Refused {
            what: choice.to_string(),
            error,
        })?;
    Ok(choice.to_string())
}

/// One file as it is; several one after the other, which is how the kernel wants them.
fn initrd_of(
    volume: &Volume,
    paths: &[String],
    missing: &dyn Fn(&str, io::Error) -> NoKexec,
) -> Result<Option<File>, NoKexec> {
    if let [path] = paths {
        return Ok(Some(
            volume.open(path).map_err(|error| missing(path, error))?,
        ));
    }
    let Some(first) = paths.first() else {
        return Ok(None);
    };
    let mut joined = memory_file().map_err(|error| missing(first, error))?;
    for path in paths {
        let copied = volume.open(path).and_then(|mut file| {
            let length = io::copy(&mut file, &mut joined)?;
            // Each archive starts at a multiple of four.
            let padding = usize::try_from(length.next_multiple_of(4) - length).unwrap_or(0);
            joined.write_all(&[0; 3][..padding])
        });
        copied.map_err(|error| missing(path, error))?;
    }
    joined.rewind().map_err(|error| missing(first, error))?;
    Ok(Some(joined))
}

fn copy_part(mut file: &File, (offset, length): (u64, u64)) -> io::Result<File> {
    let mut part = memory_file()?;
    file.seek(SeekFrom::Start(offset))?;
    if io::copy(&mut file.take(length), &mut part)? != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    part.rewind()?;
    Ok(part)
}

fn memory_file() -> io::Result<File> {
    Ok(File::from(memfd_create(
        c"ferrite-boot",
        MFdFlags::MFD_CLOEXEC,
    )?))
}

/// The mounted partitions of a disk; taken away when dropped.
struct Mounts<'a> {
    kernel: &'a dyn Kernel,
    volumes: Vec<Volume>,
}

impl<'a> Mounts<'a> {
    fn of_disk(root: &Root, kernel: &'a dyn Kernel, disk: &str) -> Self {
        let mut mounts = Self {
            kernel,
            volumes: Vec::new(),
        };
        let modules = Modules::open(root, kernel).ok();
        for partition in partitions(root, disk) {
            let device = root.path("/dev").join(&partition);
            let Ok(Some(kind)) = file_system::of(&device) else {
                continue;
            };
            if let Some(modules) = &modules {
                kind.modules().iter().for_each(|name| modules.load(name));
            }
            let target = root.path(MOUNTS).join(&partition);
            match mount(kernel, &device, &target, kind) {
                Ok(()) => mounts.volumes.extend(Volume::at(&target, &partition)),
                Err(error) => tracing::warn!(%partition, %error, "not mounted"),
            }
        }
        mounts
    }
}

impl Drop for Mounts<'_> {
    fn drop(&mut self) {
        for volume in self.volumes.drain(..) {
            let path: PathBuf = volume.path().to_owned();
            // Its folder is open and would keep it busy.
            drop(volume);
            if let Err(error) = self.kernel.unmount(&path) {
                tracing::warn!(path = %path.display(), %error, "not unmounted");
            }
        }
    }
}

fn mount(
    kernel: &dyn Kernel,
    device: &Path,
    target: &Path,
    kind: file_system::FileSystem,
) -> io::Result<()> {
    std::fs::create_dir_all(target)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    kernel.mount(&Mount {
        source: device,
        target,
        kind: kind.name(),
        flags,
        data: kind.options(),
    })
}

/// A disk's partitions, by number.
fn partitions(root: &Root, disk: &str) -> Vec<String> {
    let folder = format!("/sys/class/block/{disk}");
    let names = root.names(&folder).unwrap_or_default();
    let number = |name: &String| {
        let text = root.text(format!("{folder}/{name}/partition")).ok()?;
        Some((text.parse::<u32>().ok()?, name.clone()))
    };
    let mut numbered: Vec<_> = names.iter().filter_map(number).collect();
    numbered.sort();
    numbered.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Remembers what would be started.
    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<(String, Option<String>, String)>>);

    impl Kernel for Recorder {
        fn load_kexec(
            &self,
            mut kernel: &File,
            initrd: Option<&File>,
            line: &std::ffi::CStr,
        ) -> io::Result<()> {
            let mut image = String::new();
            kernel.read_to_string(&mut image)?;
            let initrd = initrd.map(|mut file| {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                text
            });
            let line = line.to_str().unwrap().to_owned();
            self.0.lock().unwrap().push((image, initrd, line));
            Ok(())
        }
    }

    fn volume(folder: &Path, files: &[(&str, &str)]) -> Volume {
        for (path, text) in files {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Volume::at(folder, "vda2").unwrap()
    }

    #[test]
    fn several_initrds_are_joined_at_multiples_of_four() {
        let folder = tempfile::tempdir().unwrap();
        let cfg = "menuentry 'D' {\nlinux /boot/k root=x\ninitrd /boot/a /boot/b\n}\n";
        let files = [
            ("boot/grub/grub.cfg", cfg),
            ("boot/k", "KERNEL"),
            ("boot/a", "early"),
            ("boot/b", "main"),
        ];
        let volumes = [volume(folder.path(), &files)];
        let kernel = Recorder::default();
        let what = load_choice(&kernel, &choose::choose(&volumes, false).unwrap()).unwrap();
        assert_eq!(what, "D (/boot/k on vda2)");
        let loaded = kernel.0.lock().unwrap();
        let wanted = (
            "KERNEL".to_owned(),
            Some("early\0\0\0main".to_owned()),
            "root=x".to_owned(),
        );
        assert_eq!(*loaded, [wanted]);
    }

    #[test]
    fn a_kernel_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let cfg = "menuentry 'D' {\nlinux /boot/gone\n}\n";
        let volumes = [volume(folder.path(), &[("boot/grub/grub.cfg", cfg)])];
        let choice = choose::choose(&volumes, false).unwrap();
        let error = load_choice(&Recorder::default(), &choice).unwrap_err();
        assert!(error.to_string().contains("/boot/gone on vda2"), "{error}");
    }

    #[test]
    fn arguments_that_are_too_long_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let cfg = format!(
            "menuentry 'D' {{\nlinux /k {}\n}}\n",
            "x".repeat(LINE_LIMIT)
        );
        let volumes = [volume(
            folder.path(),
            &[("boot/grub/grub.cfg", &cfg), ("k", "K")],
        )];
        let choice = choose::choose(&volumes, false).unwrap();
        let error = load_choice(&Recorder::default(), &choice).unwrap_err();
        assert!(matches!(error, NoKexec::Line));
    }

    #[test]
    fn a_distributions_loader_comes_before_the_fallback() {
        let folder = tempfile::tempdir().unwrap();
        let fallback = volume(folder.path(), &[("EFI/BOOT/BOOTX64.EFI", "x")]);
        assert_eq!(
            find_loader(&fallback).as_deref(),
            Some("/EFI/BOOT/BOOTX64.EFI")
        );
        let files = [
            ("EFI/debian/grubx64.efi", "x"),
            ("EFI/BOOT/grubx64.efi", "x"),
        ];
        let debian = volume(folder.path(), &files);
        assert_eq!(
            find_loader(&debian).as_deref(),
            Some("/EFI/debian/grubx64.efi")
        );
    }

    #[test]
    fn partitions_come_by_number() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        for (name, number) in [("vda15", "15"), ("vda1", "1"), ("vda2", "2")] {
            let folder = root.path(format!("/sys/class/block/vda/{name}"));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("partition"), number).unwrap();
        }
        std::fs::create_dir(root.path("/sys/class/block/vda/queue")).unwrap();
        assert_eq!(partitions(&root, "vda"), ["vda1", "vda2", "vda15"]);
    }
}

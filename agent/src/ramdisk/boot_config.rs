//! Finds the words that the boot medium gave: on the kernel command line, or, when that says
//! `ferrite.cfg=iso`, in `BOOT.CFG` on the medium with the label FERRITE.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ferrite_proto::boot::{BOOT_CFG_BYTES, BOOT_CFG_MAGIC, BootParameters, InvalidBoot};
use ferrite_proto::mac::Mac;
use nix::mount::MsFlags;

use crate::kernel::{Kernel, Mount};
use crate::root::Root;

/// Volume label of the boot medium.
const LABEL: &str = "FERRITE";
/// Where it is mounted.
const MEDIUM: &str = "/run/ferrite/medium";
/// Where an ISO 9660 volume descriptor starts (ECMA-119, 8.4).
const DESCRIPTOR: u64 = 16 * 2048;

/// Words that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoBootConfig {
    /// They are there and wrong, or not there.
    #[error(transparent)]
    Invalid(#[from] InvalidBoot),
    /// No medium in time.
    #[error("no medium with the label {LABEL} appeared within {0:?}; is it still inserted?")]
    NoMedium(Duration),
    /// A medium that cannot be read.
    #[error("{file} on the boot medium {device} cannot be read ({error})")]
    Unreadable {
        /// The medium.
        device: String,
        /// What was read.
        file: &'static str,
        /// Why it could not.
        error: io::Error,
    },
}

/// What the command line says before any medium is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandLine {
    text: String,
}

impl CommandLine {
    /// The running kernel's.
    pub(crate) fn read(root: &Root) -> Self {
        Self {
            text: root.text("/proc/cmdline").unwrap_or_default(),
        }
    }

    /// Whether a word stands there as it is.
    pub(crate) fn has(&self, word: &str) -> bool {
        self.text.split_whitespace().any(|own| own == word)
    }

    /// Whether the words are on the medium.
    pub(crate) fn on_medium(&self) -> bool {
        self.has("ferrite.cfg=iso")
    }

    /// The NIC that the firmware booted from: `BOOTIF=01-52-54-00-…`.
    pub(crate) fn boot_interface(&self) -> Option<Mac> {
        let words = self.text.split_whitespace();
        let value = words
            .filter_map(|word| word.strip_prefix("BOOTIF="))
            .next_back()?;
        value.strip_prefix("01-").unwrap_or(value).parse().ok()
    }
}

/// The words, from wherever the command line says they are.
pub(crate) fn find(
    root: &Root,
    kernel: &dyn Kernel,
    line: &CommandLine,
    patience: Duration,
) -> Result<BootParameters, NoBootConfig> {
    if !line.on_medium() {
        return Ok(BootParameters::parse(&line.text)?);
    }
    let started = Instant::now();
    while started.elapsed() < patience {
        if let Some(device) = find_medium(root) {
            return read_medium(root, kernel, &device);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Err(NoBootConfig::NoMedium(patience))
}

fn find_medium(root: &Root) -> Option<PathBuf> {
    let names = root.names("/sys/class/block").ok()?;
    let devices = names.iter().map(|name| root.path("/dev").join(name));
    devices
        .into_iter()
        .find(|device| label(device).is_ok_and(|label| label == LABEL))
}

/// The volume label, read from the primary volume descriptor.
fn label(device: &Path) -> io::Result<String> {
    let mut sector = [0; 72];
    File::open(device)?.read_exact_at(&mut sector, DESCRIPTOR)?;
    if sector[0] != 1 || sector[1..6] != *b"CD001" {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(String::from_utf8_lossy(&sector[40..72])
        .trim_end()
        .to_owned())
}

fn read_medium(
    root: &Root,
    kernel: &dyn Kernel,
    device: &Path,
) -> Result<BootParameters, NoBootConfig> {
    let unreadable = |error| NoBootConfig::Unreadable {
        device: device.display().to_string(),
        file: "BOOT.CFG",
        error,
    };
    let target = root.path(MEDIUM);
    std::fs::create_dir_all(&target).map_err(unreadable)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    let mount = Mount {
        source: device,
        target: &target,
        kind: "iso9660",
        flags,
        data: "",
    };
    kernel.mount(&mount).map_err(unreadable)?;
    let text = read_boot_cfg(root);
    let _ = kernel.unmount(&target);
    Ok(BootParameters::parse(&text.map_err(unreadable)?)?)
}

/// The file's text; its name is in capitals or not, as the medium's extensions have it.
fn read_boot_cfg(root: &Root) -> io::Result<String> {
    let names = root.names(MEDIUM)?;
    let name = names
        .iter()
        .find(|name| name.eq_ignore_ascii_case("boot.cfg"));
    let name = name.ok_or(io::ErrorKind::NotFound)?;
    let bytes = root.read(format!("{MEDIUM}/{name}"))?;
    let bytes = bytes.get(..BOOT_CFG_BYTES).unwrap_or(&bytes);
    let text = String::from_utf8_lossy(bytes).into_owned();
    if text.lines().next() == Some(BOOT_CFG_MAGIC) {
        Ok(text)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its first line is not the expected one",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrite_proto::boot::CaPin;
    use ferrite_proto::secret::Secret;

    fn line(text: &str) -> CommandLine {
        CommandLine {
            text: text.to_owned(),
        }
    }

    #[test]
    fn the_boot_interface_is_read_with_and_without_the_hardware_type() {
        let mac = Some("52:54:00:77:00:01".parse().unwrap());
        assert_eq!(
            line("a BOOTIF=01-52-54-00-77-00-01 b").boot_interface(),
            mac
        );
        assert_eq!(line("BOOTIF=52:54:00:77:00:01").boot_interface(), mac);
        assert_eq!(line("BOOTIF=01-zz").boot_interface(), None);
        assert!(line("x ferrite.cfg=iso y").on_medium());
        assert!(!line("ferrite.cfg=isolated").on_medium());
    }

    #[derive(Debug)]
    struct MountsNothing;
    impl Kernel for MountsNothing {
        fn mount(&self, _: &Mount<'_>) -> io::Result<()> {
            Ok(())
        }
        fn unmount(&self, _: &Path) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn boot_cfg_is_found_on_the_medium_with_the_label() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        for path in [
            "/sys/class/block/sda",
            "/sys/class/block/sr0",
            "/dev",
            MEDIUM,
        ] {
            std::fs::create_dir_all(root.path(path)).unwrap();
        }
        std::fs::write(root.path("/dev/sda"), vec![0; 40_000]).unwrap();
        let mut image = vec![0; 40_000];
        image[32768..32774].copy_from_slice(b"\x01CD001");
        image[32808..32840].copy_from_slice(format!("{LABEL:32}").as_bytes());
        std::fs::write(root.path("/dev/sr0"), image).unwrap();
        let given = BootParameters {
            url: "https://10.77.0.1:7443".into(),
            ca: CaPin([3; 32]),
            ticket: Secret::new("0123456789abcdef".into()),
            time: None,
        };
        std::fs::write(root.path(MEDIUM).join("boot.cfg"), given.boot_cfg()).unwrap();
        let line = line("ferrite.cfg=iso");
        let found = find(&root, &MountsNothing, &line, Duration::from_secs(5)).unwrap();
        assert_eq!(found, given);
        std::fs::write(root.path(MEDIUM).join("boot.cfg"), "something else").unwrap();
        let error = find(&root, &MountsNothing, &line, Duration::from_secs(5)).unwrap_err();
        assert!(error.to_string().contains("BOOT.CFG"), "{error}");
    }

    #[test]
    fn a_medium_that_does_not_come_is_named() {
        let root = Root::at("/nonexistent");
        let line = line("ferrite.cfg=iso");
        let error = find(&root, &MountsNothing, &line, Duration::from_millis(1)).unwrap_err();
        assert!(error.to_string().contains("FERRITE"), "{error}");
    }
}

//! Reads what the machine is: from a file tree to `proto::inventory`. It never fails as a whole:
//! what cannot be read is said in `unread`, and everything else is still told.
//!
//! Deliberately no policy here: which disk is written is `proto::hints`' business.

pub(crate) mod block;
mod cpu;
mod memory;
mod net;
mod smbios;
mod table;

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Instant;

use ferrite_proto::inventory::{BootInfo, BootMode, INVENTORY_VERSION, Inventory, Timing, Unread};

pub(crate) use table::table;

use crate::root::Root;

/// Most entries of `unread`: a machine with thousands of unreadable files says nothing new.
const UNREAD_LIMIT: usize = 100;

/// A file tree that remembers what it could not read.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    root: &'a Root,
    unread: RefCell<Vec<Unread>>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(root: &'a Root) -> Self {
        Self {
            root,
            unread: RefCell::default(),
        }
    }

    /// The text of a file. Nothing for an absent or empty one, which is ordinary in sysfs; any
    /// other failure is remembered.
    fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let path = path.as_ref();
        match self.root.text(path) {
            Ok(text) => (!text.is_empty()).then_some(text),
            Err(error) if is_ordinary(&error) => None,
            Err(error) => {
                self.note(path.display().to_string(), &error);
                None
            }
        }
    }

    fn number<T: std::str::FromStr>(&self, path: impl AsRef<Path>) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    fn is_one(&self, path: impl AsRef<Path>) -> bool {
        self.text(path).as_deref() == Some("1")
    }

    /// The names in a folder; none for a folder that is not there.
    fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let path = path.as_ref();
        self.root.names(path).unwrap_or_else(|error| {
            if !is_ordinary(&error) {
                self.note(path.display().to_string(), &error);
            }
            Vec::new()
        })
    }

    /// Where a link leads, as written after resolving it within the tree.
    fn target(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = std::fs::canonicalize(self.root.path(path)).ok()?;
        Some(target.to_string_lossy().into_owned())
    }

    /// The last part of where a link leads.
    fn target_name(&self, path: impl AsRef<Path>) -> Option<String> {
        let target = self.target(path)?;
        target.rsplit('/').next().map(str::to_owned)
    }

    fn note(&self, what: String, why: &io::Error) {
        let why = match why.kind() {
            ErrorKind::PermissionDenied => "permission denied".to_owned(),
            ErrorKind::NotFound => "absent".to_owned(),
            _ => why.to_string(),
        };
        self.say(what, why);
    }

    fn say(&self, what: String, why: String) {
        let mut unread = self.unread.borrow_mut();
        let known = unread.iter().any(|known| known.what == what);
        if !known && unread.len() < UNREAD_LIMIT {
            unread.push(Unread { what, why });
        }
    }
}

/// Attributes that this hardware does not have: absent, or present and refusing to be read.
fn is_ordinary(error: &io::Error) -> bool {
    let refused = [libc::EINVAL, libc::ENODEV, libc::ENXIO, libc::EOPNOTSUPP];
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
        || error.raw_os_error().is_some_and(|os| refused.contains(&os))
}

/// The whole inventory.
pub(crate) fn inspect(root: &Root) -> Inventory {
    let reader = Reader::new(root);
    let mut timings = Vec::new();
    let mut inventory = Inventory {
        version: INVENTORY_VERSION,
        ..Inventory::default()
    };
    let mut timed = |collector: &str, collect: &mut dyn FnMut()| {
        let started = Instant::now();
        collect();
        timings.push(Timing {
            collector: collector.to_owned(),
            micros: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        });
    };
    timed("boot", &mut || inventory.boot = boot(&reader));
    timed("smbios", &mut || {
        let firmware = smbios::read(&reader);
        inventory.system = firmware.system;
        inventory.memory.dimms = firmware.dimms;
    });
    timed("cpu", &mut || inventory.cpu = cpu::read(&reader));
    timed("memory", &mut || {
        let dimms = std::mem::take(&mut inventory.memory.dimms);
        inventory.memory = memory::read(&reader, dimms);
    });
    timed("block", &mut || inventory.disks = block::disks(&reader));
    timed("net", &mut || inventory.nics = net::read(&reader));
    inventory.unread = reader.unread.into_inner();
    inventory.timings = timings;
    inventory
}

/// Name of the EFI variable that says whether Secure Boot is on (UEFI 2.10, 3.3).
const SECURE_BOOT: &str =
    "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

fn boot(reader: &Reader<'_>) -> BootInfo {
    let uefi = reader.root.path("/sys/firmware/efi").exists();
    // Four bytes of attributes, then one byte of value.
    let variable = reader.root.read(SECURE_BOOT).ok();
    BootInfo {
        mode: Some(if uefi { BootMode::Uefi } else { BootMode::Bios }),
        secure_boot: variable.and_then(|bytes| bytes.get(4).map(|&value| value == 1)),
        kernel: reader.text("/proc/sys/kernel/osrelease"),
    }
}

/// Made-up machines for the tests of this and other modules.
#[cfg(test)]
pub(crate) mod fixture {
    use super::block::device_path;
    use crate::root::Root;

    /// Writes files into a tree, with the folders they need.
    pub(crate) fn write(root: &Root, files: &[(&str, &[u8])]) {
        for (path, bytes) in files {
            let path = root.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }

    /// A tree with virtio disks `vda`, `vdb`, …, each a plain file of the given size.
    pub(crate) fn disks(root: &Root, sizes: &[(&str, u64)]) {
        for (name, bytes) in sizes {
            let file = |part: &str| format!("/sys/block/{name}/{part}");
            let sectors = (bytes / 512).to_string();
            write(
                root,
                &[
                    (&file("size"), sectors.as_bytes()),
                    (&file("dev"), b"254:0\n"),
                    (&file("ro"), b"0\n"),
                    (&file("removable"), b"0\n"),
                    (&file("serial"), format!("{name}-serial").as_bytes()),
                    (&file("queue/logical_block_size"), b"512\n"),
                    (&file("queue/physical_block_size"), b"512\n"),
                    (&file("queue/rotational"), b"1\n"),
                    (&device_path(name), b""),
                ],
            );
            let device = std::fs::File::options()
                .write(true)
                .open(root.path(device_path(name)))
                .unwrap();
            device.set_len(*bytes).unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_machine_can_be_read_whoever_asks() {
        let started = Instant::now();
        let inventory = inspect(&Root::system());
        assert!(started.elapsed().as_secs() < 2, "{:?}", inventory.timings);
        assert_eq!(inventory.version, INVENTORY_VERSION);
        assert!(inventory.cpu.threads.is_some_and(|threads| threads > 0));
        assert!(inventory.memory.total_bytes.is_some_and(|bytes| bytes > 0));
        assert!(inventory.boot.kernel.is_some());
        assert_eq!(inventory.timings.len(), 6);
    }

    #[test]
    fn an_empty_tree_is_an_empty_inventory() {
        let folder = tempfile::tempdir().unwrap();
        let inventory = inspect(&Root::at(folder.path()));
        assert!(inventory.disks.is_empty() && inventory.nics.is_empty());
        assert_eq!(inventory.boot.mode, Some(BootMode::Bios));
    }

    #[test]
    fn secure_boot_is_the_fifth_byte_of_its_variable() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        fixture::write(&root, &[(SECURE_BOOT, &[6, 0, 0, 0, 1])]);
        let boot = boot(&Reader::new(&root));
        assert_eq!(
            (boot.mode, boot.secure_boot),
            (Some(BootMode::Uefi), Some(true))
        );
    }
}

//! Whole block devices, and why some of them must not be written.
//!
//! Devices that only stand for others (loop, device mapper, md, ram) are not disks; optical drives
//! are listed as removable, which keeps them from ever being chosen.

use std::fs::File;
use std::os::unix::fs::FileExt;

use ferrite_proto::inventory::Disk;

use super::Reader;
use crate::root::Root;

/// Why the medium that this ramdisk came from is in use.
pub(crate) const BOOT_MEDIUM: &str = "boot medium";
const BLOCK: &str = "/sys/block";
/// Kernel names of devices without hardware of their own.
const NOT_DISKS: [&str; 8] = ["loop", "ram", "zram", "dm-", "md", "fd", "nbd", "zd"];
/// Volume label of Ferrite's own boot medium.
const BOOT_LABEL: &[u8] = b"FERRITE";
/// Where ISO 9660 keeps its first volume descriptor, and in it the volume label.
const ISO_DESCRIPTOR: u64 = 32_768;
const ISO_LABEL: std::ops::Range<usize> = 40..72;

/// A partition as the kernel sees it, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) start: u64,
    pub(crate) bytes: u64,
}

/// `/dev/sda` for `sda`. Folders have `!` for a slash: `cciss!c0d0` is `/dev/cciss/c0d0`.
pub(crate) fn device_path(name: &str) -> String {
    format!("/dev/{}", name.replace('!', "/"))
}

/// `sda` for `/dev/sda`: the other way round.
pub(crate) fn kernel_name(path: &str) -> String {
    path.trim_start_matches("/dev/").replace('/', "!")
}

/// All disks of the machine.
pub(crate) fn all(root: &Root) -> Vec<Disk> {
    disks(&Reader::new(root))
}

/// One block device by its kernel name, a loop device too.
pub(crate) fn one(root: &Root, name: &str) -> Option<Disk> {
    let known = root.path(format!("{BLOCK}/{name}/size")).exists();
    known.then(|| disk(&Reader::new(root), name))
}

/// The partitions that the kernel knows of a disk.
pub(crate) fn partitions(root: &Root, name: &str) -> Vec<Extent> {
    let reader = Reader::new(root);
    let extent = |part: String| {
        let sectors = |file: &str| {
            let count = reader.number::<u64>(format!("{BLOCK}/{name}/{part}/{file}"))?;
            count.checked_mul(512)
        };
        Some(Extent {
            start: sectors("start")?,
            bytes: sectors("size")?,
        })
    };
    let names = partition_names(&reader, name);
    names.into_iter().filter_map(extent).collect()
}

pub(super) fn disks(reader: &Reader<'_>) -> Vec<Disk> {
    let names = reader.names(BLOCK);
    let real = names
        .iter()
        .filter(|name| !NOT_DISKS.iter().any(|not| name.starts_with(not)));
    // An NVMe namespace's further paths (`nvme0c1n1`) are hidden; they are the same disk again.
    let shown = real.filter(|name| !reader.is_one(format!("{BLOCK}/{name}/hidden")));
    shown.map(|name| disk(reader, name)).collect()
}

fn disk(reader: &Reader<'_>, name: &str) -> Disk {
    let file = |part: &str| format!("{BLOCK}/{name}/{part}");
    let device = reader.target(file("device")).unwrap_or_default();
    let udev = udev(reader, &file("dev"));
    let sector = |part| reader.number(file(part)).unwrap_or(512);
    let sectors = reader.number::<u64>(file("size")).unwrap_or(0);
    Disk {
        name: device_path(name),
        by_path: property(&udev, "ID_PATH"),
        serial: serial(reader, name).or_else(|| property(&udev, "ID_SERIAL_SHORT")),
        wwn: wwn(reader, name).or_else(|| property(&udev, "ID_WWN")),
        model: reader.text(file("device/model")),
        vendor: reader
            .text(file("device/vendor"))
            .filter(|vendor| !vendor.starts_with("0x")),
        size_bytes: sectors.saturating_mul(512),
        logical_sector: sector("queue/logical_block_size"),
        physical_sector: sector("queue/physical_block_size"),
        rotational: reader.is_one(file("queue/rotational")),
        removable: reader.is_one(file("removable")) || name.starts_with("sr"),
        read_only: reader.is_one(file("ro")),
        transport: transport(name, &device).map(str::to_owned),
        hctl: hctl(&device),
        in_use: in_use(reader, name),
    }
}

/// Each kind of device tells its serial number elsewhere.
fn serial(reader: &Reader<'_>, name: &str) -> Option<String> {
    let file = |part: &str| format!("{BLOCK}/{name}/{part}");
    let text = reader.text(file("serial"));
    let text = text.or_else(|| reader.text(file("device/serial")));
    text.or_else(|| unit_serial(&reader.root.read(file("device/vpd_pg80")).ok()?))
}

/// SCSI's vital product data page 0x80: four bytes of header, then the serial number.
fn unit_serial(page: &[u8]) -> Option<String> {
    let [_, 0x80, high, low, text @ ..] = page else {
        return None;
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    let text = String::from_utf8_lossy(text.get(..length)?);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c.is_control());
    (!text.is_empty()).then(|| text.to_owned())
}

fn wwn(reader: &Reader<'_>, name: &str) -> Option<String> {
    let file = |part: &str| format!("{BLOCK}/{name}/{part}");
    let text = reader.text(file("wwid"));
    let text = text.or_else(|| reader.text(file("device/wwid")))?;
    let world_wide = ["naa.", "eui.", "uuid.", "0x"];
    let found = world_wide.iter().any(|start| text.starts_with(start));
    found.then_some(text)
}

/// What udev has found out, where it runs.
fn udev(reader: &Reader<'_>, dev: &str) -> String {
    let number = reader.text(dev).unwrap_or_default();
    let data = format!("/run/udev/data/b{number}");
    reader.root.text(data).unwrap_or_default()
}

fn property(udev: &str, name: &str) -> Option<String> {
    let mut values = udev.lines().filter_map(|line| {
        let (key, value) = line.strip_prefix("E:")?.split_once('=')?;
        (key == name && !value.is_empty()).then(|| value.to_owned())
    });
    values.next()
}

fn transport(name: &str, device: &str) -> Option<&'static str> {
    let by_name = [("nvme", "nvme"), ("mmcblk", "mmc"), ("pmem", "pmem")];
    if let Some((_, kind)) = by_name.iter().find(|(start, _)| name.starts_with(start)) {
        return Some(kind);
    }
    let by_path = [
        ("/usb", "usb"),
        ("/session", "iscsi"),
        ("/rport-", "fc"),
        ("/end_device-", "sas"),
        ("/ata", "sata"),
        ("/virtio", "virtio"),
        ("/target", "scsi"),
    ];
    let found = by_path.iter().find(|(part, _)| device.contains(part));
    found.map(|(_, kind)| *kind)
}

/// A SCSI device's folder is named by its address.
fn hctl(device: &str) -> Option<String> {
    let last = device.rsplit('/').next()?;
    let numbers = last.split(':').filter(|part| part.parse::<u32>().is_ok());
    (last.matches(':').count() == 3 && numbers.count() == 4).then(|| last.to_owned())
}

fn partition_names(reader: &Reader<'_>, name: &str) -> Vec<String> {
    let mut names = reader.names(format!("{BLOCK}/{name}"));
    let is_partition = |part: &String| {
        let file = format!("{BLOCK}/{name}/{part}/partition");
        part.starts_with(name) && reader.root.path(file).exists()
    };
    names.retain(is_partition);
    names
}

/// Why a disk must not be written, if anything.
fn in_use(reader: &Reader<'_>, name: &str) -> Option<String> {
    let partitions = partition_names(reader, name);
    let folders = partitions
        .iter()
        .map(|part| (part.as_str(), format!("{BLOCK}/{name}/{part}")));
    for (device, folder) in std::iter::once((name, format!("{BLOCK}/{name}"))).chain(folders) {
        let number = reader.text(format!("{folder}/dev")).unwrap_or_default();
        if let Some(place) = mounted(reader, device, &number) {
            return Some(format!("mounted on {place}"));
        }
        if let Some(holder) = reader.names(format!("{folder}/holders")).first() {
            return Some(format!("held by {holder}"));
        }
        if swaps(reader, device) {
            return Some("swap space in use".to_owned());
        }
    }
    is_boot_medium(reader, name).then(|| BOOT_MEDIUM.to_owned())
}

/// A line of mountinfo: number, parent, major:minor, root, place, options … - kind, source, ….
fn mounted(reader: &Reader<'_>, device: &str, number: &str) -> Option<String> {
    let text = reader.text("/proc/self/mountinfo")?;
    let path = device_path(device);
    text.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let mut words = front.split(' ').skip(2);
        let (found, place) = (words.next()?, words.nth(1)?);
        // btrfs and overlays have numbers of their own, but name the device.
        let source = back.split(' ').nth(1)?;
        let same = found == number || source == path;
        same.then(|| place.to_owned())
    })
}

fn swaps(reader: &Reader<'_>, device: &str) -> bool {
    let text = reader.text("/proc/swaps").unwrap_or_default();
    let mut devices = text.lines().filter_map(|line| line.split(' ').next());
    let wanted = device_path(device);
    devices.any(|path| path == wanted)
}

/// The ISO that this very ramdisk may have come from.
fn is_boot_medium(reader: &Reader<'_>, name: &str) -> bool {
    let path = device_path(name);
    let mut descriptor = [0; 72];
    let read = File::open(reader.root.path(&path))
        .and_then(|device| device.read_exact_at(&mut descriptor, ISO_DESCRIPTOR));
    match read {
        Ok(()) => {
            let label = descriptor[ISO_LABEL].trim_ascii();
            &descriptor[1..6] == b"CD001" && label == BOOT_LABEL
        }
        Err(error) => {
            if error.kind() == std::io::ErrorKind::PermissionDenied {
                reader.note(path, &error);
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{disks as make, write};
    use super::*;
    use crate::root::Root;
    use ferrite_proto::hints::unusable;
    use std::os::unix::fs::symlink;

    const GIB: u64 = 1 << 30;

    fn tree() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        make(
            &root,
            &[
                ("vda", 8 * GIB),
                ("loop0", GIB),
                ("dm-0", GIB),
                ("sr0", GIB),
            ],
        );
        (folder, root)
    }

    #[test]
    fn disks_are_told_and_stand_ins_are_not() {
        let (_folder, root) = tree();
        let disks = all(&root);
        let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["/dev/sr0", "/dev/vda"]);
        assert!(disks[0].removable);
        let vda = &disks[1];
        assert_eq!(vda.serial.as_deref(), Some("vda-serial"));
        assert_eq!((vda.size_bytes, vda.logical_sector), (8 * GIB, 512));
        assert!(vda.rotational && unusable(vda).is_none());
        assert!(one(&root, "loop0").is_some() && one(&root, "sdz").is_none());
    }

    #[test]
    fn a_mounted_partition_a_holder_and_swap_protect_the_disk() {
        let (_folder, root) = tree();
        write(
            &root,
            &[
                ("/sys/block/vda/vda2/partition", b"2"),
                ("/sys/block/vda/vda2/dev", b"254:2"),
                ("/sys/block/vda/vda2/start", b"2048"),
                ("/sys/block/vda/vda2/size", b"4096"),
            ],
        );
        let use_of = |root: &Root| one(root, "vda").unwrap().in_use;
        assert_eq!(use_of(&root), None);
        assert_eq!(
            partitions(&root, "vda"),
            [Extent {
                start: 1 << 20,
                bytes: 2 << 20
            }]
        );
        let line = b"29 1 254:2 / / rw,relatime shared:1 - ext4 /dev/root rw\n";
        write(&root, &[("/proc/self/mountinfo", line)]);
        assert_eq!(use_of(&root).as_deref(), Some("mounted on /"));
        let line = b"29 1 0:33 / /srv rw - btrfs /dev/vda2 rw\n";
        write(&root, &[("/proc/self/mountinfo", line)]);
        assert_eq!(use_of(&root).as_deref(), Some("mounted on /srv"));
        write(&root, &[("/proc/self/mountinfo", b"")]);
        let swaps = b"Filename Type Size\n/dev/vda2 partition 1 0 -2\n";
        write(&root, &[("/proc/swaps", swaps)]);
        assert_eq!(use_of(&root).as_deref(), Some("swap space in use"));
        write(&root, &[("/sys/block/vda/holders/md0", b"")]);
        assert_eq!(use_of(&root).as_deref(), Some("held by md0"));
    }

    #[test]
    fn a_slash_in_a_device_is_an_exclamation_mark_in_folders() {
        let (_folder, root) = tree();
        make(&root, &[("cciss!c0d0", GIB)]);
        write(
            &root,
            &[
                ("/sys/block/cciss!c0d0/cciss!c0d0p1/partition", b"1"),
                ("/sys/block/cciss!c0d0/cciss!c0d0p1/dev", b"104:1"),
            ],
        );
        let names: Vec<String> = all(&root).into_iter().map(|disk| disk.name).collect();
        assert!(names.contains(&"/dev/cciss/c0d0".to_owned()), "{names:?}");
        assert_eq!(kernel_name("/dev/cciss/c0d0"), "cciss!c0d0");
        let swaps = b"Filename Type Size\n/dev/cciss/c0d0p1 partition 1 0 -2\n";
        write(&root, &[("/proc/swaps", swaps)]);
        let disk = one(&root, "cciss!c0d0").unwrap();
        assert_eq!(disk.in_use.as_deref(), Some("swap space in use"));
    }

    #[test]
    fn the_boot_medium_is_known_by_its_label() {
        let (_folder, root) = tree();
        let device = File::options()
            .write(true)
            .open(root.path("/dev/vda"))
            .unwrap();
        let mut descriptor = [b' '; 72];
        descriptor[..6].copy_from_slice(b"\x01CD001");
        descriptor[40..47].copy_from_slice(BOOT_LABEL);
        device.write_all_at(&descriptor, ISO_DESCRIPTOR).unwrap();
        assert_eq!(
            one(&root, "vda").unwrap().in_use.as_deref(),
            Some("boot medium")
        );
    }

    #[test]
    fn a_scsi_disk_tells_by_its_pages_and_its_place() {
        let (_folder, root) = tree();
        make(&root, &[("sda", GIB)]);
        std::fs::remove_file(root.path("/sys/block/sda/serial")).unwrap();
        let device = "/sys/devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0";
        write(
            &root,
            &[
                (&format!("{device}/vpd_pg80"), b"\0\x80\0\x08  SN-42 "),
                (&format!("{device}/wwid"), b"naa.5000c500a1b2c3d4\n"),
                (&format!("{device}/model"), b"MADE UP DISK    \n"),
                (&format!("{device}/vendor"), b"ATA     \n"),
            ],
        );
        symlink(root.path(device), root.path("/sys/block/sda/device")).unwrap();
        let disk = one(&root, "sda").unwrap();
        assert_eq!(disk.serial.as_deref(), Some("SN-42"));
        assert_eq!(disk.wwn.as_deref(), Some("naa.5000c500a1b2c3d4"));
        assert_eq!(disk.model.as_deref(), Some("MADE UP DISK"));
        assert_eq!(disk.transport.as_deref(), Some("sata"));
        assert_eq!(disk.hctl.as_deref(), Some("0:0:0:0"));
        assert_eq!(unit_serial(&[0, 0x80, 0xff, 0xff, b'x']), None);
    }
}

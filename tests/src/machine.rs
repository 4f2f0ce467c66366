//! What a virtual host is made of, and the QEMU command line that makes it: pure, no process, no
//! file.
//!
//! The firmware's order of devices is not part of the command line: `vm.rs` sets it through the
//! monitor, so that it can change between two resets of the same process, as on a real machine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::accel::Accel;

pub(crate) const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
pub(crate) const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// The drive that virtual media goes into.
pub(crate) const CD: &str = "cd0";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    Uefi,
    Bios,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DiskBus {
    Virtio,
    Nvme,
    Scsi,
    Sata,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    pub bus: DiskBus,
    pub bytes: u64,
    pub serial: String,
    /// SCSI and SATA disks can have one.
    pub wwn: Option<u64>,
    /// SCSI and SATA disks can say that they spin.
    pub rotational: bool,
}

/// A thing the firmware can boot from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BootDevice {
    Disk,
    Network,
    Cd,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// 1, 2, … : every address and identity of the host follows from it.
    pub number: u8,
    pub firmware: Firmware,
    pub cpus: u8,
    pub memory_mib: u32,
    pub disks: Vec<DiskSpec>,
    pub nics: u8,
    /// What the firmware tries when no override says otherwise.
    pub boot_order: Vec<BootDevice>,
    /// More QEMU arguments, for the test that needs something special.
    pub extra: Vec<String>,
}

impl Machine {
    /// A small UEFI server with one 8 GiB disk and one NIC.
    pub fn new(number: u8) -> Self {
        let machine = Self {
            number,
            firmware: Firmware::Uefi,
            cpus: 2,
            memory_mib: 1024,
            disks: Vec::new(),
            nics: 1,
            boot_order: vec![BootDevice::Disk, BootDevice::Network, BootDevice::Cd],
            extra: Vec::new(),
        };
        machine.disk(DiskBus::Virtio, 8 << 30)
    }

    /// Adds a disk; its serial is `disk-N-a`, `disk-N-b`, …
    #[must_use]
    pub fn disk(mut self, bus: DiskBus, bytes: u64) -> Self {
        let letter = char::from(b"abcdefghijklmnop"[self.disks.len() % 16]);
        let serial = format!("disk-{}-{letter}", self.number);
        self.disks.push(DiskSpec {
            bus,
            bytes,
            serial,
            wwn: None,
            rotational: false,
        });
        self
    }

    #[must_use]
    pub fn without_disks(mut self) -> Self {
        self.disks.clear();
        self
    }

    #[must_use]
    pub fn firmware(mut self, firmware: Firmware) -> Self {
        self.firmware = firmware;
        self
    }

    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    #[must_use]
    pub fn boot_order(mut self, order: &[BootDevice]) -> Self {
        self.boot_order = order.to_vec();
        self
    }

    pub fn mac(&self, nic: u8) -> String {
        format!("52:54:00:77:{nic:02x}:{:02x}", self.number)
    }

    pub fn uuid(&self) -> String {
        format!("00000000-0000-4000-8000-0000000000{:02x}", self.number)
    }

    pub fn serial(&self) -> String {
        format!("lab-{}", self.number)
    }

    pub fn tap(&self, nic: u8) -> String {
        format!("tap{}-{nic}", self.number)
    }

    pub fn bmc_port(&self) -> u16 {
        8000 + u16::from(self.number)
    }

    /// Device ids in the order in which the firmware shall try them: `first`, then the usual order.
    pub(crate) fn boot_sequence(&self, first: Option<BootDevice>) -> Vec<String> {
        let mut sequence = Vec::new();
        for kind in first.into_iter().chain(self.boot_order.iter().copied()) {
            for device in self.devices(kind) {
                if !sequence.contains(&device) {
                    sequence.push(device);
                }
            }
        }
        sequence
    }

    fn devices(&self, kind: BootDevice) -> Vec<String> {
        match kind {
            BootDevice::Disk => (0..self.disks.len())
                .map(|index| format!("disk{index}"))
                .collect(),
            BootDevice::Network => (0..self.nics).map(|index| format!("nic{index}")).collect(),
            BootDevice::Cd => vec![CD.to_owned()],
        }
    }

    pub(crate) fn bootable_devices(&self) -> Vec<String> {
        let kinds = [BootDevice::Disk, BootDevice::Network, BootDevice::Cd];
        kinds
            .into_iter()
            .flat_map(|kind| self.devices(kind))
            .collect()
    }

    /// The whole command line. The guest waits for the monitor's `cont`.
    pub(crate) fn arguments(&self, files: &Files, accel: Accel) -> Vec<OsString> {
        let mut line = Line(vec![OsString::from("qemu-system-x86_64")]);
        line.words("-nodefaults -no-user-config -display none -S -qmp stdio");
        line.pair("-name", format!("ferrite-host-{}", self.number));
        line.pair("-machine", "q35,graphics=off");
        line.pair("-accel", accel.argument());
        line.pair("-cpu", accel.cpu());
        line.pair("-smp", self.cpus.to_string());
        line.pair("-m", format!("{}M", self.memory_mib));
        self.firmware_arguments(files, &mut line);
        self.identity_arguments(&mut line);
        for nic in 0..self.nics {
            self.nic_arguments(nic, &mut line);
        }
        self.disk_arguments(files, &mut line);
        line.pair("-device", "qemu-xhci,id=usb");
        line.pair("-device", "usb-bot,id=media,bus=usb.0");
        line.pair(
            "-device",
            format!("scsi-cd,id={CD},bus=media.0,product=Virtual Media"),
        );
        line.pair("-device", "virtio-rng-pci");
        line.file(
            "-chardev",
            "socket,id=console,server=on,wait=off,path=",
            &files.console_socket,
        );
        line.last_file(",logappend=on,logfile=", &files.console);
        line.pair("-serial", "chardev:console");
        line.0.extend(self.extra.iter().map(OsString::from));
        line.0
    }

    fn firmware_arguments(&self, files: &Files, line: &mut Line) {
        if self.firmware == Firmware::Uefi {
            let code = Path::new(OVMF_CODE);
            line.file(
                "-drive",
                "if=pflash,unit=0,format=raw,readonly=on,file=",
                code,
            );
            line.file(
                "-drive",
                "if=pflash,unit=1,format=raw,file=",
                &files.variables,
            );
        }
    }

    fn identity_arguments(&self, line: &mut Line) {
        let (serial, uuid) = (self.serial(), self.uuid());
        let system = format!("type=1,manufacturer=Ferrite,product=Lab Host,serial={serial}");
        line.pair("-smbios", format!("{system},uuid={uuid}"));
        line.pair(
            "-smbios",
            format!("type=3,manufacturer=Ferrite,serial=chassis-{serial}"),
        );
    }

    fn nic_arguments(&self, nic: u8, line: &mut Line) {
        let rom = match self.firmware {
            Firmware::Uefi => ",romfile=", // none: OVMF drives the card itself
            // SeaBIOS has no network driver: it runs iPXE from the card's ROM. It has to be QEMU's
            // default one: a ROM that is named keeps its own PCI ID, and SeaBIOS passes it over.
            Firmware::Bios => "",
        };
        let (tap, mac) = (self.tap(nic), self.mac(nic));
        line.pair(
            "-netdev",
            format!("tap,id=net{nic},ifname={tap},script=no,downscript=no"),
        );
        let device = format!("virtio-net-pci,id=nic{nic},netdev=net{nic}");
        line.pair("-device", format!("{device},mac={mac}{rom}"));
    }

    fn disk_arguments(&self, files: &Files, line: &mut Line) {
        if self.disks.iter().any(|disk| disk.bus == DiskBus::Scsi) {
            line.pair("-device", "virtio-scsi-pci,id=scsi");
        }
        let mut sata = 0;
        for (index, disk) in self.disks.iter().enumerate() {
            let blockdev =
                format!("driver=raw,node-name=drive{index},discard=unmap,file.driver=file");
            line.file(
                "-blockdev",
                &format!("{blockdev},file.filename="),
                &files.disk(index),
            );
            let common = format!("id=disk{index},drive=drive{index},serial={}", disk.serial);
            line.pair("-device", disk_device(disk, &common, &mut sata));
        }
    }
}

fn disk_device(disk: &DiskSpec, common: &str, sata: &mut u8) -> String {
    let wwn = disk
        .wwn
        .map(|wwn| format!(",wwn={wwn:#018x}"))
        .unwrap_or_default();
    let rate = if disk.rotational { 7200 } else { 1 };
    match disk.bus {
        DiskBus::Virtio => format!("virtio-blk-pci,{common}"),
        DiskBus::Nvme => format!("nvme,{common}"),
        DiskBus::Scsi => format!("scsi-hd,bus=scsi.0,{common}{wwn},rotation_rate={rate}"),
        DiskBus::Sata => {
            *sata += 1;
            let port = *sata - 1;
            format!("ide-hd,bus=ide.{port},{common}{wwn},rotation_rate={rate}")
        }
    }
}

/// Where a host's files lie.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) dir: PathBuf,
    pub(crate) variables: PathBuf,
    pub(crate) console: PathBuf,
    pub(crate) console_socket: PathBuf,
    pub(crate) qemu_log: PathBuf,
}

impl Files {
    pub(crate) fn in_dir(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            variables: dir.join("uefi-variables.fd"),
            console: dir.join("console.log"),
            console_socket: dir.join("console.sock"),
            qemu_log: dir.join("qemu.log"),
        }
    }

    pub(crate) fn disk(&self, index: usize) -> PathBuf {
        self.dir.join(format!("disk{index}.raw"))
    }
}

struct Line(Vec<OsString>);

impl Line {
    fn words(&mut self, words: &str) {
        self.0.extend(words.split(' ').map(OsString::from));
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }

    fn file(&mut self, option: &str, head: &str, path: &Path) {
        self.pair(option, head);
        self.last_file("", path);
    }

    /// Appends a path to the last argument. QEMU splits arguments at commas and wants them doubled.
    fn last_file(&mut self, head: &str, path: &Path) {
        if let Some(last) = self.0.last_mut() {
            last.push(head);
            last.push(path.to_string_lossy().replace(',', ",,"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(machine: &Machine) -> String {
        let arguments = machine.arguments(&Files::in_dir(Path::new("/lab/a,b")), Accel::Tcg);
        arguments
            .join(std::ffi::OsStr::new(" "))
            .into_string()
            .unwrap()
    }

    #[test]
    fn identities_follow_from_the_number() {
        let machine = Machine::new(0x1f);
        assert_eq!(machine.mac(0), "52:54:00:77:00:1f");
        assert_eq!(machine.uuid(), "00000000-0000-4000-8000-00000000001f");
        assert_eq!(machine.bmc_port(), 8031);
        assert_eq!(machine.disks[0].serial, "disk-31-a");
    }

    #[test]
    fn an_override_goes_to_the_front_and_the_rest_keeps_its_order() {
        let machine = Machine::new(1).disk(DiskBus::Nvme, 1 << 30);
        assert_eq!(
            machine.boot_sequence(None),
            ["disk0", "disk1", "nic0", "cd0"]
        );
        let cd_first = machine.boot_sequence(Some(BootDevice::Cd));
        assert_eq!(cd_first, ["cd0", "disk0", "disk1", "nic0"]);
    }

    #[test]
    fn the_command_line_has_what_was_asked_for() {
        let uefi = shown(
            &Machine::new(2)
                .disk(DiskBus::Sata, 1)
                .disk(DiskBus::Scsi, 1),
        );
        assert!(uefi.contains("file=/lab/a,,b/uefi-variables.fd"), "{uefi}");
        assert!(
            uefi.contains("ide-hd,bus=ide.0,id=disk1,drive=drive1,serial=disk-2-b"),
            "{uefi}"
        );
        assert!(uefi.contains("mac=52:54:00:77:00:02,romfile= "), "{uefi}");
        let bios = shown(&Machine::new(2).firmware(Firmware::Bios));
        assert!(!bios.contains("pflash"), "{bios}");
        assert!(!bios.contains("romfile"), "{bios}");
    }
}

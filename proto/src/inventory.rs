//! What a machine is, by names that stay the same: serial, WWN, MAC, UUID.
//!
//! Every part is optional: an ordinary user reads less than root, a virtual machine has less than
//! a server. What could not be read is said in [`Inventory::unread`], with the reason.

use serde::{Deserialize, Serialize};

use crate::mac::Mac;

/// Version of the inventory's JSON form.
pub const INVENTORY_VERSION: u32 = 1;

/// A machine's inventory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Inventory {
    /// [`INVENTORY_VERSION`] of the writer.
    pub version: u32,
    /// Vendor, product, serial, UUID, firmware.
    pub system: System,
    /// How the running system was booted.
    pub boot: BootInfo,
    /// Processors.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Whole block devices that could hold an OS or data.
    pub disks: Vec<Disk>,
    /// Network interfaces with hardware behind them.
    pub nics: Vec<Nic>,
    /// What could not be read, and why.
    pub unread: Vec<Unread>,
    /// How long each collector took.
    pub timings: Vec<Timing>,
}

/// What SMBIOS says of the machine (DMTF DSP0134, types 0, 1, 2 and 3).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct System {
    /// Type 1 manufacturer.
    pub vendor: Option<String>,
    /// Type 1 product name.
    pub product: Option<String>,
    /// Type 1 serial number.
    pub serial: Option<String>,
    /// Type 1 UUID, lower case, in the byte order that `dmidecode` prints.
    pub uuid: Option<String>,
    /// Type 1 SKU number.
    pub sku: Option<String>,
    /// Type 0 vendor.
    pub bios_vendor: Option<String>,
    /// Type 0 version.
    pub bios_version: Option<String>,
    /// Type 0 release date.
    pub bios_date: Option<String>,
    /// Type 2 product.
    pub board: Option<String>,
    /// Type 3 asset tag.
    pub asset_tag: Option<String>,
}

/// How the running system was booted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct BootInfo {
    /// `uefi` when /sys/firmware/efi is there, else `bios`.
    pub mode: Option<BootMode>,
    /// State of UEFI Secure Boot.
    pub secure_boot: Option<bool>,
    /// Kernel release (`uname -r`).
    pub kernel: Option<String>,
}

/// The two kinds of firmware interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum BootMode {
    /// UEFI.
    #[default]
    Uefi,
    /// Legacy BIOS.
    Bios,
}

/// Processors.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Cpu {
    /// `uname -m`.
    pub architecture: Option<String>,
    /// Model name of the first.
    pub model: Option<String>,
    /// Packages.
    pub sockets: Option<u32>,
    /// Physical cores in all.
    pub cores: Option<u32>,
    /// Logical processors in all.
    pub threads: Option<u32>,
    /// Feature flags, sorted.
    pub flags: Vec<String>,
}

/// Memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Memory {
    /// Usable by the kernel, bytes.
    pub total_bytes: Option<u64>,
    /// Installed, bytes: the sum of the DIMMs.
    pub installed_bytes: Option<u64>,
    /// SMBIOS type 17.
    pub dimms: Vec<Dimm>,
}

/// A memory module (SMBIOS type 17).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Dimm {
    /// Slot as printed on the board.
    pub slot: Option<String>,
    /// Bytes; 0 for an empty slot.
    pub size_bytes: u64,
    /// Configured speed, MT/s.
    pub speed_mts: Option<u32>,
    /// Manufacturer.
    pub vendor: Option<String>,
    /// Part number.
    pub part: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
}

/// A whole block device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Disk {
    /// `/dev/sda`. Changes from boot to boot: for people, not for identity.
    pub name: String,
    /// `/dev/disk/by-path/…` name without the folder, where udev or sysfs tell.
    pub by_path: Option<String>,
    /// Serial number, trimmed.
    pub serial: Option<String>,
    /// World wide name (`0x…`, `eui.…`, `naa.…`), as sysfs tells.
    pub wwn: Option<String>,
    /// Model, trimmed.
    pub model: Option<String>,
    /// Vendor, trimmed.
    pub vendor: Option<String>,
    /// Bytes.
    pub size_bytes: u64,
    /// Logical sector, bytes.
    pub logical_sector: u32,
    /// Physical sector, bytes.
    pub physical_sector: u32,
    /// Spins.
    pub rotational: bool,
    /// Can be taken out (a stick, a CD).
    pub removable: bool,
    /// The kernel refuses writes.
    pub read_only: bool,
    /// `nvme`, `sata`, `sas`, `virtio`, `usb`, …
    pub transport: Option<String>,
    /// SCSI host:channel:target:lun.
    pub hctl: Option<String>,
    /// Why it must not be written (`mounted on /`, `held by dm-0`, `boot medium`), if anything.
    pub in_use: Option<String>,
}

/// A network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Nic {
    /// Kernel name.
    pub name: String,
    /// Permanent MAC.
    pub mac: Option<Mac>,
    /// Kernel driver.
    pub driver: Option<String>,
    /// PCI address.
    pub pci: Option<String>,
    /// Mb/s, when there is link.
    pub speed_mbps: Option<u32>,
    /// Link.
    pub carrier: Option<bool>,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Unread {
    /// The field or file.
    pub what: String,
    /// `permission denied`, `absent`, `malformed: …`.
    pub why: String,
}

/// How long a collector took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Timing {
    /// The collector.
    pub collector: String,
    /// Microseconds.
    pub micros: u64,
}

//! What the ramdisk ships: the tables a person edits to support one more controller or NIC.
//! How a name becomes files (dependencies, aliases, firmware) is `modules.rs` and `firmware.rs`.

/// Disk controllers and everything between them and a block device.
const STORAGE: &[&str] = &[
    // NVMe, also over fabrics: some hosts boot from a remote namespace
    "nvme",
    "nvme-tcp",
    // SATA and its PIIX ancestor, which QEMU's default machine still has
    "ahci",
    "ata_piix",
    "ata_generic",
    "sata_mv",
    "sata_sil24",
    "sata_nv",
    "sd_mod",
    "sr_mod",
    "sg",
    "ses",
    "virtio_blk",
    "virtio_scsi",
    "vmw_pvscsi",
    "hv_storvsc",
    "xen-blkfront",
    // Broadcom/LSI, HPE, Microchip/Adaptec, Intel and Marvell RAID and SAS
    "megaraid_sas",
    "mpt3sas",
    "mptsas",
    "mptspi",
    "mpi3mr",
    "hpsa",
    "smartpqi",
    "aacraid",
    "arcmsr",
    "isci",
    "pm80xx",
    "mvsas",
    "3w-9xxx",
    "3w-sas",
    // Fibre Channel and converged adapters
    "qla2xxx",
    "lpfc",
    "fnic",
    "snic",
    "csiostor",
    "qedf",
    "qedi",
    "bnx2fc",
    "be2iscsi",
    "scsi_dh_alua",
    "scsi_dh_rdac",
    "scsi_dh_emc",
    // what a disk may already be part of, so that it can be recognised and taken apart
    "md-mod",
    "raid0",
    "raid1",
    "raid10",
    "dm-mod",
];

/// Network cards of servers of the last fifteen years, and of the hypervisors that tests run on.
const NETWORK: &[&str] = &[
    "virtio_net",
    "vmxnet3",
    "hv_netvsc",
    "xen-netfront",
    "ena",
    "gve",
    "mana",
    "e1000",
    "e1000e",
    "igb",
    "igbvf",
    "igc",
    "ixgbe",
    "ixgbevf",
    "i40e",
    "iavf",
    "ice",
    "tg3",
    "bnx2",
    "bnx2x",
    "bnxt_en",
    "mlx4_en",
    "mlx5_core",
    "be2net",
    "qede",
    "qlcnic",
    "netxen_nic",
    "sfc",
    "sfc-siena",
    "cxgb4",
    "cxgb4vf",
    "enic",
    "nfp",
    "bna",
    "myri10ge",
    "hinic",
    "atlantic",
    "amd-xgbe",
    "r8169",
    "8139cp",
    "8139too",
    "forcedeth",
    "sky2",
    "pcnet32",
    // PHYs that the drivers above ask for by name
    "realtek",
    "broadcom",
    "marvell",
    "bcm-phy-lib",
    // BMCs offer a network over USB; some small hosts have nothing else
    "cdc_ether",
    "cdc_ncm",
    "rndis_host",
    "r8152",
    "ax88179_178a",
    "bonding",
    "8021q",
];

/// USB (virtual media, keyboards), and the virtual buses.
const BUSES: &[&str] = &[
    "virtio_pci",
    "virtio_mmio",
    "virtio_console",
    "hv_vmbus",
    "hv_utils",
    "vmd",
    "xhci-pci",
    "ehci-pci",
    "ohci-pci",
    "uhci-hcd",
    "usb-storage",
    "uas",
    "usbhid",
    "hid-generic",
    "hid-hyperv",
    "hyperv-keyboard",
    "i8042",
    "atkbd",
];

/// File systems of the operating systems that hosts carry, and of boot media.
const FILE_SYSTEMS: &[&str] = &[
    "ext4",
    "xfs",
    "btrfs",
    "vfat",
    "isofs",
    "udf",
    "efivarfs",
    "nls_cp437",
    "nls_ascii",
    "nls_iso8859-1",
    "nls_utf8",
    "loop",
];

/// The machine itself: BMC, TPM, sensors of the sort that inspection reports, reset and entropy.
const PLATFORM: &[&str] = &[
    "ipmi_si",
    "ipmi_ssif",
    "ipmi_devintf",
    "ipmi_poweroff",
    "acpi_ipmi",
    "tpm_crb",
    "tpm_tis",
    "button",
    "virtio-rng",
    "virtio_balloon",
    "qemu_fw_cfg",
    "crc32c_generic",
    "crc32c-intel",
    "iTCO_wdt",
    "msr",
];

/// All module names that the ramdisk must have.
pub(crate) fn modules() -> impl Iterator<Item = &'static str> {
    [STORAGE, NETWORK, BUSES, FILE_SYSTEMS, PLATFORM]
        .into_iter()
        .flatten()
        .copied()
}

/// What a person in rescue finds, by path on the machine that builds. Their libraries come along.
pub(crate) const RESCUE_PROGRAMS: &[&str] = &[
    "bin/busybox",
    "usr/sbin/dropbear",
    "usr/bin/dropbearkey",
    "sbin/e2fsck",
    "sbin/sgdisk",
];

/// The UKI's sealed command line: both consoles, and where the agent finds its parameters.
pub(crate) const UKI_COMMAND_LINE: &str = "console=tty0 console=ttyS0,115200n8 ferrite.cfg=iso";

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_name_is_listed_twice() {
        let mut seen = BTreeSet::new();
        for name in modules() {
            assert!(
                seen.insert(name.replace('-', "_")),
                "{name} is listed twice"
            );
        }
    }
}

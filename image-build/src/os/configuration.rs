//! What is changed in the fresh Debian tree: files as literal text, masked units, removed files.
//! Everything a stock image has stays where a stock image has it; what is cut is what costs seconds at boot.

/// A file to write: path in the tree, mode, content.
pub(crate) struct Text {
    pub(crate) path: &'static str,
    pub(crate) mode: u32,
    pub(crate) text: &'static str,
}

/// Kernel arguments of the installed system, for GRUB and for kexec alike.
pub(crate) const KERNEL_ARGUMENTS: &str = "console=tty0 console=ttyS0,115200n8 quiet";

pub(crate) const PACKAGES: [&str; 21] = [
    "systemd",
    "systemd-sysv",
    "systemd-resolved",
    "libpam-systemd",
    "libnss-resolve",
    "dbus",
    "udev",
    "kmod",
    "cloud-init",
    "cloud-guest-utils",
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "zstd",
    "e2fsprogs",
    "dosfstools",
    "iproute2",
    "iputils-ping",
    "netbase",
    "ca-certificates",
    "sudo",
    "procps",
];

/// Left out of every package: the image is for booting, and every byte travels to every host.
pub(crate) const EXCLUDED_PATHS: [&str; 5] = [
    "/usr/share/man/*",
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/usr/share/i18n/*",
];

pub(crate) const APT_SOURCES: [&str; 3] = [
    "deb http://deb.debian.org/debian bookworm main",
    "deb http://deb.debian.org/debian bookworm-updates main",
    "deb http://deb.debian.org/debian-security bookworm-security main",
];

pub(crate) const FILES: &[Text] = &[
    Text {
        path: "etc/cloud/cloud.cfg.d/90_dpkg.cfg",
        mode: 0o644,
        // The form in which the package's own configuration dialogue leaves it.
        text: "# to update this file, run dpkg-reconfigure cloud-init\n\
               datasource_list: [ ConfigDrive, NoCloud, None ]\n",
    },
    Text {
        path: "etc/cloud/cloud.cfg.d/91_modules.cfg",
        mode: 0o644,
        text: CLOUD_MODULES,
    },
    Text {
        path: "etc/initramfs-tools/conf.d/image.conf",
        mode: 0o644,
        text: "# Few modules: each costs time at every boot.\n\
               MODULES=list\nCOMPRESS=zstd\nRESUME=none\n",
    },
    Text {
        path: "etc/initramfs-tools/modules",
        mode: 0o644,
        text: "virtio_pci\nvirtio_blk\nvirtio_scsi\nvirtio_net\nsd_mod\nnvme\nahci\nata_piix\next4\n",
    },
    Text {
        path: "etc/systemd/system/systemd-networkd-wait-online.service.d/any.conf",
        mode: 0o644,
        // One interface that works is enough to go on; a host may have ports without a cable.
        text: "[Service]\nExecStart=\n\
               ExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=60\n",
    },
    Text {
        path: "etc/systemd/journald.conf.d/image.conf",
        mode: 0o644,
        text: "[Journal]\nStorage=persistent\nSystemMaxUse=64M\n",
    },
    Text {
        path: "etc/machine-id",
        mode: 0o444,
        text: "",
    },
    Text {
        path: "etc/hostname",
        mode: 0o644,
        text: "debian\n",
    },
    Text {
        path: "etc/hosts",
        mode: 0o644,
        text: "127.0.0.1\tlocalhost\n127.0.1.1\tdebian\n::1\tlocalhost ip6-localhost\n",
    },
    Text {
        path: "etc/default/grub",
        mode: 0o644,
        text: "GRUB_DEFAULT=0\nGRUB_TIMEOUT=0\nGRUB_DISTRIBUTOR=Debian\n\
               GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n\
               GRUB_CMDLINE_LINUX=\"console=tty0 console=ttyS0,115200n8\"\n",
    },
];

/// Debian's lists, less the modules for tools that are not installed. Each one left out saves an import.
const CLOUD_MODULES: &str = "\
cloud_init_modules:
 - seed_random
 - bootcmd
 - write-files
 - growpart
 - resizefs
 - disk_setup
 - mounts
 - set_hostname
 - update_hostname
 - update_etc_hosts
 - users-groups
 - ssh
cloud_config_modules:
 - set-passwords
 - timezone
 - runcmd
cloud_final_modules:
 - package-update-upgrade-install
 - write-files-deferred
 - scripts-vendor
 - scripts-per-once
 - scripts-per-boot
 - scripts-per-instance
 - scripts-user
 - phone-home
 - final-message
 - power-state-change
# No SSH server is installed: there are no host keys to make.
ssh_deletekeys: false
ssh_genkeytypes: []
";

/// Units that a short-lived server image does not need.
pub(crate) const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "cloud-init-hotplugd.socket",
    "systemd-pstore.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-fs-fuse-connections.mount",
    "modprobe@configfs.service",
    "modprobe@fuse.service",
    "modprobe@drm.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
];

pub(crate) const ENABLED: &[&str] = &["systemd-networkd.service", "systemd-resolved.service"];

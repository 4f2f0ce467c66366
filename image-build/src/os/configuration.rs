//! What is changed in the fresh Debian tree: files as literal text, masked units, removed files.
//! Everything a stock image has stays where a stock image has it; what is cut is what costs seconds
//! at boot.

/// A file to write: path in the tree, mode, content.
pub(crate) struct Text {
    pub(crate) path: &'static str,
    pub(crate) mode: u32,
    pub(crate) content: &'static str,
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

/// Left out of every package: every byte travels to every host.
pub(crate) const EXCLUDED_PATHS: [&str; 5] = [
    "/usr/share/man/*",
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/info/*",
    "/usr/share/i18n/*",
];

/// Directories removed once all is installed. cloud-init and requests import these if they are
/// there and do without them if not (requests takes chardet, which suits its version better); each
/// start of Python is a sixth shorter for it.
pub(crate) const REMOVED: [&str; 2] = [
    "usr/lib/python3/dist-packages/jsonschema",
    "usr/lib/python3/dist-packages/charset_normalizer",
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
        content: "# to update this file, run dpkg-reconfigure cloud-init\n\
               datasource_list: [ ConfigDrive, NoCloud, None ]\n",
    },
    Text {
        path: "etc/cloud/cloud.cfg.d/91_modules.cfg",
        mode: 0o644,
        content: CLOUD_MODULES,
    },
    Text {
        path: "etc/initramfs-tools/conf.d/image.conf",
        mode: 0o644,
        content: "# Few modules: each costs time at every boot.\n\
               MODULES=list\nCOMPRESS=zstd\nRESUME=none\n",
    },
    Text {
        path: "etc/initramfs-tools/modules",
        mode: 0o644,
        content: "virtio_pci\nvirtio_blk\nvirtio_scsi\nvirtio_net\nsd_mod\nnvme\nahci\next4\n",
    },
    Text {
        path: "etc/systemd/system/systemd-networkd-wait-online.service.d/any.conf",
        mode: 0o644,
        // One interface that works is enough to go on; a host may have ports without a cable.
        content: "[Service]\nExecStart=\n\
               ExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=60\n",
    },
    Text {
        path: "etc/systemd/journald.conf.d/image.conf",
        mode: 0o644,
        // In memory: writing it out is a wait for the disk at every boot.
        content: "[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\n",
    },
    Text {
        path: "etc/systemd/system/systemd-udev-trigger.service.d/few.conf",
        mode: 0o644,
        content: COLD_PLUG,
    },
    Text {
        path: "etc/initramfs-tools/scripts/init-top/udev",
        mode: 0o755,
        content: INITRAMFS_UDEV,
    },
    Text {
        path: "etc/modprobe.d/image.conf",
        mode: 0o644,
        content: BLACKLIST,
    },
    Text {
        path: "etc/machine-id",
        mode: 0o444,
        content: "",
    },
    Text {
        path: "etc/hostname",
        mode: 0o644,
        content: "debian\n",
    },
    Text {
        path: "etc/hosts",
        mode: 0o644,
        content: "127.0.0.1\tlocalhost\n127.0.1.1\tdebian\n::1\tlocalhost ip6-localhost\n",
    },
    Text {
        path: "etc/default/grub",
        mode: 0o644,
        content: "GRUB_DEFAULT=0\nGRUB_TIMEOUT=0\nGRUB_DISTRIBUTOR=Debian\n\
               GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n\
               GRUB_CMDLINE_LINUX=\"console=tty0 console=ttyS0,115200n8\"\n",
    },
];

/// Cold plug without the devices that no rule does anything for: half of them are virtual consoles.
const COLD_PLUG: &str = "\
[Service]
ExecStart=
ExecStart=-udevadm trigger --type=subsystems --action=add
ExecStart=-udevadm trigger --type=devices --action=add --prioritized-subsystem=block,net,input \
--subsystem-nomatch=tty --subsystem-nomatch=vc --subsystem-nomatch=wakeup \
--subsystem-nomatch=workqueue --subsystem-nomatch=memory --subsystem-nomatch=cpu \
--subsystem-nomatch=clockevents --subsystem-nomatch=clocksource --subsystem-nomatch=event_source \
--subsystem-nomatch=bdi --subsystem-nomatch=mem --subsystem-nomatch=thermal
ExecStart=-udevadm trigger --type=devices --action=add --subsystem-match=tty \
--sysname-match=tty[SU]* --sysname-match=hvc*
";

/// In place of initramfs-tools' script of that name: the modules to load are listed, so only disks
/// matter here.
const INITRAMFS_UDEV: &str = "\
#!/bin/sh -e
[ \"$1\" = prereqs ] && exit 0
SYSTEMD_LOG_LEVEL=notice /lib/systemd/systemd-udevd --daemon --resolve-names=never
udevadm trigger --type=devices --action=add --subsystem-match=block
udevadm settle || true
";

/// What udev would load for a CPU's features while cloud-init waits for the same CPUs. The
/// hypervisor and the crypto code with its self-tests take seconds under emulation; whoever wants
/// them can still load them by name.
const BLACKLIST: &str = "\
blacklist kvm
blacklist kvm_amd
blacklist kvm_intel
blacklist aesni_intel
blacklist ghash_clmulni_intel
blacklist sha1_ssse3
blacklist sha256_ssse3
blacklist sha512_ssse3
blacklist crc32_pclmul
blacklist crct10dif_pclmul
blacklist efi_pstore
blacklist serio_raw
blacklist sg
";

/// Generators for what the image has not got; systemd waits for all of them before it starts the
/// first unit.
pub(crate) const MASKED_GENERATORS: &[&str] = &[
    "systemd-cryptsetup-generator",
    "systemd-debug-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-rc-local-generator",
    "systemd-run-generator",
    "systemd-system-update-generator",
    "systemd-sysv-generator",
    "systemd-veritysetup-generator",
];

/// Debian's modules, less those for tools that are not installed. The few of the config stage run
/// at the end of the init stage: a stage is one more start of Python, the dearest thing in this
/// boot.
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
 - set-passwords
 - timezone
 - runcmd
cloud_config_modules: []
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

/// Units that an image of this kind does not need; each costs a process and often a wait at boot.
pub(crate) const MASKED: &[&str] = &[
    // its modules run in cloud-init.service, see CLOUD_MODULES
    "cloud-config.service",
    "cloud-init-hotplugd.socket",
    // upkeep of machines that live long
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-tmpfiles-clean.timer",
    "systemd-pstore.service",
    // mounts for debugging and for huge pages
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-fs-fuse-connections.mount",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-binfmt.service",
    // modules that are loaded before anyone asks for what they do
    "modprobe@configfs.service",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
    "systemd-modules-load.service",
    // nothing here to configure: system users are in the image, there is no utmp reader, no swap,
    // no TPM policy
    "systemd-firstboot.service",
    "systemd-network-generator.service",
    "systemd-pcrphase.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-repart.service",
    "systemd-sysusers.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-journal-flush.service",
];

pub(crate) const ENABLED: &[&str] = &["systemd-networkd.service", "systemd-resolved.service"];

//! Loads kernel modules for the devices that are there: modalias to `modules.alias` to
//! `modules.dep`, as depmod wrote them. Deliberately no udev: cold plug, repeated until no new
//! modalias appears, because a driver's device has children with modaliases of their own.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::kernel::Kernel;
use crate::root::Root;

/// Largest module after decompression (amdgpu, the largest of Debian's, has 30 MiB).
const MODULE_LIMIT: u64 = 128 << 20;
/// Largest index file.
const INDEX_LIMIT: u64 = 32 << 20;
/// Buses whose devices have a modalias.
const BUSES: &str = "/sys/bus";
/// Threads that load modules.
const THREADS: usize = 3;
/// How often new devices are looked for, at first and when all seem to be there.
const LOOK: Duration = Duration::from_millis(50);
const LOOK_LATER: Duration = Duration::from_secs(1);

/// depmod's indexes, ready to ask.
#[derive(Debug, Default)]
struct Index {
    /// By name, with `-` written as `_`.
    modules: HashMap<String, Entry>,
    /// Pattern and module name, by the bus in front of the pattern's `:`.
    aliases: HashMap<String, Vec<(String, String)>>,
    soft: HashMap<String, Vec<String>>,
    builtin: BTreeSet<String>,
}

#[derive(Debug)]
struct Entry {
    path: String,
    needs: Vec<String>,
}

impl Index {
    fn parse(dep: &str, alias: &str, soft: &str, builtin: &str) -> Self {
        let mut index = Self::default();
        for (path, needs) in dep.lines().filter_map(|line| line.split_once(':')) {
            let needs = needs.split_whitespace().map(name_of).collect();
            index.modules.insert(
                name_of(path),
                Entry {
                    path: path.to_owned(),
                    needs,
                },
            );
        }
        for line in alias.lines().filter_map(|line| line.strip_prefix("alias ")) {
            // A pattern may contain spaces (DMI names); the module's name does not.
            if let Some((pattern, module)) = line.trim_end().rsplit_once(' ') {
                let bus = pattern.split_once(':').map_or("", |(bus, _)| bus);
                let entry = (pattern.to_owned(), module.replace('-', "_"));
                index.aliases.entry(bus.to_owned()).or_default().push(entry);
            }
        }
        for line in soft
            .lines()
            .filter_map(|line| line.strip_prefix("softdep "))
        {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or_default().replace('-', "_");
            // `post:` ones come later by their own modalias or need.
            let before = words
                .skip_while(|w| *w != "pre:")
                .skip(1)
                .take_while(|w| *w != "post:");
            index
                .soft
                .entry(name)
                .or_default()
                .extend(before.map(|w| w.replace('-', "_")));
        }
        index.builtin = builtin.lines().map(name_of).collect();
        index
    }

    /// The modules whose aliases match.
    fn matching(&self, modalias: &str) -> Vec<&str> {
        let bus = modalias.split_once(':').map_or("", |(bus, _)| bus);
        let known = self.aliases.get(bus).into_iter().flatten();
        let found = known.filter(|(pattern, _)| glob(pattern.as_bytes(), modalias.as_bytes()));
        found.map(|(_, module)| module.as_str()).collect()
    }

    /// A module's name for a name or for an alias without wildcards (`crc32c`, `fs-ext4`).
    fn resolve(&self, name: &str) -> Vec<String> {
        let name = name.replace('-', "_");
        if self.modules.contains_key(&name) {
            return vec![name];
        }
        let plain = self.aliases.get("").into_iter().flatten();
        let found = plain.filter(|(pattern, _)| pattern.replace('-', "_") == name);
        found.map(|(_, module)| module.clone()).collect()
    }
}

/// `kernel/drivers/net/xen-netfront.ko.zst` is the module `xen_netfront`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Shell patterns as depmod writes them: `*`, `?` and `[…]`.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (pattern, text);
    // Where to go back to: the pattern after the last `*`, and the text it was tried at.
    let mut back: Option<(&[u8], &[u8])> = None;
    loop {
        match (p, t) {
            ([b'*', rest @ ..], _) => {
                back = Some((rest, t));
                p = rest;
            }
            ([], []) => return true,
            _ => {
                if let Some((after, rest)) = one(p, t) {
                    (p, t) = (after, rest);
                } else if let Some((after, [_, rest @ ..])) = back {
                    back = Some((after, rest));
                    (p, t) = (after, rest);
                } else {
                    return false;
                }
            }
        }
    }
}

/// Matches one character; what is left of both.
fn one<'a>(pattern: &'a [u8], text: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (&byte, text) = text.split_first()?;
    match pattern {
        [b'?', after @ ..] => Some((after, text)),
        [b'[', set @ ..] => {
            let end = set.iter().position(|&b| b == b']')?;
            let (set, after) = (set.get(..end)?, set.get(end + 1..)?);
            in_set(set, byte).then_some((after, text))
        }
        [own, after @ ..] if *own == byte => Some((after, text)),
        _ => None,
    }
}

fn in_set(mut set: &[u8], byte: u8) -> bool {
    while let Some((&first, rest)) = set.split_first() {
        if let [b'-', last, after @ ..] = rest {
            if (first..=*last).contains(&byte) {
                return true;
            }
            set = after;
        } else if first == byte {
            return true;
        } else {
            set = rest;
        }
    }
    false
}

/// Loads modules, each once, with what it needs before it.
#[derive(Debug)]
pub(crate) struct Modules<'a> {
    kernel: &'a dyn Kernel,
    root: &'a Root,
    folder: PathBuf,
    index: Index,
    /// Whether each module was tried; the inner lock is held while it loads.
    tried: Mutex<HashMap<String, Arc<Mutex<bool>>>>,
    loaded: Mutex<Vec<(String, Duration)>>,
}

impl<'a> Modules<'a> {
    /// Reads the indexes of the running kernel.
    pub(crate) fn open(root: &'a Root, kernel: &'a dyn Kernel) -> io::Result<Self> {
        let release = root.text("/proc/sys/kernel/osrelease")?;
        let folder = root.path("/lib/modules").join(release);
        let text = |name: &str| read_index(&folder.join(name)).unwrap_or_default();
        let dep = read_index(&folder.join("modules.dep"))?;
        let index = Index::parse(
            &dep,
            &text("modules.alias"),
            &text("modules.softdep"),
            &text("modules.builtin"),
        );
        let (tried, loaded) = (Mutex::default(), Mutex::default());
        Ok(Self {
            kernel,
            root,
            folder,
            index,
            tried,
            loaded,
        })
    }

    /// Loads what the machine's devices ask for, as they appear, until `stop` is set. Calls
    /// `settled` once, when nothing new has appeared for a while.
    pub(crate) fn cold_plug(&self, medium_first: bool, stop: &AtomicBool, settled: &dyn Fn()) {
        let mut seen = BTreeSet::new();
        let mut quiet_since = Some(Instant::now());
        let mut counted = 0;
        let mut pause = LOOK;
        while !stop.load(Ordering::Relaxed) {
            let mut fresh = modaliases(self.root);
            fresh.retain(|modalias| !seen.contains(modalias));
            // The way to the conductor first; then a new look for what is behind it.
            let rank = |modalias: &String| rank(modalias, medium_first);
            let first = fresh.iter().map(rank).min();
            fresh.retain(|modalias| Some(rank(modalias)) == first);
            if !fresh.is_empty() {
                seen.extend(fresh.iter().cloned());
                self.load_for(fresh.into_iter().collect());
                quiet_since = quiet_since.map(|_| Instant::now());
                continue;
            }
            let count = census(self.root);
            if count != counted {
                counted = count;
                quiet_since = quiet_since.map(|_| Instant::now());
            }
            if quiet_since.is_some_and(|since| since.elapsed() >= quiet_enough(self.root)) {
                settled();
                (quiet_since, pause) = (None, LOOK_LATER);
            }
            std::thread::sleep(pause);
        }
    }

    fn load_for(&self, modaliases: Vec<String>) {
        let queue = Mutex::new(modaliases);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while let Some(modalias) = take(&queue) {
                        for module in self.index.matching(&modalias) {
                            self.load(module);
                        }
                    }
                });
            }
        });
    }

    /// Loads a module and what it needs; a failure is kept quiet, as the device shows it.
    pub(crate) fn load(&self, name: &str) {
        for name in self.index.resolve(name) {
            self.load_one(&name, 0);
        }
    }

    fn load_one(&self, name: &str, depth: u32) {
        let Some(entry) = self.index.modules.get(name) else {
            return;
        };
        if depth > 16 || self.index.builtin.contains(name) {
            return;
        }
        let slot = Arc::clone(lock(&self.tried).entry(name.to_owned()).or_default());
        // depmod lists all that is needed, the innermost last, so no two threads wait in a ring.
        for need in entry.needs.iter().rev() {
            self.load_one(need, depth + 1);
        }
        for soft in self.index.soft.get(name).into_iter().flatten() {
            for soft in self.index.resolve(soft) {
                self.load_one(&soft, depth + 1);
            }
        }
        let mut tried = lock(&slot);
        if !*tried {
            *tried = true;
            self.insert(name, &entry.path);
        }
    }

    fn insert(&self, name: &str, path: &str) {
        let started = Instant::now();
        let result = read_module(&self.folder.join(path)).and_then(|image| self.load_image(&image));
        match result {
            Ok(()) => lock(&self.loaded).push((name.to_owned(), started.elapsed())),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => tracing::debug!(name, %error, "module not loaded"),
        }
    }

    /// Loads without the signature where the kernel does not insist: checking it takes long on a
    /// slow machine, and this file came the same way as the kernel itself. Under Secure Boot the
    /// kernel insists, and gets it.
    fn load_image(&self, image: &[u8]) -> io::Result<()> {
        let bare = without_signature(image);
        match self.kernel.load_module(bare) {
            Err(error) if bare.len() < image.len() && refuses_unsigned(&error) => {
                self.kernel.load_module(image)
            }
            result => result,
        }
    }

    /// How many were loaded so far.
    pub(crate) fn count(&self) -> usize {
        lock(&self.loaded).len()
    }

    /// The slowest ones, for the log.
    pub(crate) fn slowest(&self) -> String {
        let mut loaded = lock(&self.loaded).clone();
        loaded.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        let shown = loaded
            .iter()
            .take(5)
            .map(|(n, t)| format!("{n} {} ms", t.as_millis()));
        shown.collect::<Vec<_>>().join(", ")
    }
}

/// `EKEYREJECTED` when signatures are enforced, `EPERM` under lockdown.
fn refuses_unsigned(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EKEYREJECTED | libc::EPERM))
}

/// A module without what `sign-file` appended: signature, `struct module_signature` (whose last
/// four bytes are the signature's length, big-endian), and a line of text.
fn without_signature(image: &[u8]) -> &[u8] {
    let inside = || {
        let rest = image.strip_suffix(b"~Module signature appended~\n")?;
        let (rest, header) = rest.split_last_chunk::<12>()?;
        let length = u32::from_be_bytes(*header.last_chunk()?);
        rest.get(..rest.len().checked_sub(usize::try_from(length).ok()?)?)
    };
    inside().unwrap_or(image)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(queue: &Mutex<Vec<String>>) -> Option<String> {
    lock(queue).pop()
}

/// Lower is sooner: the way to the conductor before anything else, which may begin at a medium.
fn rank(modalias: &str, medium_first: bool) -> u8 {
    let pci = modalias.starts_with("pci:");
    let network = pci && modalias.contains("bc02") || modalias.starts_with("virtio:d00000001");
    let medium = pci && (modalias.contains("bc01") || modalias.contains("bc0Csc03"))
        || modalias.starts_with("scsi:t-0x05")
        || modalias.starts_with("usb:");
    if network || medium && medium_first {
        0
    } else if modalias.starts_with("pci:") || modalias.starts_with("virtio:") {
        1
    } else {
        2
    }
}

/// How long no new device must have appeared. Loading a driver waits for its devices, except for
/// SCSI hosts, which look for theirs on a thread of their own (`CONFIG_SCSI_SCAN_ASYNC`).
fn quiet_enough(root: &Root) -> Duration {
    let hosts = root.names("/sys/class/scsi_host").unwrap_or_default();
    let devices = root.names("/sys/class/scsi_device").unwrap_or_default();
    let wait = |host: &String| {
        let driver = root.text(format!("/sys/class/scsi_host/{host}/proc_name"));
        let number = format!("{}:", host.trim_start_matches("host"));
        let found = devices.iter().any(|device| device.starts_with(&number));
        match driver.as_deref() {
            Ok("ahci" | "ata_piix") => 300,
            // One device each, a second after the stick or drive was plugged in.
            Ok("usb-storage" | "uas") if found => 300,
            _ if found => 1000,
            _ => 3000,
        }
    };
    Duration::from_millis(hosts.iter().map(wait).max().unwrap_or(300))
}

/// What has appeared so far. Several disks have one modalias, so they are counted by their names.
fn census(root: &Root) -> usize {
    let count = |folder| root.names(folder).map_or(0, |names| names.len());
    count("/sys/class/scsi_device") + count("/sys/class/block")
}

/// Every modalias of every bus.
fn modaliases(root: &Root) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for bus in root.names(BUSES).unwrap_or_default() {
        let devices = format!("{BUSES}/{bus}/devices");
        for device in root.names(&devices).unwrap_or_default() {
            if let Ok(modalias) = root.text(format!("{devices}/{device}/modalias"))
                && !modalias.is_empty()
            {
                found.insert(modalias);
            }
        }
    }
    found
}

fn read_index(path: &std::path::Path) -> io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(INDEX_LIMIT)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn read_module(path: &std::path::Path) -> io::Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    let mut image = Vec::new();
    if path.extension().is_some_and(|extension| extension == "zst") {
        zstd::Decoder::new(file)?
            .take(MODULE_LIMIT)
            .read_to_end(&mut image)?;
    } else {
        file.take(MODULE_LIMIT).read_to_end(&mut image)?;
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/drivers/virtio/virtio.ko.zst:
kernel/drivers/virtio/virtio_ring.ko.zst: kernel/drivers/virtio/virtio.ko.zst
kernel/drivers/net/net_failover.ko.zst:
kernel/drivers/net/virtio-net.ko.zst: kernel/drivers/net/net_failover.ko.zst \
kernel/drivers/virtio/virtio_ring.ko.zst kernel/drivers/virtio/virtio.ko.zst
kernel/fs/ext4/ext4.ko.zst:
kernel/crypto/crc32c_generic.ko.zst:
";
    const ALIAS: &str = "\
# Aliases extracted from modules themselves.
alias virtio:d00000001v* virtio_net
alias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci
alias crc32c crc32c_generic
alias fs-ext4 ext4
alias dmi*:bvn*Some Vendor*: odd_driver
";
    const SOFT: &str = "softdep ext4 pre: crc32c post: later\n";

    fn index() -> Index {
        Index::parse(DEP, ALIAS, SOFT, "kernel/drivers/virtio/virtio_pci.ko\n")
    }

    #[test]
    fn patterns_match_as_the_shells_do() {
        for (pattern, text, wanted) in [
            ("virtio:d00000001v*", "virtio:d00000001v00001AF4", true),
            ("virtio:d00000001v*", "virtio:d00000002v00001AF4", false),
            (
                "pci:v*d*bc01sc08i02*",
                "pci:v00001B36d00000010bc01sc08i02",
                true,
            ),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("usb:v046Dp[0-9A-C]?*", "usb:v046DpB1", true),
            ("usb:v046Dp[0-9A-C]?*", "usb:v046DpD1", false),
            ("*", "", true),
            ("[", "x", false),
            ("", "x", false),
        ] {
            assert_eq!(
                glob(pattern.as_bytes(), text.as_bytes()),
                wanted,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn a_pattern_full_of_stars_ends_soon() {
        let started = Instant::now();
        assert!(!glob(&b"*a".repeat(40), &[b'a'; 39]));
        assert!(started.elapsed() < Duration::from_secs(1));
    }

    fn signed(module: &[u8]) -> Vec<u8> {
        let header = [0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 5];
        [module, b"SIGN!", &header, b"~Module signature appended~\n"].concat()
    }

    #[test]
    fn a_signature_is_cut_off_and_what_has_none_stays() {
        assert_eq!(without_signature(&signed(b"MODULE")), b"MODULE");
        assert_eq!(without_signature(b"MODULE"), b"MODULE");
        let lying = [0, 0, 2, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF];
        let lying = [b"M".as_slice(), &lying, b"~Module signature appended~\n"].concat();
        assert_eq!(without_signature(&lying), lying);
    }

    /// Takes modules with a signature only.
    #[derive(Debug)]
    struct LockedDown;
    impl Kernel for LockedDown {
        fn load_module(&self, image: &[u8]) -> io::Result<()> {
            let signed = image.ends_with(b"appended~\n");
            if signed {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::EKEYREJECTED))
            }
        }
    }

    #[test]
    fn a_kernel_that_insists_gets_the_signature() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        std::fs::create_dir_all(root.path("/proc/sys/kernel")).unwrap();
        std::fs::write(root.path("/proc/sys/kernel/osrelease"), "6.1\n").unwrap();
        let modules = root.path("/lib/modules/6.1");
        std::fs::create_dir_all(modules.join("kernel")).unwrap();
        std::fs::write(modules.join("modules.dep"), "kernel/a.ko:\n").unwrap();
        std::fs::write(modules.join("kernel/a.ko"), signed(b"MODULE")).unwrap();
        let loader = Modules::open(&root, &LockedDown).unwrap();
        loader.load("a");
        assert_eq!(loader.count(), 1);
    }

    #[test]
    fn hosts_that_still_look_for_their_devices_are_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        let wait = || quiet_enough(&root).as_millis();
        assert_eq!(wait(), 300);
        for (host, driver) in [
            ("host0", "ahci"),
            ("host1", "usb-storage"),
            ("host10", "mpt3sas"),
        ] {
            let host = root.path(format!("/sys/class/scsi_host/{host}"));
            std::fs::create_dir_all(&host).unwrap();
            std::fs::write(host.join("proc_name"), driver).unwrap();
        }
        let device = |name: &str| {
            std::fs::create_dir_all(root.path("/sys/class/scsi_device").join(name)).unwrap();
        };
        assert_eq!(wait(), 3000);
        device("10:0:0:0");
        assert_eq!(wait(), 3000, "the device of host10 is none of host1");
        device("1:0:0:0");
        assert_eq!(wait(), 1000);
    }

    #[test]
    fn the_way_to_the_conductor_comes_first() {
        let nic = "pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00";
        let ahci = "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01";
        assert_eq!(rank(nic, false), 0);
        assert_eq!((rank(ahci, false), rank(ahci, true)), (1, 0));
        assert_eq!(
            (rank("scsi:t-0x05", false), rank("scsi:t-0x05", true)),
            (2, 0)
        );
        assert_eq!(rank("serio:ty01pr00id00ex00", true), 2);
    }

    #[test]
    fn modaliases_find_modules_and_names_find_aliases() {
        let index = index();
        assert_eq!(index.matching("virtio:d00000001v00001AF4"), ["virtio_net"]);
        assert!(index.matching("virtio:d00000009v00001AF4").is_empty());
        assert_eq!(index.resolve("crc32c"), ["crc32c_generic"]);
        assert_eq!(index.resolve("fs-ext4"), ["ext4"]);
        assert_eq!(index.resolve("virtio-net"), ["virtio_net"]);
        assert!(index.resolve("unheard-of").is_empty());
    }

    /// Remembers the bytes of each module, which in this test are its name.
    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<String>>);

    impl Kernel for Recorder {
        fn load_module(&self, image: &[u8]) -> io::Result<()> {
            lock(&self.0).push(String::from_utf8_lossy(image).into_owned());
            Ok(())
        }
    }

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        std::fs::create_dir_all(root.path("/proc/sys/kernel")).unwrap();
        std::fs::write(root.path("/proc/sys/kernel/osrelease"), "6.1\n").unwrap();
        let modules = root.path("/lib/modules/6.1");
        for path in DEP.lines().filter_map(|l| Some(l.split_once(':')?.0)) {
            std::fs::create_dir_all(modules.join(path).parent().unwrap()).unwrap();
            let packed = zstd::encode_all(name_of(path).as_bytes(), 1).unwrap();
            std::fs::write(modules.join(path), packed).unwrap();
        }
        for (name, text) in [("dep", DEP), ("alias", ALIAS), ("softdep", SOFT)] {
            std::fs::write(modules.join(format!("modules.{name}")), text).unwrap();
        }
        let device = root.path("/sys/bus/virtio/devices/virtio0");
        std::fs::create_dir_all(&device).unwrap();
        std::fs::write(device.join("modalias"), "virtio:d00000001v00001AF4\n").unwrap();

        let kernel = Recorder::default();
        let loader = Modules::open(&root, &kernel).unwrap();
        loader.load_for(modaliases(&root).into_iter().collect());
        loader.load_for(modaliases(&root).into_iter().collect());
        loader.load("ext4");
        let order = lock(&kernel.0).clone();
        let at = |name: &str| order.iter().position(|n| n == name).unwrap();
        assert!(at("virtio") < at("virtio_ring") && at("virtio_ring") < at("virtio_net"));
        assert!(at("net_failover") < at("virtio_net"));
        assert!(at("crc32c_generic") < at("ext4"));
        assert_eq!(order.len(), 6, "{order:?}");
        assert_eq!(loader.count(), 6);
    }
}

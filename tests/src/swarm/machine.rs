//! A simulated server: power, firmware, a disk, and what runs on it. Everything that it did is
//! counted, so that a test can say that nothing happened twice.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrite_agent::protocol::Departure;
use ferrite_proto::agent_api::{DaemonConfig, Identity};
use ferrite_proto::boot::BootParameters;
use ferrite_proto::image::ImageRef;
use ferrite_proto::join::HostFinding;
use ferrite_proto::mac::Mac;
use ferrite_proto::problem::Code;
use ferrite_proto::secret::Secret;
use jiff::SignedDuration;
use tokio::sync::watch;

use super::Shared;
use super::pace::Chance;
use super::{daemon, ramdisk};

/// How long firmware waits before it asks again for something to boot.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// A server.
#[derive(Debug)]
pub struct Machine {
    /// Its place in the swarm.
    pub number: u32,
    /// What it is enrolled as.
    pub name: String,
    /// The NIC it boots from.
    pub mac: Mac,
    /// SMBIOS UUID.
    pub uuid: String,
    power: watch::Sender<Supply>,
    inside: Mutex<Inside>,
    chance: Mutex<Chance>,
    bmc_requests: AtomicU64,
    answered: AtomicU64,
}

/// The power supply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Supply {
    on: bool,
    /// Grows with every switch.
    turn: u64,
}

#[derive(Debug, Default)]
struct Inside {
    once: Option<Source>,
    medium: Option<String>,
    fails_next: Option<Code>,
    next_write: Option<Duration>,
    disk: Disk,
    deeds: Deeds,
    daemon_key: Option<Secret<String>>,
    clock: SignedDuration,
    holds_kubeadm: bool,
    findings: Vec<HostFinding>,
}

/// What firmware boots from, beside the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// By PXE.
    Network,
    /// The BMC's virtual drive.
    Cd,
}

/// What lies on the disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    /// A whole image.
    pub(super) image: Option<ImageRef>,
    /// From the config drive.
    pub(super) daemon: Option<DaemonConfig>,
    /// From the config drive, of a host that joins by cloud-init: kubeadm's configuration.
    pub(super) kubeadm: Option<Secret<String>>,
}

/// What a machine did since the swarm began.
#[derive(Debug, Clone, Default)]
pub struct Deeds {
    /// Numbers of the orders that it began, in this order.
    pub orders: Vec<u64>,
    /// How often the power came on, and firmware ran.
    pub firmware_boots: u32,
    /// How often a BMC took the power away.
    pub power_offs: u32,
    /// Agents that were let in.
    pub hellos: u32,
    /// Times that the disk was erased.
    pub erased: u32,
    /// Images that were begun.
    pub images_begun: u32,
    /// Images that were written to the end.
    pub images_written: u32,
    /// Config drives that were written.
    pub config_drives: u32,
    /// Times that the deployed OS started.
    pub os_starts: u32,
    /// Daemons that were let in.
    pub enrolled: u32,
    /// Check-ins that were answered.
    pub check_ins: u64,
    /// Times that it was given what it takes to join a cluster.
    pub joins: u32,
}

impl Machine {
    pub(super) fn new(number: u32, name: String, seed: u64) -> Self {
        let [_, a, b, c] = number.to_be_bytes();
        Self {
            number,
            name,
            mac: Mac([0x02, 0xfe, 0, a, b, c]),
            uuid: format!("fe771e00-0000-4000-8000-{number:012x}"),
            power: watch::Sender::default(),
            inside: Mutex::default(),
            chance: Mutex::new(Chance::new(seed, number)),
            bmc_requests: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it did so far.
    pub fn deeds(&self) -> Deeds {
        self.inside().deeds.clone()
    }

    /// The key of the daemon that runs on it, for calls in its name.
    pub fn daemon_key(&self) -> Option<Secret<String>> {
        self.inside().daemon_key.clone()
    }

    /// What its BMC was asked so far.
    pub fn bmc_requests(&self) -> u64 {
        self.bmc_requests.load(Ordering::Relaxed)
    }

    /// Calls of its agent or daemon that a conductor answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    pub(super) fn count_answer(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note(&self, note: impl FnOnce(&mut Deeds)) {
        note(&mut self.inside().deeds);
    }

    pub(super) fn disk(&self) -> Disk {
        self.inside().disk.clone()
    }

    pub(super) fn change_disk(&self, change: impl FnOnce(&mut Disk)) {
        change(&mut self.inside().disk);
    }

    pub(super) fn keep_key(&self, key: Secret<String>) {
        self.inside().daemon_key = Some(key);
    }

    pub(super) fn count_bmc_request(&self) {
        self.bmc_requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether something that happens so often happens now.
    pub(super) fn happens(&self, per_mille: u32) -> bool {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        chance.happens(per_mille)
    }

    pub(super) fn serial(&self) -> String {
        format!("SWARM{:06}", self.number)
    }

    pub(super) fn identity(&self) -> Identity {
        Identity {
            uuid: Some(self.uuid.clone()),
            serial: Some(self.serial()),
            macs: vec![self.mac],
        }
    }

    /// Whether it has power.
    pub fn is_on(&self) -> bool {
        self.power.borrow().on
    }

    pub(super) fn power_on(&self) {
        self.switch(|supply| !supply.on, true);
    }

    /// Takes its power, as a pulled plug would.
    pub fn power_off(&self) {
        self.switch(|supply| supply.on, false);
    }

    /// The same, by its BMC.
    pub(super) fn switch_off(&self) {
        if self.is_on() {
            self.note(|deeds| deeds.power_offs += 1);
        }
        self.power_off();
    }

    pub(super) fn restart(&self) {
        self.switch(|_| true, true);
    }

    fn switch(&self, when: impl FnOnce(&Supply) -> bool, on: bool) {
        self.power.send_if_modified(|supply| {
            let acts = when(supply);
            if acts {
                supply.on = on;
                supply.turn += 1;
            }
            acts
        });
    }

    pub(super) fn boots_once(&self) -> Option<Source> {
        self.inside().once
    }

    pub(super) fn boot_once(&self, source: Option<Source>) {
        self.inside().once = source;
    }

    /// What is in the virtual drive.
    pub(super) fn medium(&self) -> Option<String> {
        self.inside().medium.clone()
    }

    pub(super) fn load(&self, medium: Option<String>) {
        self.inside().medium = medium;
    }

    /// Has the next step fail.
    pub fn fail_next(&self, code: Code) {
        self.inside().fails_next = Some(code);
    }

    /// The clock of its OS is wrong by so much.
    pub fn set_clock(&self, wrong_by: SignedDuration) {
        self.inside().clock = wrong_by;
    }

    pub(super) fn clock_is_wrong_by(&self) -> SignedDuration {
        self.inside().clock
    }

    /// What its host daemon says who it is with, for whoever has taken it off the disk.
    pub fn stolen_daemon_key(&self) -> Option<Secret<String>> {
        self.daemon_key()
    }

    /// Has its kubeadm do nothing yet, whatever it was given.
    pub fn hold_kubeadm(&self, held: bool) {
        self.inside().holds_kubeadm = held;
    }

    pub(super) fn kubeadm_is_held(&self) -> bool {
        self.inside().holds_kubeadm
    }

    /// What its OS lacks to join a cluster.
    pub fn lacks(&self, findings: Vec<HostFinding>) {
        self.inside().findings = findings;
    }

    pub(super) fn findings(&self) -> Vec<HostFinding> {
        self.inside().findings.clone()
    }

    pub(super) fn fails_now(&self) -> Option<Code> {
        self.inside().fails_next.take()
    }

    /// How long the next image takes, whatever the pace is.
    pub fn write_next_in(&self, took: Duration) {
        self.inside().next_write = Some(took);
    }

    pub(super) fn next_write(&self) -> Option<Duration> {
        self.inside().next_write.take()
    }

    /// Lives for as long as the swarm does.
    pub(super) async fn run(self: Arc<Self>, shared: Arc<Shared>) {
        let mut power = self.power.subscribe();
        loop {
            let supply = *power.borrow_and_update();
            let life = async {
                if supply.on {
                    self.power_cycle(&shared).await;
                }
                // Off, or switched by what ran: the supply has changed, or will.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                changed = power.changed() => if changed.is_err() { return },
                () = life => {}
            }
        }
    }

    /// From power on until it is switched off or reset, which ends this future.
    async fn power_cycle(&self, shared: &Shared) {
        self.note(|deeds| deeds.firmware_boots += 1);
        tokio::time::sleep(shared.settings.pace.post).await;
        loop {
            let once = self.inside().once.take();
            if once.is_none() && self.disk().image.is_some() {
                return self.os(shared).await;
            }
            let found = match once {
                Some(Source::Cd) => self.words_of_medium(shared).await,
                Some(Source::Network) | None => self.boot_words(shared).await,
            };
            match found {
                Script::Ramdisk(words) => return self.ramdisk(shared, &words).await,
                Script::OwnDisk if self.disk().image.is_some() => return self.os(shared).await,
                Script::OwnDisk | Script::Unknown => {}
            }
            // The firmware begins its round again; an override that was used stays used.
            tokio::time::sleep(ASK_AGAIN.min(shared.settings.pace.post * 10)).await;
        }
    }

    /// What netboot has for this machine, of the first conductor that answers.
    async fn boot_words(&self, shared: &Shared) -> Script {
        for netboot in &shared.settings.netboot {
            let url = format!("{netboot}/boot.ipxe?mac={}", self.mac);
            let answer = match shared.firmware.get(url).send().await {
                Ok(answer) => answer.text().await,
                Err(error) => Err(error),
            };
            let Ok(script) = answer else { continue };
            if let Some(words) = kernel_words(&script) {
                return Script::Ramdisk(Box::new(words));
            }
            if script.contains("boots its own disk") {
                return Script::OwnDisk;
            }
        }
        Script::Unknown
    }

    /// What the ISO in the virtual drive says.
    async fn words_of_medium(&self, shared: &Shared) -> Script {
        let Some(url) = self.medium() else {
            return Script::Unknown;
        };
        let answer = match shared.firmware.get(url).send().await {
            Ok(answer) => answer.bytes().await,
            Err(error) => Err(error),
        };
        let Ok(iso) = answer else {
            return Script::Unknown;
        };
        let config = iso.get(super::served::ISO_CONFIG_AT..).unwrap_or_default();
        match BootParameters::parse(&String::from_utf8_lossy(config)) {
            Ok(words) => Script::Ramdisk(Box::new(words)),
            Err(_) => Script::Unknown,
        }
    }

    async fn ramdisk(&self, shared: &Shared, words: &BootParameters) {
        tokio::time::sleep(shared.settings.pace.netboot).await;
        match ramdisk::run(self, shared, words).await {
            Departure::Kexec => self.os(shared).await,
            Departure::Reboot => self.restart(),
            Departure::PowerOff => self.power_off(),
        }
    }

    async fn os(&self, shared: &Shared) {
        self.note(|deeds| deeds.os_starts += 1);
        tokio::time::sleep(shared.settings.pace.os).await;
        let Some(config) = self.disk().daemon else {
            return;
        };
        daemon::run(self, shared, config).await;
    }
}

/// What firmware is told to boot.
enum Script {
    Ramdisk(Box<BootParameters>),
    OwnDisk,
    Unknown,
}

fn kernel_words(script: &str) -> Option<BootParameters> {
    let line = script.lines().find(|line| line.starts_with("kernel "))?;
    let (words, _) = line.split_once(" || ")?;
    BootParameters::parse(words).ok()
}

//! A QEMU host as its BMC sees it: off, or one process that is on. Counts what it costs.
//!
//! There is a process per power-on. A reset, by the BMC or by the guest, stays in the process; the
//! boot order for the next reset is set ahead of it, so that "once" means once also when the guest
//! resets by itself.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::accel::Accel;
use crate::machine::{BootDevice, CD, Files, Firmware, Machine, OVMF_VARS};
use crate::net::Namespace;
use crate::qmp::Qmp;

/// How often a running QEMU is looked at: the kernel forgets its memory peak when it ends.
const SAMPLE: Duration = Duration::from_millis(50);

/// A reset by the guest this soon after another is the firmware's own. No system boots and resets
/// in less.
const SETTLE: Duration = Duration::from_millis(700);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Power {
    On,
    Off,
}

/// What the BMC was told about the next boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BootOverride {
    None,
    Once(BootDevice),
    Always(BootDevice),
}

impl BootOverride {
    fn device(self) -> Option<BootDevice> {
        match self {
            Self::None => None,
            Self::Once(device) | Self::Always(device) => Some(device),
        }
    }

    fn after_boot(self) -> Self {
        match self {
            Self::Once(_) => Self::None,
            other => other,
        }
    }
}

/// What a host has cost so far, over all its power-ons.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Times the firmware started: power-ons and resets. A kexec is none.
    pub firmware_boots: u64,
    pub qemu_cpu_seconds: f64,
    /// Largest resident size of a QEMU process, guest memory and QEMU's own.
    pub qemu_peak_kib: u64,
}

#[derive(Debug)]
pub struct Vm {
    pub machine: Machine,
    files: Files,
    net: Arc<Namespace>,
    accel: Accel,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    run: Option<Run>,
    boot: BootOverride,
    media: Option<PathBuf>,
    cost: Cost,
    /// The firmware runs with `boot`, which nobody has changed since.
    starting: bool,
}

#[derive(Debug, Clone)]
struct Run {
    pid: Pid,
    qmp: Arc<Qmp>,
}

impl Vm {
    /// Makes the host's files: blank disks, fresh firmware variables. It stays off.
    pub fn create(
        machine: Machine,
        dir: &Path,
        net: Arc<Namespace>,
        accel: Accel,
    ) -> Result<Arc<Self>> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let files = Files::in_dir(dir);
        if machine.firmware == Firmware::Uefi {
            fs::copy(OVMF_VARS, &files.variables)
                .with_context(|| format!("copying {OVMF_VARS} (Debian package ovmf)"))?;
        }
        for (index, disk) in machine.disks.iter().enumerate() {
            File::create(files.disk(index)).and_then(|file| file.set_len(disk.bytes))?;
        }
        File::create(&files.console)?;
        for nic in 0..machine.nics {
            net.add_tap(&machine.tap(nic))?;
        }
        let inner = Inner {
            run: None,
            boot: BootOverride::None,
            media: None,
            cost: Cost::default(),
            starting: false,
        };
        let (inner, changed) = (Mutex::new(inner), Condvar::new());
        Ok(Arc::new(Self {
            machine,
            files,
            net,
            accel,
            inner,
            changed,
        }))
    }

    pub fn power(&self) -> Power {
        if self.lock().run.is_some() {
            Power::On
        } else {
            Power::Off
        }
    }

    pub fn boot_override(&self) -> BootOverride {
        self.lock().boot
    }

    pub fn media(&self) -> Option<PathBuf> {
        self.lock().media.clone()
    }

    /// Counters, with the running process included.
    pub fn cost(&self) -> Cost {
        let inner = self.lock();
        let mut cost = inner.cost;
        if let Some(run) = &inner.run {
            cost.qemu_cpu_seconds += cpu_seconds(run.pid);
            cost.qemu_peak_kib = cost.qemu_peak_kib.max(peak_kib(run.pid));
        }
        cost
    }

    pub fn disk(&self, index: usize) -> PathBuf {
        self.files.disk(index)
    }

    pub fn console_log(&self) -> &Path {
        &self.files.console
    }

    pub fn console_socket(&self) -> &Path {
        &self.files.console_socket
    }

    /// The pid of the running QEMU.
    pub fn pid(&self) -> Option<i32> {
        self.lock().run.as_ref().map(|run| run.pid.as_raw())
    }

    /// Powers on; nothing happens to a host that is on.
    pub fn power_on(self: &Arc<Self>) -> Result<()> {
        let mut inner = self.lock();
        if inner.run.is_some() {
            return Ok(());
        }
        let mut child = self.launch()?;
        let pid = Pid::from_raw(i32::try_from(child.id()).context("a pid beyond the kernel's")?);
        let started = self
            .attach(&mut child)
            .and_then(|qmp| self.prepare(&qmp, &mut inner).map(|()| qmp));
        let qmp = match started {
            Ok(qmp) => qmp,
            Err(error) => {
                drop(child.kill());
                drop(child.wait());
                return Err(error.context(self.last_words()));
            }
        };
        inner.run = Some(Run {
            pid,
            qmp: Arc::new(qmp),
        });
        let vm = Arc::clone(self);
        std::thread::Builder::new()
            .name("ferrite-vm".into())
            .spawn(move || vm.watch(child, pid))?;
        self.changed.notify_all();
        Ok(())
    }

    fn launch(&self) -> Result<Child> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.files.qemu_log)?;
        drop(fs::remove_file(&self.files.console_socket));
        let arguments = self.machine.arguments(&self.files, self.accel);
        self.net.spawn(arguments, move |command| {
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(log);
        })
    }

    fn attach(self: &Arc<Self>, child: &mut Child) -> Result<Qmp> {
        let input = child
            .stdin
            .take()
            .context("QEMU without a standard input")?;
        let output = child
            .stdout
            .take()
            .context("QEMU without a standard output")?;
        let (resets, inbox) = mpsc::channel();
        let vm = Arc::downgrade(self);
        std::thread::Builder::new()
            .name("ferrite-boots".into())
            .spawn(move || count_boots(&vm, &inbox))?;
        Qmp::start(input, output, move |event, data| {
            if event == "RESET" {
                let _ = resets.send(data["guest"] == true); // nobody listens: the host is gone
            }
        })
    }

    /// First boot of a process: order and media are in place before the first instruction.
    fn prepare(&self, qmp: &Qmp, inner: &mut Inner) -> Result<()> {
        if let Some(path) = &inner.media {
            insert(qmp, path)?;
        }
        self.set_order(qmp, inner.boot)?;
        qmp.execute("system_reset", &json!({}))?;
        qmp.execute("cont", &json!({})).map(drop)
    }

    fn firmware_started(&self) {
        let mut inner = self.lock();
        inner.cost.firmware_boots += 1;
        inner.starting = true;
        drop(inner);
        self.changed.notify_all();
    }

    /// The firmware is past its own resets: a "once" is used up, and the order for the next boot is
    /// set now.
    fn firmware_settled(&self) {
        let mut inner = self.lock();
        if !std::mem::take(&mut inner.starting) {
            return;
        }
        inner.boot = inner.boot.after_boot();
        if let Some(run) = inner.run.clone()
            && let Err(error) = self.set_order(&run.qmp, inner.boot)
        {
            // Most often it has just been switched off.
            let (host, error) = (self.machine.number, format!("{error:#}"));
            tracing::debug!(host, error, "the boot order was not set");
        }
    }

    fn set_order(&self, qmp: &Qmp, boot: BootOverride) -> Result<()> {
        for device in self.machine.bootable_devices() {
            // First none: two devices must never share an index, not even for a moment.
            set_bootindex(qmp, &device, -1)?;
        }
        let sequence = self.machine.boot_sequence(boot.device());
        for (index, device) in (0..).zip(&sequence) {
            set_bootindex(qmp, device, index)?;
        }
        Ok(())
    }

    /// Cuts the power: no notice, no flush.
    pub fn power_off(&self) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        let peak = peak_kib(Pid::from_raw(pid));
        self.note_peak(peak);
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        self.wait_power(Power::Off, Duration::from_secs(10))
    }

    /// Presses the power button: the guest may shut down, or not.
    pub fn press_button(&self) -> Result<()> {
        self.command("system_powerdown")
    }

    pub fn nmi(&self) -> Result<()> {
        self.command("inject-nmi")
    }

    /// Resets a running host; a host that is off stays off.
    pub fn reset(&self) -> Result<()> {
        self.command("system_reset")
    }

    fn command(&self, command: &str) -> Result<()> {
        let Some(run) = self.lock().run.clone() else {
            return Ok(());
        };
        run.qmp.execute(command, &json!({})).map(drop)
    }

    pub fn set_boot(&self, boot: BootOverride) -> Result<()> {
        let mut inner = self.lock();
        inner.boot = boot;
        inner.starting = false;
        match inner.run.clone() {
            Some(run) => self.set_order(&run.qmp, boot),
            None => Ok(()),
        }
    }

    pub fn insert_media(&self, path: &Path) -> Result<()> {
        let mut inner = self.lock();
        if let Some(run) = &inner.run {
            insert(&run.qmp, path)?;
        }
        inner.media = Some(path.to_owned());
        Ok(())
    }

    pub fn eject_media(&self) -> Result<()> {
        let mut inner = self.lock();
        inner.media = None;
        let Some(run) = &inner.run else { return Ok(()) };
        run.qmp
            .execute("eject", &json!({ "id": CD, "force": true }))
            .map(drop)
    }

    pub fn wait_power(&self, power: Power, patience: Duration) -> Result<()> {
        self.wait(patience, |inner| {
            inner.run.is_some() == (power == Power::On)
        })
        .with_context(|| format!("host {} is not {power:?}", self.machine.number))
    }

    pub fn wait_firmware_boots(&self, count: u64, patience: Duration) -> Result<()> {
        self.wait(patience, |inner| inner.cost.firmware_boots >= count)
            .with_context(|| format!("host {}: no {count} firmware boots", self.machine.number))
    }

    fn wait(&self, patience: Duration, holds: impl Fn(&Inner) -> bool) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut inner = self.lock();
        while !holds(&inner) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("waited {patience:?}");
            }
            let woken = self.changed.wait_timeout(inner, left);
            inner = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Lives as long as the process; books what it cost before the kernel forgets it.
    fn watch(&self, mut child: Child, pid: Pid) {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        while matches!(waitid(Id::Pid(pid), flags), Ok(status) if status.pid().is_none()) {
            self.note_peak(peak_kib(pid));
            std::thread::sleep(SAMPLE);
        }
        let mut inner = self.lock();
        inner.cost.qemu_cpu_seconds += cpu_seconds(pid);
        inner.run = None; // before the pid is given back: nobody may signal a stranger
        drop(inner);
        let status = child.wait();
        if let Ok(status) = status
            && !status.success()
            && status.signal() != Some(Signal::SIGKILL as i32)
        {
            tracing::warn!(host = self.machine.number, %status, "{}", self.last_words());
        }
        self.changed.notify_all();
    }

    fn note_peak(&self, peak: u64) {
        let mut inner = self.lock();
        inner.cost.qemu_peak_kib = inner.cost.qemu_peak_kib.max(peak);
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.files.qemu_log).unwrap_or_default();
        let last = log.lines().next_back().unwrap_or("it said nothing");
        format!("QEMU of host {} failed: {last}", self.machine.number)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads resets (true: by the guest) as boots of the firmware. SeaBIOS resets the machine once more
/// at each reset, to get at a clean state; that is the same boot and the same boot order.
fn count_boots(vm: &Weak<Vm>, resets: &Receiver<bool>) {
    while resets.recv().is_ok() {
        let Some(vm) = vm.upgrade() else { return };
        vm.firmware_started();
        loop {
            match resets.recv_timeout(SETTLE) {
                Ok(true) => (),
                Ok(false) => {
                    vm.firmware_settled();
                    vm.firmware_started();
                }
                Err(_) => break,
            }
        }
        vm.firmware_settled();
    }
}

fn set_bootindex(qmp: &Qmp, device: &str, index: i32) -> Result<()> {
    let path = format!("/machine/peripheral/{device}");
    let arguments = json!({ "path": path, "property": "bootindex", "value": index });
    qmp.execute("qom-set", &arguments).map(drop)
}

fn insert(qmp: &Qmp, path: &Path) -> Result<()> {
    let arguments = json!({
        "id": CD, "filename": path, "format": "raw",
        "read-only-mode": "read-only", "force": true,
    });
    qmp.execute("blockdev-change-medium", &arguments).map(drop)
}

/// User and system time, also of a process that has ended and was not yet waited for.
fn cpu_seconds(pid: Pid) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    cpu_ticks(&stat) / 100.0 // USER_HZ, the same on every Linux Rust runs on
}

fn cpu_ticks(stat: &str) -> f64 {
    // The second field is the program's name in parentheses and may hold anything.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = after_name.split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum()
}

fn peak_kib(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_survives_a_strange_program_name() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194304 200 0 0 0 150 50 0 0 20 0 1 0 99 1 1";
        assert!((cpu_ticks(stat) - 200.0).abs() < f64::EPSILON);
        assert!(cpu_ticks("").abs() < f64::EPSILON);
    }

    #[test]
    fn once_is_used_up_by_one_boot() {
        assert_eq!(
            BootOverride::Once(BootDevice::Cd).after_boot(),
            BootOverride::None
        );
        let always = BootOverride::Always(BootDevice::Network);
        assert_eq!(always.after_boot(), always);
    }
}

//! PID 1's child: brings the machine in touch with its conductor, then runs what it orders.
//!
//! modules and network → boot words → clock → hello → poll. What fails is said on the consoles
//! and tried again; a panic here ends this process only, and PID 1 starts the next.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use ferrite_proto::agent_api::{HELLO, Hello, HelloReply, Identity};
use ferrite_proto::boot::BootParameters;
use ferrite_proto::inventory::BootMode;
use nix::mount::MsFlags;

use super::boot_config::{self, CommandLine};
use super::clock;
use super::handover::{Handover, Word};
use super::leases::{Network, News};
use super::links::Link;
use super::message::say;
use super::modules::Modules;
use super::poll::{End, Polling, RunStep, backoff};
use super::session::{Saved, Session};
use crate::conductor::{CallError, Conductor};
use crate::kernel::{Kernel, Linux, Mount};
use crate::root::Root;
use crate::steps;

/// Longest wait for the boot medium.
const MEDIUM_PATIENCE: Duration = Duration::from_mins(1);
/// Longest wait for the machine's devices before the first step.
const SETTLE_PATIENCE: Duration = Duration::from_secs(30);
/// How long a hello may take.
const HELLO_PATIENCE: Duration = Duration::from_secs(20);
/// How often what hinders the machine is said again.
const REPEAT: Duration = Duration::from_mins(1);

/// The worker and what it has learnt.
struct Worker<'a> {
    root: &'a Root,
    kernel: &'a dyn Kernel,
    modules: Option<&'a Modules<'a>>,
    handover: Handover,
    /// Lines for the host's log, until there is a session.
    log: Mutex<Vec<String>>,
    /// Whether the machine's devices are all there.
    settled: Mutex<bool>,
    settles: Condvar,
}

/// Runs until the machine shall be left, the token is refused, or PID 1 ends.
pub(crate) fn run() -> anyhow::Result<()> {
    let handover = Handover::read(io::stdin().lock())?;
    let (root, kernel) = (Root::system(), Linux);
    let modules = match Modules::open(&root, &kernel) {
        Ok(modules) => Some(modules),
        Err(error) => {
            say(&format!("kernel modules cannot be loaded: {error}"));
            None
        }
    };
    let worker = Worker {
        root: &root,
        kernel: &kernel,
        modules: modules.as_ref(),
        handover,
        log: Mutex::default(),
        settled: Mutex::new(modules.is_none()),
        settles: Condvar::new(),
    };
    let stop = AtomicBool::new(false);
    let word = std::thread::scope(|scope| {
        scope.spawn(|| worker.load_modules(&stop));
        let word = worker.serve();
        stop.store(true, Ordering::Relaxed);
        word
    });
    word.write(io::stdout().lock())?;
    Ok(())
}

impl Worker<'_> {
    /// Says a line on the consoles and keeps it for the host's log.
    fn note(&self, line: &str) {
        say(line);
        self.log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(line.to_owned());
    }

    fn load_modules(&self, stop: &AtomicBool) {
        let Some(modules) = self.modules else { return };
        let medium_first = CommandLine::read(self.root).on_medium();
        modules.cold_plug(medium_first, stop, &|| {
            self.mount_efivarfs();
            let (count, uptime) = (modules.count(), uptime(self.root));
            say(&format!(
                "{count} kernel modules by {uptime:.1} s (slowest: {})",
                modules.slowest()
            ));
            *self.settled.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.settles.notify_all();
        });
    }

    /// No step runs before the disks have had time to appear.
    fn wait_until_settled(&self) {
        let settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self
            .settles
            .wait_timeout_while(settled, SETTLE_PATIENCE, |settled| !*settled);
    }

    fn mount_efivarfs(&self) {
        let target = self.root.path("/sys/firmware/efi/efivars");
        if !target.exists() {
            return;
        }
        if let Some(modules) = self.modules {
            modules.load("efivarfs");
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
        let source = std::path::Path::new("efivarfs");
        let mount = Mount {
            source,
            target: &target,
            kind: "efivarfs",
            flags,
            data: "",
        };
        if let Err(error) = self.kernel.mount(&mount)
            && error.raw_os_error() != Some(libc::EBUSY)
        {
            say(&format!("EFI variables cannot be reached: {error}"));
        }
    }

    /// The whole way; returns what to tell PID 1.
    fn serve(&self) -> Word {
        quiet_kernel(self.root);
        self.banner();
        let line = CommandLine::read(self.root);
        let network = self.start_network(&line);
        let words = self.boot_words(&line);
        self.set_clock(&words);
        say(&format!("the conductor is {}", words.url));
        if let Some(network) = &network {
            while !network.wait_for_lease(REPEAT) {
                say(
                    "still no address by DHCP on any interface; is a cable plugged in, and a DHCP \
                     server in reach?",
                );
            }
        }
        let conductor = match Conductor::new(&words.url, words.ca) {
            Ok(conductor) => conductor,
            Err(error) => hindered(&error.to_string()),
        };
        let (saved, mut session) = self.session(&conductor, &words);
        for line in self
            .log
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            session.log(&line);
        }
        self.poll(&conductor, saved, &mut session)
    }

    fn banner(&self) {
        let uptime = uptime(self.root);
        let version = env!("CARGO_PKG_VERSION");
        let times = self.handover.restarts;
        if times == 0 {
            self.note(&format!(
                "kernel started {uptime:.1} s ago; Ferrite agent {version}"
            ));
            return;
        }
        self.note(&format!(
            "agent restarted ({times} times now); the last one ended:"
        ));
        for line in &self.handover.reason {
            self.note(&format!("  {line}"));
        }
    }

    fn start_network(&self, line: &CommandLine) -> Option<Arc<Network>> {
        let (send, news) = mpsc::channel();
        let network = Network::start(self.root.clone(), line.boot_interface(), &send);
        let _ = std::thread::Builder::new()
            .name("news".into())
            .spawn(move || tell(&news));
        network
            .inspect_err(|error| say(&format!("the network cannot be set up: {error}")))
            .ok()
    }

    fn boot_words(&self, line: &CommandLine) -> BootParameters {
        if line.on_medium() {
            say("looking for the boot medium");
            if let Some(modules) = self.modules {
                modules.load("isofs");
            }
        }
        match boot_config::find(self.root, self.kernel, line, MEDIUM_PATIENCE) {
            Ok(words) => words,
            Err(error) => hindered(&format!(
                "this machine cannot find its conductor: {error}. Start it again through Ferrite"
            )),
        }
    }

    fn set_clock(&self, words: &BootParameters) {
        let Some(time) = words.time else { return };
        match clock::set_forward(self.kernel, time) {
            Ok(Some(gained)) => self.note(&format!("the clock was {gained} s behind and was set")),
            Ok(None) => {}
            Err(error) => self.note(&format!("the clock cannot be set: {error}")),
        }
    }

    /// The session that PID 1 kept, else a new one by hello.
    fn session(&self, conductor: &Conductor, words: &BootParameters) -> (Saved, Session) {
        let mut session = Session::new(self.handover.restarts);
        let kept = self.handover.session.as_deref();
        if let Some(mut saved) = kept.and_then(|text| serde_json::from_str::<Saved>(text).ok()) {
            if let Some(order) = saved.taken.take() {
                let reason = self.handover.reason.first();
                session.interrupted(order, reason.map_or("no reason known", String::as_str));
            }
            say(&format!("this machine is {}", saved.host));
            return (saved, session);
        }
        let reply = self.hello(conductor, words);
        let uptime = uptime(self.root);
        self.note(&format!(
            "in touch with the conductor {uptime:.1} s after the kernel's start"
        ));
        say(&format!("this machine is {}", reply.host));
        let HelloReply {
            token,
            host,
            poll_seconds,
        } = reply;
        let saved = Saved {
            token,
            host,
            poll_seconds,
            taken: None,
        };
        save(&saved);
        (saved, session)
    }

    /// Says hello until it is answered.
    fn hello(&self, conductor: &Conductor, words: &BootParameters) -> HelloReply {
        for failures in 1.. {
            let hello = Hello {
                ticket: words.ticket.clone(),
                nonce: self.handover.nonce.clone(),
                identity: identity(self.root),
                agent_version: env!("CARGO_PKG_VERSION").to_owned(),
                kernel: self
                    .root
                    .text("/proc/sys/kernel/osrelease")
                    .unwrap_or_default(),
                uptime_seconds: uptime(self.root),
                boot_mode: boot_mode(self.root),
                memory_bytes: memory(self.root),
            };
            match conductor.call(HELLO, None, &hello, HELLO_PATIENCE) {
                Ok(reply) => return reply,
                Err(CallError::Unauthorized { url, detail }) => hindered(&format!(
                    "the conductor at {url} refuses this machine's boot ticket ({detail}). \
                     A ticket counts for one boot: start the machine again through Ferrite"
                )),
                Err(error) => {
                    let wait = backoff(failures);
                    say(&format!("{error}; trying again in {} s", wait.as_secs()));
                    std::thread::sleep(wait);
                }
            }
        }
        hindered("the conductor never answered")
    }

    fn poll(&self, conductor: &Conductor, saved: Saved, session: &mut Session) -> Word {
        say("waiting for work");
        let run_step: &RunStep<'_> = &|step, progress, cancelled| {
            self.wait_until_settled();
            let context = steps::Context {
                root: self.root,
                kernel: self.kernel,
                progress,
                cancelled,
            };
            steps::run(step, &context)
        };
        match (Polling {
            conductor,
            saved,
            run_step,
            save: &save,
        })
        .run(session)
        {
            End::Depart(how) => Word::Depart(how),
            End::Refused(detail) => {
                say(&format!(
                    "the conductor no longer takes this agent's token ({detail})"
                ));
                Word::Forget
            }
        }
    }
}

/// PID 1 keeps it for the next child.
fn save(saved: &Saved) {
    if let Ok(text) = serde_json::to_string(saved)
        && let Err(error) = Word::Session(text).write(io::stdout().lock())
    {
        say(&format!("PID 1 does not listen: {error}"));
    }
}

/// Says what hinders this machine, again and again, until somebody does something.
fn hindered(what: &str) -> ! {
    loop {
        say(what);
        std::thread::sleep(REPEAT);
    }
}

fn tell(news: &Receiver<News>) {
    for news in news {
        match news {
            News::Found(link) => say(&format!("{}: interface {}", link.name, link.mac)),
            News::Carrier(name) => say(&format!("{name}: link; asking for an address")),
            News::Leased(name, lease) => say(&format!(
                "{name}: address {}/{} from {}",
                lease.address, lease.prefix, lease.server
            )),
            News::Trouble(name, what) => say(&format!("{name}: {what}")),
        }
    }
}

/// The kernel's own messages on the consoles: errors only.
fn quiet_kernel(root: &Root) {
    let _ = std::fs::write(root.path("/proc/sys/kernel/printk"), "4");
}

/// Who this machine is, as its firmware says.
pub(crate) fn identity(root: &Root) -> Identity {
    let dmi = |name: &str| {
        let text = root.text(format!("/sys/class/dmi/id/{name}")).ok()?;
        (!text.is_empty()).then_some(text)
    };
    Identity {
        uuid: dmi("product_uuid").map(|text| text.to_lowercase()),
        serial: dmi("product_serial"),
        macs: Link::all(root).into_iter().map(|link| link.mac).collect(),
    }
}

fn boot_mode(root: &Root) -> BootMode {
    let uefi = root.path("/sys/firmware/efi").exists();
    if uefi { BootMode::Uefi } else { BootMode::Bios }
}

/// Seconds since the kernel started.
pub(crate) fn uptime(root: &Root) -> f64 {
    let text = root.text("/proc/uptime").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(0.0)
}

fn memory(root: &Root) -> u64 {
    let text = root.text("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| {
        line.trim()
            .trim_end_matches(" kB")
            .trim()
            .parse::<u64>()
            .ok()
    });
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_says_who_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        let write = |path: &str, text: &str| {
            let path = root.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "/sys/class/dmi/id/product_uuid",
            "00000000-0000-4000-8000-0000000000AB\n",
        );
        write("/sys/class/dmi/id/product_serial", "lab-1\n");
        write("/proc/uptime", "12.34 20.00\n");
        write(
            "/proc/meminfo",
            "MemTotal:         375144 kB\nMemFree: 1 kB\n",
        );
        let identity = identity(&root);
        assert_eq!(
            identity.uuid.as_deref(),
            Some("00000000-0000-4000-8000-0000000000ab")
        );
        assert_eq!(identity.serial.as_deref(), Some("lab-1"));
        assert!((uptime(&root) - 12.34).abs() < 1e-9);
        assert_eq!(memory(&root), 375_144 * 1024);
        assert_eq!(boot_mode(&root), BootMode::Bios);
    }
}

//! The lab's network: one namespace per lab, a bridge in it, a tap for each NIC, and the ways to
//! get inside.
//!
//! Nothing of a lab outlives it. Children get SIGKILL from the kernel when the lab's thread ends
//! (`setpriv`), and a namespace whose lock nobody holds is reclaimed by the next lab. No routing to
//! the outside.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::run;

/// Where the conductor, the image server and the BMCs live.
pub const SERVER: &str = "10.77.0.1";

/// Fixed, so that the bridge does not take over a tap's address (and confuse every ARP cache) as
/// hosts come and go.
const BRIDGE_MAC: &str = "02:00:00:77:00:01";
const LOCKS: &str = "/run/ferrite-lab";
const NAMESPACES: &str = "/run/netns";

/// One process may have several labs at once, as tests do.
static NEXT: AtomicU32 = AtomicU32::new(0);

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace of one lab. Dropping it ends every process in it and removes it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    inside: Mutex<Option<Inside>>,
}

#[derive(Debug)]
struct Inside {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
    /// Held as long as the lab lives: who gets it may remove the namespace.
    lock: Flock<File>,
}

impl Namespace {
    /// Makes a fresh namespace with `br0`; what dead labs left behind goes first.
    pub fn create() -> Result<Self> {
        require_root()?;
        reclaim_stale()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ferrite-{}-{number}", std::process::id());
        let lock = take_lock(&name)?.with_context(|| format!("{name} is in use"))?;
        let namespace = Self {
            name,
            inside: Mutex::new(None),
        };
        namespace.build(lock)?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn build(&self, lock: Flock<File>) -> Result<()> {
        run(&["ip", "netns", "add", &self.name])?;
        self.ip(&["link", "set", "lo", "up"])?;
        self.ip(&[
            "link", "add", "br0", "address", BRIDGE_MAC, "type", "bridge",
        ])?;
        self.ip(&["addr", "add", &format!("{SERVER}/24"), "dev", "br0"])?;
        self.ip(&["link", "set", "br0", "up"])?;
        self.plug_in_bridge()?;
        self.start_thread(lock)
    }

    /// A switch has link also while every host is off; a bridge only with a port that has it.
    fn plug_in_bridge(&self) -> Result<()> {
        self.ip(&[
            "link", "add", "port0", "type", "veth", "peer", "name", "port1",
        ])?;
        self.ip(&["link", "set", "port0", "master", "br0", "up"])?;
        self.ip(&["link", "set", "port1", "up"])
    }

    /// Adds a tap on the bridge.
    pub fn add_tap(&self, tap: &str) -> Result<()> {
        self.ip(&["tuntap", "add", "dev", tap, "mode", "tap"])?;
        self.ip(&["link", "set", "dev", tap, "master", "br0", "up"])
    }

    /// Gives the lab's server one more address, which hosts reach by their router.
    pub fn add_address(&self, address: IpAddr) -> Result<()> {
        let length = if address.is_ipv4() { 32 } else { 128 };
        self.ip(&["addr", "add", &format!("{address}/{length}"), "dev", "br0"])
    }

    /// Takes the cable out, or puts it back.
    pub fn set_link(&self, tap: &str, up: bool) -> Result<()> {
        self.ip(&["link", "set", "dev", tap, if up { "up" } else { "down" }])
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        let mut argv = vec!["ip", "-n", &self.name];
        argv.extend_from_slice(arguments);
        run(&argv).map(drop)
    }

    /// Runs `work` on the lab's thread inside the namespace and returns what it returns.
    pub fn run_in<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        let job: Job = Box::new(move || drop(reply.send(work())));
        let jobs = self.lock().as_ref().map(|inside| inside.jobs.clone());
        let jobs = jobs.context("the lab's network is down")?;
        jobs.send(job)
            .ok()
            .context("the lab's network thread has ended")?;
        answer.recv().context("the lab's network thread failed")
    }

    /// Starts a child inside. The kernel kills it when this namespace's thread ends, however that
    /// comes about.
    pub fn spawn(
        &self,
        argv: Vec<OsString>,
        wire: impl FnOnce(&mut Command) + Send + 'static,
    ) -> Result<Child> {
        let shown = argv.first().cloned().unwrap_or_default();
        let name = self.name.clone();
        let child = self.run_in(move || {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--"]);
            // It is inside already; `ip` adds the /sys that belongs to this network.
            command.args(["ip", "netns", "exec", &name]).args(argv);
            wire(&mut command);
            command.spawn()
        })?;
        child.with_context(|| format!("starting {} in {}", shown.display(), self.name))
    }

    /// A tokio runtime whose threads are inside: sockets that its tasks open are the lab's.
    /// A future given to `block_on` runs on the caller's own thread, so spawn instead.
    ///
    /// # Panics
    /// When root may not enter a namespace that it made: nothing in the lab could work.
    pub fn runtime(&self) -> Result<tokio::runtime::Runtime> {
        let file = Arc::new(open(&self.name)?);
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("ferrite-lab")
            .on_thread_start(move || {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET).expect("root may enter its own lab");
            })
            .enable_all()
            .build()
            .context("starting the lab's runtime")
    }

    /// Ends every process inside and removes the namespace. Nothing works after it.
    pub fn close(&self) {
        let Some(Inside { jobs, thread, lock }) = self.lock().take() else {
            return;
        };
        drop(jobs);
        drop(thread.join());
        if let Err(error) = remove(&self.name) {
            tracing::warn!(
                namespace = self.name,
                error = format!("{error:#}"),
                "not removed"
            );
        }
        drop(fs::remove_file(lock_path(&self.name)));
        drop(lock);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Inside>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_thread(&self, lock: Flock<File>) -> Result<()> {
        let file = open(&self.name)?;
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, is_ready) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("ferrite-net".into())
            .spawn(move || {
                let entered = setns(file.as_fd(), CloneFlags::CLONE_NEWNET);
                let inside = entered.is_ok();
                let _ = ready.send(entered);
                if inside {
                    for job in inbox {
                        job();
                    }
                }
            })?;
        *self.lock() = Some(Inside { jobs, thread, lock });
        is_ready
            .recv()?
            .with_context(|| format!("entering the namespace {}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.close();
    }
}

/// Leaves the machine's network for one of loopback alone, for the rest of this process and what it
/// starts. Threads that are there already stay behind: call it first.
///
/// # Errors
/// Without root.
pub fn without_a_way_out() -> Result<()> {
    require_root()?;
    unshare(CloneFlags::CLONE_NEWNET).context("leaving the machine's network")?;
    run(&["ip", "link", "set", "lo", "up"]).map(drop)
}

/// Removes namespaces whose lab is dead; returns their names.
pub fn reclaim_stale() -> Result<Vec<String>> {
    let mut gone = Vec::new();
    for name in existing() {
        if let Some(lock) = take_lock(&name)? {
            remove(&name)?;
            drop(lock);
            drop(fs::remove_file(lock_path(&name)));
            gone.push(name);
        }
    }
    Ok(gone)
}

fn existing() -> Vec<String> {
    let entries = fs::read_dir(NAMESPACES).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("ferrite-")).collect()
}

/// Ends what still runs inside, then removes the namespace.
fn remove(name: &str) -> Result<()> {
    if !Path::new(NAMESPACES).join(name).exists() {
        return Ok(());
    }
    for line in run(&["ip", "netns", "pids", name])?.lines() {
        if let Ok(pid) = line.trim().parse() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    run(&["ip", "netns", "del", name]).map(drop)
}

/// `None` when a living lab holds it.
fn take_lock(name: &str) -> Result<Option<Flock<File>>> {
    fs::create_dir_all(LOCKS).with_context(|| format!("creating {LOCKS}"))?;
    let path = lock_path(name);
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).ok())
}

fn lock_path(name: &str) -> PathBuf {
    Path::new(LOCKS).join(format!("{name}.lock"))
}

fn open(name: &str) -> Result<File> {
    let path = Path::new(NAMESPACES).join(name);
    File::open(&path).with_context(|| format!("opening {}", path.display()))
}

/// Says exactly how to come back as root.
pub fn require_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let argv: Vec<_> = std::env::args_os().collect();
    let argv = argv.join(OsStr::new(" "));
    bail!(
        "the lab needs root to make its network namespace, bridge and taps. Run: sudo {}",
        argv.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    fn root() -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            eprintln!("SKIPPED: needs root for a network namespace");
        }
        root
    }

    #[test]
    fn a_lab_has_its_own_addresses_and_leaves_nothing() {
        if !root() {
            return;
        }
        let net = Namespace::create().unwrap();
        let path = Path::new(NAMESPACES).join(net.name());
        let inside = net
            .run_in(|| TcpListener::bind((SERVER, 0)))
            .unwrap()
            .unwrap();
        let address = inside.local_addr().unwrap();
        assert!(
            net.run_in(move || TcpStream::connect(address))
                .unwrap()
                .is_ok()
        );
        assert!(
            TcpListener::bind((SERVER, 0)).is_err(),
            "the address leaked out of the lab"
        );
        assert!(path.exists());
        drop(net);
        assert!(!path.exists());
    }

    #[test]
    fn children_die_with_the_lab() {
        if !root() {
            return;
        }
        let net = Namespace::create().unwrap();
        net.add_tap("tap-test").unwrap();
        let argv = ["sleep", "600"].map(OsString::from).to_vec();
        let mut child = net.spawn(argv, |_| ()).unwrap();
        drop(net);
        let deadline = Instant::now() + Duration::from_secs(5);
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the child survived its lab");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_namespace_without_an_owner_is_reclaimed() {
        if !root() {
            return;
        }
        let stale = format!("ferrite-0-{}", std::process::id());
        run(&["ip", "netns", "add", &stale]).unwrap();
        let living = Namespace::create().unwrap();
        assert!(!Path::new(NAMESPACES).join(&stale).exists());
        let gone = reclaim_stale().unwrap();
        assert!(
            !gone.contains(&living.name().to_owned()),
            "a living lab was reclaimed"
        );
    }
}

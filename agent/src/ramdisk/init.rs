//! PID 1: mounts, one child, reaping, restarts, and leaving the machine. Nothing else.
//!
//! It reads no byte from outside and has no async runtime. Everything here returns errors as
//! values and goes on: if PID 1 ends, the kernel panics.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::mount::MsFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::console::Consoles;
use super::handover::{Handover, Word};
use crate::kernel::{Departure, Kernel, Linux, Mount};
use crate::root::Root;

/// A child that lived this long starts the backoff anew.
const LONG_LIFE: Duration = Duration::from_mins(5);
/// Longest wait before a child is started again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Last lines of a child that its successor is told.
const LAST_LINES: usize = 12;
/// Most bytes kept of one such line.
const LAST_LINE_BYTES: usize = 300;

/// What must outlive a child.
#[derive(Debug, Default)]
struct Memory {
    session: Option<String>,
    depart: Option<Departure>,
    last_lines: VecDeque<String>,
}

/// Runs for ever.
pub(crate) fn run() -> ! {
    let kernel = Linux;
    mount_all(&kernel);
    let consoles = Arc::new(Consoles::open(&Root::system()));
    let memory = Arc::new(Mutex::new(Memory::default()));
    let mut handover = Handover {
        nonce: nonce(),
        ..Handover::default()
    };
    let mut failures = 0;
    loop {
        let started = Instant::now();
        let reason = live(&handover, &consoles, &memory);
        failures = failures_after(failures, started.elapsed());
        let wait = wait_before_restart(failures);
        let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(how) = memory.depart.take() {
            leave(&kernel, &consoles, how);
        }
        consoles.say(&format!(
            "the agent stopped ({reason}); it starts again in {wait:?}"
        ));
        handover.restarts = handover.restarts.saturating_add(1);
        handover.session.clone_from(&memory.session);
        handover.reason = std::iter::once(reason)
            .chain(memory.last_lines.drain(..))
            .collect();
        drop(memory);
        std::thread::sleep(wait);
    }
}

fn failures_after(before: u32, life: Duration) -> u32 {
    if life >= LONG_LIFE {
        1
    } else {
        before.saturating_add(1)
    }
}

fn wait_before_restart(failures: u32) -> Duration {
    let doubled = 1_u64
        .checked_shl(failures.saturating_sub(1))
        .unwrap_or(u64::MAX);
    Duration::from_millis(250)
        .saturating_mul(u32::try_from(doubled).unwrap_or(u32::MAX))
        .min(LONGEST_WAIT)
}

fn mount_all(kernel: &dyn Kernel) {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    let table = [
        ("proc", "/proc", safe, ""),
        ("sysfs", "/sys", safe, ""),
        (
            "devtmpfs",
            "/dev",
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            "mode=0755",
        ),
        ("tmpfs", "/run", safe, "mode=0755"),
        ("tmpfs", "/tmp", safe, "mode=1777"),
    ];
    for (kind, target, flags, data) in table {
        let (source, target) = (Path::new(kind), Path::new(target));
        let _ = std::fs::create_dir_all(target);
        // One that fails shows later, where it is missed, with a reason a person can read.
        let _ = kernel.mount(&Mount {
            source,
            target,
            kind,
            flags,
            data,
        });
    }
}

/// Differs from boot to boot; the ticket is what is secret, not this.
fn nonce() -> String {
    let root = Root::system();
    root.text("/proc/sys/kernel/random/uuid")
        .unwrap_or_else(|_| "no-proc".to_owned())
}

/// Starts a child and returns why it ended.
fn live(handover: &Handover, consoles: &Arc<Consoles>, memory: &Arc<Mutex<Memory>>) -> String {
    let mut child = match spawn() {
        Ok(child) => child,
        Err(error) => return format!("cannot start: {error}"),
    };
    let words = child
        .stdout
        .take()
        .and_then(|out| hear_words(out, Arc::clone(memory)));
    let lines = child.stderr.take();
    let lines = lines.and_then(|err| relay(err, Arc::clone(consoles), Arc::clone(memory)));
    if let Some(stdin) = child.stdin.take()
        && let Err(error) = handover.write(stdin)
    {
        consoles.say(&format!("the agent did not take its handover: {error}"));
    }
    let reason = reap_until_end_of(&child);
    for done in [words, lines].into_iter().flatten() {
        // What the child wrote last is still in the pipes.
        let _: Result<(), RecvTimeoutError> = done.recv_timeout(Duration::from_secs(1));
    }
    reason
}

fn spawn() -> std::io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg("worker")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// Waits for every process that ends, as PID 1 must, until it is the child.
fn reap_until_end_of(child: &Child) -> String {
    let child = i32::try_from(child.id()).map_or(Pid::from_raw(0), Pid::from_raw);
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => {
                return format!("exit code {code}");
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return format!("killed by {signal}");
            }
            Err(nix::errno::Errno::ECHILD) => return "lost".to_owned(),
            _ => {}
        }
    }
}

/// Listens to the child's words on a thread; the receiver hears when there are no more.
fn hear_words(out: ChildStdout, memory: Arc<Mutex<Memory>>) -> Option<Receiver<()>> {
    let (done, ended) = mpsc::channel();
    let hear = move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
            match Word::parse(&line) {
                Some(Word::Session(session)) => memory.session = Some(session),
                Some(Word::Forget) => memory.session = None,
                Some(Word::Depart(how)) => memory.depart = Some(how),
                None => {}
            }
        }
        let _ = done.send(());
    };
    std::thread::Builder::new()
        .name("words".into())
        .spawn(hear)
        .ok()
        .map(|_| ended)
}

/// Copies the child's messages to the consoles and remembers the last lines.
fn relay(
    mut err: ChildStderr,
    consoles: Arc<Consoles>,
    memory: Arc<Mutex<Memory>>,
) -> Option<Receiver<()>> {
    let (done, ended) = mpsc::channel();
    let relay = move || {
        let mut buffer = [0; 4096];
        let mut line = Vec::new();
        while let Ok(taken @ 1..) = err.read(&mut buffer) {
            let bytes = buffer.get(..taken).unwrap_or_default();
            consoles.write(bytes);
            let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
            remember(&mut memory.last_lines, &mut line, bytes);
        }
        let _ = done.send(());
    };
    std::thread::Builder::new()
        .name("relay".into())
        .spawn(relay)
        .ok()
        .map(|_| ended)
}

fn remember(lines: &mut VecDeque<String>, line: &mut Vec<u8>, bytes: &[u8]) {
    for &byte in bytes {
        if byte == b'\n' {
            lines.push_back(String::from_utf8_lossy(line).into_owned());
            line.clear();
        } else if line.len() < LAST_LINE_BYTES {
            line.push(byte);
        }
        while lines.len() > LAST_LINES {
            lines.pop_front();
        }
    }
}

/// Leaves the machine; when that fails, tries to reboot until it works.
fn leave(kernel: &dyn Kernel, consoles: &Consoles, how: Departure) {
    let doing = match how {
        Departure::Reboot => "rebooting",
        Departure::Kexec => "starting the deployed kernel",
        Departure::PowerOff => "switching off",
    };
    consoles.say(doing);
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    nix::unistd::sync();
    let mut error = kernel.leave(how);
    loop {
        consoles.say(&format!("{doing} failed ({error}); rebooting"));
        std::thread::sleep(Duration::from_secs(1));
        error = kernel.leave(Departure::Reboot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_wait_longer_each_time_up_to_a_limit_and_begin_anew_after_a_long_life() {
        let mut failures = 0;
        let mut waits = Vec::new();
        for _ in 0..40 {
            failures = failures_after(failures, Duration::from_secs(1));
            waits.push(wait_before_restart(failures));
        }
        assert_eq!(waits[0], Duration::from_millis(250));
        assert_eq!(waits[1], Duration::from_millis(500));
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(waits[39], LONGEST_WAIT);
        let failures = failures_after(failures, LONG_LIFE);
        assert_eq!(wait_before_restart(failures), Duration::from_millis(250));
    }

    #[test]
    fn the_last_lines_are_kept_and_bounded() {
        let (mut lines, mut line) = (VecDeque::new(), Vec::new());
        for number in 0..30 {
            remember(&mut lines, &mut line, format!("line {number} ").as_bytes());
            remember(&mut lines, &mut line, &[b'x'; 1000]);
            remember(&mut lines, &mut line, b"\n");
        }
        assert_eq!(lines.len(), LAST_LINES);
        assert!(lines.back().unwrap().starts_with("line 29 "));
        assert!(lines.iter().all(|line| line.len() <= LAST_LINE_BYTES));
    }
}

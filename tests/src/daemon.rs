//! The lab as people have it: it runs in the background until `ferrite-lab down`.
//!
//! Starting means running this same program again with `--foreground` in a session of its own; what
//! it says goes to
//! `lab.log` in the lab's folder.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::bmc::PASSWORD;
use crate::conductor::{self, Built, Conductor};
use crate::control::{self, Answer, ConductorStatus, Request, Status};
use crate::lab::{Builder, Lab};
use crate::net::SERVER;

/// Making the network and checking the acceleration takes seconds; more means trouble.
const START: Duration = Duration::from_mins(1);
const STOP: Duration = Duration::from_secs(20);

/// What leads from the ordinary network into the lab.
#[derive(Debug, Clone)]
pub enum Door {
    /// A port on 127.0.0.1 for a conductor that somebody else starts.
    Forward(u16),
    /// A conductor of the lab's own behind that port, with these lines in its `[lifecycle]`.
    Conductor(u16, String),
}

/// Runs the lab until somebody asks for its end, by `down` or by a signal.
pub fn run(builder: Builder, dir: &Path, door: &Door, reach: &[SocketAddr]) -> Result<()> {
    make_private(dir)?;
    if control::ask(dir, &Request::Status).is_ok() {
        bail!(
            "a lab runs in {} already; end it with: ferrite-lab down",
            dir.display()
        );
    }
    let password_file = dir.join("bmc-password");
    write_secret(&password_file, PASSWORD)?;
    let mut lab = builder.dir(dir).up()?;
    for target in reach {
        lab.reach(*target)?;
    }
    let (forward, conductor) = match door {
        Door::Forward(port) => {
            let target = format!("{SERVER}:{}", conductor::PORT).parse()?;
            (
                Some(format!("https://{}", lab.forward(*port, target)?)),
                None,
            )
        }
        Door::Conductor(port, settings) => (
            None,
            Some(Conductor::start(&lab, Built::find()?, *port, settings)?),
        ),
    };
    end_on_signals(&lab, dir)?;
    control::serve(&lab, || Status {
        conductor: conductor.as_ref().map(conductor_status),
        ..control::status(&lab, forward.clone(), &password_file)
    })
}

fn conductor_status(conductor: &Conductor) -> ConductorStatus {
    ConductorStatus {
        program: conductor.program().to_owned(),
        environment: conductor.environment(),
        log: conductor.log_path().to_owned(),
    }
}

/// Starts `argv` (this program, with `--foreground`) in the background and waits until its lab
/// answers.
pub fn start(argv: &[OsString], dir: &Path) -> Result<Status> {
    make_private(dir)?;
    let log_path = dir.join("lab.log");
    let log =
        File::create(&log_path).with_context(|| format!("creating {}", log_path.display()))?;
    let mut child = Command::new("setsid")
        .args(argv)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting `setsid` (Debian package util-linux)")?;
    wait_for_answer(&mut child, dir).with_context(|| {
        let said = fs::read_to_string(&log_path).unwrap_or_default();
        format!(
            "the lab did not start; {} says: {}",
            log_path.display(),
            said.trim()
        )
    })
}

fn wait_for_answer(child: &mut Child, dir: &Path) -> Result<Status> {
    let deadline = Instant::now() + START;
    while Instant::now() < deadline {
        if let Ok(Answer::Status(status)) = control::ask(dir, &Request::Status)
            && status.pid == child.id()
        {
            return Ok(status);
        }
        if let Some(ended) = child.try_wait()? {
            bail!("it ended with {ended}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let _ = child.kill();
    bail!("no answer within {START:?}")
}

/// Ends the lab in `dir` and what dead labs left behind. Returns what was found.
pub fn stop(dir: &Path) -> Result<Vec<String>> {
    crate::net::require_root()?;
    let mut ended = Vec::new();
    if let Ok(Answer::Status(status)) = control::ask(dir, &Request::Status) {
        control::ask(dir, &Request::Down)?;
        crate::lab::wait_until(STOP, || !runs(status.pid))
            .with_context(|| format!("the lab (pid {}) does not end", status.pid))?;
        ended.push(status.namespace);
    }
    ended.extend(crate::net::reclaim_stale()?);
    Ok(ended)
}

/// Whether a process is there and no zombie: who started the lab may not wait for it.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn end_on_signals(lab: &Lab, dir: &Path) -> Result<()> {
    let dir = dir.to_owned();
    lab.block_on(async move {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
            let _ = tokio::task::spawn_blocking(move || control::ask(&dir, &Request::Down)).await;
        });
        anyhow::Ok(())
    })?
}

/// The folder holds a password and a control socket.
fn make_private(dir: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("creating {}", dir.display()))
}

fn write_secret(path: &Path, secret: &str) -> Result<()> {
    let mut options = fs::OpenOptions::new();
    let file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    let mut file = file.with_context(|| format!("creating {}", path.display()))?;
    std::io::Write::write_all(&mut file, secret.as_bytes()).context("writing the BMC password")
}

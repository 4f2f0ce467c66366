//! How `ferrite-lab` commands reach the lab that runs in the background: JSON lines over a unix
//! socket in its folder.
//!
//! Only who may enter the folder may ask. Requests do one thing each; none runs anything.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::faults::{Fault, Faults};
use crate::lab::{Host, Lab};
use crate::vm::{BootOverride, Cost, Power};

const LINE_LIMIT: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_mins(1);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Status,
    /// Faults for a host's BMC; for the image server when there is no host.
    Fault {
        host: Option<usize>,
        faults: Vec<Fault>,
    },
    ClearFaults {
        host: Option<usize>,
    },
    /// Pulls the BMC's network cable.
    UnplugBmc {
        host: usize,
    },
    CutPower {
        host: usize,
    },
    Down,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, and it is read at once"
)]
pub enum Answer {
    Status(Status),
    Done,
    Refused(String),
}

/// Everything a person or a script may want to know of a running lab.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    pub pid: u32,
    pub namespace: String,
    pub dir: PathBuf,
    pub accel: crate::accel::Accel,
    pub images_url: String,
    pub images_dir: PathBuf,
    pub image_bytes: u64,
    pub bmc_user: String,
    pub bmc_password_file: PathBuf,
    /// Where the conductor's API answers on the ordinary network, once one runs.
    pub forward: Option<String>,
    /// The lab's own conductor, where it has one.
    pub conductor: Option<ConductorStatus>,
    pub hosts: Vec<HostStatus>,
}

/// The lab's own conductor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConductorStatus {
    /// The `ferrite` program that it runs, and that talks to it.
    pub program: PathBuf,
    /// What that program needs in its environment.
    pub environment: Vec<(String, String)>,
    pub log: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostStatus {
    pub number: u8,
    pub name: String,
    pub power: Power,
    pub boot_override: BootOverride,
    #[serde(flatten)]
    pub cost: Cost,
    pub firmware: crate::machine::Firmware,
    pub memory_mib: u32,
    pub mac: String,
    pub bmc: String,
    pub media: Option<String>,
    pub console_log: PathBuf,
    pub console_socket: PathBuf,
    pub disks: Vec<PathBuf>,
    pub faults: Vec<Fault>,
}

pub fn socket_path(dir: &Path) -> PathBuf {
    dir.join("control.sock")
}

/// Asks the lab that lives in `dir`.
pub fn ask(dir: &Path, request: &Request) -> Result<Answer> {
    let path = socket_path(dir);
    let stream = UnixStream::connect(&path).with_context(|| {
        format!(
            "no lab answers at {}; start one with: ferrite-lab up",
            path.display()
        )
    })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(&stream, "{}", serde_json::to_string(request)?)?;
    let answer = serde_json::from_str(&line(&stream)?).context("the lab's answer")?;
    match answer {
        Answer::Refused(why) => bail!(why),
        answer => Ok(answer),
    }
}

/// Answers until somebody asks for the end.
pub(crate) fn serve(lab: &Lab, status: impl Fn() -> Status) -> Result<()> {
    let path = socket_path(lab.dir());
    let _ = fs::remove_file(&path);
    let listener =
        UnixListener::bind(&path).with_context(|| format!("listening on {}", path.display()))?;
    for stream in listener.incoming() {
        let stream = stream?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let request = line(&stream).and_then(|line| Ok(serde_json::from_str::<Request>(&line)?));
        let answer = match &request {
            Ok(Request::Status) => Answer::Status(status()),
            Ok(request) => done(perform(lab, request)),
            Err(error) => Answer::Refused(format!("the request was not understood: {error:#}")),
        };
        let _ = writeln!(&stream, "{}", serde_json::to_string(&answer)?); // who asked may be gone
        if matches!(request, Ok(Request::Down)) {
            break;
        }
    }
    let _ = fs::remove_file(&path);
    Ok(())
}

fn perform(lab: &Lab, request: &Request) -> Result<()> {
    match request {
        Request::Status | Request::Down => (),
        Request::Fault { host, faults } => {
            let table = table(lab, *host)?;
            faults.iter().cloned().for_each(|fault| table.add(fault));
        }
        Request::ClearFaults { host } => table(lab, *host)?.clear(),
        Request::UnplugBmc { host } => find(lab, *host)?.bmc.unplug(),
        Request::CutPower { host } => find(lab, *host)?.power_cut()?,
    }
    Ok(())
}

fn table(lab: &Lab, host: Option<usize>) -> Result<&Faults> {
    match host {
        None => Ok(&lab.images().faults),
        Some(number) => Ok(&find(lab, number)?.bmc.faults),
    }
}

fn find(lab: &Lab, number: usize) -> Result<&Host> {
    let count = lab.hosts().len();
    let host = number
        .checked_sub(1)
        .and_then(|index| lab.hosts().get(index));
    host.with_context(|| format!("there is no host {number}; the lab has 1 to {count}"))
}

fn done(result: Result<()>) -> Answer {
    match result {
        Ok(()) => Answer::Done,
        Err(error) => Answer::Refused(format!("{error:#}")),
    }
}

fn line(stream: &UnixStream) -> Result<String> {
    let mut line = String::new();
    BufReader::new(stream.take(LINE_LIMIT)).read_line(&mut line)?;
    Ok(line)
}

/// What the lab looks like now.
pub(crate) fn status(lab: &Lab, forward: Option<String>, password_file: &Path) -> Status {
    Status {
        pid: std::process::id(),
        namespace: lab.net().name().to_owned(),
        dir: lab.dir().to_owned(),
        accel: lab.accel(),
        images_url: lab.image_url(""),
        images_dir: lab.images().dir().to_owned(),
        image_bytes: lab.images().bytes(),
        bmc_user: crate::bmc::USER.to_owned(),
        bmc_password_file: password_file.to_owned(),
        forward,
        conductor: None,
        hosts: lab.hosts().iter().map(host_status).collect(),
    }
}

fn host_status(host: &Host) -> HostStatus {
    let machine = host.machine();
    HostStatus {
        number: machine.number,
        name: host.name(),
        power: host.power(),
        boot_override: host.vm.boot_override(),
        cost: host.cost(),
        firmware: machine.firmware,
        memory_mib: machine.memory_mib,
        mac: machine.mac(0),
        bmc: host.bmc_url(),
        media: host.bmc.media_url(),
        console_log: host.vm.console_log().to_owned(),
        console_socket: host.vm.console_socket().to_owned(),
        disks: (0..machine.disks.len())
            .map(|index| host.disk(index))
            .collect(),
        faults: host.bmc.faults.list(),
    }
}

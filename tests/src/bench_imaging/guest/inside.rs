//! `ferrite-lab` as the first process of the bench's guest: modules, a network address, and then
//! one order after the other from the second serial port.
//!
//! What is measured and how is the same code as outside.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::initramfs::{AGENT, LAB};
use super::{Answer, Order};
use crate::bench_imaging::cases::{GUEST_CASES, contenders};
use crate::bench_imaging::disk::Device;
use crate::bench_imaging::limit::{Probe, Rates};
use crate::bench_imaging::rivals::{Fetch, Tools};
use crate::bench_imaging::{Written, text};
use crate::command::run;

/// The kernel's. What follows the two dashes are this program's arguments.
pub(super) const COMMAND_LINE: &str = "console=ttyS0 quiet panic=-1 PATH=/bin RUST_LOG=warn \
     rdinit=/bin/ferrite-lab -- bench-imaging-guest";
const PORT: &str = "/dev/ttyS1";
const SHARE: &str = "/ram";
/// In the order in which they need each other; one that is not there is part of the kernel.
const MODULES: [&str; 9] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
];
const APPEARS: Duration = Duration::from_secs(20);

/// Serves orders until the power goes.
pub fn serve() -> Result<()> {
    let served = prepare().and_then(|()| obey());
    if let Err(error) = &served {
        tracing::error!("{error:#}");
    }
    if nix::unistd::getpid().as_raw() == 1 {
        reboot(RebootMode::RB_POWER_OFF)?;
    }
    served
}

fn prepare() -> Result<()> {
    if nix::unistd::getpid().as_raw() != 1 {
        bail!("/{LAB} is the first process of a guest and nothing else");
    }
    let folders = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", SHARE),
    ];
    for (kind, to) in folders {
        let none: Option<&str> = None;
        mount(Some(kind), to, Some(kind), MsFlags::empty(), none)
            .with_context(|| format!("mounting {to}"))?;
    }
    for name in MODULES {
        load(name).with_context(|| format!("loading {name}"))?;
    }
    appears("/dev/vda")?;
    appears("/sys/class/net/eth0")?;
    for line in [
        "busybox ip link set lo up",
        "busybox ip link set eth0 up",
        "busybox ip addr add 10.0.2.15/24 dev eth0",
    ] {
        let argv: Vec<_> = line.split(' ').collect();
        run(&argv)?;
    }
    Ok(())
}

fn load(name: &str) -> Result<()> {
    let Some(path) = module(Path::new("/lib/modules"), &format!("{name}.ko.zst"))? else {
        return Ok(());
    };
    let plain = "/tmp/module.ko";
    run(&["zstd", "-q", "-d", "-f", text(&path)?, "-o", plain])?;
    finit_module(&File::open(plain)?, c"", ModuleInitFlags::empty())?;
    Ok(())
}

fn module(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = module(&path, name)? {
                return Ok(Some(found));
            }
        } else if path.ends_with(name) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn appears(path: &str) -> Result<()> {
    let started = Instant::now();
    while !Path::new(path).exists() {
        if started.elapsed() > APPEARS {
            bail!("there is no {path}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn obey() -> Result<()> {
    let mut port = OpenOptions::new().read(true).write(true).open(PORT)?;
    let mut terms = tcgetattr(&port)?;
    cfmakeraw(&mut terms);
    tcsetattr(&port, SetArg::TCSANOW, &terms)?;
    let orders = BufReader::new(port.try_clone()?);
    say(&mut port, &Answer::Ready)?;
    for line in orders.lines() {
        let answer = match perform(&line?) {
            Ok(answer) => answer,
            Err(error) => Answer::Failed(format!("{error:#}")),
        };
        say(&mut port, &answer)?;
    }
    Ok(())
}

fn say(port: &mut File, answer: &Answer) -> Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    Ok(port.write_all(&line)?)
}

fn perform(line: &str) -> Result<Answer> {
    match serde_json::from_str(line).context("reading an order")? {
        Order::Write {
            contender,
            device,
            fetch,
        } => {
            let written = write(&contender, &device, &fetch)?;
            Ok(Answer::Written(Box::new(written)))
        }
        Order::Rates { probe, device } => Ok(Answer::Rates(Box::new(rates(probe, &device)?))),
    }
}

fn write(contender: &str, device: &str, fetch: &Fetch) -> Result<Written> {
    let all = contenders(&GUEST_CASES);
    let known = all.iter().find(|known| known.to_string() == contender);
    let known = known.with_context(|| format!("there is no contender {contender}"))?;
    let tools = Tools {
        agent: Path::new("/").join(AGENT),
        files: PathBuf::new(),
        ram: PathBuf::from(SHARE),
        venv: PathBuf::new(),
    };
    let device = Device::named(device);
    // It was changed from outside.
    device.forget()?;
    tools.measured(known.way, fetch, &device)
}

/// The probe's files are URLs here: what they name is fetched first.
fn rates(probe: Probe, device: &str) -> Result<Rates> {
    let here = |url: &Path, name: &str| {
        let path = Path::new(SHARE).join(name);
        let to = text(&path)?.to_owned();
        run(&["curl", "--silent", "--fail", "-o", &to, text(url)?])?;
        Ok::<_, anyhow::Error>(path)
    };
    let probe = Probe {
        dense_zst: here(&probe.dense_zst, "dense.zst")?,
        sparse_zst: here(&probe.sparse_zst, "sparse.zst")?,
        ..probe
    };
    probe.rates(&Device::named(device))
}

//! The guest: a machine of QEMU with a virtio disk for each image, fetching from this machine over
//! QEMU's own network. One order a line goes in by its second serial port, one answer a line comes
//! back; its disks are made ready and compared from outside.
//!
//! What runs in it is `inside`; what it boots is `initramfs`. The lab's hosts are `crate::vm`.

mod initramfs;
pub mod inside;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::cases::Contender;
use super::disk::Backing;
use super::limit::{Probe, Rates};
use super::rivals::Fetch;
use super::{Ground, Written, text};
use crate::accel::{self, Accel};
use crate::conductor::target_dir;

/// The one that this machine's loopback has in QEMU's network for guests.
const OUTSIDE: &str = "10.0.2.2";
const MEMORY_MIB: usize = 2048;
/// More would be no more on this machine's cores.
const MOST_CORES: usize = 4;
/// An emulated machine boots in ten seconds and writes in half a minute.
const PATIENCE: Duration = Duration::from_mins(4);
/// How much of its console is shown when it does not answer.
const LAST_WORDS: usize = 12;

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// By the contender's name.
    Write {
        contender: String,
        device: String,
        fetch: Fetch,
    },
    Rates {
        probe: Probe,
        device: String,
    },
}

/// What it says.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Ready,
    Written(Box<Written>),
    Rates(Box<Rates>),
    Failed(String),
}

/// Gone when dropped, and its disks with it.
#[derive(Debug)]
pub(super) struct Guest {
    process: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
    console: PathBuf,
    disks: Vec<(&'static str, Backing)>,
    /// Which of them is written.
    chosen: usize,
    accel: Accel,
    cores: usize,
}

impl Guest {
    /// Boots it, with a disk of the given size for each image; all its files lie in `ram`.
    pub(super) fn start(ram: &Path, agent: &Path, images: &[(&'static str, u64)]) -> Result<Self> {
        let boot = target_dir()?.join("boot");
        let initramfs = ram.join("initramfs");
        initramfs::build(&boot.join("initramfs.img"), agent, &initramfs)?;
        let mut disks = Vec::new();
        for (image, bytes) in images {
            let backing = Backing::new(ram.join(format!("{image}.disk")), *bytes)?;
            disks.push((*image, backing));
        }
        let accel = accel::choose();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cores = cores.min(MOST_CORES);
        let console = ram.join("console");
        let mut process = qemu(accel, cores)
            .args(["-kernel", text(&boot.join("vmlinuz"))?])
            .args([
                "-initrd",
                text(&initramfs)?,
                "-append",
                inside::COMMAND_LINE,
            ])
            .args(["-serial", &format!("file:{}", text(&console)?)])
            .args(["-serial", "stdio"])
            .args(disk_arguments(&disks)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting QEMU")?;
        let orders = process.stdin.take().context("QEMU without an input")?;
        let answers = lines_of(process.stdout.take().context("QEMU without an output")?);
        let mut guest = Self {
            process,
            orders,
            answers,
            console,
            disks,
            chosen: 0,
            accel,
            cores,
        };
        tracing::info!("the guest boots");
        let first = guest.answer()?;
        ensure!(matches!(first, Answer::Ready), "the guest said {first:?}");
        Ok(guest)
    }

    /// For the table's head.
    pub(super) fn place(&self) -> String {
        let how = match self.accel {
            Accel::Kvm => "KVM",
            Accel::Tcg => "emulated, TCG",
        };
        format!(
            "a virtio disk of a QEMU guest ({how}; raw on tmpfs, cache=writeback; user network)"
        )
    }

    pub(super) fn cores(&self) -> usize {
        self.cores
    }

    /// What the guest can do at best. The first disk is overwritten.
    pub(super) fn rates(&mut self, probe: &Probe) -> Result<Rates> {
        let inside =
            |path: &Path| PathBuf::from(path.to_string_lossy().replace("127.0.0.1", OUTSIDE));
        let probe = Probe {
            url: probe.url.replace("127.0.0.1", OUTSIDE),
            dense_zst: inside(&probe.dense_zst),
            sparse_zst: inside(&probe.sparse_zst),
            ..probe.clone()
        };
        let device = device(0);
        match self.ask(&Order::Rates { probe, device })? {
            Answer::Rates(rates) => Ok(*rates),
            other => bail!("the guest said {other:?}"),
        }
    }

    /// Ends it.
    pub(super) fn end(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait().map(drop).context("waiting for QEMU")
    }

    fn ask(&mut self, order: &Order) -> Result<Answer> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.orders.write_all(&line).context("telling the guest")?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Answer> {
        let Ok(line) = self.answers.recv_timeout(PATIENCE) else {
            let console = fs::read(&self.console).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            let lines: Vec<_> = console.lines().collect();
            let last = lines.len().saturating_sub(LAST_WORDS);
            bail!(
                "the guest says nothing any more: {}",
                lines[last..].join(" | ")
            );
        };
        match serde_json::from_str(&line).with_context(|| format!("the guest said {line:?}"))? {
            Answer::Failed(why) => bail!("in the guest: {why}"),
            answer => Ok(answer),
        }
    }

    fn backing(&self) -> &Backing {
        &self.disks[self.chosen].1
    }
}

impl Ground for Guest {
    fn begin(&mut self, image: &str, _bytes: u64) -> Result<()> {
        let place = self.disks.iter().position(|(name, _)| *name == image);
        self.chosen = place.with_context(|| format!("the guest has no disk for {image}"))?;
        Ok(())
    }

    fn write(
        &mut self,
        contender: &Contender,
        held: Option<&Path>,
        fetch: &Fetch,
    ) -> Result<Written> {
        self.backing().prepare(held)?;
        let order = Order::Write {
            contender: contender.to_string(),
            device: device(self.chosen),
            fetch: Fetch {
                url: fetch.url.replace("127.0.0.1", OUTSIDE),
                digest: fetch.digest.clone(),
            },
        };
        match self.ask(&order)? {
            Answer::Written(written) => Ok(*written),
            other => bail!("the guest said {other:?}"),
        }
    }

    fn check(&mut self, raw: &Path) -> Result<()> {
        self.backing().check(raw)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Already over when `end` was called.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// All but its files. It ends with this program, however that ends.
fn qemu(accel: Accel, cores: usize) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-machine", "q35"])
        .args(["-accel", accel.argument(), "-cpu", accel.cpu()])
        .args(["-smp", &cores.to_string()])
        .args(["-m", &format!("{MEMORY_MIB}M")])
        .args(["-netdev", "user,id=net"])
        .args(["-device", "virtio-net-pci,netdev=net,romfile="]);
    command
}

/// What the guest calls a disk.
fn device(number: usize) -> String {
    let letter = if number == 0 { 'a' } else { 'b' };
    format!("/dev/vd{letter}")
}

/// A flush goes through to the file, as it would to a medium; the file's pages are memory.
fn disk_arguments(disks: &[(&str, Backing)]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for (number, (_, backing)) in disks.iter().enumerate() {
        let path = text(backing.path())?;
        let how = "format=raw,if=none,cache=writeback,discard=unmap,detect-zeroes=off";
        all.push("-drive".to_owned());
        all.push(format!("file={path},id=disk{number},{how}"));
        all.push("-device".to_owned());
        all.push(format!("virtio-blk-pci,drive=disk{number}"));
    }
    Ok(all)
}

/// Lines as they come, for one who does not wait for ever.
fn lines_of(output: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

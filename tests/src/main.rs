//! `ferrite-lab`: a rack of virtual bare-metal hosts for people and scripts.
//!
//! Only the command line; the lab itself is the library.

use std::ffi::OsString;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use ferrite_tests::control::{self, Answer, Request, Status};
use ferrite_tests::control_plane::{self, Binaries};
use ferrite_tests::daemon::{self, Door};
use ferrite_tests::faults::Fault;
use ferrite_tests::lab::{Builder, Lab};
use ferrite_tests::machine::{BootDevice, DiskBus, Firmware};
use ferrite_tests::net::{SERVER, require_root};
use tracing_subscriber::EnvFilter;

/// Virtual bare-metal hosts (QEMU) behind virtual BMCs (Redfish), in a network of their own.
#[derive(Debug, Parser)]
#[command(name = "ferrite-lab", version)]
struct Cli {
    /// Where the lab's files live.
    #[arg(long, global = true, default_value = "target/lab-run")]
    dir: PathBuf,
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Start a lab in the background.
    Up(Up),
    /// End the lab, and whatever dead labs left behind.
    Down,
    /// Show hosts, power, firmware boots, addresses and what things cost so far.
    Status {
        #[arg(long)]
        json: bool,
    },
    /// Put faults into a host's BMC, or into the image server (`images`).
    ///
    /// A rule is a preset (power-lies, power-stuck, no-answer, hangs-up, media-refused), `unplug`,
    /// `power-cut`, `clear`, or `[METHOD] PATH EFFECT [delay=SECONDS] [times=N]` with an effect of
    /// status=CODE, body=TEXT, drop, stall, lie=/POINTER:VALUE; for images also cut=BYTES,
    /// truncate=BYTES, flip=OFFSET, rate=BYTES, stall-after=BYTES.
    Fault {
        target: String,
        rules: Vec<String>,
    },
    /// Follow a host's serial console.
    Console {
        host: usize,
    },
    /// Deploy a 2.5 GiB image as raw and in our best form, and print where the time went.
    BenchDeploy,
    BenchConductor(ferrite_tests::bench_conductor::BenchArgs),
    BenchImaging(ferrite_tests::bench_imaging::BenchArgs),
    /// What the bench runs as a guest's first process; nothing for people.
    #[command(hide = true)]
    BenchImagingGuest,
    /// Play any number of servers in this process, against conductors that run already.
    Swarm(ferrite_tests::swarm::command::SwarmArgs),
    /// Call a conductor in every way that its description allows, and in some that it does not.
    Schemathesis(ferrite_tests::schemathesis::SchemathesisArgs),
    /// Say which programs of Kubernetes the tests would use; status 2 when some are missing.
    KubePrograms {
        /// Only those of a node: kubeadm and kubelet.
        #[arg(long)]
        node: bool,
    },
    /// Take one virtual host from powered off and unknown to provisioned, before your eyes.
    Demo {
        /// Leave the lab up afterwards.
        #[arg(long)]
        keep: bool,
        /// Have the host join the cluster of this kubeconfig, and leave it again unless --keep. Its
        /// server is an IP address that this machine reaches.
        #[arg(long, value_name = "KUBECONFIG")]
        cluster: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct Up {
    #[arg(long, default_value_t = 1)]
    hosts: u8,
    #[arg(long, value_enum, default_value = "uefi")]
    firmware: Firmware,
    /// What the firmware tries first when the BMC says nothing.
    #[arg(long, value_enum, default_value = "disk")]
    boot: BootDevice,
    /// Guest memory, in MiB.
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    #[arg(long, value_enum, default_value = "virtio")]
    disk_bus: DiskBus,
    #[arg(long, default_value_t = 8)]
    disk_gib: u64,
    #[arg(long, default_value_t = 1)]
    disks: u8,
    /// What the image server serves; the lab's own `images` folder by default.
    #[arg(long)]
    images: Option<PathBuf>,
    /// Port on 127.0.0.1 that leads to the conductor's place in the lab.
    #[arg(long, default_value_t = 7443)]
    forward: u16,
    /// Start a conductor in the lab as well.
    #[arg(long)]
    conductor: bool,
    /// A line for the `[lifecycle]` part of its configuration, such as `boot_seconds = 300`.
    #[arg(long, requires = "conductor")]
    lifecycle: Vec<String>,
    /// An address of the ordinary network that answers in the lab too; may be given several times.
    #[arg(long, value_name = "IP:PORT")]
    reach: Vec<SocketAddr>,
    /// Stay in the foreground.
    #[arg(long)]
    foreground: bool,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let cli = Cli::parse();
    if let Task::KubePrograms { node } = cli.command {
        return kube_programs(node);
    }
    match perform(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "ferrite-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(cli: &Cli) -> Result<()> {
    let dir = std::path::absolute(&cli.dir)?;
    match &cli.command {
        Task::Up(up) => start(up, &dir),
        Task::Down => stop(&dir),
        Task::Status { json } => show(&status(&dir)?, *json),
        Task::Fault { target, rules } => fault(&dir, target, rules),
        Task::Console { host } => console(&status(&dir)?, *host),
        Task::BenchDeploy => ferrite_tests::bench_deploy::run(),
        Task::BenchConductor(bench) => in_runtime(ferrite_tests::bench_conductor::run(bench)),
        Task::BenchImaging(bench) => ferrite_tests::bench_imaging::run(bench),
        Task::BenchImagingGuest => ferrite_tests::bench_imaging::inside::serve(),
        Task::Swarm(swarm) => in_runtime(ferrite_tests::swarm::command::run(swarm)),
        Task::Schemathesis(args) => ferrite_tests::schemathesis::run(args),
        Task::KubePrograms { .. } => Ok(()),
        Task::Demo { keep, cluster } => ferrite_tests::demo::run(*keep, cluster.as_deref()),
    }
}

fn kube_programs(node: bool) -> ExitCode {
    let found = if node {
        control_plane::node_programs().map(drop)
    } else {
        Binaries::demand().map(drop)
    };
    match found {
        Ok(()) => ExitCode::SUCCESS,
        Err(missing) => {
            let _ = writeln!(std::io::stderr(), "ferrite-lab: {missing:#}");
            ExitCode::from(2)
        }
    }
}

fn in_runtime(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(work)
}

fn start(up: &Up, dir: &Path) -> Result<()> {
    require_root()?;
    if up.foreground {
        let door = if up.conductor {
            Door::Conductor(up.forward, up.lifecycle.join("\n"))
        } else {
            Door::Forward(up.forward)
        };
        return daemon::run(builder(up), dir, &door, &up.reach);
    }
    if control::ask(dir, &Request::Status).is_ok() {
        bail!(
            "a lab runs in {} already; end it with: ferrite-lab down",
            dir.display()
        );
    }
    let mut argv: Vec<OsString> = vec![std::env::current_exe()?.into()];
    argv.extend(std::env::args_os().skip(1));
    argv.push("--foreground".into());
    show(&daemon::start(&argv, dir)?, false)
}

fn builder(up: &Up) -> Builder {
    let usual = [BootDevice::Disk, BootDevice::Network, BootDevice::Cd];
    let rest = usual.into_iter().filter(|device| *device != up.boot);
    let order: Vec<_> = std::iter::once(up.boot).chain(rest).collect();
    let builder = Lab::builder().hosts(up.hosts, |machine| {
        let machine = machine
            .firmware(up.firmware)
            .memory_mib(up.memory)
            .boot_order(&order);
        let bare = machine.without_disks();
        (0..up.disks).fold(bare, |machine, _| {
            machine.disk(up.disk_bus, up.disk_gib << 30)
        })
    });
    match &up.images {
        Some(images) => builder.images(images),
        None => builder,
    }
}

fn stop(dir: &Path) -> Result<()> {
    let ended = daemon::stop(dir)?;
    let mut out = std::io::stdout().lock();
    if ended.is_empty() {
        writeln!(out, "no lab was running")?;
    }
    for namespace in ended {
        writeln!(out, "ended {namespace}")?;
    }
    Ok(())
}

fn status(dir: &Path) -> Result<Status> {
    match control::ask(dir, &Request::Status)? {
        Answer::Status(status) => Ok(status),
        other => bail!("an unexpected answer: {other:?}"),
    }
}

fn show(status: &Status, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, status)?;
        return Ok(writeln!(out)?);
    }
    writeln!(
        out,
        "lab        {} (pid {}, {:?})",
        status.namespace, status.pid, status.accel
    )?;
    writeln!(
        out,
        "images     {} from {}",
        status.images_url,
        status.images_dir.display()
    )?;
    let password = status.bmc_password_file.display();
    writeln!(
        out,
        "BMC        user {}, password in {password}",
        status.bmc_user
    )?;
    if let Some(forward) = &status.forward {
        writeln!(
            out,
            "conductor  {forward} leads to https://{SERVER}:7443 in the lab"
        )?;
    }
    if let Some(conductor) = &status.conductor {
        writeln!(out, "conductor  {}", conductor.log.display())?;
        for (name, value) in &conductor.environment {
            writeln!(out, "           export {name}={value}")?;
        }
    }
    writeln!(out, "inside     ip netns exec {} COMMAND", status.namespace)?;
    for host in &status.hosts {
        let power = if host.power == ferrite_tests::vm::Power::On {
            "on "
        } else {
            "off"
        };
        let (boots, cpu) = (host.cost.firmware_boots, host.cost.qemu_cpu_seconds);
        writeln!(
            out,
            "{:10} {power} firmware boots {boots}, QEMU {cpu:.1} CPU s, BMC {}, MAC {}, console {}",
            host.name,
            host.bmc,
            host.mac,
            host.console_log.display()
        )?;
        for fault in &host.faults {
            writeln!(out, "           fault: {fault:?}")?;
        }
    }
    Ok(())
}

fn fault(dir: &Path, target: &str, rules: &[String]) -> Result<()> {
    let host = match target {
        "images" => None,
        number => {
            let number = number.trim_start_matches("host-");
            Some(
                number
                    .parse()
                    .context("TARGET is a host's number, its name, or `images`")?,
            )
        }
    };
    if rules.is_empty() {
        bail!("no rule was given; see: ferrite-lab fault --help");
    }
    for rule in rules {
        let request = match (rule.as_str(), host) {
            ("clear", host) => Request::ClearFaults { host },
            ("unplug", Some(host)) => Request::UnplugBmc { host },
            ("power-cut", Some(host)) => Request::CutPower { host },
            (rule, host) => Request::Fault {
                host,
                faults: vec![rule.parse::<Fault>()?],
            },
        };
        control::ask(dir, &request)?;
    }
    Ok(())
}

/// Prints the console so far, and then what comes, until interrupted.
fn console(status: &Status, number: usize) -> Result<()> {
    let host = status
        .hosts
        .iter()
        .find(|host| usize::from(host.number) == number);
    let host = host.with_context(|| format!("there is no host {number}"))?;
    let mut log = std::fs::File::open(&host.console_log)?;
    let mut at = log
        .seek(SeekFrom::End(-4096))
        .or_else(|_| log.rewind().map(|()| 0))?;
    let mut out = std::io::stdout().lock();
    loop {
        let mut fresh = Vec::new();
        at += (&log).take(1 << 20).read_to_end(&mut fresh)? as u64;
        out.write_all(&fresh)?;
        out.flush()?;
        if log.metadata()?.len() < at {
            at = log.rewind().map(|()| 0)?;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

//! `make bench-deploy`: what a whole deployment costs, stage by stage, against figures that were
//! measured with Ironic on such a machine.
//!
//! The same image twice, as plain raw and in our best form, each on a fresh host by Redfish
//! virtual media. Wall seconds and bytes are the conductor's, CPU seconds and firmware boots the
//! lab's, read from outside the guest. Rows that lose are printed as well.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use ferrite_proto::host::{Host, HostState};
use ferrite_proto::size::ByteSize;
use jiff::Timestamp;
use serde::Serialize;

use crate::bmc::{PASSWORD, USER};
use crate::conductor::{Built, Conductor, target_dir};
use crate::demo::OsImage;
use crate::lab::Lab;
use crate::net::require_root;
use crate::timeline::{CpuSamples, Timeline};

const HOST: &str = "host-1";
/// An emulated deployment that takes longer has gone wrong.
const PATIENCE: Duration = Duration::from_mins(20);

/// Measured with Ironic 39 and ironic-python-agent 13 on two such cores under TCG: Redfish virtual
/// media, the same raw image.
const MARK: Mark = Mark {
    seconds: 770.0,
    kernel_to_hello_seconds: 59.0,
    write_image_seconds: 214.0,
    qemu_cpu_seconds: 319.0,
    firmware_boots: 4,
};

#[derive(Debug, Clone, Copy, Serialize)]
struct Mark {
    seconds: f64,
    kernel_to_hello_seconds: f64,
    write_image_seconds: f64,
    qemu_cpu_seconds: f64,
    firmware_boots: u64,
}

/// One deployment in figures.
#[derive(Debug, Clone, Serialize)]
struct Deployment {
    form: String,
    accel: crate::accel::Accel,
    /// `ferrite host add` to the end of cloud-init.
    seconds: f64,
    kernel_to_hello_seconds: f64,
    write_image_seconds: f64,
    qemu_cpu_seconds: f64,
    qemu_peak_bytes: u64,
    guest_memory_bytes: u64,
    /// Most memory of the guest that was in use while the image was written.
    guest_memory_used_bytes: u64,
    agent_peak_bytes: u64,
    timeline: Timeline,
}

#[derive(Debug, Serialize)]
struct Report {
    image_bytes: u64,
    mark: Mark,
    deployments: Vec<Deployment>,
}

/// Deploys both forms, prints the table and writes `target/bench/deploy.json`.
pub fn run() -> Result<()> {
    require_root()?;
    let target = target_dir()?;
    let images = target.join("lab");
    let image = OsImage::read(&images.join("bench.raw"))?;
    let raw = ("bench.raw".to_owned(), format!("sha256:{}", image.sha256));
    let mut report = Report {
        image_bytes: image.bytes,
        mark: MARK,
        deployments: Vec::new(),
    };
    for (form, (file, digest)) in [("raw", raw), ("zstd", image.variant("zstd")?)] {
        let done = deploy(&images, form, &file, &digest)
            .with_context(|| format!("deploying the {form} form"))?;
        print_deployment(&done)?;
        report.deployments.push(done);
    }
    print_comparison(&report)?;
    let path = target.join("bench/deploy.json");
    fs::create_dir_all(target.join("bench"))?;
    fs::write(&path, serde_json::to_string_pretty(&report)?)?;
    Ok(writeln!(
        std::io::stdout().lock(),
        "\nthe same as JSON: {}",
        path.display()
    )?)
}

fn deploy(images: &Path, form: &str, file: &str, digest: &str) -> Result<Deployment> {
    let lab = Lab::builder().host(|machine| machine).images(images).up()?;
    let conductor = Conductor::start(&lab, Built::find()?, 0, "check_in_seconds = 5")?;
    let started = Timestamp::now();
    let (host, cpu) = sampled(&lab, || provision(&lab, &conductor, file, digest))?;
    let cost = lab.host(1).cost();
    let runs = conductor.timeline(HOST)?;
    let mut timeline = Timeline::of(&host, &runs, cost.firmware_boots, Timestamp::now());
    for stage in &mut timeline.stages {
        stage.qemu_cpu_seconds = Some(cpu.between(stage.started, stage.ended()));
    }
    let daemon = host.status.daemon.as_ref().context("no daemon")?;
    let finished = daemon
        .cloud_init
        .finished_at
        .context("cloud-init did not finish")?;
    let written = host
        .status
        .image_written
        .clone()
        .context("no figures of write-image")?;
    let memory = memory(&conductor)?;
    Ok(Deployment {
        form: form.to_owned(),
        accel: lab.accel(),
        seconds: finished.duration_since(started).as_secs_f64(),
        kernel_to_hello_seconds: timeline.kernel_to_hello_seconds.context("no hello")?,
        write_image_seconds: written.seconds,
        qemu_cpu_seconds: cpu.between(started, finished),
        qemu_peak_bytes: cost.qemu_peak_kib * 1024,
        guest_memory_bytes: memory,
        guest_memory_used_bytes: memory.saturating_sub(written.memory_low_bytes),
        agent_peak_bytes: written.agent_peak_bytes,
        timeline,
    })
}

/// Memory that the ramdisk's kernel could use.
fn memory(conductor: &Conductor) -> Result<u64> {
    let inventory = conductor.inventory(HOST)?;
    Ok(inventory.memory.total_bytes.unwrap_or(0))
}

fn provision(lab: &Lab, conductor: &Conductor, file: &str, digest: &str) -> Result<Host> {
    let bmc = lab
        .host(1)
        .bmc_url()
        .replacen("http://", "redfish+http://", 1);
    let mac = lab.host(1).machine().mac(0);
    let add = [
        "host",
        "add",
        HOST,
        "--bmc",
        &bmc,
        "--username",
        USER,
        "--password-file",
        "-",
    ];
    let more = ["--boot-mac", &mac, "--boot-via", "virtual-media"];
    conductor.cli_ok(&[&add[..], &more].concat(), PASSWORD)?;
    let url = lab.image_url(file);
    conductor.cli_ok(
        &[
            "host",
            "provision",
            HOST,
            "--image",
            &url,
            "--digest",
            digest,
        ],
        "",
    )?;
    conductor.wait_state(HOST, HostState::Provisioned, PATIENCE)
}

/// Runs `work` while the CPU time of the host's QEMU is read four times a second.
fn sampled<T>(lab: &Lab, work: impl FnOnce() -> Result<T>) -> Result<(T, CpuSamples)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut samples = CpuSamples::default();
            while !over.load(Ordering::Relaxed) {
                samples.add(Timestamp::now(), lab.host(1).cost().qemu_cpu_seconds);
                std::thread::sleep(Duration::from_millis(250));
            }
            samples
        });
        let result = work();
        over.store(true, Ordering::Relaxed);
        let samples = reader.join().ok().context("the CPU sampler failed")?;
        Ok((result?, samples))
    })
}

fn print_deployment(done: &Deployment) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "\n{} form", done.form)?;
    writeln!(
        out,
        "  {:<20} {:>8} {:>14} {:>12}",
        "stage", "wall s", "QEMU CPU s", "bytes"
    )?;
    for stage in &done.timeline.stages {
        let bytes = stage
            .bytes
            .map(|bytes| ByteSize(bytes).to_string())
            .unwrap_or_default();
        let cpu = stage.qemu_cpu_seconds.unwrap_or(0.0);
        writeln!(
            out,
            "  {:<20} {:>8.1} {cpu:>14.1} {bytes:>12}",
            stage.name, stage.seconds
        )?;
    }
    let used = ByteSize(done.guest_memory_used_bytes);
    let (guest, agent) = (
        ByteSize(done.guest_memory_bytes),
        ByteSize(done.agent_peak_bytes),
    );
    writeln!(
        out,
        "  memory while writing: guest {used} of {guest}, agent {agent} at its peak"
    )
    .context("writing the table")
}

fn print_comparison(report: &Report) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let mark = report.mark;
    writeln!(
        out,
        "\nagainst Ironic 39 and ironic-python-agent 13, as measured (ratio: theirs / ours)"
    )?;
    let heads = report
        .deployments
        .iter()
        .map(|done| format!(" {:>18}", done.form));
    writeln!(
        out,
        "  {:<28} {:>9}{}",
        "",
        "Ironic",
        heads.collect::<String>()
    )?;
    let mut row = |name: &str, theirs: f64, ours: &dyn Fn(&Deployment) -> f64| {
        let cells = report.deployments.iter().map(|done| {
            let value = ours(done);
            format!(" {value:>9.1} ({:>4.1} ×)", theirs / value.max(1e-9))
        });
        writeln!(
            out,
            "  {name:<28} {theirs:>9.1}{}",
            cells.collect::<String>()
        )
    };
    row("enrol to cloud-init done, s", mark.seconds, &|done| {
        done.seconds
    })?;
    row(
        "kernel to first contact, s",
        mark.kernel_to_hello_seconds,
        &|done| done.kernel_to_hello_seconds,
    )?;
    row("write-image, s", mark.write_image_seconds, &|done| {
        done.write_image_seconds
    })?;
    row("QEMU CPU, s", mark.qemu_cpu_seconds, &|done| {
        done.qemu_cpu_seconds
    })?;
    #[expect(clippy::cast_precision_loss, reason = "a handful of boots")]
    row("firmware boots", mark.firmware_boots as f64, &|done| {
        done.timeline.firmware_boots as f64
    })?;
    Ok(())
}

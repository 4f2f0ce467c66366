//! The peer: Ironic all-in-one from `PyPI` with `SQLite` and fake hardware, measured by the same
//! calls in the same run. Set up as its documents say for a stand-alone service, and not tuned.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use reqwest::{Client, Method};
use serde::Serialize;
use serde_json::{Value, json};

use super::Times;
use super::measure::{Flood, Latency, flood, mib, millis, rate, repeat, share};
use crate::swarm::{Usage, free_port};

/// The version that figures are of.
const VERSION: &str = "39.0.0";

/// What it came to.
#[derive(Debug, Default, Serialize)]
pub(super) struct Figures {
    /// Of the package.
    pub(super) version: String,
    /// Nodes that were enrolled.
    pub(super) nodes: usize,
    /// Resident without a node, processes summed, MiB.
    pub(super) idle_rss_mib: f64,
    /// The same with shared pages counted once.
    pub(super) idle_pss_mib: f64,
    /// Resident with all nodes.
    pub(super) rss_mib: f64,
    /// Nodes a second, one client.
    pub(super) creates_1: f64,
    /// Nodes a second, 16 clients.
    pub(super) creates_16: f64,
    /// `GET /v1/nodes?limit=1000`.
    pub(super) list: Latency,
    /// Processor time of one such list.
    pub(super) list_cpu_ms: f64,
    /// `GET /v1/nodes/detail?limit=1000`: every field, as our list has.
    pub(super) list_detail: Latency,
    /// `POST /v1/heartbeat/{node}`, answered well.
    pub(super) heartbeats: Flood,
    /// Percent of a processor while nothing is asked.
    pub(super) rest_cpu_percent: f64,
    /// `kill -9` to the first good answer.
    pub(super) restart_ms: f64,
}

/// Sets it up below `dir`, measures, and stops it.
pub(super) async fn measure(dir: &Path, times: &Times) -> Result<Figures> {
    let mut ironic = Ironic::install(dir)?;
    ironic.start().await?;
    tokio::time::sleep(times.settle).await;
    let mut figures = Figures {
        version: VERSION.to_owned(),
        nodes: times.peer_nodes,
        idle_rss_mib: mib(ironic.usage()?.rss),
        idle_pss_mib: mib(ironic.pss()?),
        ..Figures::default()
    };
    let half = times.peer_nodes / 2;
    tracing::info!(nodes = times.peer_nodes, "Ironic: enrolling");
    figures.creates_1 = ironic.create(0..half, 1).await?;
    figures.creates_16 = ironic.create(half..times.peer_nodes, 16).await?;
    figures.rss_mib = mib(ironic.usage()?.rss);
    tracing::info!("Ironic: listing");
    let before = ironic.usage()?.cpu;
    figures.list = ironic
        .list("/v1/nodes?limit=1000", times.peer_lists)
        .await?;
    let lists = u32::try_from(times.peer_lists)?;
    figures.list_cpu_ms = millis(ironic.usage()?.cpu.saturating_sub(before) / lists);
    figures.list_detail = ironic
        .list("/v1/nodes/detail?limit=1000", times.peer_lists)
        .await?;
    tracing::info!("Ironic: heartbeats");
    figures.heartbeats = ironic.heartbeats(times.flood).await?;
    tracing::info!("Ironic: at rest");
    let before = ironic.usage()?.cpu;
    tokio::time::sleep(times.rest).await;
    figures.rest_cpu_percent = share(before, ironic.usage()?.cpu, times.rest);
    ironic.stop()?;
    let started = Instant::now();
    ironic.start().await?;
    figures.restart_ms = millis(started.elapsed());
    ironic.stop()?;
    Ok(figures)
}

struct Ironic {
    dir: PathBuf,
    bin: PathBuf,
    url: String,
    client: Client,
    child: Option<Child>,
}

impl Ironic {
    /// From `PyPI` into a folder of its own, once; with a new database each time.
    fn install(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let bin = dir.join("venv/bin");
        if !bin.join("ironic").exists() {
            tracing::info!("Ironic {VERSION}: installing from PyPI (a minute or two)");
            let venv = dir.join("venv");
            run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
            let package = format!("ironic=={VERSION}");
            run(Command::new(bin.join("pip")).args(["install", "--quiet", &package]))?;
        }
        let port = free_port()?;
        let state = dir.join("state");
        if state.exists() {
            fs::remove_dir_all(&state)?;
        }
        fs::create_dir_all(state.join("locks"))?;
        fs::write(dir.join("ironic.conf"), config(&state, port))?;
        let sync = bin.join("ironic-dbsync");
        let conf = dir.join("ironic.conf");
        run(Command::new(sync)
            .arg("--config-file")
            .arg(&conf)
            .arg("create_schema"))?;
        Ok(Self {
            dir: dir.to_owned(),
            bin,
            url: format!("http://127.0.0.1:{port}"),
            client: Client::builder()
                .no_proxy()
                .timeout(Duration::from_mins(1))
                .build()?,
            child: None,
        })
    }

    async fn start(&mut self) -> Result<()> {
        let log = fs::File::create(self.dir.join("state/out"))?;
        let child = Command::new(self.bin.join("ironic"))
            .arg("--config-file")
            .arg(self.dir.join("ironic.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting Ironic")?;
        self.child = Some(child);
        let started = Instant::now();
        while self
            .call(Method::GET, "/v1/nodes?limit=1", None)
            .await
            .is_err()
        {
            let log = self.dir.join("state/ironic.log");
            ensure!(
                started.elapsed() < Duration::from_mins(1),
                "Ironic does not answer; see {}",
                log.display()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Kills it and its worker.
    fn stop(&mut self) -> Result<()> {
        use nix::sys::signal::{Signal, kill};
        use nix::unistd::Pid;
        let processes = self.processes();
        for process in processes {
            let process = Pid::from_raw(i32::try_from(process)?);
            // Gone already is as good.
            let _ = kill(process, Signal::SIGKILL);
        }
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// The process and its children.
    fn processes(&self) -> Vec<u32> {
        let Some(parent) = self.child.as_ref().map(Child::id) else {
            return Vec::new();
        };
        let all = fs::read_dir("/proc").into_iter().flatten();
        let all = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let children = all.filter(|process| parent_of(*process) == Some(parent));
        std::iter::once(parent).chain(children).collect()
    }

    fn usage(&self) -> Result<Usage> {
        let mut sum = Usage::default();
        for process in self.processes() {
            let one = Usage::of(process)?;
            sum.rss += one.rss;
            sum.cpu += one.cpu;
        }
        Ok(sum)
    }

    fn pss(&self) -> Result<u64> {
        let mut sum = 0;
        for process in self.processes() {
            let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup"))?;
            let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
            sum += kib.context("reading Pss")? << 10;
        }
        Ok(sum)
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.url))
            .header("X-OpenStack-Ironic-API-Version", "1.80");
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let (status, bytes) = (response.status(), response.bytes().await?);
        let text = String::from_utf8_lossy(&bytes);
        ensure!(status.is_success(), "Ironic: {path}: {status}: {text}");
        Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn create(&self, nodes: std::ops::Range<usize>, at_once: usize) -> Result<f64> {
        let count = nodes.len();
        let started = Instant::now();
        let calls = nodes.map(|number| async move {
            let body = json!({
                "name": format!("node-{number}"),
                "uuid": uuid_of(number),
                "driver": "fake-hardware",
                "driver_info": {"fake_address": format!("10.0.{}.{}", number / 256, number % 256)},
            });
            self.call(Method::POST, "/v1/nodes", Some(&body)).await
        });
        let mut calls = futures_util::stream::iter(calls).buffer_unordered(at_once);
        while let Some(call) = calls.next().await {
            call?;
        }
        Ok(rate(count, started.elapsed()))
    }

    async fn list(&self, path: &str, times: usize) -> Result<Latency> {
        self.call(Method::GET, path, None).await?;
        repeat(times, || async {
            self.call(Method::GET, path, None).await.map(drop)
        })
        .await
    }

    /// From 16 agents at once, each with the token that a look-up gave it.
    async fn heartbeats(&self, long: Duration) -> Result<Flood> {
        let mut tokens = Vec::new();
        for number in 0..16 {
            let path = format!("/v1/lookup?node_uuid={}", uuid_of(number));
            let found = self.call(Method::GET, &path, None).await?;
            let token = found["config"]["agent_token"].as_str();
            tokens.push(token.context("Ironic gave no agent token")?.to_owned());
        }
        let tokens = &tokens;
        let beats = flood(tokens.len(), long, |caller, _| async move {
            let body = json!({
                "callback_url": "https://127.0.0.1:9999",
                "agent_version": "11.0.0",
                "agent_token": tokens[caller],
            });
            let path = format!("/v1/heartbeat/{}", uuid_of(caller));
            self.call(Method::POST, &path, Some(&body)).await.map(drop)
        });
        let beats = beats.await;
        ensure!(beats.latency.calls > 0, "Ironic took no heartbeat");
        Ok(beats)
    }
}

impl Drop for Ironic {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

fn parent_of(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name may hold spaces: fields are counted from its closing parenthesis.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(1)?.parse().ok()
}

fn uuid_of(number: usize) -> String {
    format!("fe771e00-0000-4000-9000-{number:012x}")
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {said}");
    Ok(())
}

/// Everything fake, no message bus, no keystone, look-ups in every state.
fn config(state: &Path, port: u16) -> String {
    let state = state.display();
    format!(
        "[DEFAULT]\nauth_strategy = noauth\nrpc_transport = none\nhost = bench\nmy_ip = 127.0.0.1\n\
         state_path = {state}\nlog_file = {state}/ironic.log\n\
         enabled_hardware_types = fake-hardware\nenabled_boot_interfaces = fake\n\
         enabled_deploy_interfaces = fake\nenabled_management_interfaces = fake\n\
         enabled_power_interfaces = fake\nenabled_inspect_interfaces = no-inspect\n\
         enabled_network_interfaces = noop\nenabled_raid_interfaces = no-raid\n\
         enabled_console_interfaces = no-console\nenabled_vendor_interfaces = no-vendor\n\
         enabled_storage_interfaces = noop\nenabled_firmware_interfaces = no-firmware\n\
         enabled_bios_interfaces = no-bios\nenabled_rescue_interfaces = no-rescue\n\
         [api]\nhost_ip = 127.0.0.1\nport = {port}\nmax_limit = 1000\nrestrict_lookup = false\n\
         [database]\nconnection = sqlite:///{state}/ironic.sqlite\n\
         [conductor]\nsend_sensor_data = false\n\
         [oslo_concurrency]\nlock_path = {state}/locks\n"
    )
}

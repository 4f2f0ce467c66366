//! A real `ferrite serve` on loopback: started, killed and started again on the same state, and
//! what it costs. Its boot files are dummies, for firmware that is simulated.

use std::fs::{self, OpenOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferrite_proto::digest::to_hex;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Operator;

/// Where in an ISO the boot parameters are, to its end.
pub(super) const ISO_CONFIG_AT: usize = 4096;

/// How long an answer may take while it starts.
const ANSWER: Duration = Duration::from_secs(20);

/// A conductor.
#[derive(Debug)]
pub struct Served {
    binary: PathBuf,
    dir: PathBuf,
    /// Of its API.
    pub url: String,
    /// Of its netboot server.
    pub netboot: String,
    child: Mutex<Option<Child>>,
}

/// What a process costs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Resident bytes.
    pub rss: u64,
    /// Processor time so far.
    pub cpu: Duration,
}

impl Served {
    /// Starts one with its state below `dir`, and waits until it answers. `extra` is TOML that is
    /// added to its configuration.
    pub async fn start(binary: &Path, dir: &Path, extra: &str) -> Result<Self> {
        Self::start_at(free_port()?, binary, dir, extra).await
    }

    /// The same with its API at a port that is known before.
    pub async fn start_at(api: u16, binary: &Path, dir: &Path, extra: &str) -> Result<Self> {
        let served = Self::prepare(api, binary, dir, extra)?;
        served.launch()?;
        served.until_ready(Duration::from_mins(1)).await?;
        Ok(served)
    }

    /// All that it needs; it is not started yet.
    pub fn prepare(api: u16, binary: &Path, dir: &Path, extra: &str) -> Result<Self> {
        let http = free_port()?;
        let served = Self {
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            url: format!("https://127.0.0.1:{api}"),
            netboot: format!("http://127.0.0.1:{http}"),
            child: Mutex::default(),
        };
        fs::create_dir_all(dir)?;
        boot_files(&dir.join("boot"))?;
        let config = format!(
            "state_dir = {state:?}\nlisten = \"127.0.0.1:{api}\"\nnames = [\"localhost\"]\n\
             {extra}\n[netboot]\nartifacts = {boot:?}\nipxe = {boot:?}\ntftp = false\n\
             dhcp = \"off\"\nhttp_listen = \"127.0.0.1:{http}\"\n",
            state = dir.join("state").display().to_string(),
            boot = dir.join("boot").display().to_string(),
        );
        fs::write(served.config(), config)?;
        Ok(served)
    }

    fn config(&self) -> PathBuf {
        self.dir.join("ferrite.toml")
    }

    /// What it says.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Starts it (again). It does not answer yet.
    pub fn launch(&self) -> Result<()> {
        self.launch_with(&[])
    }

    /// The same with variables of the environment.
    pub fn launch_with(&self, environment: &[(&str, &str)]) -> Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())?;
        let child = Command::new(&self.binary)
            .args(["serve", "--config"])
            .arg(self.config())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.binary.display()))?;
        *self.child() = Some(child);
        Ok(())
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody with its first token.
    pub fn operator(&self) -> Result<Operator> {
        let state = self.dir.join("state");
        Operator::new(&self.url, &state.join("admin.token"), &state.join("ca.pem"))
    }

    /// Waits until it answers; returns how long that took.
    pub async fn until_ready(&self, patience: Duration) -> Result<Duration> {
        let started = Instant::now();
        loop {
            // Whoever gives up and comes again is behind ten thousand agents each time.
            if let Ok(operator) = self.operator()
                && operator.is_served_within(ANSWER).await
            {
                return Ok(started.elapsed());
            }
            if let Some(status) = self.ended()? {
                bail!(
                    "the conductor ended: {status}; see {}",
                    self.log().display()
                );
            }
            ensure!(
                started.elapsed() < patience,
                "the conductor does not answer; see {}",
                self.log().display()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How it ended, if it did.
    pub fn ended(&self) -> Result<Option<std::process::ExitStatus>> {
        match &mut *self.child() {
            Some(child) => Ok(child.try_wait()?),
            None => Ok(None),
        }
    }

    /// Kills it as the kernel would when memory runs out.
    pub fn kill(&self) -> Result<()> {
        if let Some(mut child) = self.child().take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// What it costs now.
    pub fn usage(&self) -> Result<Usage> {
        let pid = self.pid().context("the conductor is not running")?;
        Usage::of(pid)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

impl Usage {
    /// Of a process, as the kernel counts it.
    pub fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        let status = read("status").with_context(|| format!("looking at process {pid}"))?;
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok())
            .context("reading VmRSS")?;
        let [user, system, ..] = ticks_of(&read("stat")?)?;
        Ok(Self {
            rss: rss << 10,
            cpu: ticks(user + system),
        })
    }

    /// Processor time of this process and of its children that have ended.
    pub fn own_and_of_ended_children() -> Result<Duration> {
        Ok(ticks(
            ticks_of(&fs::read_to_string("/proc/self/stat")?)?
                .iter()
                .sum(),
        ))
    }

    /// Processor time of everybody on the machine since it was switched on.
    pub fn of_everybody() -> Result<Duration> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("reading /proc/stat")?;
        // user nice system idle iowait irq softirq steal; guests are among the users.
        let all: Vec<u64> = line
            .split_whitespace()
            .skip(1)
            .take(8)
            .filter_map(|text| text.parse().ok())
            .collect();
        ensure!(all.len() == 8, "reading /proc/stat: {line}");
        Ok(ticks(all.iter().sum::<u64>() - all[3] - all[4]))
    }
}

/// A tick is 10 ms on every Linux that we know.
const fn ticks(count: u64) -> Duration {
    Duration::from_millis(count * 10)
}

/// utime, stime, cutime, cstime of `/proc/PID/stat`.
fn ticks_of(stat: &str) -> Result<[u64; 4]> {
    // The name may hold spaces: fields are counted from its closing parenthesis.
    let (_, fields) = stat.rsplit_once(')').context("reading stat")?;
    let fields = fields.split_whitespace().skip(11).take(4);
    let fields: Vec<u64> = fields.filter_map(|text| text.parse().ok()).collect();
    fields.try_into().ok().context("reading processor time")
}

/// A port that nobody has at the moment.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

/// Files that a conductor serves to firmware, small and without a meaning.
fn boot_files(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    for name in ["snponly.efi", "undionly.kpxe"] {
        fs::write(dir.join(name), name)?;
    }
    let file = |name: &str| -> Result<serde_json::Value> {
        let mut bytes = name.repeat(64).into_bytes();
        // As large as an ISO must be that boot parameters are put into.
        bytes.resize(2 * ISO_CONFIG_AT, 0);
        fs::write(dir.join(name), &bytes)?;
        let sha256 = to_hex(&Sha256::digest(&bytes));
        Ok(json!({"path": name, "bytes": bytes.len(), "sha256": sha256}))
    };
    let manifest = json!({
        "version": 1,
        "kernel_release": "6.12.0-swarm",
        "files": {
            "kernel": file("vmlinuz")?,
            "initramfs": file("initramfs.img")?,
            "iso": file("ramdisk.iso")?,
            "rescue": file("rescue.img")?,
            "rescue_iso": file("rescue.iso")?,
        },
        "rescue_iso_config": {"offset": ISO_CONFIG_AT, "length": ISO_CONFIG_AT},
        "iso_config": {"offset": ISO_CONFIG_AT, "length": ISO_CONFIG_AT},
    });
    fs::write(dir.join("manifest.json"), manifest.to_string())?;
    Ok(())
}

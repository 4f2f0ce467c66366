//! The conductor as people run it: a child process in the lab, its command line from outside.
//!
//! It can be killed at any moment and started again on the same state, which is what the tests of
//! restarts do. Nothing here looks into its store.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferrite_proto::api::Timeline;
use ferrite_proto::host::{Host, HostState};
use ferrite_proto::inventory::Inventory;

use crate::lab::Lab;
use crate::net::{Namespace, SERVER};

/// Port of the API in the lab.
pub const PORT: u16 = 7443;
/// How long it may take to answer after it was started.
const START: Duration = Duration::from_secs(30);

/// Where the programs and artifacts are that `make` built.
#[derive(Debug, Clone)]
pub struct Built {
    /// The `ferrite` binary.
    pub ferrite: PathBuf,
    /// Folder of kernel, ramdisk and ISO.
    pub artifacts: PathBuf,
}

impl Built {
    /// Beside the running program, as cargo and `make` lay them; `FERRITE_BIN` and
    /// `FERRITE_ARTIFACTS` say otherwise.
    pub fn find() -> Result<Self> {
        let target = target_dir()?;
        let or_default =
            |name: &str, default: PathBuf| std::env::var_os(name).map_or(default, PathBuf::from);
        let built = Self {
            ferrite: or_default("FERRITE_BIN", target.join("debug/ferrite")),
            artifacts: or_default("FERRITE_ARTIFACTS", target.join("boot")),
        };
        let (ferrite, boot) = (built.ferrite.display(), built.artifacts.display());
        ensure!(
            built.ferrite.exists(),
            "{ferrite} is not there: `make build` makes it"
        );
        let manifest = built.artifacts.join("manifest.json");
        ensure!(
            manifest.exists(),
            "no boot artifacts in {boot}: `make boot` makes them"
        );
        Ok(built)
    }
}

/// The workspace's `target` folder.
pub fn target_dir() -> Result<PathBuf> {
    let program = std::env::current_exe().context("finding this program")?;
    let target = program.ancestors().find(|dir| dir.ends_with("target"));
    target
        .map(Path::to_owned)
        .context("this program does not lie in cargo's target folder")
}

/// A running (or killed) conductor.
#[derive(Debug)]
pub struct Conductor {
    built: Built,
    config: PathBuf,
    state: PathBuf,
    log: PathBuf,
    net: Arc<Namespace>,
    door: SocketAddr,
    child: Mutex<Option<Child>>,
}

impl Conductor {
    /// Writes a configuration for the lab, starts it, and waits until it answers, also at
    /// 127.0.0.1:`port` (0: any). `settings` are lines of TOML added to `[lifecycle]`.
    pub fn start(lab: &Lab, built: Built, port: u16, settings: &str) -> Result<Self> {
        let dir = lab.dir().join("conductor");
        fs::create_dir_all(&dir)?;
        let door = lab.forward(port, format!("{SERVER}:{PORT}").parse()?)?;
        let conductor = Self {
            config: dir.join("ferrite.toml"),
            state: dir.join("state"),
            log: dir.join("log"),
            net: lab.share_net(),
            door,
            child: Mutex::new(None),
            built,
        };
        fs::write(&conductor.config, conductor.configuration(settings))?;
        conductor.launch()?;
        Ok(conductor)
    }

    fn configuration(&self, settings: &str) -> String {
        format!(
            "state_dir = {state:?}\n\
             listen = \"{SERVER}:{PORT}\"\n\
             names = [\"127.0.0.1\", \"localhost\"]\n\
             [netboot]\n\
             artifacts = {artifacts:?}\n\
             http_listen = \"{SERVER}:7080\"\n\
             dhcp = \"server\"\n\
             interface = \"br0\"\n\
             pool_start = \"10.77.0.100\"\n\
             pool_end = \"10.77.0.200\"\n\
             router = \"{SERVER}\"\n\
             [lifecycle]\n{settings}\n",
            state = self.state.display().to_string(),
            artifacts = self.built.artifacts.display().to_string(),
        )
    }

    /// Starts it, again if need be, and waits until it answers.
    pub fn launch(&self) -> Result<()> {
        let argv: Vec<OsString> = [
            self.built.ferrite.as_os_str(),
            "serve".as_ref(),
            "--config".as_ref(),
        ]
        .into_iter()
        .chain([self.config.as_os_str()])
        .map(OsString::from)
        .collect();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let child = self
            .net
            .spawn(argv, move |command| redirect(command, log))?;
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        let deadline = Instant::now() + START;
        while !self
            .cli(&["host", "list"])
            .is_ok_and(|output| output.status.success())
        {
            if self.exited() || Instant::now() > deadline {
                bail!(
                    "the conductor does not answer; its log ends with:\n{}",
                    self.log_tail(20)
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// `kill -9`.
    pub fn kill(&self) -> Result<()> {
        let child = self
            .child
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let mut child = child.context("the conductor does not run")?;
        child.kill().context("killing the conductor")?;
        child.wait().context("waiting for the killed conductor")?;
        Ok(())
    }

    fn exited(&self) -> bool {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        child
            .as_mut()
            .is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// What a shell needs to talk to it: `(name, value)` of environment variables.
    pub fn environment(&self) -> Vec<(String, String)> {
        let state = |file: &str| self.state.join(file).display().to_string();
        vec![
            ("FERRITE_SERVER".into(), format!("https://{}", self.door)),
            ("FERRITE_TOKEN_FILE".into(), state("admin.token")),
            ("FERRITE_CA_FILE".into(), state("ca.pem")),
        ]
    }

    /// The command line's program, as a person would run it, not yet started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.built.ferrite);
        command.args(arguments).envs(self.environment());
        command
    }

    /// Runs `ferrite …` to its end.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        let shown = || format!("running ferrite {}", arguments.join(" "));
        self.command(arguments)
            .stdin(Stdio::null())
            .output()
            .with_context(shown)
    }

    /// Runs `ferrite …` with text on its standard input, and demands that it succeeds.
    pub fn cli_ok(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = self.command(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("starting ferrite")?;
        child
            .stdin
            .take()
            .context("no standard input")?
            .write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        let (said, erred) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        ensure!(
            output.status.success(),
            "ferrite {}: {said}{erred}",
            arguments.join(" ")
        );
        Ok(said.into_owned())
    }

    /// A host as the API shows it.
    pub fn host(&self, name: &str) -> Result<Host> {
        let text = self.cli_ok(&["host", "show", name, "--output", "json"], "")?;
        serde_json::from_str(&text).with_context(|| format!("reading host {name}: {text}"))
    }

    /// Where a host's seconds went, as the API shows it.
    pub fn timeline(&self, name: &str) -> Result<Timeline> {
        let text = self.cli_ok(&["host", "timeline", name, "--output", "json"], "")?;
        serde_json::from_str(&text).with_context(|| format!("reading {name}'s timeline: {text}"))
    }

    /// A host's inventory, as the API shows it.
    pub fn inventory(&self, name: &str) -> Result<Inventory> {
        let text = self.cli_ok(&["host", "inventory", name], "")?;
        serde_json::from_str(&text).with_context(|| format!("reading {name}'s inventory: {text}"))
    }

    /// Waits until a host is as wanted; the error says how it was instead.
    pub fn wait(
        &self,
        name: &str,
        patience: Duration,
        wanted: impl Fn(&Host) -> bool,
    ) -> Result<Host> {
        let deadline = Instant::now() + patience;
        loop {
            let host = self.host(name)?;
            if wanted(&host) {
                return Ok(host);
            }
            if Instant::now() > deadline {
                let explained = self
                    .cli_ok(&["host", "explain", name], "")
                    .unwrap_or_default();
                bail!(
                    "{name} is not as wanted after {patience:?}, but {}: {explained}\n{}",
                    host.status.state,
                    self.log_tail(12)
                );
            }
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Waits for a state without an error.
    pub fn wait_state(&self, name: &str, state: HostState, patience: Duration) -> Result<Host> {
        self.wait(name, patience, |host| {
            host.status.state == state && host.status.error.is_none()
        })
        .with_context(|| format!("waiting for {name} to be {state}"))
    }

    /// Waits for an error with this code.
    pub fn wait_error(&self, name: &str, code: &str, patience: Duration) -> Result<Host> {
        let has = |host: &Host| {
            host.status
                .error
                .as_ref()
                .is_some_and(|error| error.problem.code.as_str() == code)
        };
        self.wait(name, patience, has)
            .with_context(|| format!("waiting for {code} on {name}"))
    }

    /// Where its log is.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.built.ferrite
    }

    /// All that it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The log's last lines.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

fn redirect(command: &mut Command, log: File) {
    let second = log.try_clone();
    command.stdin(Stdio::null()).stdout(Stdio::from(log));
    if let Ok(second) = second {
        command.stderr(Stdio::from(second));
    }
}

impl Drop for Conductor {
    fn drop(&mut self) {
        // Nothing to do about an error: the namespace kills what is left in it.
        drop(self.kill());
    }
}

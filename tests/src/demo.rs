//! `make demo`: one virtual host, from powered off and unknown to provisioned, as a person would
//! do it: with the `ferrite` commands that are printed before they run. Nothing is done behind the
//! person's back but starting the lab.

mod cluster;

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use ferrite_proto::host::Host;
use jiff::Timestamp;
use serde::Deserialize;

use self::cluster::Cluster;
use crate::conductor::target_dir;
use crate::control::{self, Answer, ConductorStatus, Request, Status};
use crate::net::require_root;
use crate::timeline::Timeline;

/// The host's name everywhere.
const HOST: &str = "host-1";

/// What `ferrite-image os` says of the image that it built.
#[derive(Debug, Clone, Deserialize)]
pub struct OsImage {
    /// Size of the raw image.
    pub bytes: u64,
    /// Its SHA-256, hex.
    pub sha256: String,
    /// Its compressed forms, by name.
    pub variants: std::collections::BTreeMap<String, Variant>,
}

/// A compressed form of the image.
#[derive(Debug, Clone, Deserialize)]
pub struct Variant {
    /// The file, beside the raw image.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, hex.
    pub sha256: String,
}

impl OsImage {
    /// Reads the description beside an image.
    pub fn read(image: &Path) -> Result<Self> {
        let path = image.with_added_extension("json");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("reading {}: `make os` makes it", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// File name and digest of a compressed form.
    pub fn variant(&self, name: &str) -> Result<(String, String)> {
        let variant = self
            .variants
            .get(name)
            .with_context(|| format!("no {name} form"))?;
        let file = variant
            .path
            .file_name()
            .context("a form without a file name")?;
        Ok((
            file.to_string_lossy().into_owned(),
            format!("sha256:{}", variant.sha256),
        ))
    }
}

/// Runs the demo, with a cluster to join if there is its kubeconfig; the lab ends with it unless
/// `keep`.
pub fn run(keep: bool, cluster: Option<&Path>) -> Result<()> {
    require_root()?;
    let target = target_dir()?;
    let dir = target.join("demo");
    let cluster = cluster.map(Cluster::read).transpose()?;
    crate::daemon::stop(&dir)?;
    let status = start_lab(&target, &dir, cluster.as_ref())?;
    let mut result = deploy(&status, &target, &dir, cluster.as_ref());
    if let (Ok(()), Some(cluster)) = (&result, &cluster) {
        result = cluster.show(&Ferrite::of(&status)?, keep);
    }
    if keep {
        say_what_next(&status)?;
    } else {
        crate::daemon::stop(&dir)?;
    }
    result
}

fn start_lab(target: &Path, dir: &Path, cluster: Option<&Cluster>) -> Result<Status> {
    say(
        "starting the lab: one powered-off UEFI host behind a virtual Redfish BMC, and a conductor",
    )?;
    let images = target.join("lab");
    let mut words: Vec<OsString> = vec![
        std::env::current_exe()?.into(),
        "--dir".into(),
        dir.into(),
        "up".into(),
        "--conductor".into(),
        "--images".into(),
        images.into(),
        "--forward".into(),
        "0".into(),
        "--foreground".into(),
    ];
    words.extend(cluster.into_iter().flat_map(Cluster::lab_words));
    let status = crate::daemon::start(&words, dir)?;
    say(&format!(
        "guests run under {:?}; consoles and logs are in {}",
        status.accel,
        dir.display()
    ))?;
    Ok(status)
}

fn deploy(status: &Status, target: &Path, dir: &Path, cluster: Option<&Cluster>) -> Result<()> {
    let ferrite = Ferrite::of(status)?;
    let host = status.hosts.first().context("the lab has no host")?;
    let image = cluster.map_or("lab/os.raw", |_| "lab/node-kube.raw");
    let (image, digest) = OsImage::read(&target.join(image))?.variant("zstd")?;
    if let Some(cluster) = cluster {
        cluster.add(&ferrite)?;
    }
    let user_data = dir.join("user-data");
    fs::write(&user_data, USER_DATA)?;
    let bmc = host.bmc.replacen("http://", "redfish+http://", 1);
    let password = status.bmc_password_file.display().to_string();
    ferrite.run(&[
        &[
            "host",
            "add",
            HOST,
            "--bmc",
            &bmc,
            "--username",
            &status.bmc_user,
        ],
        &["--password-file", &password, "--boot-mac", &host.mac][..],
    ])?;
    let url = format!("{}{image}", status.images_url);
    let user_data = user_data.display().to_string();
    ferrite.run(&[
        &[
            "host",
            "provision",
            HOST,
            "--image",
            &url,
            "--digest",
            &digest,
        ],
        &["--user-data", &user_data][..],
        cluster.map_or(&[][..], |_| &["--cluster", cluster::NAME]),
    ])?;
    let watched = ferrite.run(&[&["host", "watch", HOST]]);
    report(&ferrite, dir)?;
    watched
}

const USER_DATA: &str = "\
#cloud-config
hostname: host-1
write_files:
  - path: /etc/motd
    content: |
      Provisioned by Ferrite.
runcmd:
  - [touch, /var/lib/ferrite-demo]
";

/// Prints where the time went and writes `timeline.json`.
fn report(ferrite: &Ferrite<'_>, dir: &Path) -> Result<()> {
    let shown = ferrite.output(&["host", "show", HOST, "--output", "json"])?;
    let host: Host = serde_json::from_str(&shown).context("reading the host")?;
    let shown = ferrite.output(&["host", "timeline", HOST, "--output", "json"])?;
    let runs = serde_json::from_str(&shown).context("reading the timeline")?;
    let boots = match control::ask(dir, &Request::Status)? {
        Answer::Status(status) => status
            .hosts
            .first()
            .map_or(0, |host| host.cost.firmware_boots),
        other => bail!("an unexpected answer of the lab: {other:?}"),
    };
    let timeline = Timeline::of(&host, &runs, boots, Timestamp::now());
    let path = dir.join("timeline.json");
    fs::write(&path, serde_json::to_string_pretty(&timeline)?)?;
    say("where the time went:")?;
    write!(std::io::stdout().lock(), "{}", timeline.waterfall())?;
    say(&format!("the same as JSON: {}", path.display()))?;
    ensure!(
        timeline.outcome == "provisioned",
        "the demo ended {}",
        timeline.outcome
    );
    Ok(())
}

fn say_what_next(status: &Status) -> Result<()> {
    let conductor = conductor(status)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "\nThe lab stays up. In a shell of root:")?;
    for (name, value) in &conductor.environment {
        writeln!(out, "  export {name}={value}")?;
    }
    let ferrite = conductor.program.display();
    for words in [
        "list",
        "show host-1",
        "timeline host-1",
        "explain host-1",
        "deprovision host-1",
    ] {
        writeln!(out, "  {ferrite} host {words}")?;
    }
    let lab = std::env::current_exe()?;
    let (lab, dir) = (lab.display(), status.dir.display());
    writeln!(out, "  {lab} --dir {dir} status")?;
    writeln!(out, "  {lab} --dir {dir} console 1")?;
    writeln!(out, "  {lab} --dir {dir} down      ends it")?;
    Ok(())
}

fn conductor(status: &Status) -> Result<&ConductorStatus> {
    status
        .conductor
        .as_ref()
        .context("the lab has no conductor")
}

/// The command line, run in front of the person.
struct Ferrite<'a> {
    conductor: &'a ConductorStatus,
}

impl<'a> Ferrite<'a> {
    fn of(status: &'a Status) -> Result<Self> {
        Ok(Self {
            conductor: conductor(status)?,
        })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.conductor.program);
        command.envs(
            self.conductor
                .environment
                .iter()
                .map(|(name, value)| (name, value)),
        );
        command
    }

    /// Prints the command and runs it with the person's own terminal.
    fn run(&self, words: &[&[&str]]) -> Result<()> {
        let words = words.concat();
        let shown = words.join(" ");
        writeln!(std::io::stdout().lock(), "\n$ ferrite {shown}")?;
        let status = self
            .command()
            .args(&words)
            .status()
            .context("starting ferrite")?;
        ensure!(status.success(), "ferrite {shown}: {status}");
        Ok(())
    }

    fn output(&self, words: &[&str]) -> Result<String> {
        let output = self
            .command()
            .args(words)
            .output()
            .context("starting ferrite")?;
        let erred = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "ferrite {}: {erred}",
            words.join(" ")
        );
        String::from_utf8(output.stdout).context("ferrite's answer is not UTF-8")
    }
}

fn say(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "\n== {text}")?)
}

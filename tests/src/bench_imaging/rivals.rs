//! The contenders: our agent, and what people use today. Each fetches from the same server, checks
//! the same kind of digest, and ends with the same bytes on the disk. No shell: the pipes are ours.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::command::run;

const IPA_VERSION: &str = "13.0.0";
const IPA_SCRIPT: &str = include_str!("../../bench_imaging_ipa.py");

/// A way to a written disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Way {
    /// `ferrite-agent write-image`, with these further arguments.
    Ours(&'static [&'static str]),
    /// `curl | tee >(sha256sum) | zstd -dc | dd oflag=direct`, or with another decoder.
    Pipe(&'static str),
    /// `curl` to memory, `sha256sum`, `qemu-img convert`.
    QemuImg,
    /// `bmaptool copy` with the image's own map, whose digests it checks.
    Bmaptool(&'static str),
    /// ironic-python-agent's streaming of raw images.
    Ipa,
}

impl fmt::Display for Way {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours(_) => write!(out, "ours"),
            Self::Pipe(decoder) => write!(out, "curl, {decoder}, dd"),
            Self::QemuImg => write!(out, "curl, qemu-img"),
            Self::Bmaptool(_) => write!(out, "bmaptool"),
            Self::Ipa => write!(out, "IPA"),
        }
    }
}

/// What is fetched, and what vouches for it: the digest of the file, or of a packed file's index.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Fetch {
    pub(super) url: String,
    pub(super) digest: String,
}

/// Where everything is.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) agent: PathBuf,
    /// Where the maps lie.
    pub(super) files: PathBuf,
    /// Memory: for what peers stage, and for pipes with a name.
    pub(super) ram: PathBuf,
    pub(super) venv: PathBuf,
}

/// What our agent says of a run; the rest of what it prints does not matter here.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
pub(super) struct Said {
    #[serde(default)]
    pub(super) bytes_written: u64,
    #[serde(default)]
    pub(super) bytes_zeroed: u64,
    #[serde(default)]
    pub(super) agent_peak_bytes: u64,
}

impl Tools {
    /// Installs ironic-python-agent from `PyPI`, once.
    pub(super) fn install_ipa(&self) -> Result<()> {
        let python = self.venv.join("bin/python");
        let there = python.exists().then(|| self.ipa_version()).transpose()?;
        if there.as_deref() == Some(IPA_VERSION) {
            return Ok(());
        }
        tracing::info!("ironic-python-agent {IPA_VERSION}: installing from PyPI");
        let venv = self.venv.to_string_lossy();
        run(&["python3", "-m", "venv", &venv])?;
        let package = format!("ironic-python-agent=={IPA_VERSION}");
        let pip = self.venv.join("bin/pip");
        run(&[&*pip.to_string_lossy(), "install", "--quiet", &package]).map(drop)
    }

    fn ipa_version(&self) -> Result<String> {
        let python = self.venv.join("bin/python");
        let ask = "from importlib.metadata import *\ntry: print(version('ironic-python-agent'))\n\
                   except PackageNotFoundError: print('none')";
        let said = run(&[&*python.to_string_lossy(), "-c", ask])?;
        Ok(said.trim().to_owned())
    }

    /// Writes what is fetched to the disk. What our agent says of it, when it is ours.
    pub(super) fn write(&self, way: Way, fetch: &Fetch, device: &str) -> Result<Option<Said>> {
        let (url, digest) = (&fetch.url, &fetch.digest);
        let sha256 = digest.trim_start_matches("sha256:");
        match way {
            Way::Ours(more) => return self.ours(more, url, digest, device).map(Some),
            Way::Pipe(decoder) => self.pipe(decoder, url, sha256, device)?,
            Way::QemuImg => self.qemu_img(url, sha256, device)?,
            Way::Bmaptool(map) => bmaptool(&self.files.join(map), url, device)?,
            Way::Ipa => self.ipa(url, sha256, device)?,
        }
        Ok(None)
    }

    fn ours(&self, more: &[&str], url: &str, digest: &str, device: &str) -> Result<Said> {
        let agent = self.agent.to_string_lossy();
        let what = ["write-image", "--source", url, "--disk", device];
        let how = ["--digest", digest, "--json", "--yes"];
        let printed = run(&[&[&*agent], &what[..], &how, more].concat())?;
        serde_json::from_str(&printed).context("reading what the agent printed")
    }

    fn pipe(&self, decoder: &str, url: &str, sha256: &str, device: &str) -> Result<()> {
        let fifo = self.ram.join("fifo");
        let _ = fs::remove_file(&fifo);
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
        let mut digest = command(&["sha256sum", &fifo.to_string_lossy()])
            .stdout(Stdio::piped())
            .spawn()?;
        let to = format!("of={device}");
        let piped = pipeline(&[
            &["curl", "--silent", "--show-error", "--fail", url],
            &["tee", &fifo.to_string_lossy()],
            &[decoder, "-dc"],
            &[
                "dd",
                &to,
                "bs=4M",
                "iflag=fullblock",
                "oflag=direct",
                "conv=fsync",
                "status=none",
            ],
        ]);
        if piped.is_err() {
            // Nobody may have opened the other end.
            let _ = digest.kill();
        }
        let printed = finish("sha256sum", digest)?;
        piped?;
        ensure!(printed.starts_with(sha256), "sha256sum printed {printed:?}");
        Ok(())
    }

    fn qemu_img(&self, url: &str, sha256: &str, device: &str) -> Result<()> {
        let staged = self.ram.join("staged");
        let path = staged.to_string_lossy();
        run(&[
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "-o",
            &path,
            url,
        ])?;
        let printed = run(&["sha256sum", &path])?;
        ensure!(printed.starts_with(sha256), "sha256sum printed {printed:?}");
        let how = ["-n", "-W", "-t", "none", "-O", "host_device"];
        run(&[&["qemu-img", "convert"], &how[..], &[&path, device]].concat())?;
        Ok(fs::remove_file(&staged)?)
    }

    fn ipa(&self, url: &str, sha256: &str, device: &str) -> Result<()> {
        let script = self.ram.join("ipa.py");
        fs::write(&script, IPA_SCRIPT)?;
        let python = self.venv.join("bin/python");
        let (python, script) = (python.to_string_lossy(), script.to_string_lossy());
        run(&[&python, &script, url, "sha256", sha256, device]).map(drop)
    }
}

/// From a URL of ours, so that its own reader and decoder are measured.
fn bmaptool(map: &Path, url: &str, device: &str) -> Result<()> {
    let map = map.to_string_lossy();
    run(&["bmaptool", "--quiet", "copy", "--bmap", &map, url, device]).map(drop)
}

/// Runs programs with each one's output as the next one's input, as a shell does with `pipefail`.
pub(super) fn pipeline(stages: &[&[&str]]) -> Result<()> {
    let mut children: Vec<(String, Child)> = Vec::new();
    let mut input = Stdio::null();
    for (index, argv) in stages.iter().enumerate() {
        let mut stage = command(argv);
        stage.stdin(input);
        if index + 1 < stages.len() {
            stage.stdout(Stdio::piped());
        } else {
            stage.stdout(File::create("/dev/null")?);
        }
        let shown = argv.join(" ");
        let mut child = stage.spawn().with_context(|| format!("starting {shown}"))?;
        input = child.stdout.take().map_or_else(Stdio::null, Stdio::from);
        children.push((shown, child));
    }
    let ends: Vec<_> = children
        .into_iter()
        .map(|(shown, child)| finish(&shown, child))
        .collect();
    ends.into_iter().try_for_each(|end| end.map(drop))
}

fn command(argv: &[&str]) -> Command {
    let mut command = Command::new(argv[0]);
    command.args(&argv[1..]).stderr(Stdio::piped());
    command
}

fn finish(shown: &str, mut child: Child) -> Result<String> {
    let mut printed = String::new();
    if let Some(out) = &mut child.stdout {
        out.read_to_string(&mut printed)?;
    }
    let mut said = String::new();
    if let Some(error) = &mut child.stderr {
        error.read_to_string(&mut said)?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{shown}` ended with {status}: {}", said.trim());
    }
    Ok(printed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_ends_well_only_when_each_part_does() {
        pipeline(&[&["echo", "text"], &["cat"], &["grep", "text"]]).unwrap();
        let error = pipeline(&[&["ls", "/no/such/folder"], &["cat"]]).unwrap_err();
        assert!(format!("{error:#}").contains("/no/such/folder"), "{error}");
    }
}

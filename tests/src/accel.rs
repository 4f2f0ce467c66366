//! How guests run: KVM where a guest was seen to run under it, else plain emulation (TCG).
//!
//! A `/dev/kvm` that opens proves nothing: there are machines where it does and a stock kernel then
//! hangs. So a real kernel is booted, and KVM is taken only when that kernel gets to the place
//! where it looks for its root. The verdict is kept until the machine boots again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::conductor::target_dir;

const DEVICE: &str = "/dev/kvm";
/// A kernel without a root says this within a second on any machine with working KVM.
const PATIENCE: Duration = Duration::from_secs(6);
const SIGN_OF_LIFE: &str = "Unable to mount root fs";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    Kvm,
    Tcg,
}

impl Accel {
    pub(crate) fn argument(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg,thread=multi",
        }
    }

    /// Under emulation the "fast" string moves are byte loops: a kernel that believes in them
    /// copies at half the speed (119 against 227 MB/s here), so they are hidden from it.
    pub(crate) fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max,-erms,-fsrm",
        }
    }
}

/// What was found, and from what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub accel: Accel,
    pub why: String,
    /// The boot of this machine in which it was found.
    boot: String,
}

/// The best way that was seen to work on this machine: tried with the ramdisk's kernel where it has
/// been built, else with one of this machine's. `FERRITE_ACCEL=tcg` or `kvm` skips the trial.
pub fn choose() -> Accel {
    let target = target_dir().unwrap_or_else(|_| PathBuf::from("target"));
    let mut kernels = vec![target.join("boot/vmlinuz")];
    let installed = fs::read_dir("/boot")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    kernels.extend(installed.filter(|path| path.to_string_lossy().contains("/vmlinuz")));
    let found = try_kernels(&kernels, &target.join("accel.json"));
    tracing::info!(accel = ?found.accel, why = found.why, "how hosts run");
    found.accel
}

/// Tries the first of `kernels` that exists.
fn try_kernels(kernels: &[PathBuf], cache: &Path) -> Verdict {
    let boot = boot_id();
    match std::env::var("FERRITE_ACCEL").as_deref() {
        Ok("tcg") => {
            return Verdict {
                accel: Accel::Tcg,
                why: "FERRITE_ACCEL says so".into(),
                boot,
            };
        }
        Ok("kvm") => {
            return Verdict {
                accel: Accel::Kvm,
                why: "FERRITE_ACCEL says so".into(),
                boot,
            };
        }
        _ => (),
    }
    if let Some(known) = read_cache(cache).filter(|known| known.boot == boot) {
        return known;
    }
    let Some(kernel) = kernels.iter().find(|kernel| kernel.is_file()) else {
        let why = "there is no kernel to try KVM with yet".to_owned();
        return Verdict {
            accel: Accel::Tcg,
            why,
            boot,
        }; // not kept: later there may be one
    };
    let verdict = match try_kvm(kernel) {
        Ok(took) => Verdict {
            accel: Accel::Kvm,
            why: format!("a kernel ran under it in {took:.1?}"),
            boot,
        },
        Err(error) => Verdict {
            accel: Accel::Tcg,
            why: format!("no KVM: {error:#}"),
            boot,
        },
    };
    write_cache(cache, &verdict);
    verdict
}

fn try_kvm(kernel: &Path) -> Result<Duration> {
    fs::File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .context("opening /dev/kvm")?;
    let console = tempfile::NamedTempFile::new()?;
    let started = Instant::now();
    let mut child = Command::new("qemu-system-x86_64")
        .args("-nodefaults -no-user-config -display none -machine q35 -m 256 -no-reboot".split(' '))
        .args([
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-append",
            "console=ttyS0 panic=-1",
        ])
        .arg("-kernel")
        .arg(kernel)
        .args([
            "-chardev".into(),
            format!("file,id=c,path={}", console.path().display()),
        ])
        .args(["-serial", "chardev:c"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting qemu-system-x86_64")?;
    let lived = wait_for_life(&mut child, console.path(), started);
    let _ = child.kill();
    let _ = child.wait();
    lived.map(|()| started.elapsed())
}

fn wait_for_life(child: &mut Child, console: &Path, started: Instant) -> Result<()> {
    loop {
        let ended = child.try_wait()?;
        let shown = fs::read(console).unwrap_or_default();
        let shown = String::from_utf8_lossy(&shown);
        if shown.contains(SIGN_OF_LIFE) {
            return Ok(());
        }
        let last = shown
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .unwrap_or("nothing");
        if let Some(ended) = ended {
            bail!("QEMU ended with {ended}; the guest's last line: {last}");
        }
        if started.elapsed() > PATIENCE {
            bail!("the guest hung; its last line within {PATIENCE:?}: {last}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

fn read_cache(cache: &Path) -> Option<Verdict> {
    serde_json::from_slice(&fs::read(cache).ok()?).ok()
}

fn write_cache(cache: &Path, verdict: &Verdict) {
    let text = serde_json::to_vec_pretty(verdict).unwrap_or_default();
    let made = cache.parent().map_or(Ok(()), fs::create_dir_all);
    if let Err(error) = made.and_then(|()| fs::write(cache, text)) {
        tracing::debug!(%error, "the verdict on KVM is not kept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_kernel_to_try_nothing_is_believed_or_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("accel.json");
        let verdict = try_kernels(&[dir.path().join("none")], &cache);
        assert_eq!(verdict.accel, Accel::Tcg);
        assert!(!cache.exists());
    }

    #[test]
    fn what_does_not_run_under_kvm_is_emulated_and_remembered_for_this_boot() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, kernel) = (dir.path().join("accel.json"), dir.path().join("vmlinuz"));
        fs::write(&kernel, "no kernel").unwrap();
        let verdict = try_kernels(std::slice::from_ref(&kernel), &cache);
        assert_eq!(verdict.accel, Accel::Tcg, "{}", verdict.why);
        assert_eq!(read_cache(&cache), Some(verdict));

        let old = Verdict {
            accel: Accel::Kvm,
            why: String::new(),
            boot: "another".into(),
        };
        write_cache(&cache, &old);
        assert_eq!(
            try_kernels(&[kernel], &cache).accel,
            Accel::Tcg,
            "a verdict outlived its boot"
        );
    }
}

//! kubeadm and the kubelet for a guest of the tests: one program that is what it is called.
//!
//! It takes the words that Ferrite and the units of the Debian packages use, no others, reads and
//! writes the files that the real ones do, and says what they say. Its cluster is real or the
//! tests' own; it runs no pods, and looks at nothing that a container runtime does.

mod files;
mod kubeadm;
mod kubelet;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use ferrite_tests_node::VERSION;

use crate::files::Files;

fn main() -> ExitCode {
    let mut words = std::env::args();
    let name = words.next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default().to_owned();
    let words: Vec<String> = words.collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match name.to_str() {
        Some("kubeadm") => as_kubeadm(&words),
        Some("kubelet") => as_kubelet(&words),
        _ => Err(anyhow::anyhow!("call me `kubeadm` or `kubelet`")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nowhere to tell that this cannot be told.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn as_kubeadm(words: &[&str]) -> Result<()> {
    let files = Files::system();
    match words {
        ["version", "-o", "short"] => say(VERSION),
        ["join", "--config", configuration, ..] => {
            in_runtime(kubeadm::join(&files, Path::new(configuration)))
        }
        ["reset", ..] => kubeadm::reset(&files),
        _ => bail!("unknown command {words:?}"),
    }
}

fn as_kubelet(words: &[&str]) -> Result<()> {
    match words {
        ["--version"] => say(&format!("Kubernetes {VERSION}")),
        _ => in_runtime(kubelet::run(&Files::system(), words)),
    }
}

fn in_runtime(work: impl Future<Output = Result<()>>) -> Result<()> {
    // An error says that it is installed already.
    drop(rustls::crypto::ring::default_provider().install_default());
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

/// A line for people.
fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

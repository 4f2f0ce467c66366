//! `ferrite-lab schemathesis`: every call of the `OpenAPI` document, with values that it allows and
//! values that it does not, against a real conductor.
//!
//! In a network of its own without a way out: the hosts that are enrolled here have BMCs anywhere.
//! What is called how is said by `tests/schemathesis.toml`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::net;
use crate::swarm::{Served, ferrite};

/// What a run does.
#[derive(Debug, Clone, Args)]
pub struct SchemathesisArgs {
    /// Where `make schemathesis` installed it.
    #[arg(long, default_value = "target/schemathesis-venv/bin/st")]
    program: PathBuf,
    /// How it calls.
    #[arg(long, default_value = "tests/schemathesis.toml")]
    settings: PathBuf,
    /// Only what is made from the document without chance: under a minute.
    #[arg(long)]
    quick: bool,
    /// Other values than those that are the same each time.
    #[arg(long)]
    seed: Option<u32>,
    /// Further arguments of `st run`.
    #[arg(last = true)]
    more: Vec<String>,
}

/// Starts a conductor, has it called, and ends it.
///
/// # Errors
/// When a check failed, or none could be made.
pub fn run(args: &SchemathesisArgs) -> Result<()> {
    net::without_a_way_out()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(check(args))
}

async fn check(args: &SchemathesisArgs) -> Result<()> {
    let dir = tempfile::tempdir().context("making a folder for the conductor's state")?;
    let binary = ferrite().context("looking for the conductor: `make build` makes it")?;
    let served = Served::start(&binary, dir.path(), "").await?;
    let called = call(args, &served.url, &dir.path().join("state"));
    let ended = served.ended()?;
    let panics = panics(&served.log())?;
    served.kill()?;
    if let Some(status) = ended {
        bail!("the conductor ended while it was called: {status}");
    }
    ensure!(
        panics.is_empty(),
        "the conductor panicked:\n{}",
        panics.join("\n")
    );
    called
}

fn call(args: &SchemathesisArgs, url: &str, state: &Path) -> Result<()> {
    let token = state.join("admin.token");
    let token = std::fs::read_to_string(&token).context("reading the first token")?;
    let mut command = Command::new(std::path::absolute(&args.program)?);
    command
        .arg("--config-file")
        .arg(&args.settings)
        .args(["run", &format!("{url}/openapi.json")])
        .arg("--tls-verify")
        .arg(state.join("ca.pem"))
        .args(&args.more)
        .env("FERRITE_TOKEN", token.trim())
        // What it learns is not for the next run, and not for this folder.
        .env("HYPOTHESIS_STORAGE_DIRECTORY", state.join("hypothesis"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null());
    match args.seed {
        Some(seed) => command.args(["--seed", &seed.to_string()]),
        None => command.arg("--generation-deterministic"),
    };
    if args.quick {
        command.args(["--phases", "examples,coverage"]);
    }
    let status = command.status();
    let status = status.context("starting schemathesis: `make schemathesis` installs it")?;
    ensure!(status.success(), "schemathesis: {status}");
    Ok(())
}

/// A panic in a handler ends a call, not the conductor: it is looked for.
fn panics(log: &Path) -> Result<Vec<String>> {
    let log = std::fs::read_to_string(log).context("reading the conductor's log")?;
    let told = log.lines().filter(|line| line.contains("panicked at"));
    Ok(told.map(str::to_owned).collect())
}

//! End-to-end scenarios on virtual machines with real firmware, from powered off to provisioned.
//!
//! Its own harness, because these need root, artifacts that `make` builds, and one machine at a
//! time; and because what cannot run must be said at the end and never passed over silently.
//! `--short` (the default) runs one representative of each kind, `--all` every case, `--part NAME`
//! one named part, any other word those scenarios whose name contains it. `--kube` runs those that
//! a real Kubernetes takes part in, and refuses to run them without.

mod boot_paths;
mod faults;
mod join;
mod operations;
mod restarts;
mod world;

use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use ferrite_tests::control_plane::Binaries;
use world::World;

/// One case.
#[derive(Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// The part of `make test-all` that it belongs to.
    pub(crate) part: &'static str,
    /// Whether `make test` runs it.
    pub(crate) short: bool,
    pub(crate) run: fn(&World) -> Result<()>,
}

enum Choice {
    Short,
    All,
    Part(String),
    Kube,
    Names(Vec<String>),
}

impl Choice {
    fn from_arguments() -> Self {
        let mut words = std::env::args().skip(1);
        let mut names = Vec::new();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--short" => return Self::Short,
                "--all" => return Self::All,
                "--kube" => return Self::Kube,
                "--part" => return Self::Part(words.next().unwrap_or_default()),
                option if option.starts_with("--") => {}
                _ => names.push(word),
            }
        }
        if names.is_empty() {
            Self::Short
        } else {
            Self::Names(names)
        }
    }

    fn takes(&self, scenario: &Scenario) -> bool {
        match self {
            Self::Short => scenario.short,
            Self::All => true,
            Self::Part(part) => scenario.part == part,
            Self::Kube => scenario.part == "join",
            Self::Names(names) => names
                .iter()
                .any(|name| scenario.name.contains(name.as_str())),
        }
    }
}

fn main() -> ExitCode {
    let scenarios = [
        boot_paths::SCENARIOS,
        faults::SCENARIOS,
        join::SCENARIOS,
        operations::SCENARIOS,
        restarts::SCENARIOS,
    ]
    .concat();
    let choice = Choice::from_arguments();
    let chosen: Vec<&Scenario> = scenarios.iter().filter(|one| choice.takes(one)).collect();
    let mut out = std::io::stdout().lock();
    let is_kube = matches!(choice, Choice::Kube);
    if is_kube && let Err(lacking) = Binaries::demand() {
        let _ = writeln!(out, "{lacking:#}");
        return ExitCode::from(2);
    }
    let world = match World::find() {
        Ok(world) => world,
        Err(lacking) if is_kube => {
            let _ = writeln!(out, "{lacking:#}");
            return ExitCode::FAILURE;
        }
        Err(lacking) => {
            let _ = writeln!(
                out,
                "skipped: {} end-to-end scenarios: {lacking:#}",
                chosen.len()
            );
            let _ = writeln!(out, "0 passed, 0 failed, {} skipped", chosen.len());
            return ExitCode::SUCCESS;
        }
    };
    let mut failed = Vec::new();
    for scenario in &chosen {
        let _ = write!(out, "scenario {} ... ", scenario.name);
        let _ = out.flush();
        let started = Instant::now();
        let result = world.run(scenario);
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => drop(writeln!(out, "ok ({seconds:.0} s)")),
            Err(error) => {
                let _ = writeln!(out, "FAILED ({seconds:.0} s)\n{error:#}\n");
                failed.push(scenario.name);
            }
        }
    }
    let passed = chosen.len() - failed.len();
    for name in &failed {
        let _ = writeln!(out, "failed: {name}; its files are in target/e2e/{name}/");
    }
    let _ = writeln!(out, "{passed} passed, {} failed, 0 skipped", failed.len());
    if failed.is_empty() && !chosen.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

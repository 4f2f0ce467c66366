//! `make bench-imaging`: an image from a server on loopback to a disk in memory, by our agent and
//! by what people use today. The same input, the same digest check, the same bytes at the end, in
//! turns. Rows that lose are printed as well.
//!
//! A run that leaves one wrong byte on the disk has failed, whoever's it is. Figures go to
//! `target/bench-imaging.json` as well.

mod cases;
mod disk;
mod inputs;
mod limit;
mod make;
mod measure;
mod rivals;
mod serve;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use self::cases::{CASES, CONTENDERS, Contender};
use self::disk::{Before, Disk, Ram};
use self::inputs::Inputs;
use self::limit::Rates;
use self::measure::Figures;
use self::rivals::{Said, Tools, Way};
use self::serve::Server;
use crate::conductor::target_dir;
use crate::net::require_root;

/// Whoever takes longer than this
const SLOW_SECONDS: f64 = 8.0;
/// has no more runs than these.
const RUNS_OF_THE_SLOW: usize = 3;

/// Writes images in our way and in others', and prints what each cost.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// One run each: for a look, not for a figure.
    #[arg(long)]
    quick: bool,
    /// Runs of each contender; the median counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Only contenders whose name has one of these in it.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Leave the peers out.
    #[arg(long)]
    no_peers: bool,
    /// Make the inputs, and measure nothing.
    #[arg(long)]
    inputs_only: bool,
    /// Our agent; `target/ferrite-agent` by default.
    #[arg(long)]
    agent: Option<PathBuf>,
    /// `ferrite-image`; the one beside this program by default.
    #[arg(long)]
    image_tool: Option<PathBuf>,
}

/// What a contender's runs came to.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    runs: Vec<Figures>,
    said: Vec<Said>,
    /// Why it is out: nothing of it counts then.
    failure: Option<String>,
}

impl Outcome {
    /// Who takes long varies little, and would take most of the bench's time.
    fn is_enough(&self) -> bool {
        self.runs.len() >= RUNS_OF_THE_SLOW && self.runs.iter().all(|run| run.wall > SLOW_SECONDS)
    }
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
struct Report {
    cores: usize,
    /// Bytes of the upgraded packed image's chunks that the old one has not.
    changed: Option<u64>,
    rates: Rates,
    outcomes: BTreeMap<&'static str, Outcome>,
}

/// Measures and prints.
pub fn run(args: &BenchArgs) -> Result<()> {
    require_root()?;
    let target = target_dir()?;
    let dir = target.join("bench-imaging");
    let image_tool = match &args.image_tool {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("ferrite-image"),
    };
    let inputs = Inputs::ready(&dir.join("files"), &image_tool)?;
    if args.inputs_only {
        return Ok(());
    }
    let ram = Ram::mount(&dir.join("ram"))?;
    let tools = Tools {
        agent: args
            .agent
            .clone()
            .unwrap_or_else(|| target.join("ferrite-agent")),
        ram: ram.path().to_owned(),
        venv: dir.join("venv"),
    };
    let shown = tools.agent.display();
    ensure!(tools.agent.exists(), "{shown} is not there: make agent");
    let chosen = chosen(args);
    if chosen.iter().any(|contender| contender.way == Way::Ipa) {
        tools.install_ipa()?;
    }
    let server = Server::start(inputs.dir())?;
    let bench = Bench {
        inputs,
        server,
        tools,
    };
    let report = Report {
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        changed: bench
            .inputs
            .changed("debian.packed.zst", "upgraded.packed.zst")
            .ok(),
        outcomes: bench.compete(&chosen, if args.quick { 1 } else { args.runs })?,
        rates: bench.rates()?,
    };
    let file = target.join("bench-imaging.json");
    std::fs::write(&file, serde_json::to_vec_pretty(&report)?)?;
    table::print(&report, &CASES, &mut std::io::stdout().lock())?;
    tracing::info!("the figures lie in {}", file.display());
    Ok(())
}

fn chosen(args: &BenchArgs) -> Vec<&'static Contender> {
    let wanted = |contender: &&Contender| {
        let ours = matches!(contender.way, Way::Ours(_));
        let named = |part: &String| contender.name.contains(part.as_str());
        (ours || !args.no_peers) && (args.only.is_empty() || args.only.iter().any(named))
    };
    CONTENDERS.iter().filter(wanted).collect()
}

struct Bench {
    inputs: Inputs,
    server: Server,
    tools: Tools,
}

impl Bench {
    /// Each contender in turn, image by image, again and again.
    fn compete(
        &self,
        chosen: &[&'static Contender],
        rounds: usize,
    ) -> Result<BTreeMap<&'static str, Outcome>> {
        let mut outcomes: BTreeMap<_, Outcome> = BTreeMap::new();
        for of in inputs::IMAGES {
            let group = chosen.iter().filter(|contender| contender.image == of);
            let group: Vec<_> = group.copied().collect();
            let Some(first) = group.first() else {
                continue;
            };
            let disk = Disk::new(&self.tools.ram, self.inputs.get(first.image)?.bytes)?;
            for contender in &group {
                // What is not there fails where it is needed.
                let _ = self.inputs.warm(contender.file);
            }
            for round in 1..=rounds {
                for contender in &group {
                    let outcome = outcomes.entry(contender.name).or_default();
                    if outcome.failure.is_none() && !outcome.is_enough() {
                        self.once(contender, &disk, round, outcome)?;
                    }
                }
            }
        }
        Ok(outcomes)
    }

    fn once(
        &self,
        contender: &Contender,
        disk: &Disk,
        round: usize,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let before = match contender.before {
            Before::Blank => None,
            Before::Holds(image) => Some(self.inputs.path(image)),
        };
        disk.prepare(before.as_deref())?;
        let mut said = None;
        let figures = measure::measured(&self.server, disk, || {
            let (way, file) = (contender.way, contender.file);
            let (inputs, server) = (&self.inputs, &self.server);
            said = self.tools.write(way, file, inputs, server, disk.device())?;
            Ok(())
        });
        let right = |figures| disk.check(&self.raw(contender)).map(|()| figures);
        match figures.and_then(right) {
            Ok(figures) => {
                let name = contender.name;
                tracing::info!("{name}, run {round}: {:.2} s", figures.wall);
                outcome.runs.push(figures);
                outcome.said.extend(said);
            }
            Err(error) => {
                tracing::warn!("{}: {error:#}", contender.name);
                outcome.failure = Some(format!("{error:#}"));
            }
        }
        Ok(())
    }

    fn raw(&self, contender: &Contender) -> PathBuf {
        self.inputs.path(contender.image)
    }

    /// What this machine can do, one thing at a time.
    fn rates(&self) -> Result<Rates> {
        let bytes = self.inputs.get(inputs::DENSE)?.bytes;
        let disk = Disk::new(&self.tools.ram, bytes)?;
        disk.prepare(None)?;
        Rates::measure(&self.inputs, &self.server, &disk)
            .context("measuring what the machine can do")
    }
}

/// A file's path as an argument.
fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

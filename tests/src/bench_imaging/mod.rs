//! `make bench-imaging`: an image from a server on loopback to a disk in memory, by our agent and
//! by what people use today: on this machine to a loop device, and in a guest of QEMU to its virtio
//! disk. The same input, the same digest check, the same bytes at the end, in turns. Rows that lose
//! are printed as well.
//!
//! A run that leaves one wrong byte on the disk has failed, whoever's it is. Figures go to
//! `target/bench-imaging.json` as well.

mod cases;
mod disk;
mod guest;
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
use serde::{Deserialize, Serialize};

pub use self::guest::inside;

use self::cases::{CASES, Case, Contender, GUEST_CASES, contenders};
use self::disk::{Before, Disk, Ram};
use self::guest::Guest;
use self::inputs::Inputs;
use self::limit::{Probe, Rates};
use self::measure::Figures;
use self::rivals::{Fetch, Said, Tools, Way};
use self::serve::Server;
use crate::conductor::target_dir;
use crate::net::require_root;

/// Whoever takes longer than this
const SLOW_SECONDS: f64 = 8.0;
/// has no more runs than these.
const RUNS_OF_THE_SLOW: usize = 3;

/// Writes images in our way and in others', and prints what each cost.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line"
)]
pub struct BenchArgs {
    /// One run each: for a look, not for a figure.
    #[arg(long)]
    quick: bool,
    /// Runs of each contender; the median counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Only contenders whose name has one of these in it; those in the guest have `guest`.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Leave the peers out.
    #[arg(long)]
    no_peers: bool,
    /// Leave the guest out.
    #[arg(long)]
    no_guest: bool,
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

impl BenchArgs {
    fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.runs }
    }

    fn chosen(&self, cases: &[Case]) -> Vec<Contender> {
        let wanted = |contender: &Contender| {
            let ours = matches!(contender.way, Way::Ours(_));
            let name = contender.to_string();
            let named = |part: &String| name.contains(part.as_str());
            (ours || !self.no_peers) && (self.only.is_empty() || self.only.iter().any(named))
        };
        contenders(cases).into_iter().filter(wanted).collect()
    }
}

/// One run: what it cost, and what our agent said of it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Written {
    figures: Figures,
    said: Option<Said>,
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

/// Everything that was measured in one place.
#[derive(Debug, Serialize)]
struct Section {
    place: String,
    cores: usize,
    /// Bytes of the upgraded packed image's chunks that the old one has not.
    changed: Option<u64>,
    /// Of each image: all its bytes, and those that are not holes.
    sizes: BTreeMap<&'static str, (u64, u64)>,
    rates: Rates,
    outcomes: BTreeMap<String, Outcome>,
    #[serde(skip)]
    cases: &'static [Case],
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
    let agent = target.join("ferrite-agent");
    let agent = args.agent.clone().unwrap_or(agent);
    ensure!(
        agent.exists(),
        "{} is not there: make agent",
        agent.display()
    );
    let server = Server::start(inputs.dir())?;
    let bench = Bench { inputs, server };
    let mut sections = Vec::new();
    let here = args.chosen(&CASES);
    if !here.is_empty() {
        let tools = Tools {
            agent: agent.clone(),
            files: bench.inputs.dir().to_owned(),
            ram: ram.path().to_owned(),
            venv: dir.join("venv"),
        };
        sections.push(bench.here(tools, &here, args.rounds())?);
    }
    let inside = args.chosen(&GUEST_CASES);
    if !inside.is_empty() && !args.no_guest {
        sections.push(bench.in_guest(&agent, &ram, &inside, args.rounds())?);
    }
    let file = target.join("bench-imaging.json");
    std::fs::write(&file, serde_json::to_vec_pretty(&sections)?)?;
    table::print(&sections, &mut std::io::stdout().lock())?;
    tracing::info!("the figures lie in {}", file.display());
    Ok(())
}

/// Where contenders write.
trait Ground {
    /// The next ones are of this image, on a disk of so many bytes.
    fn begin(&mut self, image: &str, bytes: u64) -> Result<()>;

    /// Makes the disk hold `held`, or old data, and has a contender write it.
    fn write(
        &mut self,
        contender: &Contender,
        held: Option<&Path>,
        fetch: &Fetch,
    ) -> Result<Written>;

    /// Fails at the first byte that is not as in `raw`.
    fn check(&mut self, raw: &Path) -> Result<()>;
}

/// This machine, with a loop device.
struct Here {
    tools: Tools,
    disk: Option<Disk>,
}

impl Here {
    fn disk(&self) -> Result<&Disk> {
        self.disk.as_ref().context("no disk is there")
    }
}

impl Ground for Here {
    fn begin(&mut self, _image: &str, bytes: u64) -> Result<()> {
        self.disk = None;
        self.disk = Some(Disk::new(&self.tools.ram, bytes)?);
        Ok(())
    }

    fn write(
        &mut self,
        contender: &Contender,
        held: Option<&Path>,
        fetch: &Fetch,
    ) -> Result<Written> {
        let disk = self.disk()?;
        disk.prepare(held)?;
        self.tools.measured(contender.way, fetch, &disk.device)
    }

    fn check(&mut self, raw: &Path) -> Result<()> {
        self.disk()?.check(raw)
    }
}

impl Tools {
    fn measured(&self, way: Way, fetch: &Fetch, device: &disk::Device) -> Result<Written> {
        let mut said = None;
        let figures = measure::measured(device, || {
            said = self.write(way, fetch, device.name())?;
            Ok(())
        })?;
        Ok(Written { figures, said })
    }
}

struct Bench {
    inputs: Inputs,
    server: Server,
}

impl Bench {
    fn here(&self, tools: Tools, chosen: &[Contender], rounds: usize) -> Result<Section> {
        if chosen.iter().any(|contender| contender.way == Way::Ipa) {
            tools.install_ipa()?;
        }
        let ram = tools.ram.clone();
        let mut here = Here { tools, disk: None };
        let outcomes = self.compete(&mut here, &inputs::IMAGES, chosen, rounds)?;
        drop(here);
        let disk = Disk::new(&ram, self.inputs.get(inputs::DENSE)?.bytes)?;
        disk.prepare(None)?;
        let rates = self.probe()?.rates(&disk.device);
        Ok(Section {
            place: "a loop device on tmpfs".to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            changed: Some(
                self.inputs
                    .changed("debian.packed.zst", "upgraded.packed.zst")?,
            ),
            sizes: self.sizes(&inputs::IMAGES)?,
            rates: rates.context("measuring what the machine can do")?,
            outcomes,
            cases: &CASES,
        })
    }

    fn in_guest(
        &self,
        agent: &Path,
        ram: &Ram,
        chosen: &[Contender],
        rounds: usize,
    ) -> Result<Section> {
        let bytes = |image: &&'static str| Ok((*image, self.inputs.get(image)?.bytes));
        let disks: Vec<_> = inputs::GUEST_IMAGES
            .iter()
            .map(bytes)
            .collect::<Result<_>>()?;
        let mut guest = Guest::start(ram.path(), agent, &disks)?;
        let outcomes = self.compete(&mut guest, &inputs::GUEST_IMAGES, chosen, rounds)?;
        let rates = guest.rates(&self.guest_probe()?);
        let (place, cores) = (guest.place(), guest.cores());
        guest.end()?;
        Ok(Section {
            place,
            cores,
            changed: None,
            sizes: self.sizes(&inputs::GUEST_IMAGES)?,
            rates: rates.context("measuring what the guest can do")?,
            outcomes,
            cases: &GUEST_CASES,
        })
    }

    /// Each contender in turn, image by image, again and again.
    fn compete(
        &self,
        ground: &mut impl Ground,
        images: &[&'static str],
        chosen: &[Contender],
        rounds: usize,
    ) -> Result<BTreeMap<String, Outcome>> {
        let mut outcomes: BTreeMap<_, Outcome> = BTreeMap::new();
        for image in images {
            let group = chosen.iter().filter(|contender| contender.image == *image);
            let group: Vec<_> = group.collect();
            if group.is_empty() {
                continue;
            }
            ground.begin(image, self.inputs.get(image)?.bytes)?;
            for contender in &group {
                // What is not there fails where it is needed.
                let _ = self.inputs.warm(contender.file);
            }
            for round in 1..=rounds {
                for contender in &group {
                    let name = contender.to_string();
                    let outcome = outcomes.entry(name.clone()).or_default();
                    if outcome.failure.is_some() || outcome.is_enough() {
                        continue;
                    }
                    match self.once(ground, contender) {
                        Ok(written) => {
                            tracing::info!("{name}, run {round}: {:.2} s", written.figures.wall);
                            outcome.runs.push(written.figures);
                            outcome.said.extend(written.said);
                        }
                        Err(error) => {
                            tracing::warn!("{name}: {error:#}");
                            outcome.failure = Some(format!("{error:#}"));
                        }
                    }
                }
            }
        }
        Ok(outcomes)
    }

    /// One run, with every byte of the disk compared afterwards.
    fn once(&self, ground: &mut impl Ground, contender: &Contender) -> Result<Written> {
        let held = match contender.before {
            Before::Used => None,
            Before::Holds(image) => Some(self.inputs.path(image)),
        };
        let fetch = Fetch {
            url: self.server.url(contender.file),
            digest: self.inputs.digest(contender.file)?,
        };
        let sent = self.server.sent();
        let mut written = ground.write(contender, held.as_deref(), &fetch)?;
        written.figures.fetched = self.server.sent() - sent;
        ground.check(&self.inputs.path(contender.image))?;
        Ok(written)
    }

    fn sizes(&self, images: &[&'static str]) -> Result<BTreeMap<&'static str, (u64, u64)>> {
        let size = |image: &&'static str| {
            let data = disk::data_bytes(&self.inputs.path(image))?;
            Ok((*image, (self.inputs.get(image)?.bytes, data)))
        };
        images.iter().map(size).collect()
    }

    fn probe(&self) -> Result<Probe> {
        let (inputs, zst) = (&self.inputs, "dense.raw.zst");
        inputs.warm(zst)?;
        Ok(Probe {
            url: self.server.url(zst),
            dense_zst: inputs.path(zst),
            sparse_zst: inputs.path("debian.raw.zst"),
            dense_gz: Some(inputs.path("dense.raw.gz")),
            zlib_qcow2: Some(inputs.path("debian-zlib.qcow2")),
            dense_bytes: inputs.get(inputs::DENSE)?.bytes,
            sparse_bytes: inputs.get(inputs::SPARSE)?.bytes,
            sparse_data: disk::data_bytes(&inputs.path(inputs::SPARSE))?,
            packed_bytes: inputs.get(zst)?.bytes,
        })
    }

    /// The guest fetches its files itself: these are their URLs.
    fn guest_probe(&self) -> Result<Probe> {
        let (inputs, zst) = (&self.inputs, "guest-dense.raw.zst");
        Ok(Probe {
            url: self.server.url(zst),
            dense_zst: self.server.url(zst).into(),
            sparse_zst: self.server.url("guest-sparse.raw.zst").into(),
            dense_bytes: inputs.get(inputs::GUEST_DENSE)?.bytes,
            sparse_bytes: inputs.get(inputs::GUEST_SPARSE)?.bytes,
            packed_bytes: inputs.get(zst)?.bytes,
            ..Probe::default()
        })
    }
}

/// A file's path as an argument.
fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

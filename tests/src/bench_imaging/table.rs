//! The bench's one table, for people: our figures, each peer's below, what was expected and whether
//! it was met; then what this machine can do at best.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::Result;

use super::cases::{Case, Contender, Expect};
use super::disk::START;
use super::limit::{Bound, Load, Rate};
use super::measure::Figures;
use super::rivals::Way;
use super::{Outcome, Section};

const MISSED: &str = "MISSED";
/// The agent's memory, whatever it writes.
const RSS_AT_MOST: u64 = 96 << 20;

/// How much of a failure the table shows; all of it was said when it happened.
const SHOWN: usize = 160;

/// Prints everything.
pub(super) fn print(sections: &[Section], out: &mut impl Write) -> Result<()> {
    sections.iter().try_for_each(|section| one(section, out))
}

fn one(section: &Section, out: &mut impl Write) -> Result<()> {
    let (place, cores) = (&section.place, section.cores);
    writeln!(
        out,
        "\nimages to {place}, {cores} cores, median of the runs, MiB; ratio: theirs / ours\n{START}"
    )?;
    writeln!(
        out,
        "{:<30} {:>4} {:>7} {:>7} {:>9} {:>8} {:>9} {:>9} {:>8} {:>8}  expected",
        "",
        "runs",
        "wall s",
        "CPU s",
        "peak MiB",
        "all MiB",
        "fetched",
        "written",
        "zeroed",
        "ratio"
    )?;
    let outcome = |contender: &Contender| section.outcomes.get(&contender.to_string());
    for case in section.cases {
        let Some(ours) = outcome(&case.ours) else {
            continue;
        };
        writeln!(out, "{}", case.name)?;
        let mut missed = Vec::new();
        let bound = bound(section, case, ours);
        row(out, "ours", ours, &limit(ours, &bound))?;
        for (peer, expect) in case.peers {
            let Some(theirs) = outcome(peer) else {
                continue;
            };
            let verdict = verdict(ours, theirs, *expect, section.changed);
            if verdict.contains(MISSED) {
                missed.push(median(&theirs.runs).wall);
            }
            let name = match peer.way {
                Way::Ours(_) => "ours, a first write".to_owned(),
                way => way.to_string(),
            };
            row(out, &name, theirs, &verdict)?;
        }
        if !missed.is_empty() {
            explain(out, &bound, &missed, cores)?;
            profile(out, ours)?;
        }
    }
    memory(section, out)?;
    limits(section, out)
}

/// What this machine could do at best.
#[expect(clippy::cast_precision_loss, reason = "seconds for a table")]
fn bound(section: &Section, case: &Case, ours: &Outcome) -> Bound {
    let figures = median(&ours.runs);
    let sizes = section.sizes.get(case.ours.image).copied();
    let (bytes, data) = sizes.unwrap_or_default();
    let said = ours.said.last();
    let load = Load {
        rates: &section.rates,
        bytes: bytes as f64,
        data: data as f64,
        fetched: figures.fetched as f64,
        written: said.map_or(figures.written, |said| said.bytes_written) as f64,
        zeroed: said.map_or(0, |said| said.bytes_zeroed) as f64,
    };
    case.limit.of(&load, section.cores)
}

/// How near ours is to it.
fn limit(ours: &Outcome, bound: &Bound) -> String {
    if ours.failure.is_some() {
        return String::new();
    }
    let Bound { seconds, why, .. } = bound;
    let share = 100.0 * seconds / median(&ours.runs).wall.max(1e-9);
    format!("  limit {seconds:.2} s ({why}): {share:.0} % of that speed")
}

/// The work of a row that missed, measured one thing at a time, and what it would come to at best.
fn explain(out: &mut impl Write, bound: &Bound, theirs: &[f64], cores: usize) -> Result<()> {
    let shown = bound.parts.iter();
    let shown: Vec<_> = shown
        .map(|(name, seconds)| format!("{name} {seconds:.2}"))
        .collect();
    let best: Vec<_> = theirs
        .iter()
        .map(|wall| format!("{:.2} ×", wall / bound.seconds.max(1e-9)))
        .collect();
    Ok(writeln!(
        out,
        "    seconds of each part for itself: {}; by {} on {cores} cores {:.2} s: {} at best",
        shown.join(", "),
        bound.why,
        bound.seconds,
        best.join(", ")
    )?)
}

/// Where the processor time of a row that missed went, by thread.
fn profile(out: &mut impl Write, ours: &Outcome) -> Result<()> {
    let figures = median(&ours.runs);
    let mut threads: Vec<_> = figures.threads.iter().collect();
    threads.sort_by(|one, other| other.1.total_cmp(one.1));
    let shown = threads.iter().take(8);
    let shown: Vec<_> = shown
        .map(|(name, seconds)| format!("{name} {seconds:.2}"))
        .collect();
    Ok(writeln!(out, "    CPU s by thread: {}", shown.join(", "))?)
}

fn row(out: &mut impl Write, name: &str, outcome: &Outcome, verdict: &str) -> Result<()> {
    if let Some(failure) = &outcome.failure {
        let line: String = failure.replace('\n', " ").chars().take(SHOWN).collect();
        return Ok(writeln!(out, "  {name:<28} FAILED: {line}")?);
    }
    let figures = median(&outcome.runs);
    // Zeroing by a command is among what the device counts; only our agent says how much.
    let zeroed = outcome.said.last().map(|said| said.bytes_zeroed);
    let written = figures.written.saturating_sub(zeroed.unwrap_or(0));
    let zeroed = zeroed.map_or_else(|| "-".to_owned(), |bytes| (bytes >> 20).to_string());
    Ok(writeln!(
        out,
        "  {name:<28} {:>4} {:>7.2} {:>7.2} {:>9} {:>8} {:>9} {:>9} {zeroed:>8} {verdict}",
        outcome.runs.len(),
        figures.wall,
        figures.cpu,
        figures.rss >> 20,
        figures.rss_sum >> 20,
        figures.fetched >> 20,
        written >> 20,
    )?)
}

/// Ratio, expectation, and whether it was met.
#[expect(clippy::cast_precision_loss, reason = "a ratio for a table")]
fn verdict(ours: &Outcome, theirs: &Outcome, expect: Expect, changed: Option<u64>) -> String {
    if ours.failure.is_some() || theirs.failure.is_some() {
        return String::new();
    }
    let (ours, theirs) = (median(&ours.runs), median(&theirs.runs));
    let ratio = theirs.wall / ours.wall.max(1e-9);
    let mut text = format!("{ratio:>6.2} ×");
    let word = |met| if met { "met" } else { MISSED };
    let _ = match expect {
        Expect::Shown => Ok(()),
        Expect::Faster(least) => write!(text, "  ≥ {least} ×: {}", word(ratio >= least)),
        Expect::FasterAndNoDearer(least) => write!(
            text,
            "  ≥ {least} ×: {}; CPU no higher: {}",
            word(ratio >= least),
            word(ours.cpu <= theirs.cpu)
        ),
        Expect::NothingMoves => write!(
            text,
            "  nothing written, fetched < 1 %: {}",
            word(ours.written == 0 && ours.fetched * 100 < theirs.fetched)
        ),
        Expect::OnlyChanges(most) => {
            let times = ours.fetched as f64 / changed.unwrap_or(0).max(1) as f64;
            write!(
                text,
                "  fetched {times:.2} × the {} MiB that changed, ≤ {most} ×: {}",
                changed.unwrap_or(0) >> 20,
                word(times <= most)
            )
        }
    };
    text
}

/// The largest agent of any run.
fn memory(section: &Section, out: &mut impl Write) -> Result<()> {
    let ours = section
        .cases
        .iter()
        .filter_map(|case| section.outcomes.get(&case.ours.to_string()));
    let peaks = ours.flat_map(|outcome| {
        let watched = outcome.runs.iter().map(|run| run.rss);
        let said = outcome.said.iter().map(|said| said.agent_peak_bytes);
        watched.chain(said)
    });
    let peak = peaks.max().unwrap_or(0);
    let word = if peak <= RSS_AT_MOST { "met" } else { MISSED };
    Ok(writeln!(
        out,
        "peak memory of our agent in any run: {} MiB, at most {} MiB: {word}",
        peak >> 20,
        RSS_AT_MOST >> 20
    )?)
}

/// What the machine does, one thing at a time; what was not measured there is left out.
fn limits(section: &Section, out: &mut impl Write) -> Result<()> {
    let rates = &section.rates;
    let of_one_core = [
        ("zstd -dc dense", rates.zstd_dense),
        ("sparse", rates.zstd_sparse),
        ("gzip -dc", rates.gzip_dense),
        ("qcow2's zlib", rates.zlib),
        ("BLAKE3", rates.blake3),
        ("SHA-256", rates.sha256),
        ("sha256sum", rates.sha256sum),
    ];
    let places = [
        ("link", rates.link),
        ("to the disk", rates.disk),
        ("from it", rates.read),
        ("zeroed by it", rates.zero),
    ];
    let (places, one_core) = (listed(&places), listed(&of_one_core));
    Ok(writeln!(
        out,
        "at best there, GB/s: {places}; one core: {one_core}"
    )?)
}

fn listed(rates: &[(&str, Rate)]) -> String {
    let measured = rates.iter().filter(|(_, rate)| rate.a_second() > 0.0);
    let shown = measured.map(|(name, rate)| format!("{name} {:.2}", rate.a_second() / 1e9));
    shown.collect::<Vec<_>>().join(", ")
}

/// The run whose wall time is the median.
fn median(runs: &[Figures]) -> Figures {
    let mut runs: Vec<_> = runs.iter().collect();
    runs.sort_by(|one, other| one.wall.total_cmp(&other.wall));
    runs.get(runs.len() / 2)
        .map_or_else(Figures::default, |run| (*run).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(wall: f64, cpu: f64) -> Outcome {
        let run = |wall| Figures {
            wall,
            cpu,
            ..Figures::default()
        };
        Outcome {
            runs: vec![run(wall), run(wall * 9.0), run(wall / 9.0)],
            ..Outcome::default()
        }
    }

    #[test]
    fn a_miss_is_called_one() {
        let (ours, theirs) = (outcome(2.0, 4.0), outcome(3.0, 3.0));
        let expect = Expect::Faster(1.5);
        assert_eq!(
            verdict(&ours, &theirs, expect, None),
            "  1.50 ×  ≥ 1.5 ×: met"
        );
        let expect = Expect::FasterAndNoDearer(1.6);
        let text = verdict(&ours, &theirs, expect, None);
        assert!(text.contains("MISSED; CPU no higher: MISSED"), "{text}");
    }

    #[test]
    fn a_miss_says_what_each_part_takes_and_what_would_be_best() {
        let bound = Bound {
            seconds: 6.4,
            why: "one SHA-256, by one core",
            parts: vec![("SHA-256", 6.4), ("link", 2.5)],
        };
        let mut out = Vec::new();
        explain(&mut out, &bound, &[25.6], 2).unwrap();
        let text = String::from_utf8(out).unwrap();
        for part in [
            "SHA-256 6.40, link 2.50",
            "on 2 cores 6.40 s",
            "4.00 × at best",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}

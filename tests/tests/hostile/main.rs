//! Hostile callers at a real `ferrite serve`, all at once, while machines are deployed and a person
//! looks on: heads and bodies that come by the drop, bodies of 1 GiB, JSON of a million levels,
//! heads of 1 MiB, thousands of connections that say nothing, noise instead of TLS, answers that
//! nobody reads. Each must be refused or closed in time, and disturb nobody; the figures are
//! printed.
//!
//! What is refused is not the subject here, but that it is, and what it costs. The limits are those
//! of a conductor that nobody configured.

mod attacks;
mod felt;
mod talk;
mod target;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferrite_tests::swarm::{Served, Settings, Swarm, ferrite};

use self::attacks::{Report, attacks, idle, never_reads};
use self::felt::{felt, peak};
use self::talk::PATIENCE;
use self::target::Target;

/// Machines that are deployed meanwhile.
const HOSTS: u32 = 20;
/// Memory that may be added: what ten thousand connections need, and little beside.
const GROWTH: u64 = 320 << 20;
/// What 99 of 100 answers to the person stay below.
const P99: Duration = Duration::from_secs(2);

fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// All of it at once, and twenty deployments. Told as it ends.
async fn attack(target: &Arc<Target>, served: &Served, swarm: &Swarm) -> Result<Vec<Report>> {
    let operator = served.operator()?;
    let mut running = tokio::task::JoinSet::new();
    for attack in attacks(target) {
        running.spawn(attack.run(Arc::clone(target)));
    }
    running.spawn(idle(Arc::clone(target)));
    running.spawn(never_reads(Arc::clone(target)));
    let deployed = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        operator.provision_all(swarm.machines(), 4).await?;
        let hosts = HOSTS as usize;
        operator.until_state("provisioned", hosts, PATIENCE).await
    };
    let ended = async {
        let mut reports = Vec::new();
        while let Some(report) = running.join_next().await {
            let report = report?;
            say(&report.line());
            reports.push(report);
        }
        Ok(reports)
    };
    let (deployed, reports) = tokio::join!(deployed, ended);
    deployed.context("deploying meanwhile")?;
    reports
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_callers_are_refused_and_disturb_nobody() -> Result<()> {
    ferrite_tests::swarm::raise_file_limit()?;
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state");
    let served = Served::start(&ferrite()?, dir.path(), "").await?;
    let swarm = Swarm::start(Settings::of(&served, HOSTS)).await?;
    let operator = served.operator()?;
    operator.add_all(&swarm, swarm.machines(), 4).await?;
    let hosts = HOSTS as usize;
    operator.until_state("available", hosts, PATIENCE).await?;

    let target = Arc::new(Target::of(&served, &state)?);
    let calm = tokio::time::sleep(Duration::from_secs(3));
    let (before, ()) = felt(&served, &state, calm).await?;
    let rss_before = served.usage()?.rss;
    let pid = served.pid().context("a process")?;
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    let hostile = async {
        let ended = felt(&served, &state, attack(&target, &served, &swarm)).await;
        stop.store(true, Ordering::Relaxed);
        ended
    };
    let (rss_peak, hostile) = tokio::join!(peak(pid, &stop), hostile);
    let ((during, reports), rss_peak) = (hostile?, rss_peak?);
    let reports = reports?;

    let (calls_before, p50_before, p99_before) = before.figures();
    let (calls, p50, p99) = during.figures();
    let ratio = p99.as_secs_f64() / p99_before.as_secs_f64();
    say(&format!(
        "healthy calls: before {calls_before}, p50 {p50_before:?}, p99 {p99_before:?}; during \
         {calls}, p50 {p50:?}, p99 {p99:?} ({ratio:.1} times)"
    ));
    let mib = |bytes: u64| bytes >> 20;
    let after = served.usage()?;
    say(&format!(
        "memory: before {} MiB, most {} MiB, after {} MiB; processor {:?}; {:.0} s",
        mib(rss_before),
        mib(rss_peak),
        mib(after.rss),
        after.cpu,
        started.elapsed().as_secs_f64()
    ));
    for report in &reports {
        report.check()?;
    }
    for felt in [before, during] {
        let failed = felt.failures();
        ensure!(failed.is_empty(), "healthy calls failed: {failed:?}");
    }
    ensure!(p99 < P99, "healthy calls had to wait");
    let grown = rss_peak.saturating_sub(rss_before);
    ensure!(grown < GROWTH, "{} MiB more memory", mib(grown));
    ensure!(
        swarm.doubled().is_empty(),
        "done twice: {:?}",
        swarm.doubled()
    );
    swarm.stop().await;
    Ok(())
}

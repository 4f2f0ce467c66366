//! The first start of a conductor: the points at which it makes keys, certificates and a token.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferrite_tests::swarm::{Served, ferrite, free_port};

use crate::lane::{Round, points};
use crate::person::PATIENCE;

/// What the points are.
pub(crate) struct Survey {
    /// All that the binary has.
    pub(crate) known: BTreeSet<String>,
    /// Those of a first start.
    pub(crate) passed: BTreeSet<String>,
}

fn prepare(dir: &Path) -> Result<Served> {
    Served::prepare(free_port()?, &ferrite()?, dir, "")
}

/// Starts one and looks.
pub(crate) async fn survey() -> Result<Survey> {
    let dir = tempfile::tempdir()?;
    let served = prepare(dir.path())?;
    let trace = dir.path().join("trace");
    let path = trace.display().to_string();
    served.launch_with(&[("FERRITE_CRASH_TRACE", &path)])?;
    served.until_ready(PATIENCE).await?;
    Ok(Survey {
        known: points(&trace, "known ")?,
        passed: points(&trace, "passed ")?,
    })
}

/// Kills one at a point of its first start. The next goes on from there, and the one after that
/// finds what it made.
pub(crate) async fn round(point: &str) -> Result<Round> {
    let dir = tempfile::tempdir()?;
    let served = prepare(dir.path())?;
    let begun = Instant::now();
    served.launch_with(&[("FERRITE_CRASH_AT", point)])?;
    let died = loop {
        if let Some(status) = served.ended()? {
            ensure!(status.signal() == Some(9), "{point}: it ended: {status}");
            break Instant::now();
        }
        ensure!(begun.elapsed() < PATIENCE, "{point} is never reached");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    served.launch()?;
    let ready = served.until_ready(PATIENCE).await;
    ready.with_context(|| format!("after a first start killed at {point}"))?;
    let recovered = died.elapsed();
    let somebody = served.operator()?;
    served.kill()?;
    served.launch()?;
    served.until_ready(PATIENCE).await?;
    ensure!(
        somebody.is_served().await,
        "killed at {point}: token or CA of the second start are not those of the third"
    );
    Ok(Round {
        point: point.to_owned(),
        workflow: "first start".to_owned(),
        death: died.duration_since(begun),
        recovered,
        boots: 0,
    })
}

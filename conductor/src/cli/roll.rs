//! `ferrite cluster roll`: a cluster's hosts to another image, a few at a time; and what `kubectl
//! rollout` has for what is under way: status, pause, resume, abort.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use ferrite_proto::rolling::{ClusterRoll, MaxUnavailable, RollPhase, RollRequest};
use reqwest::Method;
use serde_json::json;

use super::args::{ImageArgs, Output};
use super::client::{Client, Silent};
use super::kind::Kind;
use super::{exit, print, print_value, table};

/// Between looks.
const LOOK: Duration = Duration::from_secs(1);

/// Roll a cluster's hosts to another image, a few at a time.
///
/// Each host is drained, given the image under its old name with its labels and taints, and joins;
/// the next follows when its Node is ready. A host that has the image already is passed over; one
/// that is protected, paused, in maintenance or retired is left out and named. The first failure
/// stops the roll; `resume` goes on after it.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Roll {
    /// What to do with the roll that is there.
    #[command(subcommand)]
    command: Option<RollCommand>,
    /// The cluster.
    #[arg(required = true)]
    name: Option<String>,
    /// An image by its name, instead of --image: see `ferrite image add`.
    #[arg(
        long,
        value_name = "NAME",
        conflicts_with = "image",
        required_unless_present = "image"
    )]
    image_name: Option<String>,
    /// The image.
    #[command(flatten)]
    image: ImageArgs,
    /// How many hosts may be unavailable at once: a number, or a share of the cluster's hosts.
    /// Those that are not ready for other reasons count.
    #[arg(long, value_name = "N|P%", default_value_t)]
    max_unavailable: MaxUnavailable,
    /// Roll so many first; the others only when all of these are ready.
    #[arg(long, value_name = "M", default_value_t = 0)]
    canary: u32,
    /// Follow it to its end. Exits with 1 when it stopped, or left hosts out.
    #[arg(long)]
    wait: bool,
}

/// What can be done with a roll.
#[derive(Debug, Subcommand)]
enum RollCommand {
    /// How far it is.
    Status {
        /// The cluster.
        name: String,
        /// Follow it to its end. Exits with 1 when it stopped, or left hosts out.
        #[arg(long)]
        wait: bool,
    },
    /// Begin no more hosts for now; those under way go on to their end.
    Pause {
        /// The cluster.
        name: String,
    },
    /// Go on with what was paused, or stopped by a failure.
    Resume {
        /// The cluster.
        name: String,
    },
    /// Begin no more hosts; those under way go on to their end.
    Abort {
        /// The cluster.
        name: String,
    },
}

impl Roll {
    /// Does what the arguments say.
    pub(super) async fn run(self, client: &Client, output: Output) -> anyhow::Result<ExitCode> {
        let (name, ask) = match self.command {
            Some(RollCommand::Status { name, wait }) => {
                let roll: ClusterRoll = client.get(&path(&name, "")).await?;
                return follow(client, roll, wait, output).await;
            }
            Some(RollCommand::Pause { name }) => (name, "/pause"),
            Some(RollCommand::Resume { name }) => (name, "/resume"),
            Some(RollCommand::Abort { name }) => (name, "/abort"),
            None => return self.begin(client, output).await,
        };
        let (path, nothing) = (path(&name, ask), json!({}));
        let roll: ClusterRoll = client.send(Method::POST, &path, &nothing).await?;
        show(&roll, output)?;
        Ok(ExitCode::SUCCESS)
    }

    async fn begin(self, client: &Client, output: Output) -> anyhow::Result<ExitCode> {
        let name = self.name.unwrap_or_default();
        let request = RollRequest {
            image: self.image.image()?,
            image_name: self.image_name,
            max_unavailable: self.max_unavailable,
            canary: self.canary,
        };
        let roll = client
            .send(Method::POST, &path(&name, ""), &request)
            .await?;
        follow(client, roll, self.wait, output).await
    }
}

fn path(name: &str, ask: &str) -> String {
    format!("{}/roll{ask}", Kind::Cluster.item(name))
}

/// Shows a roll; where that is asked for, when it is over or stopped.
async fn follow(
    client: &Client,
    mut roll: ClusterRoll,
    wait: bool,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut said = String::new();
    while wait
        && matches!(
            roll.status.phase,
            RollPhase::Progressing | RollPhase::Paused
        )
    {
        let now = line(&roll);
        if now != said && output == Output::Table {
            print(&now)?;
            said = now;
        }
        tokio::time::sleep(LOOK).await;
        roll = match client.get::<ClusterRoll>(&path(&roll.cluster, "")).await {
            Ok(next) => next,
            // It restarts, or another takes over.
            Err(error) if error.is::<Silent>() => roll,
            Err(error) => return Err(error),
        };
    }
    show(&roll, output)?;
    Ok(if wait {
        outcome(&roll)
    } else {
        ExitCode::SUCCESS
    })
}

fn outcome(roll: &ClusterRoll) -> ExitCode {
    let status = &roll.status;
    if status.phase == RollPhase::Complete && status.skipped.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::FAILED)
    }
}

fn line(roll: &ClusterRoll) -> String {
    let status = &roll.status;
    let (updated, total, message) = (status.updated, status.total, &status.message);
    format!("{updated} of {total} hosts are done: {message}\n")
}

fn show(roll: &ClusterRoll, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Json | Output::Yaml => print_value(roll, output),
        Output::Name => print(&format!("cluster/{}\n", roll.cluster)),
        Output::Table | Output::Wide => print(&told(roll)),
    }
}

fn told(roll: &ClusterRoll) -> String {
    let (spec, status) = (&roll.spec, &roll.status);
    let image = spec.image_name.as_ref().unwrap_or(&spec.image.url);
    let mut head = table::new(&[
        "CLUSTER",
        "IMAGE",
        "PHASE",
        "HOSTS",
        "UPDATED",
        "UNAVAILABLE",
    ]);
    head.add_row([
        roll.cluster.clone(),
        image.clone(),
        status.phase.to_string(),
        status.total.to_string(),
        status.updated.to_string(),
        format!("{} (at most {})", status.unavailable, spec.max_unavailable),
    ]);
    let mut text = table::text(&head);
    if !(status.current.is_empty() && status.skipped.is_empty()) {
        let mut hosts = table::new(&["HOST", "STATE", "WAITS FOR"]);
        for entry in &status.current {
            let state = entry
                .state
                .map_or_else(|| "?".to_owned(), |state| state.to_string());
            let waits = entry.waiting_for.clone().unwrap_or_default();
            hosts.add_row([entry.host.clone(), state, waits]);
        }
        for skipped in &status.skipped {
            let reason = skipped.reason.clone();
            hosts.add_row([skipped.host.clone(), "left out".to_owned(), reason]);
        }
        text = format!("{text}\n{}", table::text(&hosts));
    }
    let advice = status
        .failure
        .as_ref()
        .map(|failure| failure.problem.advice.as_str());
    let advice = advice.filter(|advice| !advice.is_empty());
    let advice = advice.map(|advice| format!("  fix: {advice}\n"));
    format!("{text}\n{}\n{}", status.message, advice.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        roll: Roll,
    }

    fn parsed(words: &str) -> Result<Roll, clap::Error> {
        let words = format!("roll {words}");
        Ok(Line::try_parse_from(words.split_whitespace())?.roll)
    }

    #[test]
    fn a_roll_is_begun_or_asked_about() {
        let roll = parsed("prod --image-name worker --max-unavailable 25% --canary 1").unwrap();
        assert_eq!(roll.max_unavailable, MaxUnavailable::Percent(25));
        assert!(roll.command.is_none() && roll.name.as_deref() == Some("prod"));
        let status = parsed("status prod --wait").unwrap().command;
        assert!(matches!(
            status,
            Some(RollCommand::Status { wait: true, .. })
        ));
        for bad in [
            "prod",
            "--image-name a",
            "prod --image-name a --image http://h/a",
            "prod --image-name a --max-unavailable 0",
            "pause",
            "pause prod --image-name a",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_roll_that_stopped_is_told_with_what_helps() {
        let roll: ClusterRoll = serde_json::from_value(json!({
            "cluster": "prod", "uid": "u", "by": "ann",
            "spec": {"image": {"url": "http://h/a", "allow_unverified": true},
                "max_unavailable": "25%"},
            "status": {
                "phase": "stopped", "since": "2026-11-21T10:00:00Z",
                "started": "2026-11-21T09:00:00Z", "message": "host b: no room [disk-io]",
                "total": 4, "updated": 1, "unavailable": 1,
                "current": [{"host": "b", "uid": "b", "since": "2026-11-21T10:00:00Z",
                    "state": "provisioning", "waiting_for": "a person"}],
                "skipped": [{"host": "c", "reason": "it is protected"}],
                "failure": {"host": "b", "at": "2026-11-21T10:00:00Z",
                    "problem": {"code": "disk-io", "message": "no room", "advice": "another disk"}},
            },
        }))
        .unwrap();
        let text = told(&roll);
        for words in [
            "stopped",
            "1 (at most 25%)",
            "c     left out",
            "it is protected",
            "fix: another disk",
        ] {
            assert!(text.contains(words), "{words:?} is not in\n{text}");
        }
        assert_eq!(
            format!("{:?}", outcome(&roll)),
            format!("{:?}", ExitCode::from(1))
        );
    }
}

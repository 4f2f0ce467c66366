//! The verbs that work on every kind of resource, with kubectl's words and flags.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ferrite_proto::api::FleetTimeline;
use reqwest::Method;

use super::args::{HostCommand, Output};
use super::client::Client;
use super::get::{Get, Selection};
use super::kind::{self, Kind};
use super::wait::{self, Until, Wait};
use super::{apply, describe, edit, get, host, log, manifest, print, timeline};

/// How long `delete --wait` waits.
const DELETED_IN: Duration = Duration::from_mins(10);

/// What can be done with resources.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make what is there as the files say.
    ///
    /// A field that the files never named stays as it is; one that they named before and name no
    /// longer is taken away. All files are checked before anything is sent.
    Apply(Apply),
    /// Show what `apply` would change. 0: nothing, 1: something, more: it failed.
    ///
    /// Secrets are never shown; that one differs is.
    Diff(Files),
    /// Show resources.
    Get(Get),
    /// Show all that is known of something.
    Describe(describe::Describe),
    /// Change something in your editor.
    Edit(edit::Edit),
    /// Let something go. A host is switched off and forgotten.
    Delete(Delete),
    /// Wait until things are as asked for.
    Wait(Wait),
    /// Show what the agent of a host says.
    Logs(log::Logs),
    /// Show what happened, on one host or on all.
    Events(log::Events),
    /// Show where the seconds of all hosts went, as percentiles.
    Timeline {
        /// Runs that ended since then: `2026-11-21T06:00:00Z`. The last 24 hours when absent.
        #[arg(long, value_name = "TIME")]
        since: Option<jiff::Timestamp>,
    },
    /// Say what a host is doing, what comes next, and what can be done.
    Explain {
        /// `host/NAME`, or just its name.
        #[arg(value_name = "host/NAME", add = super::complete::things())]
        host: String,
    },
}

/// Files with resources.
#[derive(Debug, Args)]
pub(crate) struct Files {
    /// A file, a folder, or `-`; YAML or JSON, several resources in each.
    #[arg(long, short, required = true, value_name = "FILE")]
    pub(crate) filename: Vec<PathBuf>,
}

/// Make what is there as the files say.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// Which.
    #[command(flatten)]
    pub(crate) files: Files,
    /// Let the conductor check everything, and change nothing.
    #[arg(
        long,
        value_enum,
        num_args = 0..=1,
        default_missing_value = "server",
        require_equals = true,
    )]
    pub(crate) dry_run: Option<DryRun>,
}

/// Who tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DryRun {
    /// Nobody: it is done.
    None,
    /// The conductor.
    Server,
}

/// Let something go.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// `host/NAME…`, or a kind with --selector.
    #[arg(
        value_name = "KIND/NAME",
        required_unless_present = "filename",
        add = super::complete::things(),
    )]
    pub(crate) what: Vec<String>,
    /// What these files name.
    #[arg(long, short, value_name = "FILE", conflicts_with = "what")]
    pub(crate) filename: Vec<PathBuf>,
    /// Which of them.
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// Wait until they are gone.
    #[arg(long)]
    pub(crate) wait: bool,
    /// It is no error when it is not there.
    #[arg(long)]
    pub(crate) ignore_not_found: bool,
}

/// Does what the arguments say.
pub(crate) async fn run(client: &Client, verb: Verb, output: Output) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Apply(asked) => {
            let manifests = manifest::read(&asked.files.filename)?;
            let dry_run = asked.dry_run == Some(DryRun::Server);
            apply::apply(client, manifests, dry_run, output).await
        }
        Verb::Diff(files) => {
            let compared = manifest::read(&files.filename).map(|all| apply::diff(client, all));
            compared?.await
        }
        Verb::Get(asked) => get::run(client, asked, output).await,
        Verb::Describe(asked) => describe::run(client, asked).await,
        Verb::Edit(asked) => edit::run(client, asked).await,
        Verb::Delete(asked) => delete(client, asked).await,
        Verb::Wait(asked) => wait::run(client, asked).await,
        Verb::Logs(asked) => log::logs(client, asked, output).await,
        Verb::Events(asked) => log::events(client, asked, output).await,
        Verb::Timeline { since } => {
            let since = since.map_or_else(String::new, |since| format!("?since={since}"));
            let fleet: FleetTimeline = client.get(&format!("/v1/timeline{since}")).await?;
            host::shown(&fleet, output, timeline::of_fleet)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Explain { host } => {
            let name = host.rsplit('/').next().unwrap_or_default().to_owned();
            host::run(client, HostCommand::Explain { name }, output).await
        }
    }
}

async fn delete(client: &Client, asked: Delete) -> anyhow::Result<ExitCode> {
    let things = to_delete(client, &asked).await?;
    for (kind, name) in &things {
        let title = format!("{}/{name}", kind.singular());
        match client
            .exchange(Method::DELETE, &kind.item(name), None)
            .await
        {
            Ok(_) => print(&format!("{title} deleted\n"))?,
            Err(error) if asked.ignore_not_found && apply::is_absent(&error) => {}
            Err(error) => return Err(error.context(title)),
        }
    }
    if !asked.wait || things.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let titles = things.iter();
    let what = titles.map(|(kind, name)| format!("{}/{name}", kind.singular()));
    let wait = Wait {
        what: what.collect(),
        until: Until::Deleted,
        timeout: DELETED_IN,
        selection: Selection::default(),
    };
    wait::run(client, wait).await
}

async fn to_delete(client: &Client, asked: &Delete) -> anyhow::Result<Vec<(Kind, String)>> {
    if !asked.filename.is_empty() {
        let mut all = manifest::read(&asked.filename)?;
        // Hosts before what they name.
        all.reverse();
        return Ok(all.into_iter().map(|one| (one.kind, one.name)).collect());
    }
    if asked.selection.is_all() {
        return Ok(kind::named(&asked.what)?);
    }
    let [(kind, None)] = kind::targets(&asked.what)?[..] else {
        anyhow::bail!("give names or a selector, not both");
    };
    let listed = get::list(client, kind, &asked.selection, client.project()).await?;
    let names = listed.items.iter();
    Ok(names
        .map(|item| (kind, get::text(item, "/metadata/name")))
        .collect())
}

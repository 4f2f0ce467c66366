//! `ferrite host clean|service|rescue|…`: operations and holds of a host, as calls of the API.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use ferrite_proto::host::Host;
use ferrite_proto::operation::RescuePassword;
use reqwest::Method;
use serde_json::{Value, json};

use super::args::Output;
use super::client::Client;
use super::host::{follow, path, read_file, shown};

/// The clean steps.
const CLEAN: [&str; 2] = ["inspect", "erase"];
/// The service steps.
const SERVICE: [&str; 2] = ["inspect", "set-boot-entry"];

/// Work beside the state.
#[derive(Debug, Subcommand)]
pub(crate) enum Operate {
    /// Run chosen clean steps on an available host.
    Clean {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
        /// Which, in this order.
        #[arg(long, value_delimiter = ',', default_value = "erase", value_parser = CLEAN)]
        steps: Vec<String>,
        /// Follow it to its end.
        #[arg(long)]
        wait: bool,
    },
    /// Run chosen steps on a provisioned host, which keeps its disks; then start its OS again.
    Service {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
        /// Which, in this order.
        #[arg(long, value_delimiter = ',', default_value = "inspect", value_parser = SERVICE)]
        steps: Vec<String>,
        /// Follow it to its end.
        #[arg(long)]
        wait: bool,
    },
    /// Boot a provisioned host into the rescue ramdisk; prints the password to log in with.
    Rescue {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
        /// File with lines for root's `authorized_keys`.
        #[arg(long, value_name = "FILE")]
        authorized_keys: Option<PathBuf>,
    },
    /// Start the OS of a host that is in rescue.
    Unrescue {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
        /// Follow it to its end.
        #[arg(long)]
        wait: bool,
    },
    /// Stop what is under way at the next safe point.
    Abort {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
    },
    /// Let a destructive plan go.
    Approve {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
        /// The plan's id, as `ferrite host show` has it.
        plan: String,
    },
    /// Do nothing with a host until `resume`.
    Pause {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
    },
    /// Go on with a host that was paused.
    Resume {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
    },
    /// Refuse to deprovision, erase, delete or provision anew.
    Protect {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
    },
    /// Undo `protect`.
    Unprotect {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
    },
    /// Begin nothing with a host; what is under way ends at the end of its step.
    Maintenance {
        /// Begin or end it.
        switch: Switch,
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
        /// Why, for people.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Clean a host once it is deprovisioned, and provision it no more.
    Retire {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
        /// Why, for people.
        #[arg(long, default_value = "")]
        reason: String,
        /// Take it back into use.
        #[arg(long)]
        undo: bool,
    },
    /// Only watch a host: somebody else provisioned it.
    Adopt {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
        /// Take it back.
        #[arg(long)]
        undo: bool,
    },
    /// Keep hands off a host, its BMC too.
    Detach {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
    },
    /// Undo `detach`.
    Attach {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
    },
    /// Say how a host goes before others: each point counts as a minute of waiting.
    Priority {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
        /// From -1000 to 1000.
        #[arg(allow_negative_numbers = true)]
        priority: i32,
    },
}

/// Begin or end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// Begin.
    On,
    /// End.
    Off,
}

/// Does what the arguments say.
pub(crate) async fn run(
    client: &Client,
    asked: Operate,
    output: Output,
) -> anyhow::Result<ExitCode> {
    match asked {
        Operate::Clean { name, steps, wait } => {
            let body = json!({"steps": named(&steps)});
            post(client, &path(&name, "/clean"), &body, wait, output).await
        }
        Operate::Service { name, steps, wait } => {
            let body = json!({"steps": named(&steps)});
            post(client, &path(&name, "/service"), &body, wait, output).await
        }
        Operate::Rescue {
            name,
            authorized_keys,
        } => rescue(client, &name, authorized_keys, output).await,
        Operate::Unrescue { name, wait } => {
            post(client, &path(&name, "/unrescue"), &(), wait, output).await
        }
        Operate::Abort { name } => post(client, &path(&name, "/abort"), &(), false, output).await,
        Operate::Approve { name, plan } => {
            let body = json!({"plan": plan});
            post(client, &path(&name, "/approve"), &body, false, output).await
        }
        hold => {
            let (name, patch) = patch_of(hold);
            let call = path(&name, "");
            let patch = json!({"spec": patch});
            let host: Host = client.send(Method::PATCH, &call, &patch).await?;
            follow(client, &host, false, output).await
        }
    }
}

/// What is kept in `spec`, as a merge patch of it.
fn patch_of(asked: Operate) -> (String, Value) {
    match asked {
        Operate::Pause { name } => (name, json!({"paused": true})),
        Operate::Resume { name } => (name, json!({"paused": null})),
        Operate::Protect { name } => (name, json!({"protected": true})),
        Operate::Unprotect { name } => (name, json!({"protected": null})),
        Operate::Maintenance {
            switch,
            name,
            reason,
        } => match switch {
            Switch::On => (name, json!({"maintenance": {"reason": reason}})),
            Switch::Off => (name, json!({"maintenance": null})),
        },
        Operate::Retire { name, undo, .. } if undo => (name, json!({"retired": null})),
        Operate::Retire { name, reason, .. } => (name, json!({"retired": {"reason": reason}})),
        Operate::Adopt { name, undo } if undo => (name, json!({"externally_provisioned": null})),
        Operate::Adopt { name, .. } => (name, json!({"externally_provisioned": true})),
        Operate::Detach { name } => (name, json!({"detached": true})),
        Operate::Attach { name } => (name, json!({"detached": null})),
        Operate::Priority { name, priority } => (name, json!({"priority": priority})),
        Operate::Clean { name, .. }
        | Operate::Service { name, .. }
        | Operate::Rescue { name, .. }
        | Operate::Unrescue { name, .. }
        | Operate::Abort { name }
        | Operate::Approve { name, .. } => (name, json!({})),
    }
}

fn named(steps: &[String]) -> Vec<Value> {
    steps.iter().map(|step| json!({"step": step})).collect()
}

async fn post<T: serde::Serialize + Sync>(
    client: &Client,
    call: &str,
    body: &T,
    wait: bool,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let host: Host = client.send(Method::POST, call, body).await?;
    follow(client, &host, wait, output).await
}

async fn rescue(
    client: &Client,
    name: &str,
    keys: Option<PathBuf>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let text = keys.map(|file| read_file(&file, "keys")).transpose()?;
    let lines = text.as_deref().unwrap_or_default().lines();
    let keys: Vec<_> = lines.filter(|line| !line.trim().is_empty()).collect();
    let body = json!({"authorized_keys": keys});
    let call = path(name, "/rescue");
    let access: RescuePassword = client.send(Method::POST, &call, &body).await?;
    shown(&access, output, |access| {
        format!(
            "{}: on its way into rescue; `ferrite host explain {}` says where to log in\n\
             user      {}\npassword  {} (told only once)\n",
            access.host,
            access.host,
            access.user,
            access.password.expose()
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_are_patches_that_undo_each_other() {
        let name = || "n".to_owned();
        let on = patch_of(Operate::Pause { name: name() }).1;
        let off = patch_of(Operate::Resume { name: name() }).1;
        let mut spec = json!({});
        ferrite_proto::merge::apply(&mut spec, &on);
        assert_eq!(spec, json!({"paused": true}));
        ferrite_proto::merge::apply(&mut spec, &off);
        assert_eq!(spec, json!({}));
    }
}

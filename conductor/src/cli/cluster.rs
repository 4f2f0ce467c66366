//! `ferrite cluster`: places to join. Short ways to the resources that `apply`, `get` and `delete`
//! know, and the check of one.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use ferrite_proto::cluster::{
    Cluster, ClusterKind, ClusterReport, ClusterSecrets, ClusterSpec, ControlPlane, Tenant, Verdict,
};
use ferrite_proto::resource::{ApiVersion, Metadata};
use ferrite_proto::secret::Secret;
use reqwest::Method;
use serde_json::json;

use super::args::Output;
use super::client::Client;
use super::get::{self, Get, Selection};
use super::kind::{Kind, escaped};
use super::roll::Roll;
use super::{exit, files, print, print_value, table};

/// More than any kubeconfig that a person was given.
const LONGEST: u64 = 256 << 10;
/// What we need in a cluster, and no more.
const RBAC: &str = include_str!("rbac.yaml");
/// The same in the management cluster of Kamaji.
const RBAC_MANAGEMENT: &str = include_str!("rbac-management.yaml");

/// What to do with clusters.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Take in a cluster that hosts can join.
    Add(Box<Add>),
    /// List clusters.
    List,
    /// Show a cluster. What lets us in is never shown.
    Show {
        /// Its name.
        name: String,
    },
    /// Prove what a join needs, before any host is touched.
    ///
    /// Makes a bootstrap token, uses it as a host would, and removes it. Exits with 1 when a join
    /// would fail.
    Check {
        /// Its name.
        name: String,
        /// Of the image's kubelet: v1.34.1.
        #[arg(long, value_name = "VERSION")]
        kubelet_version: Option<String>,
    },
    /// Give a cluster another kubeconfig: the old one expired, or its CA was rotated.
    SetCredentials {
        /// Its name.
        name: String,
        /// The kubeconfig; `-` is standard input.
        #[arg(long, value_name = "FILE")]
        kubeconfig: PathBuf,
    },
    /// Forget a cluster. Its nodes stay in it.
    Remove {
        /// Its name.
        name: String,
    },
    /// Roll its hosts to another image, a few at a time.
    Roll(Box<Roll>),
    /// Print the roles that Ferrite needs in a cluster, for `kubectl apply -f -`.
    Rbac {
        /// For the management cluster of this tenant control plane instead.
        #[arg(long, value_name = "NAMESPACE/NAME")]
        kamaji: Option<String>,
    },
}

/// A cluster.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// What to call it.
    name: String,
    /// Its kubeconfig, with everything in it: `kubectl config view --raw --flatten --minify`. `-`
    /// is standard input.
    #[arg(long, value_name = "FILE", required_unless_present = "kamaji")]
    kubeconfig: Option<PathBuf>,
    /// It is this `TenantControlPlane`.
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        requires = "management_kubeconfig",
        conflicts_with = "kubeconfig"
    )]
    kamaji: Option<String>,
    /// The kubeconfig of the cluster that Kamaji runs in; `-` is standard input.
    #[arg(long, value_name = "FILE", requires = "kamaji")]
    management_kubeconfig: Option<PathBuf>,
    /// Its API server as hosts reach it, if that is another way than the kubeconfig's.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

impl Add {
    fn cluster(self) -> anyhow::Result<Cluster> {
        let tenant = self.kamaji.as_deref().map(tenant).transpose()?;
        let control_plane = match tenant {
            Some(_) => ControlPlane::Kamaji,
            None => ControlPlane::Kubeadm,
        };
        let file = self.management_kubeconfig.or(self.kubeconfig);
        let kubeconfig = file.as_deref().map(secret).transpose()?;
        Ok(Cluster {
            api_version: ApiVersion::V1,
            kind: ClusterKind::Cluster,
            metadata: Metadata::named(self.name),
            spec: ClusterSpec {
                control_plane,
                endpoint: self.endpoint,
                ca: None,
                tenant,
            },
            secrets: ClusterSecrets { kubeconfig },
            status: None,
        })
    }
}

fn secret(file: &std::path::Path) -> anyhow::Result<Secret<String>> {
    Ok(Secret::new(files::read(file, "a kubeconfig", LONGEST)?))
}

fn tenant(text: &str) -> anyhow::Result<Tenant> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(Tenant {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }),
        _ => anyhow::bail!("{text:?} is not NAMESPACE/NAME of a TenantControlPlane"),
    }
}

/// The roles, which need no conductor.
pub(crate) fn rbac(kamaji: Option<&str>) -> anyhow::Result<()> {
    let Some(kamaji) = kamaji else {
        return print(RBAC);
    };
    let Tenant { namespace, name } = tenant(kamaji)?;
    let text = RBAC_MANAGEMENT.replace("NAMESPACE", &namespace);
    print(&text.replace("TENANT", &name))
}

/// Does what the arguments say.
pub(crate) async fn run(
    client: &Client,
    command: ClusterCommand,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let what = match command {
        ClusterCommand::Add(add) => return added(client, *add, output).await,
        ClusterCommand::Roll(roll) => return roll.run(client, output).await,
        ClusterCommand::Check {
            name,
            kubelet_version,
        } => return check(client, &name, kubelet_version.as_deref(), output).await,
        ClusterCommand::SetCredentials { name, kubeconfig } => {
            let secrets = json!({"kubeconfig": secret(&kubeconfig)?});
            let patch = json!({"secrets": secrets});
            let path = Kind::Cluster.item(&name);
            client.exchange(Method::PATCH, &path, Some(&patch)).await?;
            print(&format!("cluster/{name} has new credentials\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
        ClusterCommand::Remove { name } => {
            let path = Kind::Cluster.item(&name);
            client.exchange(Method::DELETE, &path, None).await?;
            print(&format!("cluster/{name} removed\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
        ClusterCommand::Rbac { kamaji } => {
            rbac(kamaji.as_deref())?;
            return Ok(ExitCode::SUCCESS);
        }
        ClusterCommand::List => "clusters".to_owned(),
        ClusterCommand::Show { name } => format!("cluster/{name}"),
    };
    let asked = Get {
        what: vec![what],
        selection: Selection::default(),
        watch: false,
        all_projects: false,
    };
    get::run(client, asked, output).await
}

async fn added(client: &Client, add: Add, output: Output) -> anyhow::Result<ExitCode> {
    let cluster = add.cluster()?;
    let path = Kind::Cluster.collection();
    let cluster: Cluster = client.send(Method::POST, &path, &cluster).await?;
    let name = &cluster.metadata.name;
    match output {
        Output::Json | Output::Yaml => print_value(&cluster, output)?,
        Output::Table | Output::Wide => print(&format!(
            "cluster/{name} added; `ferrite cluster check {name}` says whether hosts can join it\n"
        ))?,
        Output::Name => print(&format!("cluster/{name}\n"))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn check(
    client: &Client,
    name: &str,
    kubelet: Option<&str>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut path = format!("{}/check", Kind::Cluster.item(name));
    if let Some(kubelet) = kubelet {
        path = format!("{path}?kubelet_version={}", escaped(kubelet));
    }
    let report: ClusterReport = client.send(Method::POST, &path, &json!({})).await?;
    match output {
        Output::Json | Output::Yaml => print_value(&report, output)?,
        Output::Name => print(&format!("cluster/{name}\n"))?,
        Output::Table | Output::Wide => print(&told(&report))?,
    }
    Ok(if report.can_join {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::FAILED)
    })
}

fn told(report: &ClusterReport) -> String {
    let mut rows = table::new(&["CHECK", "RESULT", "WHAT"]);
    for finding in &report.findings {
        let result = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Skipped => "skipped",
            Verdict::Warning => "WARNING",
            Verdict::Error => "ERROR",
        };
        rows.add_row([finding.code.as_str(), result, finding.what.as_str()]);
    }
    let mut text = table::text(&rows);
    let wrong = report.findings.iter();
    for finding in wrong.filter(|finding| finding.verdict >= Verdict::Warning) {
        let line = format!(
            "\n{}: {}\n  fix: {}\n",
            finding.code, finding.reason, finding.fix
        );
        text.push_str(&line);
    }
    let verdict = if report.can_join {
        "hosts can join"
    } else {
        "hosts cannot join"
    };
    format!("{text}\n{verdict} cluster/{}\n", report.cluster)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use ferrite_proto::cluster::{ClusterStatus, Finding};

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: ClusterCommand,
    }

    fn parsed(words: &str) -> Result<ClusterCommand, clap::Error> {
        let words = format!("cluster {words}");
        Ok(Line::try_parse_from(words.split_whitespace())?.command)
    }

    #[test]
    fn a_cluster_is_added_by_one_way_in() {
        for bad in [
            "add c",
            "add c --kamaji a/b",
            "add c --management-kubeconfig f",
            "add c --kubeconfig f --kamaji a/b --management-kubeconfig f",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
        parsed("add c --kubeconfig -").unwrap();
        parsed("add c --kamaji a/b --management-kubeconfig f").unwrap();
        assert!(tenant("a").is_err() && tenant("/b").is_err());
        assert_eq!(tenant("a/b").unwrap().namespace, "a");
    }

    #[test]
    fn the_roles_are_yaml_without_a_star() {
        for text in [RBAC, RBAC_MANAGEMENT] {
            assert!(!text.contains('*'), "least privilege");
            for document in text.split("---\n") {
                let read: serde_json::Value = serde_saphyr::from_str(document).unwrap();
                assert!(read["kind"].is_string(), "{document}");
            }
        }
        // A token needs no right to read Secrets: with one, every token could be read.
        let secrets = RBAC.split("resources: [secrets]").nth(1).unwrap();
        let verbs = secrets.lines().nth(1).unwrap().trim();
        assert_eq!(verbs, "verbs: [create, delete]");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_fix() {
        let finding = |code: &str, verdict, reason: &str, fix: &str| Finding {
            code: code.to_owned(),
            verdict,
            what: "w".to_owned(),
            reason: reason.to_owned(),
            fix: fix.to_owned(),
        };
        let report = ClusterReport {
            cluster: "c".to_owned(),
            at: jiff::Timestamp::UNIX_EPOCH,
            can_join: false,
            status: ClusterStatus::default(),
            findings: vec![
                finding("endpoint", Verdict::Ok, "", ""),
                finding("token", Verdict::Error, "no signature", "start it"),
            ],
        };
        let text = told(&report);
        assert!(text.contains("token     ERROR"), "{text}");
        assert!(
            text.contains("token: no signature\n  fix: start it\n"),
            "{text}"
        );
        assert!(text.ends_with("hosts cannot join cluster/c\n"), "{text}");
    }
}

//! The order that is out, in the words of the agent protocol.
//!
//! It is made afresh from what is stored each time an agent asks, so the same number always says
//! the same, and nothing secret is stored twice.

use std::sync::Arc;

use ferrite_proto::agent_api::{DaemonConfig, Order};
use ferrite_proto::boot::CaPin;
use ferrite_proto::image::ImageRef;
use ferrite_proto::image_server::ImageServer;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::secret::Secret;
use ferrite_proto::step::{EraseMethod, Step};

use super::StepName;
use super::record::{Deployment, Kept, Record};
use crate::cloud_init;

/// How hosts reach this conductor.
#[derive(Debug, Clone)]
pub(crate) struct Reach {
    /// `https://host:port`.
    pub(crate) url: String,
    /// Its CA.
    pub(crate) ca: CaPin,
    /// The same as PEM, for hosts that fetch what it keeps.
    pub(crate) ca_pem: Arc<str>,
    /// What the configuration says of servers of images. With their secrets; stored nowhere else.
    pub(crate) servers: Arc<[ImageServer]>,
}

impl Reach {
    /// What a host needs to know to fetch an image, and no more.
    fn servers_of(&self, image: &ImageRef) -> Vec<ImageServer> {
        let needed = |server: &&ImageServer| image.urls().any(|url| server.covers(url));
        self.servers.iter().filter(needed).cloned().collect()
    }

    /// What a host needs to know to fetch an image that a conductor keeps. Conductors of one
    /// database have one CA. Who knows the digest may have the file: no login.
    fn keeper_of(&self, kept: &ImageRef) -> Vec<ImageServer> {
        let (prefix, _) = kept.url.rsplit_once('/').unwrap_or((&kept.url, ""));
        vec![ImageServer {
            prefix: format!("{prefix}/"),
            ca: Some(self.ca_pem.to_string()),
            ..ImageServer::default()
        }]
    }
}

/// The order that the agent is still to take, if there is one.
pub(crate) fn to_hand_out(
    record: &Record,
    kept: &Kept,
    reach: &Reach,
) -> Result<Option<Order>, Problem> {
    let Some((number, name)) = record.to_hand_out() else {
        return Ok(None);
    };
    let step = step(name, record, kept, reach)?;
    Ok(Some(Order { number, step }))
}

/// The step behind a name, with all that the agent needs to know.
pub(crate) fn step(
    name: StepName,
    record: &Record,
    kept: &Kept,
    reach: &Reach,
) -> Result<Step, Problem> {
    match name {
        StepName::Inspect => Ok(Step::Inspect),
        StepName::Erase => Ok(Step::Erase {
            method: EraseMethod::Metadata,
        }),
        StepName::WriteImage => deployment(record).map(|deployment| write_image(deployment, reach)),
        StepName::WriteConfigDrive => config_drive(record, kept, reach),
        StepName::SetBootEntry => deployment(record).map(|deployment| Step::SetBootEntry {
            root: deployment.root.clone(),
        }),
        StepName::Boot => deployment(record).map(|deployment| Step::Boot {
            root: deployment.root.clone(),
            method: deployment.method,
        }),
        StepName::Rescue => rescue(kept),
        StepName::ReleaseBoot
        | StepName::AwaitOs
        | StepName::CheckCluster
        | StepName::MintToken
        | StepName::Join => Err(bug("this step is not the agent's")),
    }
}

fn write_image(deployment: &Deployment, reach: &Reach) -> Step {
    let (image, servers) = match &deployment.kept {
        Some(kept) => (kept, reach.keeper_of(kept)),
        None => (&deployment.image, reach.servers_of(&deployment.image)),
    };
    Step::WriteImage {
        image: image.clone(),
        root: deployment.root.clone(),
        servers,
        verify: deployment.verify,
    }
}

fn rescue(kept: &Kept) -> Result<Step, Problem> {
    let secret = kept.rescue.as_ref();
    let secret = secret.ok_or_else(|| bug("the rescue has no password"))?;
    Ok(Step::Rescue {
        password_hash: secret.password_hash.clone(),
        authorized_keys: secret.authorized_keys.clone(),
    })
}

fn deployment(record: &Record) -> Result<&Deployment, Problem> {
    let deployment = record.run.deployment.as_ref();
    deployment.ok_or_else(|| bug("there is no deployment under way"))
}

fn config_drive(record: &Record, kept: &Kept, reach: &Reach) -> Result<Step, Problem> {
    let credential = kept.credential.as_ref();
    let credential = credential.ok_or_else(|| bug("the daemon's credential is void already"))?;
    let daemon = DaemonConfig {
        url: reach.url.clone(),
        ca: reach.ca,
        host: record.host.name.clone(),
        credential: Secret::new(credential.expose().clone()),
    };
    let files = cloud_init::config_drive(&record.host, &kept.host, &daemon, kept.join.as_ref())
        .map_err(|error| error.problem())?;
    Ok(Step::WriteConfigDrive {
        root: deployment(record)?.root.clone(),
        files,
    })
}

fn bug(what: &str) -> Problem {
    Problem::new(
        Code::Internal,
        what,
        "report this; `ferrite host provision` begins the deployment afresh",
    )
}

#[cfg(test)]
mod tests {
    use super::super::bench::{Bench, image, spec};
    use super::*;

    /// A conductor that knows these servers of images.
    fn reach(servers: &[&str]) -> Reach {
        let server = |prefix: &&str| ImageServer {
            prefix: (*prefix).to_owned(),
            ..ImageServer::default()
        };
        Reach {
            url: "https://c:7443".into(),
            ca: CaPin([7; 32]),
            ca_pem: "".into(),
            servers: servers.iter().map(server).collect(),
        }
    }

    #[test]
    fn an_image_is_read_back_where_that_was_asked_when_its_deployment_began() {
        let ordered = |bench: &Bench| {
            let step = step(
                StepName::WriteImage,
                &bench.record,
                &bench.kept,
                &reach(&[]),
            );
            match step.unwrap() {
                Step::WriteImage { verify, .. } => verify,
                other => panic!("{other:?}"),
            }
        };
        for asked in [false, true] {
            let mut bench = Bench::available(spec());
            let wanted = serde_json::json!({"image": image("a"), "verify_image": asked});
            bench.set(&wanted);
            assert_eq!(ordered(&bench), asked);
            let request = bench.record.run.request;
            bench.set(&serde_json::json!({"verify_image": !asked}));
            assert_eq!(bench.record.run.request, request, "what runs goes on");
            assert_eq!(ordered(&bench), asked, "a step says the same each time");
        }
    }

    #[test]
    fn a_host_is_told_of_the_servers_of_its_image_alone() {
        let reach = reach(&["https://a/", "https://b/", "https://c/x/", "https://d/"]);
        let image: ImageRef = serde_json::from_value(serde_json::json!({
            "url": "https://a/os.raw",
            "mirrors": ["https://c/y/os.raw"],
            "digest_url": "https://d/SHA256SUMS",
        }))
        .unwrap();
        let told = reach.servers_of(&image);
        let told: Vec<_> = told.iter().map(|server| server.prefix.as_str()).collect();
        assert_eq!(told, ["https://a/", "https://d/"]);
    }
}

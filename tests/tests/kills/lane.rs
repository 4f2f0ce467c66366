//! A conductor that is killed at points and started again, its machines, and somebody who wants
//! something of them. The life goes on over every death.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferrite_tests::kube_api::KubeApi;
use ferrite_tests::swarm::{Deeds, Machine, Served, Settings, Swarm, ferrite};
use reqwest::Method;
use serde_json::json;

use crate::hook::Hook;
use crate::person::{PATIENCE, Person};
use crate::stages::{Rest, Stage, done};

/// How often it is looked whether the conductor lives.
const LOOK: Duration = Duration::from_millis(5);
/// How long after a workflow came to rest its last point may be passed.
const GRACE: Duration = Duration::from_millis(400);

/// Short limits: whatever is waited for is waited for in vain in some round.
const CONFIG: &str = "clusters = {allow_loopback = true}\n[lifecycle]\nboot_seconds = 8\n\
    power_seconds = 10\nstep_seconds = 60\n\
    daemon_seconds = 60\nagent_silence_seconds = 4\npoll_seconds = 2\n\
    daemon_silence_seconds = 20\ncheck_in_seconds = 5\npower_interval_seconds = 3\n\
    retry_first_seconds = 1\nretry_max_seconds = 2\n[log]\nfilter = \"debug,sqlx=warn\"\n";

/// One of each.
pub(crate) struct Lane {
    pub(crate) swarm: Swarm,
    pub(crate) person: Person,
    /// Where hosts join.
    pub(crate) api: KubeApi,
    served: Served,
    hook: Hook,
    dir: tempfile::TempDir,
    died: Mutex<Vec<Instant>>,
    bystanders: Vec<([u32; 5], u32, u32)>,
}

/// A round in which the conductor died where it was to.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    pub(crate) point: String,
    pub(crate) workflow: String,
    /// From its start to its death.
    pub(crate) death: Duration,
    /// From its death until the host had come to rest as wanted.
    pub(crate) recovered: Duration,
    /// Firmware boots, which may be one more than without a death.
    pub(crate) boots: u32,
}

/// Points that a trace tells of: those that were passed, or that are known.
pub(crate) fn points(trace: &Path, how: &str) -> Result<BTreeSet<String>> {
    let text = std::fs::read_to_string(trace)?;
    let named = text.lines().filter_map(|line| line.strip_prefix(how));
    Ok(named.map(str::to_owned).collect())
}

impl Lane {
    pub(crate) async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let hook = Hook::start().await?;
        let secret = dir.path().join("hook.key");
        std::fs::write(&secret, "the key of a webhook")?;
        let extra = format!(
            "{CONFIG}[[webhooks]]\nname = \"kills\"\nurl = {:?}\nsecret_file = {:?}\n\
             kinds = [\"state\"]\n",
            hook.url,
            secret.display().to_string()
        );
        let served = Served::start(&ferrite()?, dir.path(), &extra).await?;
        let swarm = Swarm::start(Settings::of(&served, 3)).await?;
        let mut lane = Self {
            person: Person::new(served.operator()?),
            api: KubeApi::start().await?,
            swarm,
            served,
            hook,
            dir,
            died: Mutex::default(),
            bystanders: Vec::new(),
        };
        lane.add_cluster().await?;
        let [_, available, provisioned] = lane.swarm.machines() else {
            bail!("three machines were asked for");
        };
        Stage::Enrol.run(&lane, available).await?;
        Stage::Enrol.run(&lane, provisioned).await?;
        Stage::Provision.run(&lane, provisioned).await?;
        lane.bystanders = lane.bystanders();
        Ok(lane)
    }

    async fn add_cluster(&self) -> Result<()> {
        let cluster = json!({
            "apiVersion": "ferrite/v1", "kind": "Cluster", "metadata": {"name": "kills"},
            "spec": {}, "secrets": {"kubeconfig": self.api.kubeconfig()},
        });
        let (status, told) = self
            .person
            .insist(Method::POST, "/v1/clusters", Some(&cluster))
            .await?;
        ensure!(status.is_success(), "/v1/clusters: {status}: {told}");
        Ok(())
    }

    /// What machines did of which nothing is wanted.
    fn bystanders(&self) -> Vec<([u32; 5], u32, u32)> {
        let others = self.swarm.machines().iter().skip(1);
        let did = others.map(|machine| {
            let deeds = machine.deeds();
            let boots = (deeds.firmware_boots, deeds.os_starts);
            (done(&Deeds::default(), &deeds), boots.0, boots.1)
        });
        did.collect()
    }

    /// The machine that everything is done with.
    pub(crate) fn machine(&self) -> &Machine {
        &self.swarm.machines()[0]
    }

    fn deaths(&self) -> Vec<Instant> {
        let died = self.died.lock();
        died.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts the conductor again when it was killed; ends when it ended otherwise.
    async fn watch(&self) -> Result<()> {
        loop {
            if let Some(status) = self.served.ended()? {
                if status.signal() != Some(9) {
                    bail!("the conductor ended ({status}); log: {:?}", self.keep_log());
                }
                let died = self.died.lock();
                died.unwrap_or_else(PoisonError::into_inner)
                    .push(Instant::now());
                self.served.launch()?;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Goes on while the conductor dies and comes back.
    async fn meanwhile(&self, life: impl Future<Output = Result<()>>) -> Result<()> {
        let life = async {
            let lived = tokio::time::timeout(3 * PATIENCE, life).await;
            lived.context("it takes too long")?
        };
        tokio::select! {
            lived = life => lived,
            watched = self.watch() => watched,
        }
    }

    /// Goes through a workflow and gives the points that it passed.
    pub(crate) async fn survey(&self, stage: Stage) -> Result<BTreeSet<String>> {
        let trace = self.dir.path().join(format!("trace-{}", stage.name()));
        let path = trace.display().to_string();
        self.served.kill()?;
        self.served.launch_with(&[("FERRITE_CRASH_TRACE", &path)])?;
        let before = self.machine().deeds();
        self.meanwhile(Box::pin(stage.run(self, self.machine())))
            .await?;
        tokio::time::sleep(GRACE).await;
        self.check(stage, &before)?;
        points(&trace, "passed ")
    }

    /// Goes through a workflow without a death.
    pub(crate) async fn walk(&self, stage: Stage) -> Result<()> {
        let before = self.machine().deeds();
        let life = Box::pin(stage.run(self, self.machine()));
        let walked = self.meanwhile(life).await;
        walked.with_context(|| format!("{}, nobody killed", stage.name()))?;
        self.check(stage, &before)
    }

    /// Goes through a workflow with a conductor that dies at a point; none when it does not.
    pub(crate) async fn round(&self, stage: Stage, point: &str) -> Result<Option<Round>> {
        let about = || {
            let keep = self.keep_log();
            format!("{}, killed at {point}; log: {keep:?}", stage.name())
        };
        let before = self.machine().deeds();
        let already = self.deaths().len();
        self.served.kill()?;
        let begun = Instant::now();
        self.served.launch_with(&[("FERRITE_CRASH_AT", point)])?;
        let life = async {
            Box::pin(stage.run(self, self.machine())).await?;
            if self.deaths().len() == already {
                // The last point may be passed after everybody is content.
                tokio::time::sleep(GRACE).await;
            }
            stage.settled(self, self.machine()).await
        };
        self.meanwhile(life).await.with_context(about)?;
        self.check(stage, &before).with_context(about)?;
        let deaths = self.deaths().split_off(already);
        ensure!(
            deaths.len() <= 1,
            "it died {} times: {}",
            deaths.len(),
            about()
        );
        let Some(died) = deaths.first() else {
            return Ok(None);
        };
        Ok(Some(Round {
            point: point.to_owned(),
            workflow: stage.name(),
            death: died.duration_since(begun),
            recovered: died.elapsed(),
            boots: self.machine().deeds().firmware_boots - before.firmware_boots,
        }))
    }

    /// Nothing was done twice.
    fn check(&self, stage: Stage, before: &Deeds) -> Result<()> {
        let after = self.machine().deeds();
        let did = done(before, &after);
        ensure!(
            did == stage.deeds(),
            "{}: erasures, images begun, images written, config drives, daemons: {did:?} instead \
             of {:?}",
            stage.name(),
            stage.deeds()
        );
        // Numbers begin anew with a host that was enrolled anew.
        let last = before
            .orders
            .last()
            .filter(|_| stage.from() != Rest::Absent);
        let new = after.orders.iter().skip(before.orders.len());
        let orders: Vec<u64> = last.into_iter().chain(new).copied().collect();
        ensure!(
            orders.is_sorted_by(|one, next| one < next),
            "{}: orders that were begun: {orders:?}",
            stage.name()
        );
        Ok(())
    }

    /// The audit log is whole, and the webhook was told everything.
    pub(crate) async fn finish(&self) -> Result<()> {
        let did = self.bystanders();
        ensure!(
            did == self.bystanders,
            "hosts at rest did something: {did:?}"
        );
        self.hook.until_quiet().await?;
        let client = self.dir.path().join("state/client.toml");
        let verified = Command::new(ferrite()?)
            .args(["audit", "verify"])
            .env("FERRITE_CLIENT", client)
            .output()?;
        let said = String::from_utf8_lossy(&verified.stderr);
        ensure!(verified.status.success(), "ferrite audit verify: {said}");
        Ok(())
    }

    pub(crate) async fn until_gone(&self, name: &str) -> Result<()> {
        let started = Instant::now();
        while self.person.host(name).await?.is_some() {
            if started.elapsed() > PATIENCE {
                bail!("{name} is still there");
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        Ok(())
    }

    /// What the conductor said, kept for whoever looks for the reason of a failure.
    fn keep_log(&self) -> Option<PathBuf> {
        let kept = std::env::temp_dir().join(format!("ferrite-kills-{}.log", std::process::id()));
        std::fs::copy(self.served.log(), &kept).ok()?;
        Some(kept)
    }
}

//! A cluster's hosts are rolled to another image: a real conductor, machines of the swarm, the
//! tests' own API server. Never more hosts than allowed are away, a failure stops it, people pause
//! and resume it, and conductors are killed in the middle.

use std::path::Path;
use std::time::{Duration, Instant};

use ferrite_proto::host::HostState;
use ferrite_proto::problem::Code;
use ferrite_proto::rolling::{ClusterRoll, RollPhase};
use ferrite_tests::kube_api::KubeApi;
use ferrite_tests::postgres::Postgres;
use ferrite_tests::swarm::{Machine, Operator, Served, Settings, Swarm, ferrite, free_port};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// For anything to get somewhere, on a machine that others use too.
const PATIENCE: Duration = Duration::from_mins(3);
/// For something that must not happen.
const STILL: Duration = Duration::from_secs(6);
const ROLL: &str = "/v1/clusters/prod/roll";
const EXTRA: &str = "clusters = {allow_loopback = true}";

/// Hosts that are workers of a cluster.
struct Site {
    swarm: Swarm,
    operator: Operator,
    api: KubeApi,
}

fn image(name: &str) -> Value {
    json!({
        "url": format!("http://192.0.2.1/images/{name}.raw.zst"),
        "digest": format!("sha256:{}", "5a".repeat(32)),
    })
}

impl Site {
    /// So many machines that have joined the cluster `prod` with the image `a`.
    async fn start(served: &Served, settings: Settings) -> Self {
        eprintln!("with the tests' own API server and a kubeadm of the tests' own");
        let swarm = Swarm::start(settings).await.expect("the site works");
        let operator = served.operator().expect("the site works");
        let machines = swarm.machines();
        operator
            .add_all(&swarm, machines, 4)
            .await
            .expect("the site works");
        let count = machines.len();
        operator
            .until_state("available", count, PATIENCE)
            .await
            .expect("the site works");
        let api = KubeApi::start().await.expect("the site works");
        let cluster = json!({
            "apiVersion": "ferrite/v1", "kind": "Cluster", "metadata": {"name": "prod"},
            "spec": {}, "secrets": {"kubeconfig": api.kubeconfig()},
        });
        let made = operator.call(Method::POST, "/v1/clusters", Some(&cluster));
        made.await.expect("the site works");
        for machine in machines {
            let join = json!({
                "cluster": "prod",
                "node_labels": {"rack": "r1"},
                "node_taints": [{"key": "gpu", "effect": "NoSchedule"}],
            });
            let body = json!({"image": image("a"), "join": join});
            let path = format!("/v1/hosts/{}/provision", machine.name);
            operator
                .call(Method::POST, &path, Some(&body))
                .await
                .expect("the site works");
        }
        operator
            .until_state("provisioned", count, PATIENCE)
            .await
            .expect("the site works");
        Self {
            swarm,
            operator,
            api,
        }
    }

    fn machine(&self, number: usize) -> &Machine {
        &self.swarm.machines()[number]
    }

    /// A pod under a budget that does not let it go.
    fn keep_pod_on(&self, number: usize) {
        let web = json!({
            "metadata": {"ownerReferences": [{"kind": "ReplicaSet", "controller": true}]},
            "spec": {"nodeName": self.machine(number).name}, "status": {"phase": "Running"},
        });
        self.api.put("/api/v1/namespaces/default/pods/web", web);
        let kept = ["default/web".to_owned()];
        self.api.set(|faults| faults.kept = kept.into());
    }

    async fn ask(&self, what: &str) -> ClusterRoll {
        let path = format!("{ROLL}{what}");
        let nothing = json!({});
        let told = self.operator.call(Method::POST, &path, Some(&nothing));
        serde_json::from_value(told.await.expect("the site works")).expect("the site works")
    }

    /// Asks for a roll: what comes of it.
    async fn begin(&self, most: Value, canary: u32) -> (StatusCode, Value) {
        let body = json!({"image": image("b"), "max_unavailable": most, "canary": canary});
        let request = self.operator.request(Method::POST, ROLL).json(&body);
        let answer = request.send().await.expect("the site works");
        (
            answer.status(),
            answer.json().await.expect("the site works"),
        )
    }

    async fn roll(&self) -> ClusterRoll {
        let told = self
            .operator
            .call(Method::GET, ROLL, None)
            .await
            .expect("the site works");
        serde_json::from_value(told).expect("the site works")
    }

    /// Waits until the roll is like that.
    async fn until(&self, what: &str, is_so: impl Fn(&ClusterRoll) -> bool) -> ClusterRoll {
        let began = Instant::now();
        loop {
            let roll = self.roll().await;
            if is_so(&roll) {
                return roll;
            }
            assert!(began.elapsed() < PATIENCE, "{what}: {:?}", roll.status);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn completes(&self) -> ClusterRoll {
        let over = |roll: &ClusterRoll| roll.status.phase == RollPhase::Complete;
        self.until("complete", over).await
    }

    /// Hosts that are no workers at the moment.
    async fn away(&self) -> usize {
        let mut away = 0;
        for machine in self.swarm.machines() {
            let host = self
                .operator
                .host(&machine.name)
                .await
                .expect("the site works");
            away += usize::from(host.status.state != HostState::Provisioned);
        }
        away
    }

    /// Images that were begun on each machine.
    fn begun(&self) -> Vec<u32> {
        let machines = self.swarm.machines().iter();
        machines
            .map(|machine| machine.deeds().images_begun)
            .collect()
    }

    /// Each machine was wiped and written once for its first image and once for the second, and
    /// is the worker that it was.
    async fn is_rolled_once(&self) {
        for machine in self.swarm.machines() {
            let deeds = machine.deeds();
            let did = [deeds.erased, deeds.images_written];
            assert_eq!(did, [2, 2], "{}: {deeds:?}", machine.name);
            let host = self
                .operator
                .host(&machine.name)
                .await
                .expect("the site works");
            let url = host.status.image.map(|image| image.url);
            assert_eq!(url.as_deref(), image("b")["url"].as_str());
            let node = format!("/api/v1/nodes/{}", machine.name);
            let node = self.api.object(&node).expect("the site works");
            assert_eq!(node["metadata"]["labels"]["rack"], "r1");
            assert_eq!(node["spec"]["taints"][0]["key"], "gpu");
            assert_eq!(node["spec"]["unschedulable"], Value::Null);
        }
        assert!(
            self.swarm.doubled().is_empty(),
            "{:?}",
            self.swarm.doubled()
        );
    }
}

async fn alone(dir: &Path) -> Served {
    // A conductor that is killed between a reset and its note resets once more, and the firmware
    // has forgotten by then what to boot: that host is tried again after this time.
    let extra = format!("{EXTRA}\n[lifecycle]\nboot_seconds = 20\n");
    let binary = ferrite().expect("`make build` makes it");
    Served::start(&binary, dir, &extra)
        .await
        .expect("the site works")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_rolled_two_at_a_time_after_a_canary() {
    let dir = tempfile::tempdir().unwrap();
    let served = alone(dir.path()).await;
    let site = Site::start(&served, Settings::of(&served, 5)).await;
    site.keep_pod_on(0);

    // By the command line, as people do it.
    let client = dir.path().join("state/client.toml");
    let mut command = tokio::process::Command::new(ferrite().unwrap());
    command.env("FERRITE_CLIENT", client);
    let line = "cluster roll prod --wait --canary 1 --max-unavailable 40%";
    command.args(line.split(' '));
    command.args(["--image", image("b")["url"].as_str().unwrap()]);
    command.args(["--digest", image("b")["digest"].as_str().unwrap()]);
    command.stdout(std::process::Stdio::piped());
    let child = command.spawn().unwrap();

    // The canary's pods are under a budget that lets none go: everything waits for that.
    let blocked = |roll: &ClusterRoll| {
        let waits = roll.status.current.first();
        let waits = waits.and_then(|entry| entry.waiting_for.as_deref());
        waits.is_some_and(|waits| waits.contains("default/web"))
    };
    while site.operator.call(Method::GET, ROLL, None).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let roll = site.until("it is drained", blocked).await;
    assert_eq!(roll.status.current.len(), 1, "{:?}", roll.status);
    assert_eq!(site.begun(), [1; 5]);
    assert_eq!(site.machine(0).deeds().erased, 1, "wiped under a pod");
    let (status, second) = site.begin(json!(1), 0).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(second["code"], Code::RollUnderWay.as_str(), "{second}");
    site.api.set(|faults| faults.kept.clear());

    let mut most = 0;
    let over = |roll: &ClusterRoll| roll.status.phase == RollPhase::Complete;
    let began = Instant::now();
    while !over(&site.roll().await) {
        let (away, begun) = (site.away().await, site.begun());
        let others = begun.iter().skip(1).filter(|count| **count > 1).count();
        let node = format!("/api/v1/nodes/{}", site.machine(0).name);
        let canary = site.machine(0).deeds().joins > 1 && site.api.object(&node).is_some();
        assert!(others == 0 || canary, "begun before the canary: {begun:?}");
        assert!(away <= 2, "{away} are away");
        most = most.max(away);
        assert!(began.elapsed() < PATIENCE, "{:?}", site.roll().await);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(most, 2, "two at a time");
    let boots = site.swarm.machines().iter();
    let boots: Vec<_> = boots.map(|one| one.deeds().firmware_boots).collect();
    assert_eq!(boots, [2; 5], "one for the roll");
    site.is_rolled_once().await;
    let ended = child.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "{said}");
    assert!(said.contains("all 5 hosts have the image"), "{said}");

    // There is nothing left to do.
    let (status, _) = site.begin(json!("100%"), 0).await;
    assert_eq!(status, StatusCode::CREATED);
    let roll = site.completes().await;
    assert_eq!((roll.status.total, roll.status.updated), (5, 5));
    assert_eq!(site.begun(), [2; 5]);
    site.swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_stops_it_and_people_pause_and_resume_it() {
    let dir = tempfile::tempdir().unwrap();
    let served = alone(dir.path()).await;
    let site = Site::start(&served, Settings::of(&served, 4)).await;
    let protected = &site.machine(3).name;
    let path = format!("/v1/hosts/{protected}");
    let protect = json!({"spec": {"protected": true}});
    let done = site.operator.call(Method::PATCH, &path, Some(&protect));
    done.await.unwrap();
    site.machine(0).fail_next(Code::DiskIo);
    let (status, _) = site.begin(json!(1), 0).await;
    assert_eq!(status, StatusCode::CREATED);
    let stopped = |roll: &ClusterRoll| roll.status.phase == RollPhase::Stopped;
    let roll = site.until("stopped", stopped).await;
    let failure = roll.status.failure.unwrap();
    assert_eq!(failure.host, site.machine(0).name);
    assert_eq!(failure.problem.code, Code::DiskIo);
    let log = format!("/v1/hosts/{}/events", failure.host);
    let log = site.operator.call(Method::GET, &log, None).await.unwrap();
    assert!(log.to_string().contains("the roll of cluster prod stopped"));
    // What runs is let finish, and nothing else is begun.
    let retry = format!("/v1/hosts/{}/retry", failure.host);
    let retried = site.operator.call(Method::POST, &retry, None);
    retried.await.unwrap();
    let one = |roll: &ClusterRoll| roll.status.updated == 1;
    let roll = site.until("the first is done", one).await;
    assert_eq!(roll.status.phase, RollPhase::Stopped);
    tokio::time::sleep(STILL).await;
    assert_eq!(site.begun(), [2, 1, 1, 1]);

    site.machine(1).write_next_in(Duration::from_secs(4));
    assert_eq!(
        site.ask("/resume").await.status.phase,
        RollPhase::Progressing
    );
    let under_way = |roll: &ClusterRoll| roll.status.current.iter().any(|entry| entry.ordered);
    site.until("the second is begun", under_way).await;
    assert_eq!(site.ask("/pause").await.status.phase, RollPhase::Paused);
    let two = |roll: &ClusterRoll| roll.status.updated == 2 && roll.status.current.is_empty();
    let roll = site.until("the second is done", two).await;
    assert_eq!(roll.status.phase, RollPhase::Paused);
    tokio::time::sleep(STILL).await;
    assert_eq!(site.begun(), [2, 2, 1, 1]);
    site.ask("/resume").await;
    let roll = site.completes().await;
    assert_eq!(site.begun(), [2, 2, 2, 1]);
    let skipped = &roll.status.skipped[0];
    assert_eq!((&skipped.host, roll.status.updated), (protected, 3));
    assert_eq!(skipped.reason, "it is protected");
    let abort = format!("{ROLL}/abort");
    let refused = site.operator.call(Method::POST, &abort, None);
    assert!(refused.await.is_err(), "it is over");
    site.swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conductor_that_was_killed_in_the_middle_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let served = alone(dir.path()).await;
    let site = Site::start(&served, Settings::of(&served, 4)).await;
    site.begin(json!(2), 0).await;
    // Right after it was asked for, when hosts are being told, and when one is done.
    let told = |roll: &ClusterRoll| !roll.status.current.is_empty();
    let some = |roll: &ClusterRoll| roll.status.updated > 0;
    for (what, when) in [
        ("told", &told as &dyn Fn(&ClusterRoll) -> bool),
        ("done", &some),
    ] {
        site.until(what, when).await;
        served.kill().unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        served.launch().unwrap();
        served.until_ready(PATIENCE).await.unwrap();
    }
    let roll = site.completes().await;
    assert_eq!((roll.status.total, roll.status.updated), (4, 4));
    site.is_rolled_once().await;
    site.swarm.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_conductor_takes_the_roll_over() {
    let dir = tempfile::tempdir().unwrap();
    let database = Postgres::start().unwrap();
    let key = dir.path().join("secrets.key");
    std::fs::write(&key, [7_u8; 32]).unwrap();
    set_private(&key);
    let first = free_port().unwrap();
    let (url, key) = (database.url(), key.display().to_string());
    let extra = format!(
        "url = \"https://127.0.0.1:{first}\"\n{EXTRA}\n[store]\nurl = {url:?}\nkey_file = {key:?}\n"
    );
    let binary = ferrite().unwrap();
    let mut replicas = Vec::new();
    for port in [first, free_port().unwrap()] {
        let place = dir.path().join(port.to_string());
        let replica = Served::start_at(port, &binary, &place, &extra).await;
        replicas.push(replica.unwrap());
    }
    let settings = Settings {
        servers: replicas.iter().map(|one| one.url.clone()).collect(),
        netboot: replicas.iter().map(|one| one.netboot.clone()).collect(),
        ..Settings::of(&replicas[0], 4)
    };
    let mut site = Site::start(&replicas[0], settings).await;
    site.begin(json!(1), 0).await;
    let some = |roll: &ClusterRoll| roll.status.updated > 0;
    site.until("one is done", some).await;
    // The one that goes round the rolls has the lowest id of those that are alive.
    replicas.sort_by_key(id_of);
    site.operator = replicas[1].operator().unwrap();
    replicas[0].kill().unwrap();
    let before = site.roll().await.status.updated;
    let roll = site.completes().await;
    assert!(before < 4, "it was over already");
    assert_eq!((roll.status.total, roll.status.updated), (4, 4));
    site.is_rolled_once().await;
    site.swarm.stop().await;
}

fn set_private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, private).expect("the site works");
}

/// What a replica calls itself in this life, by its log.
fn id_of(replica: &Served) -> String {
    let log = std::fs::read_to_string(replica.log()).expect("the site works");
    let line = log.lines().rfind(|line| line.contains("one of several"));
    let (_, after) = line
        .expect("the site works")
        .split_once("replica=")
        .expect("the site works");
    let id = after.trim_start_matches('"').chars();
    id.take_while(|c| c.is_ascii_hexdigit() || *c == '-')
        .collect()
}

//! Clusters as people take them in, by the command line and a real conductor, against the tests'
//! own API server. `make test-kube` does the same with real binaries, where there are some.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use ferrite_tests::kube_api::{KubeApi, Signing};
use ferrite_tests::swarm::{Served, ferrite};

struct Site {
    served: Served,
    dir: tempfile::TempDir,
}

impl Site {
    async fn start() -> Self {
        which_api();
        let dir = tempfile::tempdir().expect("/tmp can be written");
        let binary = ferrite().expect("`make build` makes it");
        let allowed = "clusters = {allow_loopback = true}";
        let served = Served::start(&binary, dir.path(), allowed).await;
        let served = served.expect("a conductor starts on a folder of its own");
        Self { served, dir }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("the folder is ours");
        path
    }

    fn run(&self, line: &str) -> Output {
        Command::new(ferrite().expect("`make build` makes it"))
            .args(line.split(' '))
            .current_dir(self.dir.path())
            .env("FERRITE_CLIENT", self.dir.path().join("state/client.toml"))
            .output()
            .expect("it can be started")
    }

    /// What it prints, when it ends as it should. The API server answers meanwhile.
    fn says(&self, line: &str, code: i32) -> String {
        let output = tokio::task::block_in_place(|| self.run(line));
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{line}\n{out}{err}");
        out + &err
    }

    /// Runs it until it says so.
    async fn comes_to_say(&self, line: &str, words: &str) -> String {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let said = self.says(line, 0);
            if said.contains(words) {
                return said;
            }
            assert!(Instant::now() < deadline, "no {words:?} in {said}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Whether any file of the conductor's, its log included, holds the bytes.
    fn holds(&self, needle: &str) -> Option<PathBuf> {
        let mut folders = vec![self.dir.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).expect("the folder is ours") {
                let path = entry.expect("it can be read").path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let bytes = std::fs::read(&path).unwrap_or_default();
                let mut windows = bytes.windows(needle.len());
                if windows.any(|window| window == needle.as_bytes()) {
                    return Some(path);
                }
            }
        }
        None
    }
}

/// Says which of the two runs.
fn which_api() {
    match std::env::var_os("KUBEBUILDER_ASSETS") {
        None => eprintln!("with the tests' own API server: KUBEBUILDER_ASSETS is not set"),
        Some(_) => eprintln!(
            "with the tests' own API server: real binaries are given, and `make test-kube` runs \
             them"
        ),
    }
}

const TOKENS: &str = "/api/v1/namespaces/kube-system/secrets/bootstrap-token-";

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_added_checked_and_removed_and_its_secrets_never_show() {
    let site = Site::start().await;
    let api = KubeApi::start().await.unwrap();
    let config = site.write("kubeconfig", &api.kubeconfig());
    let said = site.says("cluster add prod --kubeconfig kubeconfig", 0);
    assert!(said.contains("ferrite cluster check prod"), "{said}");
    std::fs::remove_file(config).unwrap();

    let said = site.says("cluster check prod --kubelet-version v1.33.2", 0);
    assert!(said.contains("token           ok"), "{said}");
    assert!(said.contains("hosts can join cluster/prod"), "{said}");
    assert!(api.paths(TOKENS).is_empty(), "what a check makes is gone");
    let made = api
        .calls()
        .iter()
        .any(|call| call.contains("as system:bootstrap:"));
    assert!(made, "the token was used as a host uses it");
    let listed = site.comes_to_say("cluster list", "v1.34.1").await;
    assert!(listed.contains(&api.host_port()), "{listed}");

    api.set(|faults| faults.signing = Signing::Never);
    let said = site.says("cluster check prod", 1);
    assert!(said.contains("[cluster-token-unsigned]"), "{said}");
    assert!(said.contains("fix: bootstrapsigner must run"), "{said}");
    assert!(api.paths(TOKENS).is_empty(), "what failed is gone, too");
    api.set(|faults| faults.signing = Signing::Prompt);
    let said = site.says("cluster check prod --kubelet-version v1.35.0", 1);
    assert!(said.contains("the kubelet is newer"), "{said}");

    let shown = site.says("cluster show prod -o json", 0);
    for said in [&shown, &listed, &said] {
        assert!(!said.contains(&api.admin_token()), "{said}");
    }
    assert!(!shown.contains("kubeconfig"), "{shown}");
    let audit = site.says("audit list -o json", 0);
    assert!(!audit.contains(&api.admin_token()), "{audit}");
    assert_eq!(site.holds(&api.admin_token()), None);

    site.says("cluster remove prod", 0);
    site.says("cluster check prod", 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_credentials_and_a_rotated_ca_are_taken() {
    let site = Site::start().await;
    let api = KubeApi::start().await.unwrap();
    site.write("old", &api.kubeconfig_of("expired"));
    site.says("cluster add prod --kubeconfig old", 0);
    let said = site.says("cluster check prod", 1);
    assert!(said.contains("[cluster-credentials-refused]"), "{said}");
    site.write("new", &api.kubeconfig());
    site.says("cluster set-credentials prod --kubeconfig new", 0);
    site.says("cluster check prod", 0);
    api.rotate_ca().unwrap();
    let said = site.says("cluster check prod", 1);
    assert!(said.contains("[cluster-certificate]"), "{said}");
    site.comes_to_say("cluster list", "cluster-certificate")
        .await;
    site.write("new", &api.kubeconfig());
    site.says("cluster set-credentials prod --kubeconfig new", 0);
    site.says("cluster check prod", 0);
    assert_eq!(site.holds("expired"), Some(site.dir.path().join("old")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_of_kamaji_is_added_and_followed() {
    let site = Site::start().await;
    let (management, tenant) = (
        KubeApi::start().await.unwrap(),
        KubeApi::start().await.unwrap(),
    );
    management.put_tenant("tenants", "t1", "Sleeping", &tenant);
    site.write("management", &management.kubeconfig());
    let add = "cluster add t1 --kamaji tenants/t1 --management-kubeconfig management";
    site.says(add, 0);
    let said = site.says("cluster check t1", 1);
    assert!(said.contains("sleeps (phase Sleeping)"), "{said}");
    management.put_tenant("tenants", "t1", "Ready", &tenant);
    let said = site.says("cluster check t1", 0);
    assert!(said.contains("Kamaji says Ready"), "{said}");
    let listed = site.comes_to_say("cluster list", &tenant.host_port()).await;
    assert!(listed.contains("v1.34.1"), "{listed}");
    let after = site.says("cluster show t1 -o json", 0);
    assert!(!after.contains(&tenant.admin_token()), "{after}");
    // What was read of the tenant is stored nowhere; the management's own lies here in clear.
    assert_eq!(site.holds(&tenant.admin_token()), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubeconfig_that_runs_or_reads_something_is_refused() {
    let site = Site::start().await;
    let api = KubeApi::start().await.unwrap();
    let exec = api
        .kubeconfig()
        .replace("token: ", "exec: {command: /bin/sh}\n    x: ");
    site.write("exec", &exec);
    let said = site.says("cluster add prod --kubeconfig exec", 1);
    assert!(said.contains("`exec`, which is not taken"), "{said}");
    let printed = site.says("cluster rbac", 0);
    assert!(printed.contains("kind: ClusterRole\n"), "{printed}");
    let printed = site.says("cluster rbac --kamaji tenants/t1", 0);
    assert!(
        printed.contains("resourceNames: [t1-admin-kubeconfig, t1-ca]"),
        "{printed}"
    );
    drop(site.served);
}

//! Proves what a join needs before any host is touched: each thing once, in the order in which a
//! host would meet it, with the reason and the fix where it is not as it must be.
//!
//! It makes a token, uses it as a host would, and removes it. Nothing else is changed.

use std::sync::PoisonError;
use std::time::Duration;

use ferrite_proto::cluster::{ClusterReport, ClusterStatus, Finding, Verdict};
use ferrite_proto::problem::{Code, Problem};
use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};

use super::mint::{self, ClusterInfo};
use super::token::{self, Token};
use super::wire::{Wire, short};
use super::{Clusters, Place};
use crate::clock;
use crate::joining::configuration::REFUSED_BEFORE_1_35;

/// How long the token of a check lives, if nobody removes it.
const TOKEN: SignedDuration = SignedDuration::from_mins(5);
/// A certificate that ends sooner is told.
const ENDING: SignedDuration = SignedDuration::from_hours(7 * 24);
/// A clock that is further from ours is told; the certificates are back-dated by five minutes.
const SKEW: Duration = Duration::from_mins(1);
/// Minor versions by which a kubelet may be older than its API server.
const OLDEST: u64 = 3;
/// What a join reads in kube-system.
const CONFIG_MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";

/// What was found so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, code: &str, verdict: Verdict, what: impl Into<String>, why: (String, &str)) {
        self.0.push(Finding {
            code: code.to_owned(),
            verdict,
            what: what.into(),
            reason: why.0,
            fix: why.1.to_owned(),
        });
    }

    fn fine(&mut self, code: &str, what: impl Into<String>) {
        self.add(code, Verdict::Ok, what, (String::new(), ""));
    }

    fn failed(&mut self, code: &str, what: &str, problem: &Problem) {
        let why = (problem.to_string(), problem.advice.as_str());
        self.add(code, Verdict::Error, what, why);
    }

    fn skipped(&mut self, codes: &[&str], because: &str) {
        for code in codes {
            let reason = format!("{because} stands in the way");
            let fix = "correct that first";
            self.add(code, Verdict::Skipped, "not looked at", (reason, fix));
        }
    }
}

impl Clusters {
    /// Looks at all of it. `kubelet` is the version that hosts will run, where it is known.
    pub(crate) async fn check(
        &self,
        cluster: &str,
        kubelet: Option<&str>,
    ) -> Result<ClusterReport, Problem> {
        self.document(cluster)?;
        let mut found = Findings::default();
        let mut status = ClusterStatus::default();
        match self.find(cluster).await {
            Ok(place) => {
                found.fine("credentials", "the kubeconfig is whole");
                status = place.status();
                self.check_place(&place, &mut found, &mut status, kubelet)
                    .await;
            }
            Err(problem) => {
                let code = match problem.code {
                    Code::ClusterCredentials => "credentials",
                    Code::ClusterNotJoinable => "control-plane",
                    _ => "management-cluster",
                };
                found.failed(code, "the way into the cluster", &problem);
                found.skipped(&["endpoint", "token", "version"], code);
                status.problem = Some(problem);
            }
        }
        let findings = found.0;
        let report = ClusterReport {
            cluster: cluster.to_owned(),
            at: clock::now(),
            can_join: findings.iter().all(|one| one.verdict < Verdict::Error),
            status,
            findings,
        };
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        reports.insert(cluster.to_owned(), report.clone());
        Ok(report)
    }

    async fn check_place(
        &self,
        place: &Place,
        found: &mut Findings,
        status: &mut ClusterStatus,
        kubelet: Option<&str>,
    ) {
        control_plane(place, found);
        if !endpoint(place, found).await {
            let rest = [
                "ca-pin",
                "token",
                "rbac",
                "kubelet-config",
                "cni",
                "version",
            ];
            return found.skipped(&rest, "endpoint");
        }
        let info = cluster_info(place, found).await;
        self.round_trip(place, found, info.is_some()).await;
        own_rights(place, found).await;
        cni(place, found).await;
        status.kubernetes_version = version(place, found, kubelet).await;
        konnectivity(place, found).await;
    }

    /// A token is made, signed, used, and removed.
    async fn round_trip(&self, place: &Place, found: &mut Findings, has_info: bool) {
        const REST: [&str; 2] = ["rbac", "kubelet-config"];
        if !has_info {
            found.skipped(&["token"], "cluster-info");
            return found.skipped(&REST, "cluster-info");
        }
        let token = Token::random();
        let expires = clock::now().checked_add(TOKEN).unwrap_or(Timestamp::MAX);
        let noted = self.note(&place.cluster, &token.id, None, expires).await;
        let proved = match noted {
            Ok(()) => mint::prove(place, &token, "Ferrite: a check", expires).await,
            Err(problem) => Err(problem),
        };
        match proved {
            Ok(_) => {
                let what = "a bootstrap token was made, signed for and verified";
                found.fine("token", what);
                as_a_host(place, found, &token).await;
            }
            Err(problem) => {
                found.failed("token", "a bootstrap token", &problem);
                found.skipped(&REST, "token");
            }
        }
        self.let_go(&place.cluster, &token.id).await;
    }
}

fn control_plane(place: &Place, found: &mut Findings) {
    let Some(seen) = &place.seen else { return };
    match place.obstacle() {
        Ok(()) => found.fine("control-plane", format!("Kamaji says {}", seen.phase)),
        Err(problem) => found.failed("control-plane", "Kamaji's control plane", &problem),
    }
}

/// Whether hosts reach the API server and can believe it.
async fn endpoint(place: &Place, found: &mut Findings) -> bool {
    let what = format!("the API server at {}", place.host_port());
    let answer = match place.open.call(&Method::GET, "/readyz", None).await {
        Ok(answer) => answer,
        Err(problem) if problem.code == Code::ClusterCertificate => {
            found.fine("endpoint", format!("{what} answers"));
            found.failed("certificate", &what, &problem);
            return false;
        }
        // Whoever is told so has spoken to an API server.
        Err(problem) if is_refusal(&problem) => {
            found.fine("endpoint", format!("{what} answers"));
            found.fine("certificate", "its certificate holds for this name");
            return true;
        }
        Err(problem) => {
            found.failed("endpoint", &what, &problem);
            return false;
        }
    };
    found.fine("endpoint", format!("{what} is ready"));
    certificate(found, answer.certificate.as_deref());
    if let Some(skew) = answer.at.map(|at| at.duration_since(clock::now())) {
        clocks(found, skew);
    }
    true
}

fn is_refusal(problem: &Problem) -> bool {
    matches!(
        problem.code,
        Code::ClusterCredentialsRefused | Code::ClusterForbidden
    )
}

fn certificate(found: &mut Findings, der: Option<&[u8]>) {
    const FINE: &str = "its certificate holds for this name";
    let read = der.and_then(|der| Some(x509_parser::parse_x509_certificate(der).ok()?.1));
    let ends = read.map(|read| read.validity().not_after.timestamp());
    let ends = ends.and_then(|ends| Timestamp::from_second(ends).ok());
    match ends {
        Some(ends) if ends.duration_since(clock::now()) < ENDING => found.add(
            "certificate",
            Verdict::Warning,
            FINE,
            (
                format!("it ends at {ends}"),
                "renew it: `kubeadm certs renew apiserver`; Kamaji renews by itself",
            ),
        ),
        _ => found.fine("certificate", FINE),
    }
}

fn clocks(found: &mut Findings, skew: SignedDuration) {
    if skew.unsigned_abs() < SKEW {
        return found.fine("clock", "the cluster's clock agrees with the conductor's");
    }
    found.add(
        "clock",
        Verdict::Warning,
        "the cluster's clock",
        (
            format!("it is {} s from the conductor's", skew.as_secs()),
            "set both by NTP: tokens expire, and certificates begin, by them",
        ),
    );
}

/// `cluster-info`, its CA and its server.
async fn cluster_info(place: &Place, found: &mut Findings) -> Option<ClusterInfo> {
    let info = match mint::cluster_info(place).await {
        Ok(info) => info,
        Err(problem) => {
            found.failed(
                "cluster-info",
                "kube-public/cluster-info, as anybody",
                &problem,
            );
            found.skipped(&["ca-pin"], "cluster-info");
            return None;
        }
    };
    let server = info.server();
    if server.as_deref() == Some(place.endpoint.as_str()) {
        found.fine("cluster-info", "anybody can read cluster-info");
    } else {
        let theirs = server.as_deref().unwrap_or("nothing that can be used");
        found.add(
            "cluster-info",
            Verdict::Warning,
            "the server that cluster-info names",
            (
                format!("it is {theirs}, and hosts begin at {}", place.endpoint),
                "kubelets stay with the server of cluster-info: hosts must reach it, too",
            ),
        );
    }
    match mint::check_info(place, &info) {
        Ok(()) => found.fine("ca-pin", token::pins(&place.ca).join(", ")),
        Err(problem) => found.failed("ca-pin", "the CA of cluster-info", &problem),
    }
    Some(info)
}

/// What a host does with its token.
async fn as_a_host(place: &Place, found: &mut Findings, token: &Token) {
    let host = place.open.with_token(token.whole().expose());
    let lacking = lacking_rights(&host).await;
    match lacking {
        Ok(lacking) if lacking.is_empty() => {
            found.fine("rbac", "a bootstrap token may do what a join does");
        }
        Ok(lacking) => found.add(
            "rbac",
            Verdict::Error,
            "what a bootstrap token may do",
            (
                format!("it may not {}", lacking.join(", nor ")),
                "`kubeadm init phase bootstrap-token` and `kubeadm init phase upload-config all` \
                 make the roles and bindings",
            ),
        ),
        Err(problem) => found.failed("rbac", "what a bootstrap token may do", &problem),
    }
    match host.get(&format!("{CONFIG_MAPS}/kubelet-config")).await {
        Ok(Some(object)) => kubelet_config(found, &object),
        Ok(None) => found.add(
            "kubelet-config",
            Verdict::Error,
            "kube-system/kubelet-config",
            (
                "there is none".to_owned(),
                "`kubeadm init phase upload-config kubelet` writes it",
            ),
        ),
        Err(problem) => found.failed("kubelet-config", "kube-system/kubelet-config", &problem),
    }
}

/// The calls of `kubeadm join` and of the kubelet's first seconds.
async fn lacking_rights(host: &Wire) -> Result<Vec<&'static str>, Problem> {
    const READS: [(&str, &str); 3] = [
        ("read kube-system/kubeadm-config", "kubeadm-config"),
        ("read kube-system/kubelet-config", "kubelet-config"),
        ("read nodes", ""),
    ];
    const CSRS: &str = "certificatesigningrequests";
    const ASKS: [(&str, &str, &str); 2] = [
        ("create certificate signing requests", "create", ""),
        ("have them approved (nodeclient)", "create", "nodeclient"),
    ];
    let mut lacking = Vec::new();
    for (what, name) in READS {
        let path = match name {
            "" => "/api/v1/nodes/ferrite-check".to_owned(),
            name => format!("{CONFIG_MAPS}/{name}"),
        };
        match host.get(&path).await {
            Ok(Some(_)) => {}
            Ok(None) if name.is_empty() => {}
            Ok(None) => lacking.push(what),
            Err(problem) if problem.code == Code::ClusterForbidden => lacking.push(what),
            Err(problem) => return Err(problem),
        }
    }
    for (what, verb, part) in ASKS {
        let asked = ("certificates.k8s.io", CSRS, part, verb, "");
        if !may(host, asked).await? {
            lacking.push(what);
        }
    }
    Ok(lacking)
}

/// Group, resource, subresource, verb, namespace.
type Asked<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str);

async fn may(wire: &Wire, asked: Asked<'_>) -> Result<bool, Problem> {
    const PATH: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let (group, resource, subresource, verb, namespace) = asked;
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {
            "group": group, "resource": resource, "subresource": subresource, "verb": verb,
            "namespace": namespace,
        }},
    });
    let answer = wire.create(PATH, &review).await?;
    Ok(answer["status"]["allowed"] == true)
}

/// What we do besides, until a host has left again.
async fn own_rights(place: &Place, found: &mut Findings) {
    const RIGHTS: [Asked<'_>; 9] = [
        ("", "secrets", "", "create", "kube-system"),
        ("", "secrets", "", "delete", "kube-system"),
        ("", "nodes", "", "get", ""),
        ("", "nodes", "", "patch", ""),
        ("", "nodes", "", "delete", ""),
        ("", "pods", "", "list", ""),
        ("", "pods", "eviction", "create", ""),
        (
            "certificates.k8s.io",
            "certificatesigningrequests",
            "",
            "list",
            "",
        ),
        ("storage.k8s.io", "volumeattachments", "", "list", ""),
    ];
    let mut lacking = Vec::new();
    for asked in RIGHTS {
        match may(&place.wire, asked).await {
            Ok(true) => {}
            Ok(false) => lacking.push(format!("{} {}", asked.3, asked.1)),
            Err(problem) => return found.failed("own-rbac", "what we may do", &problem),
        }
    }
    if lacking.is_empty() {
        return found.fine("own-rbac", "we may do what joins and leaves need");
    }
    let why = format!("we may not {}", lacking.join(", nor "));
    let fix = "apply what `ferrite cluster rbac` prints";
    found.add("own-rbac", Verdict::Error, "what we may do", (why, fix));
}

fn kubelet_config(found: &mut Findings, object: &Value) {
    const CODE: &str = "kubelet-config";
    const WHAT: &str = "kube-system/kubelet-config";
    /// Where `kubeadm join` puts the cluster's CA.
    const CA_FILE: &str = "/etc/kubernetes/pki/ca.crt";
    let text = object["data"]["kubelet"].as_str().unwrap_or_default();
    let read: Option<Value> = serde_saphyr::from_str(text).ok();
    let read = read.unwrap_or_default();
    if read["kind"] != "KubeletConfiguration" || !read["apiVersion"].is_string() {
        let why = "it holds no KubeletConfiguration with kind and apiVersion".to_owned();
        let fix = "correct configurationJSONPatches of the TenantControlPlane, or write it anew \
                   with `kubeadm init phase upload-config kubelet`";
        return found.add(CODE, Verdict::Error, WHAT, (why, fix));
    }
    let ca = read["authentication"]["x509"]["clientCAFile"].as_str();
    if let Some(ca) = ca.filter(|ca| *ca != CA_FILE) {
        let why = format!(
            "its clientCAFile is {}, and kubeadm writes {CA_FILE}",
            short(ca)
        );
        let fix = "correct it, unless the image has that file: a kubelet without it ends at once; \
                   `certificatesDir` of kubeadm's configuration got there";
        return found.add(CODE, Verdict::Warning, WHAT, (why, fix));
    }
    let new: Vec<_> = REFUSED_BEFORE_1_35
        .iter()
        .map(|(key, _)| *key)
        .filter(|key| !read[*key].is_null())
        .collect();
    if !new.is_empty() {
        let why = format!(
            "it has {}, which kubelets before 1.35 refuse; hosts that join are given a patch",
            new.join(" and ")
        );
        let fix = "remove them with kubelet.configurationJSONPatches of the TenantControlPlane, \
                   or run kubelets of 1.35";
        return found.add(CODE, Verdict::Warning, WHAT, (why, fix));
    }
    if read["cgroupDriver"].as_str().unwrap_or("systemd") != "systemd" {
        let driver = short(read["cgroupDriver"].as_str().unwrap_or_default());
        let why = format!("its cgroupDriver is {driver}");
        let fix = "containerd must have the same; systemd is what distributions ship";
        return found.add(CODE, Verdict::Warning, WHAT, (why, fix));
    }
    found.fine(CODE, "kubelet-config is one that kubelets take");
}

/// Whether something brings a network for pods: a `DaemonSet` that writes `/etc/cni`.
async fn cni(place: &Place, found: &mut Findings) {
    let all = match place.wire.list("/apis/apps/v1/daemonsets", "").await {
        Ok(all) => all,
        Err(problem) => {
            let why = (
                problem.to_string(),
                "apply what `ferrite cluster rbac` prints",
            );
            return found.add("cni", Verdict::Warning, "the network for pods", why);
        }
    };
    let writes = |set: &&Value| {
        let volumes = set["spec"]["template"]["spec"]["volumes"].as_array();
        let mut paths = volumes
            .into_iter()
            .flatten()
            .map(|volume| &volume["hostPath"]["path"]);
        paths.any(|path| {
            path.as_str()
                .is_some_and(|path| path.starts_with("/etc/cni"))
        })
    };
    if let Some(set) = all.iter().find(writes) {
        let name = short(set["metadata"]["name"].as_str().unwrap_or_default());
        return found.fine("cni", format!("DaemonSet {name} brings a network for pods"));
    }
    let why = "no DaemonSet mounts /etc/cni: nodes join, and stay NotReady".to_owned();
    let fix = "install a CNI (Cilium, Calico, Flannel, …), or have it in the image";
    found.add("cni", Verdict::Warning, "the network for pods", (why, fix));
}

async fn version(place: &Place, found: &mut Findings, kubelet: Option<&str>) -> Option<String> {
    let version = match mint::version(place).await {
        Ok(version) => version,
        Err(problem) => {
            found.failed("version", "the API server's version", &problem);
            return None;
        }
    };
    skew(found, &version, kubelet);
    Some(version)
}

fn skew(found: &mut Findings, server: &str, kubelet: Option<&str>) {
    let Some(kubelet) = kubelet else {
        let what = format!("the API server is {server}: kubelets up to that, {OLDEST} older");
        return found.fine("version", what);
    };
    let what = format!("the API server is {server}, the kubelet {kubelet}");
    let (Some(ours), Some(theirs)) = (minor(kubelet), minor(server)) else {
        let why = "one of them is no version of Kubernetes".to_owned();
        let fix = "give the kubelet's as `kubelet --version` prints it";
        return found.add("version", Verdict::Warning, what, (why, fix));
    };
    let wrong = if ours > theirs {
        "the kubelet is newer than the API server"
    } else if theirs - ours > OLDEST {
        "the kubelet is more than three minor versions older than the API server"
    } else {
        return found.fine("version", what);
    };
    let fix = "take an image with a kubelet of the API server's minor version; kubeadm itself \
               does not look";
    found.add("version", Verdict::Error, what, (wrong.to_owned(), fix));
}

/// 34 of `v1.34.1`.
fn minor(version: &str) -> Option<u64> {
    let rest = version.trim().trim_start_matches('v').strip_prefix("1.")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// Logs and exec go through it where the API server does not reach the hosts; a join does not.
async fn konnectivity(place: &Place, found: &mut Findings) {
    const CODE: &str = "konnectivity";
    if !place.seen.as_ref().is_some_and(|seen| seen.konnectivity) {
        return;
    }
    let query = "labelSelector=k8s-app%3Dkonnectivity-agent";
    let mut agents = Vec::new();
    for kind in ["daemonsets", "deployments"] {
        let path = format!("/apis/apps/v1/namespaces/kube-system/{kind}");
        match place.wire.list(&path, query).await {
            Ok(some) => agents.extend(some),
            Err(problem) => {
                let why = (
                    problem.to_string(),
                    "apply what `ferrite cluster rbac` prints",
                );
                return found.add(CODE, Verdict::Warning, "konnectivity's agents", why);
            }
        }
    }
    if agents.is_empty() {
        let why = "Kamaji has it switched on, and no agent is there".to_owned();
        let fix = "look at addons.konnectivity of the TenantControlPlane; logs and exec hang \
                   without it";
        return found.add(CODE, Verdict::Warning, "konnectivity's agents", (why, fix));
    }
    found.fine(CODE, "konnectivity's agents are there");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(look: impl FnOnce(&mut Findings)) -> Finding {
        let mut found = Findings::default();
        look(&mut found);
        assert_eq!(found.0.len(), 1);
        found.0.remove(0)
    }

    #[test]
    fn a_kubelet_is_not_newer_and_not_much_older_than_its_server() {
        for (server, kubelet, verdict) in [
            ("v1.34.1", "v1.34.9", Verdict::Ok),
            ("v1.34.1", "1.31.0", Verdict::Ok),
            ("v1.34.1+k3s1", "Kubernetes v1.34", Verdict::Warning),
            ("v1.34.1", "v1.30.4", Verdict::Error),
            ("v1.34.1", "v1.35.0-rc.1", Verdict::Error),
        ] {
            let found = only(|found| skew(found, server, Some(kubelet)));
            assert_eq!(found.verdict, verdict, "{server} {kubelet}");
            assert_eq!(found.fix.is_empty(), verdict == Verdict::Ok);
        }
        assert_eq!(
            only(|found| skew(found, "v1.34.1", None)).verdict,
            Verdict::Ok
        );
    }

    #[test]
    fn a_kubelet_config_is_one_that_kubelets_take() {
        const GOOD: &str =
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
        for (text, verdict, told) in [
            (GOOD.to_owned(), Verdict::Ok, ""),
            (
                "kind: KubeletConfiguration\n".to_owned(),
                Verdict::Error,
                "apiVersion",
            ),
            ("[".to_owned(), Verdict::Error, "apiVersion"),
            (
                format!("{GOOD}crashLoopBackOff: {{maxContainerRestartPeriod: 5m}}\n"),
                Verdict::Warning,
                "crashLoopBackOff",
            ),
            (
                format!("{GOOD}imagePullCredentialsVerificationPolicy: NeverVerify\n"),
                Verdict::Warning,
                "before 1.35",
            ),
            (
                format!("{GOOD}authentication: {{x509: {{clientCAFile: /root/pki/ca.crt}}}}\n"),
                Verdict::Warning,
                "/root/pki/ca.crt",
            ),
            (
                format!(
                    "{GOOD}authentication: {{x509: {{clientCAFile: /etc/kubernetes/pki/ca.crt}}}}\n"
                ),
                Verdict::Ok,
                "",
            ),
            (
                format!("{GOOD}cgroupDriver: cgroupfs\n"),
                Verdict::Warning,
                "cgroupfs",
            ),
        ] {
            let object = json!({"data": {"kubelet": text}});
            let found = only(|found| kubelet_config(found, &object));
            assert_eq!(found.verdict, verdict, "{text}");
            assert!(found.reason.contains(told), "{found:?}");
        }
    }

    #[test]
    fn clocks_that_differ_are_told() {
        let apart = only(|found| clocks(found, SignedDuration::from_hours(-1)));
        assert_eq!(apart.verdict, Verdict::Warning);
        assert!(apart.reason.contains("-3600 s"), "{apart:?}");
        assert_eq!(
            only(|found| clocks(found, SignedDuration::ZERO)).verdict,
            Verdict::Ok
        );
    }
}

//! kubeadm's `JoinConfiguration`, in the version that the host's kubeadm reads.
//!
//! Written as JSON, which is YAML: nothing of it needs quoting, whatever a name holds. Source: the
//! kubeadm API reference, `kubeadm.k8s.io/v1beta3` and `v1beta4`.

use ferrite_proto::join::{FOLDER, JoinSpec, PATCHES};
use ferrite_proto::secret::Secret;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The first minor of kubeadm that reads v1beta4.
const V1BETA4: u32 = 31;
/// How long kubeadm looks for the cluster, and the kubelet for its certificate. kubeadm's own five
/// minutes are longer than it takes to begin anew.
const DISCOVERY: &str = "2m0s";
const BOOTSTRAP: &str = "3m0s";

/// A version of Kubernetes, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    /// 1.
    pub(crate) major: u32,
    /// 33 of `v1.33.1`.
    pub(crate) minor: u32,
}

impl Version {
    /// Reads `v1.33.1`, with or without what follows.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix('v')?.split('.');
        let mut number = || parts.next()?.parse().ok();
        Some(Self {
            major: number()?,
            minor: number()?,
        })
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "v{}.{}", self.major, self.minor)
    }
}

/// Whether a kubelet may serve an API server: not newer, and at most three minors older
/// (Kubernetes' version skew policy).
pub(crate) fn may_serve(kubelet: Version, server: Version) -> bool {
    kubelet.major == server.major
        && kubelet.minor <= server.minor
        && server.minor - kubelet.minor <= 3
}

/// What is told in it.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    /// Of the host's kubeadm.
    pub(crate) kubeadm: Version,
    /// `host:port`.
    pub(crate) endpoint: &'a str,
    /// `id.secret`.
    pub(crate) token: &'a Secret<String>,
    /// `sha256:…`, one at least.
    pub(crate) ca_hashes: &'a [String],
    /// Of the Node.
    pub(crate) node: &'a str,
    /// Of the Node.
    pub(crate) provider_id: &'a str,
    /// The runtime's socket.
    pub(crate) cri_socket: Option<&'a str>,
    /// Labels and taints; the labels are set later, with rights that a kubelet has not.
    pub(crate) spec: &'a JoinSpec,
    /// Whether there are patches.
    pub(crate) patched: bool,
}

/// The file's text.
pub(crate) fn render(facts: &Facts<'_>) -> Secret<String> {
    let newer = facts.kubeadm.minor >= V1BETA4;
    let taints = facts.spec.node_taints.iter().map(
        |taint| json!({"key": taint.key, "value": taint.value, "effect": taint.effect.as_str()}),
    );
    let mut registration = json!({
        "name": facts.node,
        "taints": taints.collect::<Vec<_>>(),
        "kubeletExtraArgs": arguments(facts.provider_id, newer),
    });
    if let Some(socket) = facts.cri_socket {
        registration["criSocket"] = json!(socket);
    }
    let mut configuration = json!({
        "apiVersion": if newer { "kubeadm.k8s.io/v1beta4" } else { "kubeadm.k8s.io/v1beta3" },
        "kind": "JoinConfiguration",
        "discovery": {"bootstrapToken": {
            "apiServerEndpoint": facts.endpoint,
            "token": facts.token.expose(),
            "caCertHashes": facts.ca_hashes,
        }},
        "nodeRegistration": registration,
    });
    if newer {
        configuration["timeouts"] = json!({"discovery": DISCOVERY, "tlsBootstrap": BOOTSTRAP});
    } else {
        configuration["discovery"]["timeout"] = json!(DISCOVERY);
    }
    if facts.patched {
        configuration["patches"] = json!({"directory": format!("{FOLDER}/{PATCHES}")});
    }
    Secret::new(format!("{configuration:#}\n"))
}

/// Fields of kubelet-config that a control plane of 1.35 fills, and the feature gates without which
/// older kubelets refuse them (kamaji#1047, #1062).
pub(crate) const REFUSED_BEFORE_1_35: [(&str, &str); 2] = [
    ("crashLoopBackOff", "KubeletCrashLoopBackOffMax"),
    (
        "imagePullCredentialsVerificationPolicy",
        "KubeletEnsureSecretPulledImages",
    ),
];

/// kubeadm's patches for a kubelet that would refuse the cluster's configuration: without what it
/// refuses. None for a kubelet of unknown version, or before kubeadm could patch (1.25).
pub(crate) fn patches(kubelet: Option<Version>, config: &Value) -> BTreeMap<String, String> {
    let patchable = kubelet.is_some_and(|kubelet| (25..35).contains(&kubelet.minor));
    let refused = REFUSED_BEFORE_1_35.iter().filter(|(field, gate)| {
        patchable && !config[*field].is_null() && config["featureGates"][*gate] != true
    });
    let without: serde_json::Map<_, _> = refused
        .map(|(field, _)| ((*field).to_owned(), Value::Null))
        .collect();
    if without.is_empty() {
        return BTreeMap::new();
    }
    let text = format!("{}\n", Value::Object(without));
    [("kubeletconfiguration0+merge.yaml".to_owned(), text)].into()
}

/// A map before v1beta4, a list since.
fn arguments(provider_id: &str, newer: bool) -> Value {
    if newer {
        json!([{"name": "provider-id", "value": provider_id}])
    } else {
        json!({"provider-id": provider_id})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrite_proto::join::{JoinBy, NodeTaint, TaintEffect};

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn a_version_is_two_numbers_of_what_programs_tell() {
        assert_eq!(
            (version("v1.33.1").major, version("v1.33.1").minor),
            (1, 33)
        );
        assert_eq!(version("v1.31.0-rc.1").to_string(), "v1.31");
        for bad in ["1.33", "v1", "v1.x", "", "Kubernetes v1.33.1"] {
            assert_eq!(Version::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_kubelet_is_not_newer_and_at_most_three_older() {
        let server = version("v1.33.1");
        for (kubelet, good) in [
            ("v1.34.0", false),
            ("v1.33.9", true),
            ("v1.30.0", true),
            ("v1.29.4", false),
            ("v2.33.0", false),
        ] {
            assert_eq!(may_serve(version(kubelet), server), good, "{kubelet}");
        }
    }

    #[test]
    fn what_an_older_kubelet_refuses_is_taken_out_for_it_alone() {
        let config = json!({"crashLoopBackOff": {}, "clusterDomain": "cluster.local"});
        let older = patches(Some(version("v1.34.9")), &config);
        let text = &older["kubeletconfiguration0+merge.yaml"];
        assert_eq!(text, "{\"crashLoopBackOff\":null}\n");
        let mut meant = config.clone();
        meant["featureGates"] = json!({"KubeletCrashLoopBackOffMax": true});
        for (kubelet, config) in [
            (Some("v1.35.0"), &config),
            (Some("v1.24.0"), &config),
            (None, &config),
            (Some("v1.34.0"), &meant),
            (Some("v1.34.0"), &Value::Null),
        ] {
            let found = patches(kubelet.map(version), config);
            assert!(found.is_empty(), "{kubelet:?}: {found:?}");
        }
    }

    fn rendered(kubeadm: &str) -> Value {
        let spec = JoinSpec {
            cluster: "prod".into(),
            node_labels: [("rack".into(), "r1".into())].into(),
            node_taints: vec![NodeTaint {
                key: "gpu".into(),
                value: "yes: \"really\"".into(),
                effect: TaintEffect::NoSchedule,
            }],
            by: JoinBy::Daemon,
            drain: true,
        };
        let text = render(&Facts {
            kubeadm: version(kubeadm),
            endpoint: "10.0.0.1:6443",
            token: &Secret::new("abcdef.0123456789abcdef".into()),
            ca_hashes: &["sha256:00".into()],
            node: "n1",
            provider_id: "ferrite://u-1",
            cri_socket: Some("unix:///run/containerd/containerd.sock"),
            spec: &spec,
            patched: kubeadm == "v1.34.0",
        });
        serde_json::from_str(text.expose()).unwrap()
    }

    #[test]
    fn each_kubeadm_gets_the_form_that_it_reads() {
        let newer = rendered("v1.34.0");
        assert_eq!(newer["apiVersion"], "kubeadm.k8s.io/v1beta4");
        let node = &newer["nodeRegistration"];
        assert_eq!(node["kubeletExtraArgs"][0]["value"], "ferrite://u-1");
        assert_eq!(node["taints"][0]["value"], "yes: \"really\"");
        assert_eq!(newer["timeouts"]["discovery"], "2m0s");
        assert_eq!(newer["patches"]["directory"], "/run/ferrite/join/patches");
        let older = rendered("v1.30.2");
        assert_eq!(older["apiVersion"], "kubeadm.k8s.io/v1beta3");
        let arguments = &older["nodeRegistration"]["kubeletExtraArgs"];
        assert_eq!(arguments["provider-id"], "ferrite://u-1");
        assert_eq!(older["discovery"]["timeout"], "2m0s");
        assert!(older.get("timeouts").is_none() && older.get("patches").is_none());
        let token = &older["discovery"]["bootstrapToken"];
        assert_eq!(token["token"], "abcdef.0123456789abcdef");
        assert_eq!(token["caCertHashes"][0], "sha256:00");
    }
}

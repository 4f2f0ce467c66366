//! Why a `kubeadm join` does not go on: from its words to a cause and what a person can do.
//!
//! Each text is the stable part of what real runs printed (kubeadm v1.36, kubelet v1.36); the
//! first row that is found in a line counts, so the narrower stand first. kubeadm says the same
//! while it still tries (at `-v=1`) and when it gives up, so a cause is known long before the end.

use ferrite_proto::problem::{Code, Problem};

/// A text, all parts of which are in a line; its code; what a person can do.
type Row = (&'static [&'static str], Code, &'static str);

const CLOCK: &str = "set the host's clock: give the image an NTP server that it reaches, or set \
                     the hardware clock in the firmware";
const ANEW: &str = "it is tried again with a new token; `ferrite cluster check` says what the \
                    cluster lacks";

const ROWS: &[Row] = &[
    (
        &["none of the public keys", "are pinned"],
        Code::JoinCaMismatch,
        "the cluster's CA was changed in the meantime, or another server answers at the endpoint; \
         it is tried again with the CA that the cluster has then",
    ),
    (
        &["could not find a JWS signature in the cluster-info ConfigMap"],
        Code::JoinTokenRefused,
        ANEW,
    ),
    (
        &["was different from the first"],
        Code::ClusterInfo,
        "kube-public/cluster-info was written anew while the host read it, as happens when the \
         control plane is changed; it is tried again",
    ),
    (
        &["caCertHashes: Invalid value"],
        Code::JoinCaMismatch,
        "the host was given no pin of the cluster's CA: report this; it is tried again",
    ),
    (
        &["invalid discovery token CA certificate hash"],
        Code::JoinCaMismatch,
        "the host was given a pin that is none: report this; it is tried again",
    ),
    (
        &["does not yet contain a JWS signature"],
        Code::JoinTokenRefused,
        ANEW,
    ),
    (
        &["is invalid for this cluster or it has expired"],
        Code::JoinTokenRefused,
        ANEW,
    ),
    (
        &["failed to verify JWS signature"],
        Code::JoinTokenRefused,
        ANEW,
    ),
    (
        &["certificate has expired or is not yet valid"],
        Code::JoinClock,
        CLOCK,
    ),
    (
        &["x509: certificate is valid for"],
        Code::JoinCertificate,
        "add the endpoint's name to the certificate: certSANs of the control plane",
    ),
    (
        &["x509: certificate signed by unknown authority"],
        Code::JoinCertificate,
        "another server answers at the endpoint than the cluster's; look at the load balancer",
    ),
    (
        &["first record does not look like a TLS handshake"],
        Code::JoinCertificate,
        "what answers at the endpoint speaks no TLS; look at the load balancer",
    ),
    (
        &["configmaps \"cluster-info\" is forbidden"],
        Code::JoinForbidden,
        "give anonymous users the Role kube-public/kubeadm:bootstrap-signer-clusterinfo, as \
         `kubeadm init phase bootstrap-token` does",
    ),
    (
        &["is forbidden"],
        Code::JoinForbidden,
        "give system:bootstrappers:kubeadm:default-node-token its roles, as `kubeadm init phase \
         bootstrap-token` does; `ferrite cluster check` names the one that is missing",
    ),
    (
        &["configmaps \"kubeadm-config\" not found"],
        Code::JoinFailed,
        "write it: `kubeadm init phase upload-config kubeadm`; it is tried again",
    ),
    (
        &["configmaps \"cluster-info\" not found"],
        Code::ClusterInfo,
        "write it: `kubeadm init phase bootstrap-token`; it is tried again",
    ),
    (
        &["could not download the kubelet configuration"],
        Code::JoinKubeletConfiguration,
        "look at kube-system/kubelet-config: `ferrite cluster check` reads it",
    ),
    (
        &["failed to validate kubelet configuration"],
        Code::JoinKubeletConfiguration,
        "the cluster's kubelet-config has fields that this kubelet does not take: remove them \
         (Kamaji: spec.kubernetes.kubelet.configurationJSONPatches) or use a newer image",
    ),
    (&["Unauthorized"], Code::JoinTokenRefused, ANEW),
    (
        &["a Node with name", "already exists in the cluster"],
        Code::JoinNodeExists,
        "delete that Node, or enrol this host under another name",
    ),
    (
        &["[ERROR CRI]"],
        Code::JoinPrerequisites,
        "the container runtime does not run: `systemctl status containerd` on the host",
    ),
    (
        &["[ERROR Swap]"],
        Code::JoinPrerequisites,
        "take the swap out of the image's /etc/fstab",
    ),
    (
        &["[ERROR "],
        Code::JoinPrerequisites,
        "correct the image; `ferrite logs host/NAME` has every line",
    ),
    (
        &["The kubelet is not running"],
        Code::JoinKubelet,
        "`journalctl -u kubelet` on the host says why it ends; most often the cgroup driver is \
         another than the runtime's",
    ),
    (
        &["failed while waiting for the kubelet to start"],
        Code::JoinKubelet,
        "`journalctl -u kubelet` on the host says why it ends; most often the cgroup driver is \
         another than the runtime's",
    ),
    (
        &["10248/healthz", "error"],
        Code::JoinKubelet,
        "`journalctl -u kubelet` on the host says why it ends; most often the cgroup driver is \
         another than the runtime's",
    ),
    (
        &["failed while waiting for TLS bootstrap"],
        Code::JoinCsrPending,
        "nobody approved the kubelet's certificate: the ClusterRoleBinding \
         kubeadm:node-autoapprove-bootstrap and the csrapproving controller do it",
    ),
    (
        &["no such host"],
        Code::JoinUnreachable,
        "the host does not resolve the endpoint's name: look at its DNS servers",
    ),
    (
        &["lookup", "on ", ":53"],
        Code::JoinUnreachable,
        "the host does not reach its DNS server",
    ),
    (
        &["connection refused"],
        Code::JoinUnreachable,
        "nothing listens at the endpoint, as this host sees it: look at the load balancer and the \
         control plane's pods",
    ),
    (
        &["no route to host"],
        Code::JoinUnreachable,
        "the host has no route to the endpoint: look at its network data",
    ),
    (
        &["network is unreachable"],
        Code::JoinUnreachable,
        "the host has no route to the endpoint: look at its network data",
    ),
    (
        &["i/o timeout"],
        Code::JoinUnreachable,
        "nothing answers at the endpoint, as this host sees it: look at firewalls in between",
    ),
    (
        &["Client.Timeout exceeded"],
        Code::JoinUnreachable,
        "the endpoint answers too late: look at the control plane's load",
    ),
];

/// The cause that a line of kubeadm tells of, if it does.
pub(crate) fn cause_of(line: &str) -> Option<Problem> {
    // So it is with every cluster without kube-proxy: the token may not read what is not there.
    if line.contains("Continuing without it") {
        return None;
    }
    let (_, code, advice) = ROWS
        .iter()
        .find(|(parts, ..)| parts.iter().all(|part| line.contains(part)))?;
    Some(Problem::new(
        *code,
        format!("kubeadm: {}", shown(line)),
        *advice,
    ))
}

/// Whether a line tells that discovery is over: what stood in its way stands there no more.
pub(crate) fn has_discovered(line: &str) -> bool {
    line.contains("[preflight] Reading configuration from the ")
}

/// The line without klog's head (`I1121 12:00:00.000000 123 file.go:1] `), cut.
fn shown(line: &str) -> String {
    let starts = line.starts_with(['I', 'W', 'E', 'F']);
    let digits = line
        .bytes()
        .skip(1)
        .take(4)
        .all(|byte| byte.is_ascii_digit());
    let rest = line.split_once("] ").filter(|_| starts && digits);
    let rest = rest.map_or(line, |(_, rest)| rest);
    rest.trim().chars().take(500).collect()
}

/// What is said when kubeadm ended in words that nobody knows.
pub(crate) fn unknown(how: &str, last_line: Option<&str>) -> Problem {
    let last = last_line.map(|line| format!("; its last words: {}", shown(line)));
    Problem::new(
        Code::JoinFailed,
        format!("kubeadm join {how}{}", last.unwrap_or_default()),
        "`ferrite logs host/NAME` has every line; it is tried again",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISCOVERY: &str = "error: error execution phase preflight: couldn't validate the \
                             identity of the API Server: ";
    const CONFIG_MAP: &str = "error: error execution phase preflight: unable to fetch the \
                              kubeadm-config ConfigMap: failed to get config map: ";
    const REQUEST: &str = "failed to request the cluster-info ConfigMap: Get \
                           \"https://10.99.0.1:7999/api/v1/namespaces/kube-public/configmaps/\
                           cluster-info?timeout=10s\": ";

    #[track_caller]
    fn tells(line: &str, code: Code) {
        let cause = cause_of(line);
        assert_eq!(cause.map(|cause| cause.code), Some(code), "{line}");
    }

    /// Every text of `kubeadm-join-observed.md` that follows on discovery's beginning.
    #[test]
    fn what_discovery_fails_with_has_a_name() {
        for (line, code) in [
            (
                "cluster CA found in cluster-info ConfigMap is invalid: none of the public keys \
                 \"sha256:aa\" are pinned",
                Code::JoinCaMismatch,
            ),
            (
                "invalid discovery token CA certificate hash: invalid hash \"sha256:abc\", \
                 expected a 32 byte SHA-256 hash, found 1 bytes",
                Code::JoinCaMismatch,
            ),
            (
                "could not find a JWS signature in the cluster-info ConfigMap for token ID \
                 \"oecaat\"",
                Code::JoinTokenRefused,
            ),
            (
                "failed to verify JWS signature of received cluster info object, can't trust this \
                 API Server",
                Code::JoinTokenRefused,
            ),
            (
                "the second kubeconfig from the cluster-info ConfigMap (using validated TLS) was \
                 different from the first",
                Code::ClusterInfo,
            ),
            (
                "failed to request the cluster-info ConfigMap: configmaps \"cluster-info\" is \
                 forbidden: User \"system:anonymous\" cannot get resource \"configmaps\" in API \
                 group \"\" in the namespace \"kube-public\"",
                Code::JoinForbidden,
            ),
        ] {
            tells(&format!("{DISCOVERY}{line}"), code);
        }
        let refused = cause_of("configmaps \"cluster-info\" is forbidden: User").unwrap();
        assert!(refused.advice.contains("anonymous"), "{}", refused.advice);
    }

    /// Every text of it that follows on a request of cluster-info.
    #[test]
    fn what_a_request_fails_with_has_a_name() {
        for (line, code) in [
            (
                "dial tcp 10.99.0.1:7999: connect: connection refused",
                Code::JoinUnreachable,
            ),
            (
                "dial tcp 10.99.0.1:7999: connect: network is unreachable",
                Code::JoinUnreachable,
            ),
            (
                "dial tcp 10.99.0.1:7999: connect: no route to host",
                Code::JoinUnreachable,
            ),
            (
                "dial tcp: lookup tenant.invalid on 10.0.0.1:53: dial udp 10.0.0.1:53: connect: \
                 network is unreachable",
                Code::JoinUnreachable,
            ),
            (
                "tls: first record does not look like a TLS handshake",
                Code::JoinCertificate,
            ),
            (
                "tls: failed to verify certificate: x509: certificate has expired or is not yet \
                 valid: current time 2026-11-19T00:04:07Z is before 2026-11-21T00:05:37Z",
                Code::JoinClock,
            ),
            (
                "tls: failed to verify certificate: x509: certificate has expired or is not yet \
                 valid: current time 2028-06-01T00:04:13Z is after 2027-11-21T00:10:37Z",
                Code::JoinClock,
            ),
        ] {
            tells(&format!("{DISCOVERY}{REQUEST}{line}"), code);
            // What it says at -v=1 while it still tries.
            let tries = "I1121 00:04:07.000000 812 token.go:230] [discovery] Failed to request \
                         cluster-info, will try again: ";
            tells(&format!("{tries}{line}"), code);
        }
        tells(
            "I1121 00:04:07.000000 812 token.go:120] [discovery] The cluster-info ConfigMap does \
             not yet contain a JWS signature for token ID \"oecaat\", will try again",
            Code::JoinTokenRefused,
        );
    }

    /// The rest of it: whole lines.
    #[test]
    fn what_comes_after_discovery_has_a_name() {
        for (line, code) in [
            (format!("{CONFIG_MAP}Unauthorized"), Code::JoinTokenRefused),
            (
                format!(
                    "{CONFIG_MAP}configmaps \"kubeadm-config\" is forbidden: User \
                     \"system:bootstrap:ID\" cannot get resource"
                ),
                Code::JoinForbidden,
            ),
            (
                format!("{CONFIG_MAP}configmaps \"kubeadm-config\" not found"),
                Code::JoinFailed,
            ),
        ] {
            tells(&line, code);
        }
        for (line, code) in [
            (
                "error: discovery.bootstrapToken.caCertHashes: Invalid value: \"\": using \
                 token-based discovery without caCertHashes can be unsafe.",
                Code::JoinCaMismatch,
            ),
            (
                "error: error execution phase preflight: failed to get component configs: could \
                 not download the kubelet configuration from ConfigMap \"kubelet-config\": \
                 configmaps \"kubelet-config\" is forbidden",
                Code::JoinForbidden,
            ),
            (
                "failed to get component configs: could not download the kubelet configuration \
                 from ConfigMap \"kubelet-config\": configmaps \"kubelet-config\" not found",
                Code::JoinKubeletConfiguration,
            ),
            (
                "error: error execution phase kubelet-start: cannot get Node \"N\": nodes \"N\" \
                 is forbidden",
                Code::JoinForbidden,
            ),
            (
                "error: error execution phase kubelet-start: a Node with name \"try-dup\" and \
                 status \"Ready\" already exists in the cluster. You must delete the existing \
                 Node or change the name of this new joining Node",
                Code::JoinNodeExists,
            ),
        ] {
            tells(line, code);
        }
    }

    /// Of the kubelet, and of the host.
    #[test]
    fn what_the_host_lacks_has_a_name() {
        for (line, code) in [
            (
                "error: error execution phase kubelet-wait-bootstrap: failed while waiting for TLS \
                 bootstrap: context deadline exceeded",
                Code::JoinCsrPending,
            ),
            (
                "error: error execution phase kubelet-wait-bootstrap: failed while waiting for the \
                 kubelet to start: The HTTP call equal to 'curl -sSL \
                 http://127.0.0.1:10248/healthz' returned error: Get: connect: connection refused",
                Code::JoinKubelet,
            ),
            (
                "error: error execution phase kubelet-wait-bootstrap: failed while waiting for the \
                 kubelet to start: context deadline exceeded",
                Code::JoinKubelet,
            ),
            (
                "failed to validate kubelet configuration, error: FeatureGate \
                 KubeletCrashLoopBackOffMax not enabled",
                Code::JoinKubeletConfiguration,
            ),
        ] {
            tells(line, code);
        }
        for line in [
            "\t[ERROR CRI]: could not connect to the container runtime: rpc error",
            "\t[ERROR FileContent--proc-sys-net-ipv4-ip_forward]: \
             /proc/sys/net/ipv4/ip_forward contents are not set to 1",
            "\t[ERROR FileAvailable--etc-kubernetes-kubelet.conf]: \
             /etc/kubernetes/kubelet.conf already exists",
            "\t[ERROR Port-10250]: Port 10250 is in use",
            "\t[ERROR FileAvailable--etc-kubernetes-pki-ca.crt]: \
             /etc/kubernetes/pki/ca.crt already exists",
        ] {
            tells(line, Code::JoinPrerequisites);
        }
    }

    #[test]
    fn what_is_no_cause_stays_silent() {
        for line in [
            "[preflight] Running pre-flight checks",
            "[kubelet-start] Starting the kubelet",
            "This node has joined the cluster:",
            "\t[WARNING SystemVerification]: missing optional cgroups: hugetlb",
            "W1122 02:53:42.196231 385 configset.go:177] Warning: No \
             kubeproxy.config.k8s.io/v1alpha1 config is loaded. Continuing without it: configmaps \
             \"kube-proxy\" is forbidden: User \"system:bootstrap:8hvtgw\" cannot get resource",
            "[kubelet-check] Waiting for a healthy kubelet at http://127.0.0.1:10248/healthz. This \
             can take up to 4m0s",
            "[kubelet-check] The kubelet is healthy after 1.5s",
            "W1121 00:04:07.000000 812 common.go:101] your configuration file uses a deprecated \
             API spec",
            "strict decoding error: unknown field \"bogusField\"",
            "error: error execution phase preflight: preflight checks failed",
        ] {
            assert_eq!(cause_of(line), None, "{line}");
        }
        let told = unknown(
            "ended with status 1",
            Some("I1121 00:00:00.1 1 x.go:1] odd"),
        );
        assert_eq!(
            told.message,
            "kubeadm join ended with status 1; its last words: odd"
        );
    }
}

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
        &["127.0.0.1:10248/healthz"],
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

    /// Lines as real runs printed them.
    #[test]
    fn what_kubeadm_says_has_a_name() {
        for (line, code) in [
            (
                "error: error execution phase preflight: couldn't validate the identity of the API \
                 Server: cluster CA found in cluster-info ConfigMap is invalid: none of the public \
                 keys \"sha256:aa\" are pinned",
                Code::JoinCaMismatch,
            ),
            (
                "I1121 00:04:07.000000 812 token.go:230] [discovery] Failed to request \
                 cluster-info, will try again: Get \"https://10.99.0.1:7999/api/v1/namespaces\": \
                 dial tcp 10.99.0.1:7999: connect: connection refused",
                Code::JoinUnreachable,
            ),
            (
                "could not find a JWS signature in the cluster-info ConfigMap for token ID \"x\"",
                Code::JoinTokenRefused,
            ),
            (
                "tls: failed to verify certificate: x509: certificate has expired or is not yet \
                 valid: current time 2026-11-19T00:04:07Z is before 2026-11-21T00:05:37Z",
                Code::JoinClock,
            ),
            (
                "unable to fetch the kubeadm-config ConfigMap: failed to get config map: \
                 configmaps \"kubeadm-config\" is forbidden: User \"system:bootstrap:ID\" cannot \
                 get resource",
                Code::JoinForbidden,
            ),
            (
                "unable to fetch the kubeadm-config ConfigMap: failed to get config map: \
                 Unauthorized",
                Code::JoinTokenRefused,
            ),
            (
                "error: error execution phase kubelet-start: a Node with name \"try-dup\" and \
                 status \"Ready\" already exists in the cluster.",
                Code::JoinNodeExists,
            ),
            (
                "\t[ERROR CRI]: could not connect to the container runtime",
                Code::JoinPrerequisites,
            ),
            (
                "failed while waiting for the kubelet to start: The HTTP call equal to 'curl -sSL \
                 http://127.0.0.1:10248/healthz' returned error: connection refused",
                Code::JoinKubelet,
            ),
            (
                "failed while waiting for TLS bootstrap: context deadline exceeded",
                Code::JoinCsrPending,
            ),
            (
                "dial tcp: lookup tenant.invalid on 10.0.0.1:53: network is unreachable",
                Code::JoinUnreachable,
            ),
        ] {
            let cause = cause_of(line);
            assert_eq!(cause.map(|cause| cause.code), Some(code), "{line}");
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

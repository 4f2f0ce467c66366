//! What `kubeadm init phase bootstrap-token` and `upload-config` leave in a cluster, which is what
//! Kamaji leaves, as plain objects. Each of them is needed: without it a join fails.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

const TOKENS: &str = "system:bootstrappers:kubeadm:default-node-token";
const NODES: &str = "system:nodes";
const CORE: &str = "/api/v1/namespaces";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// Each object with the collection that it is posted to, in an order that works.
pub(super) fn objects(url: &str, ca: &str, version: &str) -> Vec<(String, Value)> {
    let mut all = vec![
        config_map("kube-public", "cluster-info", "kubeconfig", &info(url, ca)),
        config_map(
            "kube-system",
            "kubeadm-config",
            "ClusterConfiguration",
            &cluster(version),
        ),
        config_map("kube-system", "kubelet-config", "kubelet", KUBELET),
    ];
    let anonymous = json!([{"kind": "User", "name": "system:anonymous"}]);
    let both = groups(&[TOKENS, NODES]);
    let signer = "kubeadm:bootstrap-signer-clusterinfo";
    all.extend(readable("kube-public", signer, "cluster-info", &anonymous));
    let configuration = "kubeadm:nodes-kubeadm-config";
    all.extend(readable(
        "kube-system",
        configuration,
        "kubeadm-config",
        &both,
    ));
    let kubelet = "kubeadm:kubelet-config";
    all.extend(readable("kube-system", kubelet, "kubelet-config", &both));
    all.push((
        format!("{RBAC}/clusterroles"),
        json!({
            "metadata": {"name": "kubeadm:get-nodes"},
            "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}],
        }),
    ));
    let nodes = "system:certificates.k8s.io:certificatesigningrequests";
    for (name, role, group) in [
        ("kubeadm:get-nodes", "kubeadm:get-nodes", TOKENS),
        (
            "kubeadm:kubelet-bootstrap",
            "system:node-bootstrapper",
            TOKENS,
        ),
        (
            "kubeadm:node-autoapprove-bootstrap",
            &format!("{nodes}:nodeclient"),
            TOKENS,
        ),
        (
            "kubeadm:node-autoapprove-certificate-rotation",
            &format!("{nodes}:selfnodeclient"),
            NODES,
        ),
    ] {
        all.push((
            format!("{RBAC}/clusterrolebindings"),
            binding(name, "ClusterRole", role, &groups(&[group])),
        ));
    }
    all
}

fn config_map(namespace: &str, name: &str, key: &str, text: &str) -> (String, Value) {
    let object = json!({"metadata": {"name": name}, "data": {key: text}});
    (format!("{CORE}/{namespace}/configmaps"), object)
}

/// A Role to read one config map, and who has it.
fn readable(namespace: &str, role: &str, map: &str, subjects: &Value) -> [(String, Value); 2] {
    let rules = json!([{
        "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [map], "verbs": ["get"],
    }]);
    let base = format!("{RBAC}/namespaces/{namespace}");
    [
        (
            format!("{base}/roles"),
            json!({"metadata": {"name": role}, "rules": rules}),
        ),
        (
            format!("{base}/rolebindings"),
            binding(role, "Role", role, subjects),
        ),
    ]
}

fn binding(name: &str, kind: &str, role: &str, subjects: &Value) -> Value {
    json!({
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": subjects,
    })
}

fn groups(names: &[&str]) -> Value {
    names
        .iter()
        .map(|name| json!({"kind": "Group", "name": name}))
        .collect()
}

fn info(url: &str, ca: &str) -> String {
    let ca = BASE64_STANDARD.encode(ca);
    format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {ca}\n    server: \
         {url}\n  name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\nusers: null\n"
    )
}

fn cluster(version: &str) -> String {
    format!(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nclusterName: lab\n\
         kubernetesVersion: {version}\nnetworking:\n  dnsDomain: cluster.local\n  podSubnet: \
         10.244.0.0/16\n  serviceSubnet: 10.96.0.0/16\n"
    )
}

const KUBELET: &str = "\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous:
    enabled: false
  webhook:
    enabled: true
  x509:
    clientCAFile: /etc/kubernetes/pki/ca.crt
authorization:
  mode: Webhook
cgroupDriver: systemd
clusterDNS:
- 10.96.0.10
clusterDomain: cluster.local
rotateCertificates: true
staticPodPath: /etc/kubernetes/manifests
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_binding_names_a_role_that_is_made_or_built_in() {
        let all = objects("https://10.77.0.1:6443", "pem", "v1.36.2");
        assert_eq!(all.len(), 14);
        let made: Vec<_> = all
            .iter()
            .filter(|(_, object)| object["rules"].is_array())
            .map(|(_, object)| object["metadata"]["name"].clone())
            .collect();
        for (_, object) in &all {
            let role = object["roleRef"]["name"].as_str().unwrap_or("system:none");
            assert!(
                role.starts_with("system:") || made.contains(&json!(role)),
                "{role}"
            );
        }
    }
}

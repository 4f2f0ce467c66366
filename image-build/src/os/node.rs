//! What makes the image a Kubernetes worker's: a container runtime, a network for pods of its own,
//! and the units of Debian packages of kubeadm and kubelet, whose programs are given as files.
//!
//! For the lab: a real cluster brings its CNI. Nothing is pulled from anywhere before the Node is
//! ready, because a lab has no way out.

use std::path::Path;

use anyhow::{Context, Result};

use super::configuration::Text;
use super::rootfs;

/// The programs that are put into it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node<'a> {
    pub(crate) kubeadm: &'a Path,
    pub(crate) kubelet: &'a Path,
}

/// What kubeadm looks for, and what the kubelet calls.
pub(crate) const PACKAGES: [&str; 7] = [
    "containerd",
    "containernetworking-plugins",
    "conntrack",
    "ethtool",
    "iptables",
    "mount",
    "socat",
];

/// Left out of these packages: tools for people, shims of older containerds, and every CNI plugin
/// but those that `CNI` below names.
pub(crate) const PATHS: [&str; 9] = [
    "path-exclude=/usr/bin/ctr",
    "path-exclude=/usr/bin/containerd-stress",
    "path-exclude=/usr/bin/containerd-shim",
    "path-exclude=/usr/bin/containerd-shim-runc-v1",
    "path-exclude=/usr/lib/cni/*",
    "path-include=/usr/lib/cni/bridge",
    "path-include=/usr/lib/cni/host-local",
    "path-include=/usr/lib/cni/loopback",
    "path-include=/usr/lib/cni/portmap",
];

/// Masked in the image without a node, and needed here.
const UNMASKED: [&str; 1] = ["systemd-modules-load.service"];
const ENABLED: [&str; 2] = ["containerd.service", "kubelet.service"];

const FILES: &[Text] = &[
    Text {
        path: "etc/containerd/config.toml",
        mode: 0o644,
        content: CONTAINERD,
    },
    Text {
        path: "etc/cni/net.d/10-bridge.conflist",
        mode: 0o644,
        content: CNI,
    },
    Text {
        path: "etc/modules-load.d/kubernetes.conf",
        mode: 0o644,
        content: "overlay\nbr_netfilter\n",
    },
    Text {
        path: "etc/sysctl.d/90-kubernetes.conf",
        mode: 0o644,
        content: "net.ipv4.ip_forward = 1\nnet.bridge.bridge-nf-call-iptables = 1\n",
    },
    Text {
        path: "usr/lib/systemd/system/kubelet.service",
        mode: 0o644,
        content: KUBELET,
    },
    Text {
        path: "usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf",
        mode: 0o644,
        content: KUBEADM,
    },
];

/// containerd 1.6 of Debian, whose plugins of CNI lie in another folder than containerd's own.
const CONTAINERD: &str = "\
version = 2
[plugins.\"io.containerd.grpc.v1.cri\".cni]
  bin_dir = \"/usr/lib/cni\"
  conf_dir = \"/etc/cni/net.d\"
[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]
  runtime_type = \"io.containerd.runc.v2\"
[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]
  SystemdCgroup = true
";

const CNI: &str = r#"{
  "cniVersion": "0.4.0",
  "name": "lab",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "cni0",
      "isGateway": true,
      "ipMasq": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.244.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"#;

const KUBELET: &str = "\
[Unit]
Description=kubelet
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/usr/bin/kubelet
Restart=always
RestartSec=10
StartLimitInterval=0

[Install]
WantedBy=multi-user.target
";

/// The condition is ours: without a configuration the kubelet would start and end every ten
/// seconds until kubeadm writes one, which an emulated machine feels.
const KUBEADM: &str = "\
[Unit]
ConditionPathExists=/var/lib/kubelet/config.yaml

[Service]
Environment=\"KUBELET_KUBECONFIG_ARGS=\
--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
--kubeconfig=/etc/kubernetes/kubelet.conf\"
Environment=\"KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml\"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS \
$KUBELET_EXTRA_ARGS
";

/// Puts the node's parts into a tree that is configured already.
pub(crate) fn configure(root: &Path, node: &Node<'_>) -> Result<()> {
    for text in FILES {
        rootfs::write(root, text.path, text.mode, text.content)?;
    }
    for (program, name) in [(node.kubeadm, "kubeadm"), (node.kubelet, "kubelet")] {
        let to = root.join("usr/bin").join(name);
        let shown = program.display();
        std::fs::copy(program, &to).with_context(|| format!("copying {name} from {shown}"))?;
        rootfs::set_mode(&to, 0o755)?;
    }
    let manifests = root.join("etc/kubernetes/manifests");
    std::fs::create_dir_all(&manifests)
        .with_context(|| format!("making {}", manifests.display()))?;
    for unit in UNMASKED {
        let mask = root.join("etc/systemd/system").join(unit);
        std::fs::remove_file(&mask).with_context(|| format!("removing {}", mask.display()))?;
    }
    rootfs::enable(root, &ENABLED)
}

#[cfg(test)]
mod tests {
    use super::super::configuration::MASKED;
    use super::*;

    #[test]
    fn what_is_unmasked_was_masked_and_the_network_is_json() {
        assert!(UNMASKED.iter().all(|unit| MASKED.contains(unit)));
        let network: serde_json::Value = serde_json::from_str(CNI).unwrap();
        for plugin in network["plugins"].as_array().unwrap() {
            let name = plugin["type"].as_str().unwrap();
            let included = format!("path-include=/usr/lib/cni/{name}");
            assert!(PATHS.contains(&included.as_str()), "{name}");
        }
    }
}

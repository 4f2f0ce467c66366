//! What stands between this host and `kubeadm join`: read from files, changed nowhere.
//!
//! kubeadm checks some of this itself, later and in other words; some of it nobody checks, and the
//! kubelet then ends without a word to anybody. Sources: kubeadm's preflight checks, the kubelet's
//! documentation of swap and cgroups, containerd's `docs/cri/config.md`.

use ferrite_proto::join::HostFinding;

use crate::listeners;
use crate::root::Root;

/// Sockets of container runtimes, in the order in which they are taken.
const SOCKETS: [&str; 2] = ["/run/containerd/containerd.sock", "/run/crio/crio.sock"];
/// Where programs lie.
const FOLDERS: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];
/// What kubelet and kube-proxy call.
const TOOLS: [&str; 6] = [
    "ip",
    "iptables",
    "mount",
    "nsenter",
    "conntrack",
    "modprobe",
];
/// What a join makes, and finds when there was one.
const LEFT_OVER: [&str; 3] = [
    "/etc/kubernetes/kubelet.conf",
    "/etc/kubernetes/bootstrap-kubelet.conf",
    "/etc/kubernetes/pki/ca.crt",
];
/// The kubelet's port.
const KUBELET_PORT: u16 = 10250;

/// The socket of the runtime, as kubeadm's `criSocket` names it.
pub(super) fn cri_socket(root: &Root) -> Option<String> {
    let found = SOCKETS.iter().find(|path| root.path(path).exists());
    found.map(|path| format!("unix://{path}"))
}

/// Where a program lies.
pub(super) fn program(root: &Root, name: &str) -> Option<std::path::PathBuf> {
    let folders = FOLDERS.iter().map(|folder| root.path(folder).join(name));
    folders.into_iter().find(|path| path.is_file())
}

/// Everything that was found, the fatal first.
pub(super) fn findings(root: &Root) -> Vec<HostFinding> {
    let checks = [
        programs(root),
        runtime(root),
        swap(root),
        forwarding(root),
        port(root),
        left_over(root),
        cgroups(root),
        tools(root),
        modules(root),
    ];
    let mut found: Vec<_> = checks.into_iter().flatten().collect();
    found.sort_by_key(|finding| !finding.fatal);
    found
}

fn fatal(code: &str, what: impl Into<String>, fix: &str) -> HostFinding {
    HostFinding {
        code: code.to_owned(),
        fatal: true,
        what: what.into(),
        fix: fix.to_owned(),
    }
}

fn warning(code: &str, what: impl Into<String>, fix: &str) -> HostFinding {
    HostFinding {
        fatal: false,
        ..fatal(code, what, fix)
    }
}

fn programs(root: &Root) -> Vec<HostFinding> {
    let absent = ["kubeadm", "kubelet"].into_iter().filter_map(|name| {
        let is_there = program(root, name).is_some();
        (!is_there).then(|| {
            fatal(
                &format!("{name}-absent"),
                format!("the image has no {name}"),
                "use an image with kubeadm, kubelet and a container runtime in the cluster's \
                 version",
            )
        })
    });
    absent.collect()
}

fn runtime(root: &Root) -> Vec<HostFinding> {
    if cri_socket(root).is_none() {
        return vec![fatal(
            "runtime-absent",
            format!(
                "no container runtime listens: neither {}",
                SOCKETS.join(" nor ")
            ),
            "install containerd or CRI-O in the image and enable its service; `systemctl status \
             containerd` on the host says why it does not run",
        )];
    }
    let Ok(text) = root.text("/etc/containerd/config.toml") else {
        return Vec::new();
    };
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .collect();
    let mut found = Vec::new();
    let off = |line: &&str| line.starts_with("disabled_plugins") && line.contains("\"cri\"");
    if lines.iter().any(off) {
        found.push(fatal(
            "runtime-cri-disabled",
            "/etc/containerd/config.toml disables the plugin \"cri\"",
            "take \"cri\" out of disabled_plugins in the image",
        ));
    }
    let on = |line: &str| {
        let setting = line.strip_prefix("SystemdCgroup").map(str::trim_start);
        setting
            .and_then(|rest| rest.strip_prefix('='))
            .is_some_and(|value| value.trim() == "true")
    };
    if !lines.iter().any(|line| on(line)) {
        found.push(warning(
            "runtime-cgroup-driver",
            "/etc/containerd/config.toml does not set SystemdCgroup = true",
            "set it in the image unless the cluster's kubelet configuration says cgroupfs",
        ));
    }
    found
}

fn swap(root: &Root) -> Vec<HostFinding> {
    let table = root.text("/proc/swaps").unwrap_or_default();
    let areas: Vec<_> = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    if areas.is_empty() {
        return Vec::new();
    }
    vec![fatal(
        "swap-on",
        format!("swap is on: {}", areas.join(", ")),
        "take it out of /etc/fstab in the image; the kubelet ends where there is swap",
    )]
}

fn forwarding(root: &Root) -> Vec<HostFinding> {
    let path = "/proc/sys/net/ipv4/ip_forward";
    if root.text(path).is_ok_and(|text| text == "1") {
        return Vec::new();
    }
    vec![fatal(
        "ip-forward-off",
        format!("{path} is not 1"),
        "put net.ipv4.ip_forward = 1 into a file of /etc/sysctl.d in the image",
    )]
}

fn port(root: &Root) -> Vec<HostFinding> {
    if !listeners::on(root, KUBELET_PORT) {
        return Vec::new();
    }
    vec![fatal(
        "port-in-use",
        format!("port {KUBELET_PORT} is in use: a kubelet runs already, or something else does"),
        "`ss -ltnp` on the host says who; nothing but the kubelet may have it",
    )]
}

fn left_over(root: &Root) -> Vec<HostFinding> {
    let there: Vec<_> = LEFT_OVER
        .into_iter()
        .filter(|path| root.path(path).exists())
        .collect();
    if there.is_empty() {
        return Vec::new();
    }
    vec![fatal(
        "left-over",
        format!("an earlier join left {}", there.join(", ")),
        "make the image without them, or run `kubeadm reset` on the host",
    )]
}

fn cgroups(root: &Root) -> Vec<HostFinding> {
    if root.path("/sys/fs/cgroup/cgroup.controllers").exists() {
        return Vec::new();
    }
    vec![warning(
        "cgroup-v1",
        "cgroup v2 is not mounted at /sys/fs/cgroup",
        "a kubelet of 1.35 and later refuses cgroup v1; boot the image with \
         systemd.unified_cgroup_hierarchy=1",
    )]
}

fn tools(root: &Root) -> Vec<HostFinding> {
    let absent: Vec<_> = TOOLS
        .into_iter()
        .filter(|name| program(root, name).is_none())
        .collect();
    if absent.is_empty() {
        return Vec::new();
    }
    vec![warning(
        "tools-absent",
        format!("the image has no {}", absent.join(", ")),
        "install them in the image: kubelet and kube-proxy call them",
    )]
}

fn modules(root: &Root) -> Vec<HostFinding> {
    let overlay = root.text("/proc/filesystems").is_ok_and(|text| {
        text.lines()
            .any(|line| line.split_whitespace().last() == Some("overlay"))
    });
    let bridge = root.path("/proc/sys/net/bridge").exists();
    let absent: Vec<_> = [("overlay", overlay), ("br_netfilter", bridge)]
        .into_iter()
        .filter_map(|(name, there)| (!there).then_some(name))
        .collect();
    if absent.is_empty() {
        return Vec::new();
    }
    vec![warning(
        "modules-absent",
        format!("not loaded: {}", absent.join(", ")),
        "name them in a file of /etc/modules-load.d in the image; most CNIs need them",
    )]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A host that is ready, but for what a test takes away.
    fn ready() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        for (path, text) in [
            ("/usr/bin/kubeadm", ""),
            ("/usr/bin/kubelet", ""),
            ("/run/containerd/containerd.sock", ""),
            (
                "/etc/containerd/config.toml",
                "version = 2\n# disabled_plugins = [\"cri\"]\n  SystemdCgroup = true\n",
            ),
            ("/proc/swaps", "Filename Type Size Used Priority\n"),
            ("/proc/sys/net/ipv4/ip_forward", "1\n"),
            ("/proc/net/tcp", "header\n"),
            ("/sys/fs/cgroup/cgroup.controllers", "cpu\n"),
            ("/proc/filesystems", "nodev\toverlay\n\text4\n"),
            ("/proc/sys/net/bridge/bridge-nf-call-iptables", "1\n"),
        ] {
            put(&root, path, text);
        }
        for tool in TOOLS {
            put(&root, &format!("/usr/sbin/{tool}"), "");
        }
        (folder, root)
    }

    fn put(root: &Root, path: &str, text: &str) {
        let path = root.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn codes(root: &Root) -> Vec<String> {
        findings(root).into_iter().map(|found| found.code).collect()
    }

    #[test]
    fn a_ready_host_has_nothing_in_its_way() {
        let (_folder, root) = ready();
        assert_eq!(findings(&root), []);
        let socket = cri_socket(&root);
        assert_eq!(
            socket.as_deref(),
            Some("unix:///run/containerd/containerd.sock")
        );
    }

    #[test]
    fn each_thing_in_the_way_has_its_name() {
        type Change = fn(&Root);
        let gone = |root: &Root, path: &str| fs::remove_file(root.path(path)).unwrap();
        let cases: [(&str, bool, Change); 11] = [
            ("kubeadm-absent", true, |root| {
                fs::remove_file(root.path("/usr/bin/kubeadm")).unwrap();
            }),
            ("runtime-absent", true, |root| {
                fs::remove_file(root.path("/run/containerd/containerd.sock")).unwrap();
            }),
            ("runtime-cri-disabled", true, |root| {
                put(
                    root,
                    "/etc/containerd/config.toml",
                    "disabled_plugins = [\"cri\"]\nSystemdCgroup = true\n",
                );
            }),
            ("runtime-cgroup-driver", false, |root| {
                put(
                    root,
                    "/etc/containerd/config.toml",
                    "#SystemdCgroup = true\nSystemdCgroup = false\n",
                );
            }),
            ("swap-on", true, |root| {
                put(
                    root,
                    "/proc/swaps",
                    "Filename\n/dev/sda3 partition 1 0 -2\n",
                );
            }),
            ("ip-forward-off", true, |root| {
                put(root, "/proc/sys/net/ipv4/ip_forward", "0\n");
            }),
            ("port-in-use", true, |root| {
                put(
                    root,
                    "/proc/net/tcp",
                    "h\n 0: 00000000:280A 00000000:0000 0A x\n",
                );
            }),
            ("left-over", true, |root| {
                put(root, "/etc/kubernetes/kubelet.conf", "");
            }),
            ("cgroup-v1", false, |root| {
                fs::remove_file(root.path("/sys/fs/cgroup/cgroup.controllers")).unwrap();
            }),
            ("tools-absent", false, |root| {
                fs::remove_file(root.path("/usr/sbin/conntrack")).unwrap();
            }),
            ("modules-absent", false, |root| {
                put(root, "/proc/filesystems", "\text4\n");
            }),
        ];
        for (code, is_fatal, change) in cases {
            let (_folder, root) = ready();
            change(&root);
            let found = findings(&root);
            assert_eq!(codes(&root), [code]);
            assert_eq!(found[0].fatal, is_fatal, "{code}");
        }
        let (_folder, root) = ready();
        gone(&root, "/usr/sbin/conntrack");
        put(&root, "/proc/swaps", "Filename\n/swapfile file 1 0 -2\n");
        assert_eq!(codes(&root), ["swap-on", "tools-absent"], "fatal first");
    }
}

//! The programs of Kubernetes that a person has, by the environment.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// etcd and kube-apiserver, as envtest's own set-up tool lays them.
const ASSETS: &str = "KUBEBUILDER_ASSETS";
/// kubeadm and kubelet, and kube-controller-manager unless it is with the others.
const PROGRAMS: &str = "FERRITE_KUBE_BIN";

/// Where each of them is.
#[derive(Debug, Clone)]
pub struct Binaries {
    pub(super) etcd: PathBuf,
    pub(super) apiserver: PathBuf,
    pub(super) controller_manager: PathBuf,
    /// For the image.
    pub kubeadm: PathBuf,
    /// For the image.
    pub kubelet: PathBuf,
}

impl Binaries {
    /// None when nothing is said of them.
    ///
    /// # Errors
    /// When something is said, and some are not there: says which, and how people get them.
    pub fn find() -> Result<Option<Self>> {
        let folders = [ASSETS, PROGRAMS].map(folder);
        if folders.iter().all(Option::is_none) {
            return Ok(None);
        }
        Self::in_folders(folders).map(Some)
    }

    /// The same where they must be there.
    ///
    /// # Errors
    /// When they are not.
    pub fn demand() -> Result<Self> {
        Self::in_folders([ASSETS, PROGRAMS].map(folder))
    }

    fn in_folders([assets, programs]: [Option<PathBuf>; 2]) -> Result<Self> {
        let of_assets = Folders(vec![(ASSETS, assets.clone())]);
        let of_programs = Folders(vec![(PROGRAMS, programs.clone())]);
        let of_both = Folders(vec![(PROGRAMS, programs), (ASSETS, assets)]);
        let mut missing = Vec::new();
        let binaries = Self {
            etcd: of_assets.find("etcd", &mut missing),
            apiserver: of_assets.find("kube-apiserver", &mut missing),
            controller_manager: of_both.find("kube-controller-manager", &mut missing),
            kubeadm: of_programs.find("kubeadm", &mut missing),
            kubelet: of_programs.find("kubelet", &mut missing),
        };
        ensure!(
            missing.is_empty(),
            "missing: {}.\n{HOW}",
            missing.join(", ")
        );
        Ok(binaries)
    }
}

/// kubeadm and kubelet, for an image whose cluster is elsewhere.
///
/// # Errors
/// When they are not there: says which, and how people get them.
pub fn node_programs() -> Result<[PathBuf; 2]> {
    let folder = Folders(vec![(PROGRAMS, folder(PROGRAMS))]);
    let mut missing = Vec::new();
    let found = ["kubeadm", "kubelet"].map(|name| folder.find(name, &mut missing));
    ensure!(
        missing.is_empty(),
        "missing: {}.\n{HOW}",
        missing.join(", ")
    );
    Ok(found)
}

fn folder(variable: &str) -> Option<PathBuf> {
    let value = std::env::var_os(variable);
    value.filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Where a program may be, and by which variables.
struct Folders(Vec<(&'static str, Option<PathBuf>)>);

impl Folders {
    fn find(&self, name: &str, missing: &mut Vec<String>) -> PathBuf {
        let folders = self.0.iter().filter_map(|(_, folder)| folder.as_ref());
        let found = folders
            .map(|folder| folder.join(name))
            .find(|path| is_program(path));
        if found.is_none() {
            let variables: Vec<_> = self.0.iter().map(|(variable, _)| *variable).collect();
            missing.push(format!("{name} (in {})", variables.join(" or ")));
        }
        found.unwrap_or_default()
    }
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let found = path.metadata();
    found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

const HOW: &str = "\
KUBEBUILDER_ASSETS is a folder with etcd and kube-apiserver: `setup-envtest use -p path`, of \
controller-runtime, fetches them and prints it. FERRITE_KUBE_BIN is a folder with kubeadm, kubelet \
and kube-controller-manager of the same minor version, from a release of Kubernetes or built from \
its sources (1.31 or later). Ferrite brings none of them.";

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_missing_is_named_with_where_it_belongs() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, mode| {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        };
        let both = || {
            [
                Some(folder.path().to_owned()),
                Some(folder.path().to_owned()),
            ]
        };
        for name in ["etcd", "kube-apiserver", "kubeadm", "kubelet"] {
            put(name, 0o755);
        }
        put("kube-controller-manager", 0o644);
        let told = Binaries::in_folders(both()).unwrap_err().to_string();
        let one = "missing: kube-controller-manager (in FERRITE_KUBE_BIN or KUBEBUILDER_ASSETS).";
        assert!(told.starts_with(one), "{told}");
        put("kube-controller-manager", 0o755);
        let found = Binaries::in_folders(both()).unwrap();
        assert_eq!(found.kubelet, folder.path().join("kubelet"));
        let told = Binaries::in_folders([None, None]).unwrap_err().to_string();
        assert!(
            told.contains("etcd (in KUBEBUILDER_ASSETS), kube-apiserver"),
            "{told}"
        );
    }
}

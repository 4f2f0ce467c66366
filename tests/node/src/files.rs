//! The files by which kubeadm and the kubelet know of each other.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The token's kubeconfig, until there is a certificate.
pub(crate) const BOOTSTRAP: &str = "etc/kubernetes/bootstrap-kubelet.conf";
/// The certificate's kubeconfig.
pub(crate) const KUBELET: &str = "etc/kubernetes/kubelet.conf";
/// The cluster's CA.
pub(crate) const CA: &str = "etc/kubernetes/pki/ca.crt";
/// The kubelet's configuration; its unit waits for it.
pub(crate) const CONFIGURATION: &str = "var/lib/kubelet/config.yaml";
/// The kubelet's arguments.
pub(crate) const FLAGS: &str = "var/lib/kubelet/kubeadm-flags.env";
/// The kubelet's certificate and key.
pub(crate) const IDENTITY: &str = "var/lib/kubelet/pki/kubelet-client-current.pem";

/// All that a join makes.
pub(crate) const ALL: [&str; 6] = [BOOTSTRAP, KUBELET, CA, CONFIGURATION, FLAGS, IDENTITY];

/// A file system's root.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    root: PathBuf,
}

impl Files {
    pub(crate) fn system() -> Self {
        Self { root: "/".into() }
    }

    #[cfg(test)]
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.into() }
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    pub(crate) fn is_there(&self, file: &str) -> bool {
        self.path(file).exists()
    }

    pub(crate) fn read(&self, file: &str) -> Result<String> {
        read(&self.path(file))
    }

    /// Writes a file that root alone reads, and the folders above it.
    pub(crate) fn write(&self, file: &str, content: &[u8]) -> Result<()> {
        let path = self.path(file);
        let shown = path.display();
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut open = options
            .open(&path)
            .with_context(|| format!("creating {shown}"))?;
        open.write_all(content)
            .with_context(|| format!("writing {shown}"))
    }

    /// What is not there is removed already.
    pub(crate) fn remove(&self, file: &str) -> Result<()> {
        match fs::remove_file(self.path(file)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing /{file}"))
            }
            _ => Ok(()),
        }
    }
}

/// A file's text.
pub(crate) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

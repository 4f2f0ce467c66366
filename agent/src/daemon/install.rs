//! Installs the daemon on the deployed OS from the config drive, called by our boothook at every
//! boot. It writes files and one link, and starts the unit; what is there already is left alone.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use ferrite_proto::agent_api::DaemonConfig;

use super::keep;
use crate::root::Root;

/// Where the daemon's configuration lies.
pub(crate) const CONFIG: &str = "/etc/ferrite/daemon.json";
/// Where it keeps its key.
pub(crate) const STATE: &str = "/var/lib/ferrite";
const BINARY: &str = "/usr/local/lib/ferrite/ferrite-agent";
const UNIT_NAME: &str = "ferrite-agent.service";
const UNITS: &str = "/etc/systemd/system";
/// Largest agent binary.
const BINARY_LIMIT: u64 = 64 << 20;

/// The unit. The daemon reads the system and writes its own three folders, nothing else; systemd
/// runs kubeadm beside it.
const UNIT: &str = "\
[Unit]
Description=Ferrite host daemon
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/local/lib/ferrite/ferrite-agent daemon
Restart=always
RestartSec=5
StateDirectory=ferrite
StateDirectoryMode=0700
RuntimeDirectory=ferrite
RuntimeDirectoryMode=0700
ProtectSystem=strict
ReadWritePaths=/etc/ferrite
ProtectHome=yes
PrivateTmp=yes
NoNewPrivileges=yes
MemoryMax=256M

[Install]
WantedBy=multi-user.target
";

/// Puts binary, configuration and unit in place, and starts the daemon.
pub(crate) fn install(root: &Root, from: &Path) -> anyhow::Result<()> {
    place(root, from)?;
    // Without waiting: the unit comes after the network, and so after whoever called us.
    run_systemctl(&["start", "--no-block", UNIT_NAME])
}

fn place(root: &Root, from: &Path) -> anyhow::Result<()> {
    let binary = from.join("ferrite-agent");
    let size =
        std::fs::metadata(&binary).with_context(|| format!("finding {}", binary.display()))?;
    if size.len() > BINARY_LIMIT {
        bail!("{} is larger than an agent can be", binary.display());
    }
    put(&root.path(BINARY), &std::fs::read(&binary)?, 0o755)?;
    let config = root.path(CONFIG);
    // The drive keeps the credential that the daemon has long used and taken out of its own file.
    if !config.exists() {
        let given = from.join("daemon.json");
        let given: DaemonConfig =
            keep::read_config(&given).with_context(|| format!("reading {}", given.display()))?;
        std::fs::create_dir_all(root.path("/etc/ferrite"))?;
        std::fs::set_permissions(root.path("/etc/ferrite"), PermissionsExt::from_mode(0o700))?;
        keep::write_config(&config, &given).context("writing the daemon's configuration")?;
    }
    put(&root.path(UNITS).join(UNIT_NAME), UNIT.as_bytes(), 0o644)?;
    enable(root).context("enabling the unit")
}

/// Writes a file unless it is there as it should be.
fn put(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    if std::fs::read(path).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    keep::write(path, bytes, mode).with_context(|| format!("writing {}", path.display()))
}

/// What `systemctl enable` would do.
fn enable(root: &Root) -> io::Result<()> {
    let wants = root.path(UNITS).join("multi-user.target.wants");
    std::fs::create_dir_all(&wants)?;
    match std::os::unix::fs::symlink(format!("../{UNIT_NAME}"), wants.join(UNIT_NAME)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn run_systemctl(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("systemctl").args(arguments).output();
    let output = output.with_context(|| format!("starting systemctl {arguments:?}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "systemctl {arguments:?} failed ({}): {}",
            output.status,
            stderr.trim()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrite_proto::boot::CaPin;
    use ferrite_proto::secret::Secret;

    fn drive(folder: &Path) -> std::path::PathBuf {
        let from = folder.join("drive");
        std::fs::create_dir_all(&from).unwrap();
        std::fs::write(from.join("ferrite-agent"), "\x7fELF").unwrap();
        let config = DaemonConfig {
            url: "https://10.77.0.1:7443".into(),
            ca: CaPin([1; 32]),
            host: "lab-1".into(),
            credential: Secret::new("once".into()),
        };
        keep::write_config(&from.join("daemon.json"), &config).unwrap();
        from
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn everything_is_put_in_place_with_its_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path().join("root"));
        place(&root, &drive(folder.path())).unwrap();
        assert_eq!(mode(&root.path(BINARY)), 0o755);
        assert_eq!(mode(&root.path(CONFIG)), 0o600);
        assert_eq!(mode(&root.path("/etc/ferrite")), 0o700);
        let link = root
            .path(UNITS)
            .join("multi-user.target.wants")
            .join(UNIT_NAME);
        assert_eq!(std::fs::read_to_string(link).unwrap(), UNIT);
        assert!(UNIT.contains(&format!("ExecStart={BINARY} daemon\n")));
    }

    #[test]
    fn the_second_boot_changes_nothing_and_brings_no_credential_back() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path().join("root"));
        let from = drive(folder.path());
        place(&root, &from).unwrap();
        let mut used = keep::read_config(&root.path(CONFIG)).unwrap();
        used.credential = Secret::new(String::new());
        keep::write_config(&root.path(CONFIG), &used).unwrap();
        let before = std::fs::metadata(root.path(BINARY))
            .unwrap()
            .modified()
            .unwrap();
        place(&root, &from).unwrap();
        let kept = keep::read_config(&root.path(CONFIG)).unwrap();
        assert!(kept.credential.expose().is_empty());
        assert_eq!(
            std::fs::metadata(root.path(BINARY))
                .unwrap()
                .modified()
                .unwrap(),
            before
        );
    }

    #[test]
    fn a_drive_without_the_daemon_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = place(&Root::at(folder.path()), Path::new("/nonexistent")).unwrap_err();
        assert!(
            format!("{error:#}").contains("/nonexistent/ferrite-agent"),
            "{error:#}"
        );
    }
}

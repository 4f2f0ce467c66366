//! The files of a host's config drive: what cloud-init reads, and what starts our host daemon.
//!
//! The form is version 2 of OpenStack's config drive (volume label `config-2`), not `NoCloud`: the
//! `network_data.json` and user data that Metal3 and Ironic users have work unchanged, and other
//! readers (Ignition, cloudbase-init) know it too. User, network and vendor data are passed on as
//! they are; nothing here renders templates or looks inside user data.
//!
//! The daemon must start whatever the user's own data says, and `runcmd`, `write_files` and the
//! like of vendor data are *replaced* by the user's. So our vendor data is a `cloud-boothook`: a
//! handler of its own that no user data touches, but for an outright
//! `vendor_data: {enabled: false}`, which is then a person's wish. Its script is a constant; all
//! that varies lies in `ferrite/daemon.json` on the drive. It runs at every boot and changes
//! nothing twice.

use base64::Engine;
use ferrite_proto::agent_api::DaemonConfig;
use ferrite_proto::host::{Host, HostSecrets};
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::secret::Secret;
use ferrite_proto::step::{CONFIG_DRIVE_DAEMON, ConfigFile};
use serde_json::{Map, Value};

/// Starts the daemon's installation from the config drive. It mounts the drive itself, `exec`, so
/// that a `noexec` on `/run` or in fstab does not matter; a drive that is gone is not an error.
const BOOTHOOK: &str = "\
#cloud-boothook
#!/bin/sh
mkdir -p /run/ferrite-config && mount -o ro,exec LABEL=config-2 /run/ferrite-config || exit 0
/run/ferrite-config/ferrite/ferrite-agent daemon install --from /run/ferrite-config/ferrite
status=$?
umount /run/ferrite-config
exit $status
";

/// Why a config drive cannot be made of what was given.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigDriveError {
    /// Network data that is not JSON.
    #[error("network data of {host} is not JSON")]
    NetworkData {
        /// Whose.
        host: String,
        /// Where it breaks off; says nothing of the content.
        #[source]
        source: serde_json::Error,
    },
    /// A document of ours cannot be written as JSON.
    #[error("{file} of {host} cannot be written")]
    Encode {
        /// Whose.
        host: String,
        /// Which file.
        file: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl ConfigDriveError {
    /// For the host's status.
    pub(crate) fn problem(&self) -> Problem {
        match self {
            Self::NetworkData { source, .. } => Problem::new(
                Code::ConfigDrive,
                format!("{self}: {source}"),
                "provision again with network data in OpenStack's network_data.json form",
            ),
            Self::Encode { source, .. } => Problem::new(
                Code::Internal,
                format!("{self}: {source}"),
                "report this as a bug of Ferrite",
            ),
        }
    }
}

/// The files of `host`'s config drive, but for the agent's own binary, which the agent adds.
pub(crate) fn config_drive(
    host: &Host,
    secrets: &HostSecrets,
    daemon: &DaemonConfig,
) -> Result<Vec<ConfigFile>, ConfigDriveError> {
    let encode = |file: &'static str, value: &Value| {
        serde_json::to_string_pretty(value).map_err(|source| ConfigDriveError::Encode {
            host: host.name.clone(),
            file,
            source,
        })
    };
    let daemon_json = serde_json::to_value(daemon).map_err(|source| ConfigDriveError::Encode {
        host: host.name.clone(),
        file: CONFIG_DRIVE_DAEMON,
        source,
    })?;
    let vendor = vendor_data(secrets.vendor_data.as_ref().map(Secret::expose));
    let mut files = vec![
        file(
            "openstack/latest/meta_data.json",
            encode("meta_data.json", &meta_data(host, secrets))?,
        ),
        file(
            "openstack/latest/vendor_data.json",
            encode("vendor_data.json", &vendor)?,
        ),
        file(
            CONFIG_DRIVE_DAEMON,
            encode(CONFIG_DRIVE_DAEMON, &daemon_json)?,
        ),
    ];
    if let Some(user_data) = &secrets.user_data {
        files.push(file(
            "openstack/latest/user_data",
            user_data.expose().clone(),
        ));
    }
    if let Some(network_data) = &secrets.network_data {
        check_json(host, network_data.expose())?;
        files.push(file(
            "openstack/latest/network_data.json",
            network_data.expose().clone(),
        ));
    }
    Ok(files)
}

fn file(path: &str, content: String) -> ConfigFile {
    ConfigFile {
        path: path.to_owned(),
        content: Secret::new(content),
    }
}

fn check_json(host: &Host, text: &str) -> Result<(), ConfigDriveError> {
    match serde_json::from_str::<Map<String, Value>>(text) {
        Ok(_) => Ok(()),
        Err(source) => Err(ConfigDriveError::NetworkData {
            host: host.name.clone(),
            source,
        }),
    }
}

/// cloud-init takes `uuid` for the instance's id and copies `hostname` over `local-hostname`, so a
/// `local-hostname` that a person gave (Metal3's habit) must become the `hostname` too. A person's
/// own keys win over ours, except for `uuid`.
fn meta_data(host: &Host, secrets: &HostSecrets) -> Value {
    let mut meta = Map::new();
    for (key, value) in secrets.meta_data.iter().flatten() {
        meta.insert(key.clone(), value.clone().into());
    }
    let given = meta.get("hostname").or_else(|| meta.get("local-hostname"));
    let hostname = given.cloned().unwrap_or_else(|| host.name.clone().into());
    for (key, value) in [("hostname", &hostname), ("local-hostname", &hostname)] {
        meta.entry(key).or_insert_with(|| value.clone());
    }
    meta.entry("name")
        .or_insert_with(|| host.name.clone().into());
    meta.insert("uuid".to_owned(), host.uid.clone().into());
    Value::Object(meta)
}

/// cloud-init's vendor data: a MIME archive of our boothook and the person's vendor data.
fn vendor_data(theirs: Option<&String>) -> Value {
    let mut parts = vec![format!(
        "Content-Type: text/cloud-boothook; charset=\"us-ascii\"\nMIME-Version: 1.0\n\n{BOOTHOOK}"
    )];
    parts.extend(theirs.map(|text| their_part(text)));
    let boundary = boundary(&parts);
    let mut archive =
        format!("Content-Type: multipart/mixed; boundary=\"{boundary}\"\nMIME-Version: 1.0\n\n");
    for part in &parts {
        archive.extend(["--", &boundary, "\n", part, "\n"]);
    }
    archive.extend(["--", &boundary, "--\n"]);
    serde_json::json!({ "cloud-init": archive })
}

/// A person's vendor data as a part. A MIME archive is a part as it is; anything else goes in as
/// base64, byte for byte, with the type left for cloud-init to find from its first line.
fn their_part(text: &str) -> String {
    let lower = text.get(..13).map(str::to_ascii_lowercase);
    if lower.is_some_and(|l| l == "content-type:" || l == "mime-version:") {
        return text.to_owned();
    }
    let encoded = base64::engine::general_purpose::STANDARD.encode(text);
    let mut part = String::from(
        "Content-Type: text/plain; charset=\"utf-8\"\nMIME-Version: 1.0\n\
         Content-Transfer-Encoding: base64\n\n",
    );
    for line in encoded.as_bytes().chunks(76) {
        part.extend(line.iter().map(|&b| char::from(b)));
        part.push('\n');
    }
    part
}

/// A line that no part contains.
fn boundary(parts: &[String]) -> String {
    let mut name = String::from("ferrite");
    while parts.iter().any(|part| part.contains(&name)) {
        name.push('x');
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn host() -> Host {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "ferrite/v1",
            "kind": "Host",
            "metadata": {
                "name": "host-1",
                "uid": "7d0c1c0e-0000-4000-8000-000000000001",
                "resourceVersion": "1",
                "generation": 1,
                "creationTimestamp": "2026-11-21T00:00:00Z",
            },
            "spec": { "bmc": { "address": "redfish://10.0.0.5", "username": "admin" } },
            "status": { "state": "provisioning", "since": "2026-11-21T00:00:00Z" },
        }))
        .unwrap()
    }

    fn daemon() -> DaemonConfig {
        DaemonConfig {
            url: "https://10.77.0.1:7443".into(),
            ca: ferrite_proto::boot::CaPin([7; 32]),
            host: "host-1".into(),
            credential: Secret::new("once-only".into()),
        }
    }

    fn secret(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    fn drive(secrets: &HostSecrets) -> BTreeMap<String, String> {
        config_drive(&host(), secrets, &daemon())
            .unwrap()
            .into_iter()
            .map(|file| (file.path, file.content.into_inner()))
            .collect()
    }

    fn vendor_archive(drive: &BTreeMap<String, String>) -> String {
        let json: Value =
            serde_json::from_str(&drive["openstack/latest/vendor_data.json"]).unwrap();
        json["cloud-init"].as_str().unwrap().to_owned()
    }

    #[test]
    fn user_data_of_any_kind_is_passed_on_as_it_is() {
        for text in [
            "",
            "#!/bin/sh\necho hello\n",
            "#cloud-config\nruncmd:\n- [touch, /x]\n",
            "Content-Type: multipart/mixed; boundary=\"a\"\n\n--a--\r\n",
            "\u{fffd} ${name} {{ ds }} \t no end of line",
        ] {
            let secrets = HostSecrets {
                user_data: Some(secret(text)),
                ..HostSecrets::default()
            };
            assert_eq!(drive(&secrets)["openstack/latest/user_data"], text);
        }
        assert!(!drive(&HostSecrets::default()).contains_key("openstack/latest/user_data"));
    }

    #[test]
    fn the_daemon_reads_its_configuration_and_its_script_is_a_constant() {
        let secrets = HostSecrets {
            user_data: Some(secret("#cloud-config\nruncmd: []\nbootcmd: []\n")),
            ..HostSecrets::default()
        };
        let drive = drive(&secrets);
        let read: DaemonConfig = serde_json::from_str(&drive[CONFIG_DRIVE_DAEMON]).unwrap();
        assert_eq!(read.credential.expose(), "once-only");
        let archive = vendor_archive(&drive);
        assert!(archive.contains(BOOTHOOK));
        assert!(archive.contains("Content-Type: text/cloud-boothook"));
        for value in ["once-only", "host-1", "10.77.0.1"] {
            assert!(!archive.contains(value), "{value}");
        }
    }

    #[test]
    fn a_persons_vendor_data_runs_beside_ours() {
        let secrets = |text: &str| HostSecrets {
            vendor_data: Some(secret(text)),
            ..HostSecrets::default()
        };
        let text = "#cloud-config\npackages: [\u{e9}, \"--ferrite--\"]\n";
        let archive = vendor_archive(&drive(&secrets(text)));
        let (_, encoded) = archive.split_once("base64\n\n").unwrap();
        let encoded: String = encoded.lines().take_while(|l| !l.is_empty()).collect();
        let decoded = base64::engine::general_purpose::STANDARD.decode(encoded);
        assert_eq!(decoded.unwrap(), text.as_bytes());
        assert!(archive.contains(BOOTHOOK));

        let mime = "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"ferritex\"\n\n\
                    --ferritex\n\nx\n--ferritex--\n";
        let archive = vendor_archive(&drive(&secrets(mime)));
        assert!(archive.contains(mime));
        assert!(archive.starts_with("Content-Type: multipart/mixed; boundary=\"ferritexx\""));
    }

    #[test]
    fn a_given_host_name_wins_and_the_uuid_is_ours() {
        let meta = |keys: &[(&str, &str)]| -> Value {
            let keys = keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            let secrets = HostSecrets {
                meta_data: Some(keys.collect()),
                ..HostSecrets::default()
            };
            serde_json::from_str(&drive(&secrets)["openstack/latest/meta_data.json"]).unwrap()
        };
        let plain = meta(&[]);
        assert_eq!(plain["hostname"], "host-1");
        let given = meta(&[("local-hostname", "web-1"), ("uuid", "x"), ("rack", "r7")]);
        // cloud-init copies `hostname` over `local-hostname`.
        assert_eq!(given["hostname"], "web-1");
        assert_eq!(given["rack"], "r7");
        assert_eq!(given["uuid"], "7d0c1c0e-0000-4000-8000-000000000001");
        assert_eq!(meta(&[("hostname", "a")])["local-hostname"], "a");
    }

    #[test]
    fn network_data_must_be_json_and_is_not_quoted_in_the_error() {
        let bad = HostSecrets {
            network_data: Some(secret("links: [secret-key]")),
            ..HostSecrets::default()
        };
        let problem = config_drive(&host(), &bad, &daemon())
            .unwrap_err()
            .problem();
        assert_eq!(problem.code, Code::ConfigDrive);
        assert!(problem.message.contains("host-1"), "{problem}");
        assert!(!problem.message.contains("secret-key"), "{problem}");
        let good = HostSecrets {
            network_data: Some(secret("{ \"links\" : [] }")),
            ..HostSecrets::default()
        };
        assert_eq!(
            drive(&good)["openstack/latest/network_data.json"],
            "{ \"links\" : [] }"
        );
    }
}

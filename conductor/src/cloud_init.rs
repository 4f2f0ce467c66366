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

//!
//! A host that joins its cluster by cloud-init has a vendor script for it, a constant too: user
//! data replaces no scripts, and cloud-init runs it once an instance, after packages and files.

use base64::Engine;
use ferrite_proto::agent_api::DaemonConfig;
use ferrite_proto::host::{Host, HostSecrets};
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::secret::Secret;
use ferrite_proto::step::{CONFIG_DRIVE_DAEMON, ConfigFile};
use serde_json::{Map, Value};

use crate::lifecycle::joining::JoinFiles;

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

/// Where kubeadm's configurations lie on the drive, of a host that joins by cloud-init.
const KUBEADM: &str = "ferrite/kubeadm";

/// Joins the cluster. The configuration is copied to memory, for root alone, and goes away after;
/// kubeadm is tried again while its token may live, with nothing left of the try before.
const JOIN: &str = "\
#!/bin/sh
umask 077
drive=/run/ferrite-config
mkdir -p $drive && mount -o ro LABEL=config-2 $drive || exit 1
case $(kubeadm version -o short) in
v1.2[0-9].* | v1.30.*) version=v1beta3 ;;
*) version=v1beta4 ;;
esac
cp $drive/ferrite/kubeadm/$version.yaml /run/ferrite-join.yaml
copied=$?
umount $drive
[ $copied = 0 ] || exit 1
for try in 1 2 3 4 5; do
\tkubeadm join --config /run/ferrite-join.yaml
\tstatus=$?
\t[ $status = 0 ] && break
\tkubeadm reset --force
\tsleep 10
done
rm -f /run/ferrite-join.yaml
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
    join: Option<&JoinFiles>,
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
    let vendor = vendor_data(
        secrets.vendor_data.as_ref().map(Secret::expose),
        join.is_some(),
    );
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
    if let Some(user_data) = user_data(secrets) {
        files.push(file("openstack/latest/user_data", user_data));
    }
    if let Some(join) = join {
        for (version, text) in [("v1beta3", &join.v1beta3), ("v1beta4", &join.v1beta4)] {
            let path = format!("{KUBEADM}/{version}.yaml");
            files.push(file(&path, text.expose().clone()));
        }
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

/// What a person gave, or a bootstrap provider, as it is; of both, a MIME archive.
fn user_data(secrets: &HostSecrets) -> Option<String> {
    let of = |data: &Option<Secret<String>>| data.as_ref().map(|data| data.expose().clone());
    match (of(&secrets.user_data), of(&secrets.bootstrap_data)) {
        (Some(user), Some(bootstrap)) => {
            Some(archive(&[their_part(&user), their_part(&bootstrap)]))
        }
        (one, other) => one.or(other),
    }
}

/// cloud-init's vendor data: a MIME archive of our scripts and the person's vendor data.
fn vendor_data(theirs: Option<&String>, joins: bool) -> Value {
    let mut parts = vec![our_part("text/cloud-boothook", BOOTHOOK)];
    parts.extend(joins.then(|| our_part("text/x-shellscript", JOIN)));
    parts.extend(theirs.map(|text| their_part(text)));
    serde_json::json!({ "cloud-init": archive(&parts) })
}

fn our_part(kind: &str, text: &str) -> String {
    format!("Content-Type: {kind}; charset=\"us-ascii\"\nMIME-Version: 1.0\n\n{text}")
}

/// A MIME archive, as cloud-init reads it.
fn archive(parts: &[String]) -> String {
    let boundary = boundary(parts);
    let mut archive =
        format!("Content-Type: multipart/mixed; boundary=\"{boundary}\"\nMIME-Version: 1.0\n\n");
    for part in parts {
        archive.extend(["--", &boundary, "\n", part, "\n"]);
    }
    archive.extend(["--", &boundary, "--\n"]);
    archive
}

/// Data of a person as a part. A MIME archive is a part as it is; anything else goes in as
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
        drive_with(secrets, None)
    }

    fn drive_with(secrets: &HostSecrets, join: Option<&JoinFiles>) -> BTreeMap<String, String> {
        config_drive(&host(), secrets, &daemon(), join)
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

    /// The parts of an archive in base64, decoded.
    fn theirs(archive: &str) -> Vec<String> {
        let encoded = archive.split("base64\n\n").skip(1);
        let lines = |text: &str| -> String {
            let lines = text.lines().take_while(|line| !line.is_empty());
            lines.collect()
        };
        let decode = |text: String| base64::engine::general_purpose::STANDARD.decode(text);
        encoded
            .map(|text| String::from_utf8(decode(lines(text)).unwrap()).unwrap())
            .collect()
    }

    #[test]
    fn bootstrap_data_is_passed_on_as_it_is_and_beside_user_data() {
        let bootstrap = "## template: jinja\n#cloud-config\nruncmd: [\"kubeadm join {{ ds }}\"]\n";
        let mut secrets = HostSecrets {
            bootstrap_data: Some(secret(bootstrap)),
            ..HostSecrets::default()
        };
        assert_eq!(drive(&secrets)["openstack/latest/user_data"], bootstrap);
        let user = "#cloud-config\npackages: [\u{e9}]\n";
        secrets.user_data = Some(secret(user));
        let both = drive(&secrets)["openstack/latest/user_data"].clone();
        assert!(both.starts_with("Content-Type: multipart/mixed; boundary="));
        assert_eq!(theirs(&both), [user, bootstrap]);
    }

    #[test]
    fn a_host_that_joins_by_cloud_init_has_a_constant_script_and_its_configuration() {
        let files = JoinFiles {
            v1beta3: secret("three"),
            v1beta4: secret("four"),
        };
        let secrets = HostSecrets {
            user_data: Some(secret("#cloud-config\nruncmd: []\n")),
            ..HostSecrets::default()
        };
        let drive = drive_with(&secrets, Some(&files));
        assert_eq!(drive["ferrite/kubeadm/v1beta3.yaml"], "three");
        assert_eq!(drive["ferrite/kubeadm/v1beta4.yaml"], "four");
        let archive = vendor_archive(&drive);
        assert!(archive.contains(JOIN) && archive.contains(BOOTHOOK));
        assert!(archive.contains("Content-Type: text/x-shellscript"));
        assert_eq!(
            drive["openstack/latest/user_data"],
            secrets.user_data.unwrap().into_inner()
        );
        assert!(!vendor_archive(&self::drive(&HostSecrets::default())).contains("kubeadm"));
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
        let problem = config_drive(&host(), &bad, &daemon(), None)
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

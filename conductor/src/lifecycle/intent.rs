//! What people ask of a host, as changes of its record. Pure; refusals are problems.

use std::collections::BTreeMap;

use ferrite_proto::address::Policy;
use ferrite_proto::api::Provision;
use ferrite_proto::host::{
    BootVia, BootstrapFormat, Host, HostManifest, HostSecrets, HostSpec, HostState, HostStatus,
};
use ferrite_proto::image::ImageRef;
use ferrite_proto::join::JoinSpec;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::resource::{DEFAULT_PROJECT, Metadata, ResourceVersion};
use jiff::Timestamp;

use super::change::Change;
use super::record::{Deletion, Kept, Record, Runtime, merge_secrets};
use crate::crash::{self, Moment, Work};
use crate::guard::{self, Guard};

/// Bytes of all annotations of a host.
const ANNOTATIONS: usize = 64 << 10;

/// A new host.
pub(crate) fn enrol(add: HostManifest, uid: String, now: Timestamp) -> Result<Change, Problem> {
    check_metadata(&add.metadata)?;
    check_spec(&add.spec)?;
    check_secrets(&add.secrets)?;
    if add.secrets.bmc_password.is_none() {
        return Err(invalid(
            "secrets.bmc_password is missing",
            "give the password of the BMC's account, with --password-file",
        ));
    }
    let project = add.metadata.project;
    let host = Host {
        name: add.metadata.name,
        uid,
        project: project.unwrap_or_else(|| DEFAULT_PROJECT.to_owned()),
        labels: add.metadata.labels,
        annotations: add.metadata.annotations,
        version: 0,
        generation: 1,
        created: now,
        spec: add.spec,
        status: new_status(now),
    };
    let run = Runtime {
        request: 1,
        ..Runtime::default()
    };
    let kept = Kept {
        host: add.secrets,
        ..Kept::default()
    };
    let mut change = Change::new(Record { host, run }, kept, now);
    change.begin_run("enrol");
    change.event("state", "added: registering");
    Ok(change)
}

const fn new_status(now: Timestamp) -> HostStatus {
    HostStatus {
        state: HostState::Registering,
        since: now,
        observed_generation: 1,
        power: None,
        waiting_for: None,
        step: None,
        error: None,
        agent: None,
        daemon: None,
        image: None,
        image_written: None,
        booted_by: None,
        join: None,
        operation: None,
        plan: None,
        turn: None,
    }
}

impl Change {
    /// Sets the image. What is given of cloud-init data replaces what was there; what is not given
    /// stays, so that a wrong image can be corrected alone. `deprovision` forgets all of it.
    pub(crate) fn provision(&mut self, asked: Provision) -> Result<(), Problem> {
        self.refuse_while_deleting()?;
        self.refuse_what_is_not_ours()?;
        asked
            .image
            .validate()
            .and_then(|()| asked.image.check_address(Policy::Others))
            .map_err(|error| invalid(error.to_string(), "correct the image"))?;
        if asked.secrets.bmc_password.is_some() {
            return Err(invalid(
                "secrets.bmc_password does not belong here",
                "change it with `ferrite host set`",
            ));
        }
        let mut spec = self.record.host.spec.clone();
        spec.image = Some(asked.image);
        spec.image_name = None;
        spec.root_device_hints = asked.root_device_hints.unwrap_or(spec.root_device_hints);
        spec.boot_method = asked.boot_method.unwrap_or(spec.boot_method);
        spec.verify_image = asked.verify_image.unwrap_or(spec.verify_image);
        spec.join = asked.join.or(spec.join);
        check_values(&spec)?;
        let mut secrets = self.kept.host.clone();
        merge_secrets(&mut secrets, asked.secrets);
        check_secrets(&secrets)?;
        let same = spec == self.record.host.spec && secrets == self.kept.host;
        if same && self.record.host.status.error.is_none() && self.record.run.deployment.is_some() {
            return Ok(());
        }
        if self.record.host.spec.protected && self.record.run.deployment.is_some() {
            return Err(self.protected("provisioning anew"));
        }
        self.check_step(&spec)?;
        self.kept.host = secrets;
        self.set_spec(spec);
        self.record.run.request += 1;
        self.event("request", "provision");
        crash::point(Work::Provision, Moment::Before);
        Ok(())
    }

    /// Runs another image from here on, as everything else of it stays.
    pub(crate) fn take_image(
        &mut self,
        image: &ImageRef,
        name: Option<&str>,
    ) -> Result<(), Problem> {
        self.refuse_while_deleting()?;
        self.refuse_what_is_not_ours()?;
        let mut spec = self.record.host.spec.clone();
        spec.image = Some(image.clone());
        spec.image_name = name.map(str::to_owned);
        self.check_step(&spec)?;
        self.set_spec(spec);
        Ok(())
    }

    /// Removes the image and the cloud-init data.
    pub(crate) fn deprovision(&mut self) -> Result<(), Problem> {
        self.refuse_while_deleting()?;
        let mut spec = self.record.host.spec.clone();
        if spec.image.take().is_none() {
            return Ok(());
        }
        spec.image_name = None;
        self.check_step(&spec)?;
        self.kept.host = only_bmc_password(std::mem::take(&mut self.kept.host));
        self.set_spec(spec);
        self.record.run.request += 1;
        self.event("request", "deprovision");
        crash::point(Work::Deprovision, Moment::Before);
        Ok(())
    }

    /// Takes what is wanted, whole, and secrets. What is the same already changes nothing.
    pub(crate) fn apply(&mut self, asked: HostManifest) -> Result<(), Problem> {
        self.refuse_what_a_deletion_forbids(&asked.spec)?;
        check_metadata(&asked.metadata)?;
        check_spec(&asked.spec)?;
        self.compare(&asked.metadata)?;
        let mut secrets = self.kept.host.clone();
        if asked.spec.image.is_none() && self.record.host.spec.image.is_some() {
            secrets = only_bmc_password(secrets);
        }
        merge_secrets(&mut secrets, asked.secrets);
        check_secrets(&secrets)?;
        let host = &mut self.record.host;
        let named = (&host.project, &host.labels, &host.annotations);
        let (labels, annotations) = (asked.metadata.labels, asked.metadata.annotations);
        let project = asked.metadata.project.as_ref().unwrap_or(&host.project);
        if named != (project, &labels, &annotations) {
            host.project = project.clone();
            (host.labels, host.annotations) = (labels, annotations);
        }
        if host.spec == asked.spec && secrets == self.kept.host {
            return Ok(());
        }
        self.check_step(&asked.spec)?;
        if secrets.bmc_password != self.kept.host.bmc_password {
            self.record.run.registered = false;
        }
        self.kept.host = secrets;
        self.set_spec(asked.spec);
        self.event("request", "changed");
        crash::point(Work::Update, Moment::Before);
        Ok(())
    }

    /// A change of what somebody read is a change of just that.
    fn compare(&self, asked: &Metadata) -> Result<(), Problem> {
        let host = &self.record.host;
        let refused = |what: String| {
            Err(Problem::new(
                Code::Conflict,
                what,
                "read the host again and repeat the change",
            ))
        };
        if asked.name != host.name {
            let (name, host) = (&asked.name, &host.name);
            return refused(format!("metadata.name is {name:?}, but the host is {host}"));
        }
        if let Some(uid) = asked.uid.as_ref().filter(|uid| **uid != host.uid) {
            return refused(format!("the host's uid is {}, not {uid}", host.uid));
        }
        let ResourceVersion(expected) = asked
            .resource_version
            .unwrap_or(ResourceVersion(host.version));
        if expected != host.version {
            let version = host.version;
            return refused(format!("the host's version is {version}, not {expected}"));
        }
        Ok(())
    }

    /// Lets the host go.
    pub(crate) fn delete(&mut self) -> Result<(), Problem> {
        if self.record.host.spec.protected {
            return Err(self.protected("deletion"));
        }
        if self.record.run.deletion.is_none() {
            self.record.run.deletion = Some(Deletion::default());
            self.event("request", "delete");
        }
        self.clear_error();
        crash::point(Work::Delete, Moment::Before);
        Ok(())
    }

    fn refuse_while_deleting(&self) -> Result<(), Problem> {
        if self.record.run.deletion.is_none() {
            return Ok(());
        }
        Err(Problem::new(
            Code::Conflict,
            format!("{} is being deleted", self.record.host.name),
            "wait until it is gone and add it again",
        ))
    }

    /// A host that is being deleted can still be told how its BMC is reached, and be let go on.
    fn refuse_what_a_deletion_forbids(&self, asked: &HostSpec) -> Result<(), Problem> {
        let old = &self.record.host.spec;
        let allowed = HostSpec {
            bmc: asked.bmc.clone(),
            paused: asked.paused,
            maintenance: asked.maintenance.clone(),
            detached: old.detached && asked.detached,
            ..old.clone()
        };
        if *asked == allowed {
            return Ok(());
        }
        self.refuse_while_deleting()
    }

    /// Somebody else provisions it.
    fn refuse_what_is_not_ours(&self) -> Result<(), Problem> {
        let name = &self.record.host.name;
        if !self.record.host.spec.externally_provisioned {
            return Ok(());
        }
        Err(Problem::new(
            Code::Conflict,
            format!("{name} is externally provisioned"),
            format!("`ferrite host adopt {name} --undo` has Ferrite inspect and clean it first"),
        ))
    }

    /// Whether the host may go from its spec to another.
    fn check_step(&self, new: &HostSpec) -> Result<(), Problem> {
        let (old, name) = (&self.record.host.spec, &self.record.host.name);
        let has_os = old.image.is_some() || self.record.run.deployment.is_some();
        if old.protected && has_os && !deployed_alike(old, new) {
            return Err(self.protected("change of what it runs"));
        }
        let other_image = new.image.is_some() && new.image != old.image;
        if let Some(retired) = new.retired.as_ref().filter(|_| other_image) {
            let why = &retired.reason;
            return Err(Problem::new(
                Code::Conflict,
                format!("{name} is retired ({why}) and is not provisioned any more"),
                format!("`ferrite host retire {name} --undo` takes it back into use"),
            ));
        }
        let state = self.record.state();
        let at_rest = match state {
            HostState::Registering
            | HostState::Available
            | HostState::Provisioned
            | HostState::ExternallyProvisioned => self.record.operation().is_none(),
            HostState::Inspecting
            | HostState::Preparing
            | HostState::Provisioning
            | HostState::Deprovisioning
            | HostState::Deleting => false,
        };
        let adopts = new.externally_provisioned && !old.externally_provisioned;
        let detaches = new.detached && !old.detached;
        let fits = at_rest && !(adopts && state == HostState::Provisioned);
        if (adopts || detaches) && !fits {
            let what = if adopts { "adopted" } else { "detached" };
            return Err(Problem::new(
                Code::Conflict,
                format!("{name} is {state} and cannot be {what} now"),
                format!("wait until it rests, or `ferrite host abort {name}`"),
            ));
        }
        Ok(())
    }

    /// Whatever a person changed is worth another attempt at once.
    fn set_spec(&mut self, spec: HostSpec) {
        let old = &self.record.host.spec;
        if old.bmc != spec.bmc {
            self.record.run.registered = false;
        }
        if !deployed_alike(old, &spec) {
            self.record.run.request += 1;
            // Another wish: there is nothing left to abort.
            self.record.run.abort = None;
        }
        self.record.host.spec = spec;
        self.record.host.generation += 1;
        self.record.run.agent_losses = 0;
        self.clear_error();
    }
}

/// Whether both specs run the same.
fn deployed_alike(old: &HostSpec, new: &HostSpec) -> bool {
    old.image == new.image
        && old.root_device_hints == new.root_device_hints
        && old.root_device_default == new.root_device_default
        && old.boot_method == new.boot_method
        && cluster_of(old) == cluster_of(new)
}

/// Another cluster is another deployment: what runs there cannot be carried over.
fn cluster_of(spec: &HostSpec) -> Option<&str> {
    spec.join.as_ref().map(|join| join.cluster.as_str())
}

fn invalid(message: impl Into<String>, advice: impl Into<String>) -> Problem {
    Problem::new(Code::RequestInvalid, message, advice)
}

/// Whether something can be called so.
pub(crate) fn check_name(name: &str) -> Result<(), Problem> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let good = name.len() <= 63
        && edge(name.chars().next())
        && edge(name.chars().next_back())
        && name.chars().all(inner);
    if good {
        return Ok(());
    }
    let shown: String = name.chars().take(80).collect();
    Err(invalid(
        format!("{shown:?} cannot be a name"),
        "use a-z, 0-9, - and . (not first or last), at most 63",
    ))
}

/// Kubernetes' limits: keys and values that its selectors could take, and no more than fits.
pub(crate) fn check_metadata(metadata: &Metadata) -> Result<(), Problem> {
    check_name(&metadata.name)?;
    if let Some(project) = &metadata.project {
        check_name(project)?;
    }
    check_pairs("metadata.labels", &metadata.labels)?;
    let annotations = &metadata.annotations;
    let bytes: usize = annotations.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > ANNOTATIONS || !annotations.keys().all(|key| is_key(key)) {
        return Err(invalid(
            "metadata.annotations: a key cannot be used, or all are too long",
            "name them as labels are named; 64 KiB in all",
        ));
    }
    Ok(())
}

/// Keys and values as Kubernetes has them, of labels and of taints.
fn check_pairs(field: &str, pairs: &BTreeMap<String, String>) -> Result<(), Problem> {
    let bad = |(key, value): &(&String, &String)| {
        !is_key(key) || !(value.is_empty() || is_word(value, 63))
    };
    let Some((key, value)) = pairs.iter().find(bad) else {
        return Ok(());
    };
    Err(invalid(
        format!("{field}: {key:?}: {value:?} cannot be a label"),
        "use A-Z, a-z, 0-9, -, _ and . (not first or last), at most 63; a key may have a prefix \
         and a slash",
    ))
}

fn is_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').unwrap_or(("x", key));
    is_word(prefix, 253) && is_word(name, 63)
}

fn is_word(text: &str, longest: usize) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let (first, last) = (text.chars().next(), text.chars().next_back());
    text.len() <= longest && edge(first) && edge(last) && text.chars().all(inner)
}

/// Cloud-init data goes with the image.
fn only_bmc_password(secrets: HostSecrets) -> HostSecrets {
    if !guard::stands(Guard::SecretsGoWithTheImage) {
        return secrets;
    }
    HostSecrets {
        bmc_password: secrets.bmc_password,
        ..HostSecrets::default()
    }
}

/// What no conductor takes.
pub(crate) fn check_spec(spec: &HostSpec) -> Result<(), Problem> {
    check_values(spec)?;
    match (spec.boot_via, spec.boot_mac) {
        (_, None) if spec.externally_provisioned => Ok(()),
        (BootVia::Pxe, None) => Err(invalid(
            "spec.boot_mac is missing: booting over PXE, the host is known by its MAC",
            "give --boot-mac, or --boot-via virtual-media",
        )),
        (BootVia::Pxe, Some(_)) | (BootVia::VirtualMedia, _) => Ok(()),
    }
}

/// What no conductor takes of a host, nor of a profile.
pub(crate) fn check_values(spec: &HostSpec) -> Result<(), Problem> {
    if let Some(image) = &spec.image {
        image
            .validate()
            .and_then(|()| image.check_address(Policy::Others))
            .map_err(|error| invalid(error.to_string(), "correct spec.image"))?;
    }
    check_name(&spec.group)?;
    if let Some(join) = &spec.join {
        check_name(&join.cluster)?;
        check_node(join)?;
    }
    if !(-1000..=1000).contains(&spec.priority) {
        return Err(invalid(
            format!("spec.priority is {}", spec.priority),
            "give a number from -1000 to 1000",
        ));
    }
    if spec.externally_provisioned && spec.image.is_some() {
        return Err(invalid(
            "spec.externally_provisioned and spec.image exclude each other",
            "leave one away: either somebody else provisions it, or Ferrite does",
        ));
    }
    for hold in spec.maintenance.iter().chain(&spec.retired) {
        if hold.reason.chars().count() > 500 || hold.reason.chars().any(char::is_control) {
            return Err(invalid(
                "the reason of spec.maintenance or spec.retired cannot be shown",
                "give one line of at most 500 characters",
            ));
        }
    }
    Ok(())
}

/// Labels and taints that an API server would refuse are refused before a disk is written.
fn check_node(join: &JoinSpec) -> Result<(), Problem> {
    check_pairs("spec.join.node_labels", &join.node_labels)?;
    for taint in &join.node_taints {
        let pair = BTreeMap::from([(taint.key.clone(), taint.value.clone())]);
        check_pairs("spec.join.node_taints", &pair)?;
    }
    if join.node_labels.len().max(join.node_taints.len()) > 64 {
        return Err(invalid(
            "spec.join has more than 64 labels or taints",
            "set the others in the cluster",
        ));
    }
    Ok(())
}

fn check_secrets(secrets: &HostSecrets) -> Result<(), Problem> {
    let format = secrets.bootstrap_format.unwrap_or_default();
    let both = secrets.bootstrap_data.is_some() && secrets.user_data.is_some();
    if both && format == BootstrapFormat::Ignition {
        return Err(invalid(
            "bootstrap data of Ignition and user data cannot be put together",
            "leave the user data away: Ignition reads one document",
        ));
    }
    let Some(data) = &secrets.network_data else {
        return Ok(());
    };
    serde_json::from_str::<serde::de::IgnoredAny>(data.expose())
        .map(|_| ())
        .map_err(|error| {
            invalid(
                format!("network data is not JSON: {error}"),
                "give it in the form of OpenStack's network_data.json",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_mistaken_are_refused() {
        for good in ["a", "node-1", "r1.rack2", "0"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a_b",
            "a/b",
            "../a",
            "ä",
            long.as_str(),
        ] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}

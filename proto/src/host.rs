//! A host: what people want of it (`spec`) and what is seen of it (`status`).
//!
//! Words and states are Metal3's where Metal3 has one. Everything that is not one of the nine
//! states is a condition, an operation or a field beside the state.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use crate::agent_api::CloudInit;
use crate::hints::{RootDeviceDefault, RootDeviceHints};
use crate::image::ImageRef;
use crate::inventory::BootMode;
use crate::join::{JoinSpec, JoinStatus};
use crate::mac::Mac;
use crate::operation::{Approval, Hold, Operation, Plan, Turn};
use crate::problem::Problem;
use crate::resource::{ApiVersion, DEFAULT_PROJECT, Metadata, ResourceVersion};
use crate::secret::Secret;
use crate::step::{BootMethod, ImageWritten, Progress};

/// A physical server. On the wire it has the form of every resource ([`crate::resource`]).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "HostWire")]
pub struct Host {
    /// Unique; `[a-z0-9]([a-z0-9.-]*[a-z0-9])?`, at most 63.
    pub name: String,
    /// Made once, never reused.
    pub uid: String,
    /// Whom it belongs to.
    pub project: String,
    /// To select by.
    pub labels: BTreeMap<String, String>,
    /// For people and their tools.
    pub annotations: BTreeMap<String, String>,
    /// The revision of its last change: `resourceVersion`.
    pub version: u64,
    /// Grows with every change of `spec`.
    pub generation: u64,
    /// When it was added.
    pub created: Timestamp,
    /// What people want.
    pub spec: HostSpec,
    /// What is.
    pub status: HostStatus,
}

/// The kind of a [`Host`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum HostKind {
    /// A host.
    #[default]
    Host,
}

/// A [`Host`] as it is read.
#[derive(Debug, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub(crate) struct HostWire {
    #[serde(rename = "apiVersion")]
    _api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: HostKind,
    metadata: Metadata,
    spec: HostSpec,
    status: HostStatus,
}

/// A [`Host`] as it is written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HostWireRef<'a> {
    api_version: ApiVersion,
    kind: HostKind,
    metadata: Metadata,
    spec: &'a HostSpec,
    status: &'a HostStatus,
}

impl From<HostWire> for Host {
    fn from(wire: HostWire) -> Self {
        let meta = wire.metadata;
        Self {
            name: meta.name,
            uid: meta.uid.unwrap_or_default(),
            project: meta.project.unwrap_or_else(|| DEFAULT_PROJECT.to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            version: meta.resource_version.unwrap_or_default().0,
            generation: meta.generation.unwrap_or_default(),
            created: meta.creation_timestamp.unwrap_or_default(),
            spec: wire.spec,
            status: wire.status,
        }
    }
}

impl Serialize for Host {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let wire = HostWireRef {
            api_version: ApiVersion::V1,
            kind: HostKind::Host,
            metadata: self.metadata(),
            spec: &self.spec,
            status: &self.status,
        };
        wire.serialize(serializer)
    }
}

impl Host {
    /// What is the same for every kind of resource.
    pub fn metadata(&self) -> Metadata {
        Metadata {
            name: self.name.clone(),
            uid: Some(self.uid.clone()),
            project: Some(self.project.clone()),
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            resource_version: Some(ResourceVersion(self.version)),
            generation: Some(self.generation),
            creation_timestamp: Some(self.created),
        }
    }
}

/// A host as people write it: what `apply` takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostManifest {
    /// The version of this form.
    pub api_version: ApiVersion,
    /// `Host`.
    pub kind: HostKind,
    /// Name, project, labels, annotations; the rest may be sent back as it was read.
    pub metadata: Metadata,
    /// What is wanted: all of it.
    pub spec: HostSpec,
    /// Each one that is given replaces the old one; what is not given stays.
    #[serde(default)]
    pub secrets: HostSecrets,
    /// May be sent back as it was read; ignored.
    #[serde(default, skip_serializing)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub status: Option<serde::de::IgnoredAny>,
}

impl HostManifest {
    /// A host of the default project without labels.
    pub fn new(name: impl Into<String>, spec: HostSpec, secrets: HostSecrets) -> Self {
        Self {
            api_version: ApiVersion::V1,
            kind: HostKind::Host,
            metadata: Metadata::named(name),
            spec,
            secrets,
            status: None,
        }
    }
}

/// What people want of a host. Secrets are not part of it: they are written beside it
/// ([`HostSecrets`]) and never read back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own, as it is written"
)]
pub struct HostSpec {
    /// Its BMC.
    pub bmc: BmcSpec,
    /// The NIC it boots from. Needed for PXE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_mac: Option<Mac>,
    /// How it reaches the ramdisk.
    #[serde(default)]
    pub boot_via: BootVia,
    /// What its firmware is asked for.
    #[serde(default)]
    pub boot_mode: BootMode,
    /// Which disk the OS goes to.
    #[serde(default)]
    pub root_device_hints: RootDeviceHints,
    /// Which disk is meant without hints.
    #[serde(default)]
    pub root_device_default: RootDeviceDefault,
    /// What cleaning does, before a host is available and after it was used.
    #[serde(default)]
    pub automated_cleaning: AutomatedCleaning,
    /// The image to run. Setting it provisions the host, removing it deprovisions it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
    /// An [`Image`](crate::catalog::Image) to run. What it stands for when the host is written is
    /// kept in `image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_name: Option<String>,
    /// A [`Profile`](crate::catalog::Profile): what is not said here is taken from it when the
    /// host is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// How the deployed OS is started.
    #[serde(default)]
    pub boot_method: BootMethod,
    /// Whether all of the image is read back from the disk before that becomes bootable. Counts
    /// from the next deployment on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verify_image: bool,
    /// The cluster that the host joins once its OS is up, and leaves when it is deprovisioned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinSpec>,
    /// Somebody else provisioned it: its BMC is watched, no ramdisk is ever booted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub externally_provisioned: bool,
    /// Hands off: neither BMC nor boot. Such a host can be deleted without touching its power.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detached: bool,
    /// Nothing is done until this is cleared.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Neither deprovisioned nor deleted, erased or provisioned anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub protected: bool,
    /// Nothing is begun; what is under way ends at the end of its step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<Hold>,
    /// It is cleaned once it is deprovisioned, and not provisioned any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<Hold>,
    /// −1000 to 1000. Each point counts as a minute of waiting for its turn.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// Who lets a destructive plan go.
    #[serde(default, skip_serializing_if = "is_automatic")]
    pub approval: Approval,
    /// Its group, of which the configuration says how much is done at once.
    #[serde(default = "default_group", skip_serializing_if = "is_default_group")]
    pub group: String,
}

/// The group of a host that names none.
pub const DEFAULT_GROUP: &str = "default";

fn default_group() -> String {
    DEFAULT_GROUP.to_owned()
}

fn is_default_group(group: &String) -> bool {
    group == DEFAULT_GROUP
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands out references"
)]
const fn is_zero(number: &i32) -> bool {
    *number == 0
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands out references"
)]
const fn is_automatic(approval: &Approval) -> bool {
    matches!(approval, Approval::Automatic)
}

impl HostSpec {
    /// A host behind this BMC, of which nothing else is said.
    pub fn new(bmc: BmcSpec) -> Self {
        Self {
            bmc,
            boot_mac: None,
            boot_via: BootVia::default(),
            boot_mode: BootMode::default(),
            root_device_hints: RootDeviceHints::default(),
            root_device_default: RootDeviceDefault::default(),
            automated_cleaning: AutomatedCleaning::default(),
            image: None,
            image_name: None,
            profile: None,
            boot_method: BootMethod::default(),
            verify_image: false,
            join: None,
            externally_provisioned: false,
            detached: false,
            paused: false,
            protected: false,
            maintenance: None,
            retired: None,
            priority: 0,
            approval: Approval::default(),
            group: default_group(),
        }
    }
}

/// Where a BMC is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BmcSpec {
    /// `redfish+https://10.0.0.5/redfish/v1/Systems/1`: Metal3's form. `redfish://` is
    /// `redfish+https://`. Without a path the only system of the BMC is taken.
    pub address: String,
    /// Account on the BMC.
    pub username: String,
    /// Do not check the BMC's certificate. Most BMCs have a self-signed one.
    #[serde(default)]
    pub insecure_tls: bool,
}

/// How a host reaches the ramdisk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum BootVia {
    /// PXE, then iPXE, then HTTP.
    #[default]
    Pxe,
    /// An ISO that the BMC presents. Needs no DHCP from us for the firmware.
    VirtualMedia,
}

/// What cleaning does (Metal3's `automatedCleaningMode`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum AutomatedCleaning {
    /// Tables and signatures go.
    #[default]
    Metadata,
    /// Nothing is touched.
    Disabled,
}

/// What is only ever written: encrypted at rest, never read back over the API.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct HostSecrets {
    /// Of the BMC account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bmc_password: Option<Secret<String>>,
    /// cloud-init user data, passed as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_data: Option<Secret<String>>,
    /// What Cluster API's bootstrap provider made (the Secret's key `value`), passed as it is; with
    /// user data, both are parts of one MIME archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootstrap_data: Option<Secret<String>>,
    /// The form of that (the Secret's key `format`); cloud-config unless said otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootstrap_format: Option<BootstrapFormat>,
    /// OpenStack `network_data.json`, as Metal3 takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_data: Option<Secret<String>>,
    /// Keys added to `meta_data.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_data: Option<BTreeMap<String, String>>,
    /// cloud-init vendor data (cloud-config or script), run beside ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor_data: Option<Secret<String>>,
}

/// The form of bootstrap data, as Cluster API names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum BootstrapFormat {
    /// Any text that cloud-init reads, a template with a `## template: jinja` line too.
    #[default]
    CloudConfig,
    /// JSON; it cannot be put together with user data.
    Ignition,
}

/// Metal3's states. One flat enum; retries, timers, errors and operations live beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum HostState {
    /// The BMC is being reached, power read.
    Registering,
    /// The ramdisk reads the hardware.
    Inspecting,
    /// Cleaning.
    Preparing,
    /// Clean, waiting for an image; the ramdisk stays up.
    Available,
    /// Image, config drive, boot.
    Provisioning,
    /// The OS runs, the daemon is in touch.
    Provisioned,
    /// The OS is being taken away.
    Deprovisioning,
    /// Somebody else provisioned it; we only watch.
    ExternallyProvisioned,
    /// Being let go.
    Deleting,
}

impl HostState {
    /// Every state, in the order of the diagram.
    pub const ALL: [Self; 9] = [
        Self::Registering,
        Self::Inspecting,
        Self::Preparing,
        Self::Available,
        Self::Provisioning,
        Self::Provisioned,
        Self::Deprovisioning,
        Self::ExternallyProvisioned,
        Self::Deleting,
    ];

    /// As Metal3 writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registering => "registering",
            Self::Inspecting => "inspecting",
            Self::Preparing => "preparing",
            Self::Available => "available",
            Self::Provisioning => "provisioning",
            Self::Provisioned => "provisioned",
            Self::Deprovisioning => "deprovisioning",
            Self::ExternallyProvisioned => "externally provisioned",
            Self::Deleting => "deleting",
        }
    }
}

impl std::fmt::Display for HostState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// What is seen of a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostStatus {
    /// Where in its life it is.
    pub state: HostState,
    /// Since when.
    pub since: Timestamp,
    /// Generation of `spec` that the state reflects.
    #[serde(default)]
    pub observed_generation: u64,
    /// Power as last read from the BMC.
    #[serde(default)]
    pub power: Option<Power>,
    /// What it waits for, in one sentence.
    #[serde(default)]
    pub waiting_for: Option<String>,
    /// The step that runs.
    #[serde(default)]
    pub step: Option<RunningStep>,
    /// What is done beside the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// Something destructive that waits for approval, or was approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// Its turn among the hosts of its group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<Turn>,
    /// What went wrong in this state, until it is over.
    #[serde(default)]
    pub error: Option<HostError>,
    /// The ramdisk's agent, while there is one.
    #[serde(default)]
    pub agent: Option<AgentStatus>,
    /// The host daemon, once there was one.
    #[serde(default)]
    pub daemon: Option<DaemonStatus>,
    /// Image that is on the disk.
    #[serde(default)]
    pub image: Option<ImageRef>,
    /// Figures of the last `write-image`.
    #[serde(default)]
    pub image_written: Option<ImageWritten>,
    /// How the OS was last started, with the reason when it was not by kexec.
    #[serde(default)]
    pub booted_by: Option<String>,
    /// How far it is on its way into its cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinStatus>,
}

/// Power as a BMC tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// On.
    On,
    /// Off.
    Off,
}

/// A step under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RunningStep {
    /// The order's number.
    pub order: u64,
    /// The step's name.
    pub name: String,
    /// When it was given out.
    pub started: Timestamp,
    /// How far it is.
    #[serde(default)]
    pub progress: Progress,
}

/// What went wrong, and what happens next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostError {
    /// What.
    pub problem: Problem,
    /// When.
    pub at: Timestamp,
    /// How often in a row.
    pub attempts: u32,
    /// When it is tried again; never without a person when absent.
    #[serde(default)]
    pub retry_at: Option<Timestamp>,
}

/// The ramdisk's agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AgentStatus {
    /// Its version.
    pub version: String,
    /// Its kernel.
    pub kernel: String,
    /// First contact of this boot.
    pub hello_at: Timestamp,
    /// Kernel start to first contact, seconds.
    pub kernel_to_hello_seconds: f64,
    /// Last contact.
    pub seen_at: Timestamp,
    /// Memory the ramdisk has, bytes.
    pub memory_bytes: u64,
}

/// The host daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DaemonStatus {
    /// Last contact.
    pub seen_at: Timestamp,
    /// Boot it reports of.
    pub boot_id: String,
    /// When that kernel started.
    pub booted_at: Timestamp,
    /// The OS.
    pub os: String,
    /// Its kernel.
    pub kernel: String,
    /// The daemon's version.
    pub agent_version: String,
    /// cloud-init's result.
    pub cloud_init: CloudInit,
}

/// What was done with a host from one rest to the next, and where the seconds went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Run {
    /// Which host.
    pub host: String,
    /// `enrol`, `deploy`, `deprovision`, `delete`, …
    pub kind: String,
    /// When it began.
    pub started: Timestamp,
    /// When it ended; absent while it is under way.
    #[serde(default)]
    pub ended: Option<Timestamp>,
    /// The state that it came to.
    #[serde(default)]
    pub outcome: Option<String>,
    /// Oldest first.
    pub stages: Vec<Stage>,
}

/// A stretch of time with a name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Stage {
    /// `firmware`, `ramdisk`, `inspect`, `erase`, `write-image`, …
    pub name: String,
    /// When it began.
    pub started: Timestamp,
    /// How long it took; absent while it runs.
    #[serde(default)]
    pub seconds: Option<f64>,
    /// Bytes moved, where that is its point.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// In words: which disk, which kernel, which error.
    #[serde(default)]
    pub detail: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resource() -> serde_json::Value {
        json!({
            "apiVersion": "ferrite/v1",
            "kind": "Host",
            "metadata": {
                "name": "n", "uid": "u", "project": "p", "labels": {"rack": "r1"},
                "annotations": {}, "resourceVersion": "12", "generation": 3,
                "creationTimestamp": "2026-11-21T12:00:00Z",
            },
            "spec": {"bmc": {"address": "redfish://b", "username": "u"}},
            "status": {"state": "available", "since": "2026-11-21T12:00:00Z"},
        })
    }

    #[test]
    fn a_host_has_the_form_of_a_resource_both_ways() {
        let host: Host = serde_json::from_value(resource()).unwrap();
        assert_eq!((host.name.as_str(), host.version), ("n", 12));
        assert_eq!(host.labels["rack"], "r1");
        let written = serde_json::to_value(&host).unwrap();
        assert_eq!(written["metadata"], resource()["metadata"]);
        assert_eq!(written["kind"], "Host");
        assert_eq!(serde_json::from_value::<Host>(written).unwrap(), host);
    }

    #[test]
    fn what_was_read_is_a_manifest_and_its_status_is_ignored() {
        let manifest: HostManifest = serde_json::from_value(resource()).unwrap();
        assert_eq!(manifest.metadata.name, "n");
        let mut with_more = resource();
        with_more["spec"]["bot_mac"] = json!("x");
        assert!(serde_json::from_value::<HostManifest>(with_more).is_err());
        let mut other_kind = resource();
        other_kind["kind"] = json!("Image");
        assert!(serde_json::from_value::<HostManifest>(other_kind).is_err());
    }
}

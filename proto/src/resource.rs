//! The form that every resource has on the wire: Kubernetes' words (`apiVersion`, `kind`,
//! `metadata`, `spec`, `status`) around Ferrite's own, which are `snake_case`.
//!
//! Not here: what a kind means; that is beside its `spec`.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What a host, image, … belongs to when nothing is said.
pub const DEFAULT_PROJECT: &str = "default";

/// The version of the resources' form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ApiVersion {
    /// The only one.
    #[default]
    #[serde(rename = "ferrite/v1")]
    V1,
}

/// A number that grows with every change of anything; of a resource, that of its last change.
/// A string on the wire, as in Kubernetes: clients compare it for equality and send it back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceVersion(pub u64);

impl fmt::Display for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for ResourceVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ResourceVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number
            .map(Self)
            .ok_or_else(|| de::Error::custom(format!("{text:?} is no resourceVersion")))
    }
}

/// What is the same for every kind. In a request only `name`, `project`, `labels` and
/// `annotations` are taken; `uid` and `resourceVersion` are compared, so that what was read can be
/// sent back, and the rest is ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Unique among its kind; `[a-z0-9]([a-z0-9.-]*[a-z0-9])?`, at most 63.
    pub name: String,
    /// Made once, never reused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Whom it belongs to. Absent in a request: as it is, or [`DEFAULT_PROJECT`] when new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// To select by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// For people and their tools; Ferrite does not read them.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Of its last change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<ResourceVersion>,
    /// Grows with every change of `spec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
}

impl Metadata {
    /// Only a name.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }
}

/// Where a list stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListMetadata {
    /// The list is as of this version; a watch goes on from here.
    pub resource_version: ResourceVersion,
    /// Give it back as `?continue=` for the next page; absent on the last.
    #[serde(default, rename = "continue", skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_version_is_a_string_of_digits() {
        let version = ResourceVersion(7);
        assert_eq!(serde_json::to_string(&version).unwrap(), "\"7\"");
        assert_eq!(
            serde_json::from_str::<ResourceVersion>("\"7\"").unwrap(),
            version
        );
        for bad in ["7", "\"\"", "\"+7\"", "\"-1\"", "\"18446744073709551616\""] {
            assert!(
                serde_json::from_str::<ResourceVersion>(bad).is_err(),
                "{bad}"
            );
        }
    }
}

//! What hosts are given by name: images and profiles. They are for all projects.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::named_image::{ImageSpec, ImageStatus};
use crate::resource::{ApiVersion, ListMetadata, Metadata};

/// What is seen, if it can be read: what a person or a newer peer wrote there must not keep the
/// rest from being taken.
fn readable<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    given: D,
) -> Result<Option<T>, D::Error> {
    let given = Option::<Value>::deserialize(given)?;
    Ok(given.and_then(|given| serde_json::from_value(given).ok()))
}

macro_rules! resource {
    ($(#[$doc:meta])* $name:ident, $kind:ident, $list:ident, $list_kind:ident, $spec:ty
     $(, $status:ty)?) => {
        /// The kind.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum $kind {
            /// The only one.
            #[default]
            $name,
        }

        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub struct $name {
            /// The version of this form.
            pub api_version: ApiVersion,
            /// What it is.
            pub kind: $kind,
            /// Name, labels, annotations.
            pub metadata: Metadata,
            /// What it says.
            pub spec: $spec,
            $(
                /// What is seen of it. Written by the conductor alone: what is given is not taken.
                #[serde(
                    default,
                    deserialize_with = "readable",
                    skip_serializing_if = "Option::is_none"
                )]
                pub status: Option<$status>,
            )?
        }

        /// The kind of a list.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum $list_kind {
            /// The only one.
            #[default]
            $list,
        }

        /// Several, by name.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(rename_all = "camelCase")]
        pub struct $list {
            /// The version of this form.
            pub api_version: ApiVersion,
            /// What it is.
            pub kind: $list_kind,
            /// As of when.
            pub metadata: ListMetadata,
            /// By name.
            pub items: Vec<$name>,
        }
    };
}

resource!(
    /// An image with a name: hosts say `spec.image_name`.
    Image, ImageKind, ImageList, ImageListKind, ImageSpec, ImageStatus
);
resource!(
    /// What hosts have in common: hosts say `spec.profile`.
    Profile, ProfileKind, ProfileList, ProfileListKind, ProfileSpec
);
/// Of a [`Profile`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ProfileSpec {
    /// What it is for, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Fields of a host's `spec`, taken where a manifest does not say otherwise, when it is
    /// written: a later change of the profile changes no host by itself.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub defaults: Map<String, Value>,
}

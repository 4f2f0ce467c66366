//! Schemas of the types that are written otherwise than they are kept: as text, mostly.
//!
//! Not here: the calls; the conductor describes them.

use std::borrow::Cow;

use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{RefOr, schema::OneOfBuilder};
use utoipa::{PartialSchema, ToSchema};

use crate::boot::CaPin;
use crate::digest::Digest;
use crate::host::Host;
use crate::mac::Mac;
use crate::problem::Code;
use crate::resource::ResourceVersion;
use crate::rolling::MaxUnavailable;
use crate::size::ByteSize;

fn text(description: &str, pattern: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::String))
        .description(Some(description))
        .pattern(Some(pattern))
}

macro_rules! schema {
    ($type:ty, $name:literal, $schema:expr) => {
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                RefOr::T(Schema::from($schema))
            }
        }

        impl ToSchema for $type {
            fn name() -> Cow<'static, str> {
                Cow::Borrowed($name)
            }
        }
    };
}

schema!(
    Mac,
    "Mac",
    text(
        "An EUI-48 address.",
        "^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$"
    )
);
schema!(
    Digest,
    "Digest",
    text(
        "`sha256:` or `sha512:` and the digest in hexadecimal.",
        "^(sha256:[0-9a-fA-F]{64}|sha512:[0-9a-fA-F]{128})$"
    )
);
schema!(
    CaPin,
    "CaPin",
    text("SHA-256 of a certificate's key.", "^sha256:[0-9a-f]{64}$")
);
schema!(
    ResourceVersion,
    "ResourceVersion",
    text("The revision of the last change.", "^[0-9]{1,19}$")
);
schema!(
    ByteSize,
    "ByteSize",
    OneOfBuilder::new()
        .item(
            ObjectBuilder::new()
                .schema_type(SchemaType::Type(Type::Integer))
                .minimum(Some(0))
                .maximum(Some(i64::MAX))
        )
        .item(text("`8GiB`", "^[0-9]{1,6} ?(([kKmMgGtT]i?)?[bB])?$"))
);

schema!(
    MaxUnavailable,
    "MaxUnavailable",
    OneOfBuilder::new()
        .description(Some("Hosts, or a share of all of them: `2`, `\"25%\"`."))
        .item(
            ObjectBuilder::new()
                .schema_type(SchemaType::Type(Type::Integer))
                .minimum(Some(1))
                .maximum(Some(u32::MAX))
        )
        .item(text("`25%`", "^(100|[1-9][0-9]?)%$"))
);

schema!(
    Code,
    "Code",
    ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::String))
        .description(Some("A stable code. New ones are added."))
        .enum_values(Some(Code::ALL.iter().map(|code| code.as_str())))
);

impl PartialSchema for Host {
    fn schema() -> RefOr<Schema> {
        crate::host::HostWire::schema()
    }
}

impl ToSchema for Host {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Host")
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        crate::host::HostWire::schemas(schemas);
    }
}

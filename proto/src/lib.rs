//! The words that cross a wire in Ferrite: pure types and pure rules, with no I/O and no async.
//!
//! What this contract promises about versions: fields are only ever added, with a default;
//! event enums end in an `Unknown` variant, so an old conductor survives a new agent; an unknown
//! *step* is refused by the agent and never skipped. JSON names are `snake_case`, but for the words
//! that resources share with Kubernetes' ([`resource`]); sizes are bytes, durations seconds, times
//! RFC 3339 in UTC.

pub mod access;
pub mod address;
pub mod agent_api;
pub mod api;
pub mod boot;
pub mod catalog;
pub mod cluster;
pub mod digest;
pub mod hints;
pub mod host;
pub mod image;
pub mod image_server;
pub mod inventory;
pub mod join;
pub mod mac;
pub mod merge;
pub mod named_image;
pub mod oci;
#[cfg(feature = "openapi")]
mod openapi;
pub mod operation;
pub mod problem;
pub mod resource;
pub mod rolling;
pub mod secret;
pub mod size;
pub mod step;
pub mod task;

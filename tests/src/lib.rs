//! The lab: virtual bare-metal hosts (QEMU) behind virtual BMCs (Redfish), in a network of their
//! own.
//!
//! `lab::Lab` is where a test starts. Nothing here knows how the conductor works inside: the lab
//! starts it as people do, and talks to it through its command line and API.

pub mod accel;
pub mod bench_conductor;
pub mod bench_deploy;
pub mod bench_imaging;
pub mod bmc;
mod command;
pub mod conductor;
pub mod control;
pub mod control_plane;
pub mod daemon;
pub mod demo;
pub mod faults;
mod forward;
pub mod images;
pub mod kube_api;
pub mod lab;
pub mod machine;
pub mod net;
pub mod odd_image;
pub mod parsers;
pub mod postgres;
mod qmp;
pub mod schemathesis;
pub mod swarm;
pub mod timeline;
pub mod vm;

use anyhow::{Context, Result};

/// The one way to a client: plain HTTP, and HTTPS without a look at the certificate, as BMCs fetch
/// media.
pub(crate) fn http_client() -> Result<reqwest::Client> {
    // An error says that it is installed already.
    drop(rustls::crypto::ring::default_provider().install_default());
    reqwest::Client::builder()
        .tls_certs_only([])
        .tls_danger_accept_invalid_certs(true)
        .build()
        .context("making an HTTP client")
}

//! What kubeadm and a kubelet say to an API server when a host joins, for tests: discovery with the
//! token's signature and the CA's pin, a certificate by request, a Node and a lease by that
//! certificate. All of it over the wire; nothing is asked of a conductor.
//!
//! Machines of the swarm call it; `node-double` is the program that has it in a guest, under the
//! names `kubeadm` and `kubelet`. No pod ever runs by it.

pub mod discovery;
pub mod registration;
mod wire;

pub use wire::Authority;

/// The version that both programs tell.
pub const VERSION: &str = "v1.34.1";

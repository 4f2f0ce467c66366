//! What a host is given to join a cluster, and what kubeadm's words mean. Pure.
//!
//! Not here: how far a host is, and what is done next, which is the lifecycle's
//! (`lifecycle/joining.rs`); and how a cluster is spoken to (`cluster/`).

pub(crate) mod causes;
pub(crate) mod configuration;

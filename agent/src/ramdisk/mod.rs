//! The agent's life in the ramdisk: PID 1 ([`init`]) and its child ([`worker`]).
//!
//! Bytes from outside are read in the child only; PID 1 copies what the child says to the consoles
//! and keeps for it what must outlive it.

mod boot_config;
mod clock;
mod console;
mod dhcp;
mod handover;
pub(crate) mod init;
mod leases;
mod links;
pub(crate) mod message;
pub(crate) mod modules;
pub(crate) mod poll;
pub(crate) mod session;
pub(crate) mod worker;

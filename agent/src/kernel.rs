//! Effects that only the kernel has: ioctls, mounts, modules, kexec, reboot.
//!
//! The one place with `unsafe`. [`Kernel`] is a trait so that tests can record what would be done
//! and fail on demand; [`Linux`] does it.

use std::fmt::Debug;

/// What Ferrite asks of the kernel beyond plain files.
pub(crate) trait Kernel: Debug + Send + Sync {}

/// The running kernel.
#[derive(Debug)]
pub(crate) struct Linux;

impl Kernel for Linux {}

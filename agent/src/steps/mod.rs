//! One verb a file, named as the step. This module only chooses.

mod boot;
pub(crate) mod erase;
mod inspect;
mod power_off;
mod rescue;
pub(crate) mod root_disk;
mod set_boot_entry;
pub(crate) mod write_config_drive;
mod write_image;

use std::sync::atomic::AtomicBool;

use ferrite_proto::problem::Problem;
use ferrite_proto::step::{Outcome, Progress, Step};

use crate::kernel::Kernel;
use crate::root::Root;
use crate::stream::terms::Terms;

/// What every step may use.
pub(crate) struct Context<'a> {
    /// The file tree.
    pub(crate) root: &'a Root,
    /// The kernel.
    pub(crate) kernel: &'a dyn Kernel,
    /// Called with how far the step is, often; must return at once.
    pub(crate) progress: &'a (dyn Fn(Progress) + Sync),
    /// Set when the step shall stop; looked at once a second at least.
    pub(crate) cancelled: &'a AtomicBool,
}

/// Runs a step to its end. `boot` and `power-off` only prepare: their caller reports the outcome
/// first, and then calls `depart`.
pub(crate) fn run(step: &Step, context: &Context<'_>) -> Result<Outcome, Problem> {
    match step {
        Step::Inspect => inspect::run(context),
        Step::Erase { method } => erase::run(*method, context),
        Step::WriteImage {
            image,
            root,
            servers,
            verify,
        } => {
            let terms = Terms::of_a_step(servers);
            write_image::run(image, root, *verify, &terms, context)
        }
        Step::WriteConfigDrive { root, files } => write_config_drive::run(root, files, context),
        Step::SetBootEntry { root } => {
            set_boot_entry::run(&root_disk::find(context.root, root)?.name, context)
        }
        Step::Boot { root, method } => {
            let disk = root_disk::find(context.root, root)?.name;
            Ok(boot::run(&disk, *method, context))
        }
        Step::Rescue {
            password_hash,
            authorized_keys,
        } => rescue::run(password_hash.expose(), authorized_keys, context),
        Step::PowerOff => Ok(power_off::run()),
    }
}

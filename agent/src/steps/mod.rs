//! One verb a file, named as the step. This module only chooses.

use std::sync::atomic::AtomicBool;

use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::step::{Outcome, Progress, Step};

use crate::kernel::Kernel;
use crate::root::Root;

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
    let _ = (
        context.root,
        context.kernel,
        context.progress,
        context.cancelled,
    );
    Err(Problem::new(
        Code::StepUnknown,
        format!("step {} is not written yet", step.name()),
        "",
    ))
}

//! `inspect`: reads the hardware and changes nothing.

use ferrite_proto::problem::Problem;
use ferrite_proto::step::Outcome;

use super::Context;
use crate::inspect;

/// Tells what the machine is. Never fails: what cannot be read is in the inventory's `unread`.
#[expect(clippy::unnecessary_wraps, reason = "steps have one shape")]
pub(super) fn run(context: &Context<'_>) -> Result<Outcome, Problem> {
    let inventory = Box::new(inspect::inspect(context.root));
    Ok(Outcome::Inspected { inventory })
}

//! The disk that a step means: its rule, evaluated afresh on the disks that are there.

use ferrite_proto::hints::NoRootDisk;
use ferrite_proto::inventory::Disk;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::step::RootDisk;

use crate::inspect::block;
use crate::root::Root;

/// The one disk, or why there is not exactly one.
pub(crate) fn find(root: &Root, wanted: &RootDisk) -> Result<Disk, Problem> {
    let disks = block::all(root);
    let found = wanted.hints.select(&disks, wanted.default);
    found.cloned().map_err(|error| {
        let (code, advice) = match &error {
            NoRootDisk::None { .. } => (
                Code::NoDisk,
                "check the host's drives, their cables and their controller's mode",
            ),
            NoRootDisk::NoMatch { .. } => (
                Code::NoDiskMatches,
                "set root device hints that match one of these disks",
            ),
            NoRootDisk::Several { .. } => (
                Code::SeveralDisksMatch,
                "set root device hints, such as the serial, that match one",
            ),
        };
        Problem::new(code, error.to_string(), advice)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_disks_says_so() {
        let problem = find(&Root::at("/nonexistent"), &RootDisk::default()).unwrap_err();
        assert_eq!(problem.code, Code::NoDisk);
        assert!(!problem.advice.is_empty());
    }
}

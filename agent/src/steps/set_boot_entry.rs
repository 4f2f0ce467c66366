//! `set-boot-entry`: makes UEFI firmware boot the written disk first. Under BIOS there is nothing
//! to set; the firmware's own disk order holds.

use std::io;
use std::path::Path;

use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::step::Outcome;
use gpt::disk::LogicalBlockSize;
use gpt::partition_types;

use super::Context;
use crate::boot;
use crate::efi::{BootVariables, GptPartition, LoadOption};
use crate::inspect::block;
use crate::root::Root;

/// In front of every description of ours.
const PREFIX: &str = "ferrite: ";

/// Sets the entry for a disk (`/dev/vda`), and reads it back.
pub(crate) fn run(disk: &str, context: &Context<'_>) -> Result<Outcome, Problem> {
    let set = |detail: String| Ok(Outcome::BootEntrySet { detail });
    if !context.root.path("/sys/firmware/efi").exists() {
        return set("the host runs BIOS: nothing to set".to_owned());
    }
    let Some(variables) = BootVariables::open(context.root, context.kernel) else {
        return set("the firmware shows no variables: nothing set".to_owned());
    };
    let name = &block::kernel_name(disk);
    let esp = system_partition(context.root, name).map_err(|error| {
        let message = format!("the partition table of {disk} cannot be read: {error}");
        Problem::new(Code::BootEntry, message, "write the image again")
    })?;
    let Some(esp) = esp else {
        return set(format!("{disk} has no EFI system partition: nothing set"));
    };
    let loader = boot::efi_loader(context.root, context.kernel, name, esp.number);
    let loader = loader.unwrap_or_else(|| boot::FALLBACK_LOADER.to_owned());
    let option = LoadOption::of_file(&format!("{PREFIX}{name}"), &esp, &loader.replace('/', "\\"));
    put_first(&variables, &option).map(|number| Outcome::BootEntrySet {
        detail: format!("Boot{number:04X}: {} ({loader})", option.description),
    })
}

/// Writes the option, first in the order, and removes older ones of ours.
fn put_first(variables: &BootVariables<'_>, option: &LoadOption) -> Result<u16, Problem> {
    let failed = |what: String| {
        let advice = "the firmware may lack space for variables; look at its setup, or boot the \
                      disk by its own order";
        Problem::new(Code::BootEntry, what, advice)
    };
    let known = variables.options();
    let plan = plan(&known, &variables.order().unwrap_or_default(), option);
    if plan.write {
        let written = variables.set_option(plan.number, option);
        written.map_err(|e| failed(format!("Boot{:04X} cannot be written: {e}", plan.number)))?;
    }
    let ordered = variables.set_order(&plan.order);
    ordered.map_err(|e| failed(format!("BootOrder cannot be written: {e}")))?;
    for number in plan.remove {
        // One that stays is out of the order and does no harm.
        if let Err(error) = variables.remove(number) {
            tracing::warn!(number, %error, "an old boot entry stays");
        }
    }
    let same_option = variables
        .option(plan.number)
        .is_ok_and(|read| read.path == option.path);
    let same_order = variables.order().is_ok_and(|read| read == plan.order);
    if same_option && same_order {
        Ok(plan.number)
    } else {
        Err(failed(
            "the firmware did not keep the boot entry".to_owned(),
        ))
    }
}

/// What to change.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    number: u16,
    write: bool,
    remove: Vec<u16>,
    order: Vec<u16>,
}

fn plan(known: &[(u16, LoadOption)], order: &[u16], option: &LoadOption) -> Plan {
    let same = known.iter().find(|(_, other)| other.path == option.path);
    let free = || (0..=u16::MAX).find(|n| known.iter().all(|(number, _)| number != n));
    let number = same
        .map(|(number, _)| *number)
        .or_else(free)
        .unwrap_or(u16::MAX);
    let ours = |other: &LoadOption| other.description.starts_with(PREFIX);
    let stale = known
        .iter()
        .filter(|(other, option)| *other != number && ours(option));
    let remove: Vec<u16> = stale.map(|(number, _)| *number).collect();
    let rest = order
        .iter()
        .filter(|other| **other != number && !remove.contains(other));
    let order = std::iter::once(number).chain(rest.copied()).collect();
    Plan {
        number,
        write: same.is_none_or(|(_, other)| other != option),
        remove,
        order,
    }
}

/// The EFI system partition of a disk.
fn system_partition(root: &Root, disk: &str) -> io::Result<Option<GptPartition>> {
    let sector = root.text(format!("/sys/class/block/{disk}/queue/logical_block_size"));
    let size = match sector.as_deref() {
        Ok("4096") => LogicalBlockSize::Lb4096,
        _ => LogicalBlockSize::Lb512,
    };
    find_system_partition(&root.path(block::device_path(disk)), size)
}

fn find_system_partition(path: &Path, size: LogicalBlockSize) -> io::Result<Option<GptPartition>> {
    let config = gpt::GptConfig::new()
        .writable(false)
        .logical_block_size(size);
    let table = config.open(path).map_err(io::Error::other)?;
    let esp = table
        .partitions()
        .iter()
        .find(|(_, p)| p.part_type_guid == partition_types::EFI);
    Ok(esp.map(|(number, partition)| GptPartition {
        number: *number,
        first: partition.first_lba,
        blocks: (partition.last_lba + 1).saturating_sub(partition.first_lba),
        // gpt may use another version of the same crate.
        guid: uuid::Uuid::from_bytes(*partition.part_guid.as_bytes()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;

    #[derive(Debug)]
    struct Permissive;
    impl Kernel for Permissive {
        fn allow_changes(&self, _: &std::fs::File) -> io::Result<()> {
            Ok(())
        }
    }

    const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";

    fn option(description: &str, number: u32) -> LoadOption {
        let esp = GptPartition {
            number,
            first: 2048,
            blocks: 100,
            guid: uuid::Uuid::nil(),
        };
        LoadOption::of_file(description, &esp, boot::FALLBACK_LOADER)
    }

    fn machine(folder: &Path) -> Root {
        let root = Root::at(folder);
        let efivars = root.path("/sys/firmware/efi/efivars");
        std::fs::create_dir_all(&efivars).unwrap();
        let order = [7, 0, 0, 0, 1, 0, 2, 0, 3, 0];
        std::fs::write(efivars.join(format!("BootOrder-{GLOBAL}")), order).unwrap();
        root
    }

    #[test]
    fn a_new_entry_is_first_an_old_one_of_ours_goes_and_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let root = machine(folder.path());
        let variables = BootVariables::open(&root, &Permissive).unwrap();
        variables.set_option(1, &option("UEFI PXEv4", 1)).unwrap();
        variables.set_option(2, &option("ferrite: sda", 2)).unwrap();
        let number = put_first(&variables, &option("ferrite: vda", 15)).unwrap();
        assert_eq!(number, 0);
        assert_eq!(variables.order().unwrap(), [0, 1, 3]);
        let left: Vec<_> = variables
            .options()
            .into_iter()
            .map(|(n, o)| (n, o.description))
            .collect();
        assert_eq!(
            left,
            [(0, "ferrite: vda".to_owned()), (1, "UEFI PXEv4".to_owned())]
        );
        // Once more: nothing is added.
        assert_eq!(
            put_first(&variables, &option("ferrite: vda", 15)).unwrap(),
            0
        );
        assert_eq!(variables.order().unwrap(), [0, 1, 3]);
    }

    #[test]
    fn an_entry_that_is_there_already_is_used() {
        let known = [(9, option("ferrite: vda", 15)), (1, option("PXE", 1))];
        let plan = plan(&known, &[1, 9], &option("ferrite: vda", 15));
        let wanted = Plan {
            number: 9,
            write: false,
            remove: vec![],
            order: vec![9, 1],
        };
        assert_eq!(plan, wanted);
    }

    #[test]
    fn under_bios_nothing_is_set() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        let context = Context {
            root: &root,
            kernel: &Permissive,
            progress: &|_| {},
            cancelled: &std::sync::atomic::AtomicBool::new(false),
        };
        let Outcome::BootEntrySet { detail } = run("/dev/vda", &context).unwrap() else {
            panic!()
        };
        assert!(detail.contains("BIOS"), "{detail}");
    }
}

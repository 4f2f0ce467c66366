//! An inventory as a person reads it, at most 100 columns wide. Programs read the JSON.

use std::fmt::Write as _;

use ferrite_proto::hints::unusable;
use ferrite_proto::inventory::{Disk, Inventory, Nic};
use ferrite_proto::size::ByteSize;

/// Widest line.
const COLUMNS: usize = 100;

/// The whole table.
pub(crate) fn table(inventory: &Inventory) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: &str| {
        if !value.is_empty() {
            let line = format!("{label:<9} {value}");
            let _ = writeln!(text, "{}", clip(&line));
        }
    };
    let system = &inventory.system;
    line("system", &join(&[&system.vendor, &system.product]));
    line("serial", system.serial.as_deref().unwrap_or_default());
    line("uuid", system.uuid.as_deref().unwrap_or_default());
    line(
        "firmware",
        &join(&[&system.bios_vendor, &system.bios_version, &system.bios_date]),
    );
    line("boot", &boot(inventory));
    line("cpu", &cpu(inventory));
    line("memory", &memory(inventory));
    for disk in &inventory.disks {
        line("disk", &describe_disk(disk));
    }
    for nic in &inventory.nics {
        line("nic", &describe_nic(nic));
    }
    for unread in &inventory.unread {
        line("unread", &format!("{}: {}", unread.what, unread.why));
    }
    text
}

fn boot(inventory: &Inventory) -> String {
    let boot = &inventory.boot;
    let mode = boot
        .mode
        .map_or_else(String::new, |mode| format!("{mode:?}").to_lowercase());
    let secure = match boot.secure_boot {
        Some(true) => ", secure boot",
        Some(false) => ", no secure boot",
        None => "",
    };
    let kernel = boot.kernel.as_deref().unwrap_or("unknown");
    format!("{mode}{secure}, kernel {kernel}")
}

fn cpu(inventory: &Inventory) -> String {
    let cpu = &inventory.cpu;
    let count = |number: Option<u32>| number.map_or("?".to_owned(), |number| number.to_string());
    format!(
        "{}, {} sockets, {} cores, {} threads",
        cpu.model
            .as_deref()
            .or(cpu.architecture.as_deref())
            .unwrap_or("unknown"),
        count(cpu.sockets),
        count(cpu.cores),
        count(cpu.threads)
    )
}

fn memory(inventory: &Inventory) -> String {
    let memory = &inventory.memory;
    let size = |bytes: Option<u64>| bytes.map(|bytes| ByteSize(bytes).to_string());
    let modules = memory
        .dimms
        .iter()
        .filter(|dimm| dimm.size_bytes > 0)
        .count();
    match (size(memory.total_bytes), size(memory.installed_bytes)) {
        (Some(total), Some(installed)) => {
            format!("{total} usable, {installed} installed in {modules} modules")
        }
        (Some(total), None) => format!("{total} usable"),
        _ => String::new(),
    }
}

fn describe_disk(disk: &Disk) -> String {
    let kind = if disk.rotational { "hdd" } else { "ssd" };
    let mut text = format!(
        "{:<13} {:>9} {kind} {:<6}",
        disk.name,
        ByteSize(disk.size_bytes).to_string(),
        disk.transport.as_deref().unwrap_or("-")
    );
    let _ = write!(text, " serial {}", disk.serial.as_deref().unwrap_or("none"));
    if let Some(model) = &disk.model {
        let _ = write!(text, ", {model}");
    }
    if let Some(why) = unusable(disk) {
        let _ = write!(text, " ({why})");
    }
    text
}

fn describe_nic(nic: &Nic) -> String {
    let mac = nic.mac.map_or("no MAC".to_owned(), |mac| mac.to_string());
    let link = match (nic.carrier, nic.speed_mbps) {
        (Some(true), Some(speed)) => format!("link {speed} Mb/s"),
        (Some(true), None) => "link".to_owned(),
        (Some(false), _) => "no link".to_owned(),
        (None, _) => "down".to_owned(),
    };
    let driver = nic.driver.as_deref().unwrap_or("-");
    let addresses = nic.addresses.join(" ");
    format!("{:<13} {mac} {driver} {link} {addresses}", nic.name)
}

fn join(parts: &[&Option<String>]) -> String {
    let present: Vec<&str> = parts.iter().filter_map(|part| part.as_deref()).collect();
    present.join(" ")
}

fn clip(line: &str) -> String {
    if line.chars().count() <= COLUMNS {
        return line.trim_end().to_owned();
    }
    let mut short: String = line.chars().take(COLUMNS - 1).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_wider_than_a_screen() {
        let disk = Disk {
            name: "/dev/sda".into(),
            model: Some("x".repeat(200)),
            in_use: Some("mounted on /".into()),
            ..Disk::default()
        };
        let inventory = Inventory {
            disks: vec![
                disk,
                Disk {
                    name: "/dev/sdb".into(),
                    ..Disk::default()
                },
            ],
            ..Inventory::default()
        };
        let text = table(&inventory);
        assert!(
            text.lines().all(|line| line.chars().count() <= COLUMNS),
            "{text}"
        );
        assert!(
            text.contains("/dev/sdb") && text.contains("(no medium)"),
            "{text}"
        );
    }
}

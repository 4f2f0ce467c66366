//! How answers look for people. Pure: values in, text out.

use std::fmt::Write;

use comfy_table::{Table, presets};
use ferrite_proto::api::{EventList, Explanation};
use ferrite_proto::host::{Host, HostError, HostStatus, Power};
use ferrite_proto::inventory::Inventory;
use ferrite_proto::size::ByteSize;
use jiff::Timestamp;

pub(super) fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.to_vec());
    table
}

pub(super) fn lines(table: &Table) -> String {
    let trimmed = table.lines().map(|line| line.trim_end().to_owned() + "\n");
    trimmed.collect()
}

pub(super) fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn power(power: Option<Power>) -> &'static str {
    match power {
        Some(Power::On) => "on",
        Some(Power::Off) => "off",
        None => "-",
    }
}

/// All hosts.
pub(crate) fn table(hosts: &[Host]) -> String {
    let mut table = new_table(&["NAME", "STATE", "POWER", "IMAGE", "DOING"]);
    for host in hosts {
        let image = host.status.image.as_ref().map_or("-", |image| &image.url);
        table.add_row([
            host.name.as_str(),
            host.status.state.as_str(),
            power(host.status.power),
            image,
            &doing(&host.status),
        ]);
    }
    lines(&table)
}

/// What a host does, in a few words.
pub(crate) fn doing(status: &HostStatus) -> String {
    if let Some(error) = &status.error {
        return trouble(error);
    }
    match (&status.step, &status.waiting_for) {
        (Some(step), _) => format!("{} {}", step.name, amount(step.progress.bytes_done)),
        (None, Some(what)) => format!("waits for {what}"),
        (None, None) => String::new(),
    }
    .trim_end()
    .to_owned()
}

pub(super) fn amount(bytes: u64) -> String {
    if bytes == 0 {
        String::new()
    } else {
        ByteSize(bytes).to_string()
    }
}

fn trouble(error: &HostError) -> String {
    match error.retry_at {
        Some(at) => format!(
            "{} (tried again at {})",
            error.problem,
            at.strftime("%H:%M:%S UTC")
        ),
        None => format!("{} (needs a person)", error.problem),
    }
}

/// One host.
pub(crate) fn host(host: &Host, inventory: Option<&Inventory>) -> String {
    let (spec, status) = (&host.spec, &host.status);
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<14}{value}");
    };
    line("name", host.name.clone());
    line(
        "state",
        format!("{} since {}", status.state, clock(status.since)),
    );
    line("doing", doing(status));
    line("power", power(status.power).to_owned());
    line(
        "bmc",
        format!("{} as {}", spec.bmc.address, spec.bmc.username),
    );
    if let Some(mac) = spec.boot_mac {
        line("boot NIC", mac.to_string());
    }
    if let Some(image) = &spec.image {
        line("image wanted", image.url.clone());
    }
    if let Some(image) = &status.image {
        line("image", image.url.clone());
    }
    if let Some(how) = &status.booted_by {
        line("booted by", how.clone());
    }
    if let Some(agent) = &status.agent {
        let seen = clock(agent.seen_at);
        line(
            "agent",
            format!("{} on {}, seen {seen}", agent.version, agent.kernel),
        );
    }
    if let Some(daemon) = &status.daemon {
        line(
            "os",
            format!(
                "{}, {}, seen {}",
                daemon.os,
                daemon.kernel,
                clock(daemon.seen_at)
            ),
        );
        line(
            "cloud-init",
            format!("{:?}", daemon.cloud_init.stage).to_lowercase(),
        );
    }
    if let Some(inventory) = inventory {
        hardware(inventory, &mut line);
    }
    text
}

fn hardware(inventory: &Inventory, line: &mut impl FnMut(&str, String)) {
    let words = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());
    let system = &inventory.system;
    line(
        "system",
        format!(
            "{} {}, serial {}",
            words(&system.vendor),
            words(&system.product),
            words(&system.serial)
        ),
    );
    let memory = inventory.memory.total_bytes.unwrap_or(0);
    line(
        "cpu",
        format!(
            "{}, {} threads, {} memory",
            words(&inventory.cpu.model),
            inventory.cpu.threads.unwrap_or(0),
            ByteSize(memory)
        ),
    );
    for disk in &inventory.disks {
        line(
            "disk",
            format!(
                "{} {} serial {}",
                disk.name,
                ByteSize(disk.size_bytes),
                words(&disk.serial)
            ),
        );
    }
}

/// What a host is doing.
pub(crate) fn explanation(words: &Explanation) -> String {
    let advice = words.advice.as_deref();
    let advice = advice.map(|advice| format!("{advice}\n"));
    format!(
        "{}\n{}\n{}",
        words.doing,
        words.next,
        advice.unwrap_or_default()
    )
}

/// A host's log.
pub(crate) fn events(list: &EventList) -> String {
    let mut text = String::new();
    for event in &list.events {
        let _ = writeln!(text, "{} {:<8}{}", clock(event.at), event.kind, event.text);
    }
    text
}

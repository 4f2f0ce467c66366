//! What the daemon says of its host at each check-in.

use ferrite_proto::agent_api::CheckIn;
use jiff::{SignedDuration, Timestamp};

use super::cloud_init;
use crate::ramdisk::worker::uptime;
use crate::root::Root;

/// Reads it afresh.
pub(crate) fn read(root: &Root) -> CheckIn {
    let uptime = uptime(root);
    CheckIn {
        boot_id: root
            .text("/proc/sys/kernel/random/boot_id")
            .unwrap_or_default(),
        booted_at: before(Timestamp::now(), uptime),
        uptime_seconds: uptime,
        os: os_name(root),
        kernel: root.text("/proc/sys/kernel/osrelease").unwrap_or_default(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        cloud_init: cloud_init::read(root),
    }
}

fn before(now: Timestamp, uptime: f64) -> Timestamp {
    let elapsed = SignedDuration::try_from_secs_f64(uptime).unwrap_or_default();
    now.checked_sub(elapsed).unwrap_or(now)
}

fn os_name(root: &Root) -> String {
    let text = root
        .text("/etc/os-release")
        .or_else(|_| root.text("/usr/lib/os-release"));
    let text = text.unwrap_or_default();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    value
        .unwrap_or("unknown")
        .trim()
        .trim_matches(['"', '\''])
        .chars()
        .take(200)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_says_what_it_runs_and_since_when() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        for (path, text) in [
            (
                "/etc/os-release",
                "NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
            ),
            ("/proc/uptime", "100.50 1.0\n"),
            ("/proc/sys/kernel/random/boot_id", "b-1\n"),
            ("/proc/sys/kernel/osrelease", "6.1.0\n"),
        ] {
            let path = root.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let report = read(&root);
        assert_eq!(report.os, "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(
            (report.boot_id.as_str(), report.kernel.as_str()),
            ("b-1", "6.1.0")
        );
        let since = Timestamp::now()
            .duration_since(report.booted_at)
            .as_secs_f64();
        assert!((100.0..110.0).contains(&since), "{since}");
    }
}

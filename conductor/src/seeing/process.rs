//! What Linux tells of this process.

use std::fs;

/// Clock ticks of a second in `/proc`: Linux has told programs so for as long as they asked.
const TICKS: f64 = 100.0;

/// Figures of this process; zero where they cannot be read.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Seen {
    /// Memory that is resident.
    pub(super) resident_bytes: i64,
    /// Files and sockets that are open.
    pub(super) open_files: i64,
    /// Seconds of CPU, user and system.
    pub(super) cpu_seconds: f64,
    /// When it started, seconds since the epoch.
    pub(super) started: f64,
}

/// Looks now.
pub(super) fn look() -> Seen {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut seen = parse(&read("/proc/self/stat"), &read("/proc/stat"));
    seen.resident_bytes = resident(&read("/proc/self/status"));
    seen.open_files = fs::read_dir("/proc/self/fd")
        .map(|files| i64::try_from(files.count()).unwrap_or(i64::MAX))
        .unwrap_or_default();
    seen
}

fn parse(own: &str, machine: &str) -> Seen {
    // The name of the program is in parentheses and may hold anything.
    let fields: Vec<&str> = own
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    let ticks = |field: usize| -> f64 {
        let field = fields.get(field - 3);
        field.and_then(|text| text.parse().ok()).unwrap_or(0.0)
    };
    let booted = machine
        .lines()
        .find_map(|line| line.strip_prefix("btime "))
        .and_then(|text| text.trim().parse::<f64>().ok())
        .unwrap_or(0.0);
    Seen {
        cpu_seconds: (ticks(14) + ticks(15)) / TICKS,
        started: booted + ticks(22) / TICKS,
        ..Seen::default()
    }
}

fn resident(status: &str) -> i64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|text| {
            text.trim()
                .trim_end_matches("kB")
                .trim()
                .parse::<i64>()
                .ok()
        })
        .map_or(0, |kib| kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_is_read_as_linux_writes_it() {
        let own = "77 (a )b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 9 0 700 1 2";
        let seen = parse(own, "cpu 1 2\nbtime 1000\nprocesses 3\n");
        assert_eq!((seen.cpu_seconds, seen.started), (3.0, 1007.0));
        assert_eq!(resident("Name:\tx\nVmRSS:\t    2048 kB\n"), 2 << 20);
        let now = look();
        assert!(now.resident_bytes > 1 << 20, "{now:?}");
        assert!(now.open_files > 2, "{now:?}");
        assert!(now.started > 1.0e9, "{now:?}");
    }
}

//! Memory: what the kernel can use, and what is installed.

use ferrite_proto::inventory::{Dimm, Memory};

use super::Reader;

pub(super) fn read(reader: &Reader<'_>, dimms: Vec<Dimm>) -> Memory {
    let meminfo = reader.text("/proc/meminfo").unwrap_or_default();
    let installed = dimms
        .iter()
        .fold(0_u64, |sum, dimm| sum.saturating_add(dimm.size_bytes));
    Memory {
        total_bytes: field(&meminfo, "MemTotal"),
        installed_bytes: Some(installed).filter(|&bytes| bytes > 0),
        dimms,
    }
}

/// A line of `/proc/meminfo`, in bytes.
fn field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| {
        line.split_once(':')
            .is_some_and(|(key, _)| key.trim() == name)
    })?;
    let number = line.split_once(':')?.1.trim().strip_suffix("kB")?;
    number.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_is_bytes() {
        let text = "MemTotal:         375144 kB\nMemFree:  99999999999999999999 kB\n";
        assert_eq!(field(text, "MemTotal"), Some(375_144 * 1024));
        assert_eq!(field(text, "MemFree"), None);
        assert_eq!(field(text, "Swap"), None);
    }
}

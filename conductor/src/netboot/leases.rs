//! Which address each MAC has: the same one for ever, as long as there are enough.
//!
//! A MAC keeps its address over firmware, iPXE, ramdisk and OS, whatever client identifiers these
//! make up, and over restarts of the conductor (`leases.json`). That is what lets the HTTP side
//! know who asks. No database: a lost file costs nothing but that.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use ferrite_proto::mac::Mac;
use serde::{Deserialize, Serialize};

/// The addresses we lend.
#[derive(Debug)]
pub(super) struct Leases {
    first: u32,
    last: u32,
    duration: Duration,
    file: PathBuf,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_mac: BTreeMap<Mac, Lease>,
    by_ip: HashMap<Ipv4Addr, Mac>,
    /// Addresses that somebody else was found to use, until when.
    declined: HashMap<Ipv4Addr, Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    ip: Ipv4Addr,
    until: Instant,
}

/// `leases.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    leases: BTreeMap<Mac, Ipv4Addr>,
}

impl Leases {
    /// Leases between two addresses, with those of the file as they were. A file that cannot be
    /// read is begun anew: it is a memory, not a truth.
    pub(super) fn load(first: Ipv4Addr, last: Ipv4Addr, duration: Duration, dir: &Path) -> Self {
        let leases = Self {
            first: first.into(),
            last: last.into(),
            duration,
            file: dir.join("leases.json"),
            table: Mutex::default(),
        };
        let stored: Stored = std::fs::read(&leases.file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let until = Instant::now() + duration;
        let mut table = leases.lock();
        for (mac, ip) in stored.leases {
            if leases.lends(ip) && !table.by_ip.contains_key(&ip) {
                table.by_ip.insert(ip, mac);
                table.by_mac.insert(mac, Lease { ip, until });
            }
        }
        drop(table);
        leases
    }

    /// The address of `mac`, lent from now on; `None` when all are lent out.
    pub(super) fn lend(&self, mac: Mac) -> Option<Ipv4Addr> {
        let now = Instant::now();
        let until = now + self.duration;
        let mut table = self.lock();
        if let Some(lease) = table.by_mac.get_mut(&mac) {
            lease.until = until;
            return Some(lease.ip);
        }
        let ip = self.free(&table, mac, now)?;
        if let Some(before) = table.by_ip.insert(ip, mac) {
            table.by_mac.remove(&before);
        }
        table.by_mac.insert(mac, Lease { ip, until });
        self.store(&table);
        Some(ip)
    }

    /// `mac` found its address in use: it gets another, and nobody that one for a while.
    pub(super) fn decline(&self, mac: Mac) -> Option<Ipv4Addr> {
        let mut table = self.lock();
        let ip = table.by_mac.remove(&mac)?.ip;
        table.by_ip.remove(&ip);
        table.declined.insert(ip, Instant::now() + self.duration);
        self.store(&table);
        Some(ip)
    }

    /// The address that `mac` has.
    pub(super) fn ip_of(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.lock().by_mac.get(&mac).map(|lease| lease.ip)
    }

    /// Who has an address.
    pub(super) fn mac_of(&self, ip: Ipv4Addr) -> Option<Mac> {
        self.lock().by_ip.get(&ip).copied()
    }

    /// The first free address from where the MAC points to; when none was never lent, the one
    /// whose time is over the longest.
    fn free(&self, table: &Table, mac: Mac, now: Instant) -> Option<Ipv4Addr> {
        let size = u64::from(self.last - self.first) + 1;
        let start = mac.0.iter().fold(0_u64, |h, &b| h * 31 + u64::from(b)) % size;
        let usable = |ip: &Ipv4Addr| table.declined.get(ip).is_none_or(|until| *until < now);
        (0..size)
            .map(|i| u32::try_from((start + i) % size).expect("an offset within 32 bits"))
            .map(|offset| Ipv4Addr::from(self.first + offset))
            .filter(usable)
            .find(|ip| !table.by_ip.contains_key(ip))
            .or_else(|| {
                let over = table.by_mac.values().filter(|lease| lease.until < now);
                over.min_by_key(|lease| lease.until).map(|lease| lease.ip)
            })
    }

    fn lends(&self, ip: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&ip.into())
    }

    fn store(&self, table: &Table) {
        let stored = Stored {
            leases: table.by_mac.iter().map(|(mac, l)| (*mac, l.ip)).collect(),
        };
        let aside = self.file.with_extension("new");
        let written = serde_json::to_vec_pretty(&stored)
            .map_err(std::io::Error::from)
            .and_then(|bytes| std::fs::write(&aside, bytes))
            .and_then(|()| std::fs::rename(&aside, &self.file));
        if let Err(error) = written {
            tracing::warn!(file = %self.file.display(), %error, "leases are not kept");
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leases(dir: &Path, size: u8, seconds: u64) -> Leases {
        Leases::load(
            Ipv4Addr::new(10, 77, 0, 100),
            Ipv4Addr::new(10, 77, 0, 99 + size),
            Duration::from_secs(seconds),
            dir,
        )
    }

    fn mac(last: u8) -> Mac {
        Mac([0x52, 0x54, 0, 0x77, 0, last])
    }

    #[test]
    fn an_address_is_kept_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let first = leases(dir.path(), 10, 600).lend(mac(1)).unwrap();
        let again = leases(dir.path(), 10, 600);
        assert_eq!(again.ip_of(mac(1)), Some(first));
        assert_eq!(again.mac_of(first), Some(mac(1)));
    }

    #[test]
    fn nobody_gets_anothers_until_its_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let full = leases(dir.path(), 2, 600);
        let (a, b) = (full.lend(mac(1)).unwrap(), full.lend(mac(2)).unwrap());
        assert_ne!(a, b);
        assert_eq!(full.lend(mac(3)), None);

        let dir = tempfile::tempdir().unwrap();
        let over = leases(dir.path(), 1, 0);
        let only = over.lend(mac(1));
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(over.lend(mac(2)), only);
        assert_eq!(over.ip_of(mac(1)), None);
    }

    #[test]
    fn a_declined_address_is_not_given_again() {
        let dir = tempfile::tempdir().unwrap();
        let leases = leases(dir.path(), 2, 600);
        let bad = leases.lend(mac(1)).unwrap();
        assert_eq!(leases.decline(mac(1)), Some(bad));
        assert_ne!(leases.lend(mac(1)), Some(bad));
        assert_eq!(leases.lend(mac(2)), None);
    }
}

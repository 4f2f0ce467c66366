//! Root device hints, and the rule that finds the one disk they mean. Pure.
//!
//! Stricter than Ironic where Ironic surprises: several disks that match are an error that names
//! them; no hint with several disks is an error unless [`RootDeviceDefault::Smallest`] is set.

use serde::{Deserialize, Serialize};

use crate::inventory::Disk;
use crate::size::{ByteSize, GIB};

/// What a person says of the disk that the OS goes to. All that is said must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RootDeviceHints {
    /// `/dev/sda`, or a name without the folder. Fragile: prefer `serial` or `wwn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The exact serial number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The exact WWN, with or without `0x`, `naa.`, `eui.` in front.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wwn: Option<String>,
    /// The exact model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The exact vendor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// The exact SCSI host:channel:target:lun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hctl: Option<String>,
    /// The size, compared in whole GiB, as drives are labelled loosely.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// At least this size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_size: Option<ByteSize>,
    /// Spins or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rotational: Option<bool>,
}

/// Which disk is meant when no hint is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RootDeviceDefault {
    /// The only one; several are an error.
    #[default]
    Only,
    /// The smallest of 4 GiB or more, as Ironic does.
    Smallest,
}

/// Smallest disk that Ironic's default rule takes.
pub const SMALLEST_ROOT: u64 = 4 * GIB;

/// Why there is no one disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRootDisk {
    /// No disk at all that could be written.
    #[error("the machine has no disk that can be written ({seen})")]
    None {
        /// The disks seen, with why each is out.
        seen: String,
    },
    /// No disk is what the hints say.
    #[error("no disk matches the root device hints; the disks are: {seen}")]
    NoMatch {
        /// The disks seen.
        seen: String,
    },
    /// More than one.
    #[error("{count} disks match, and exactly one must: {seen}")]
    Several {
        /// How many.
        count: usize,
        /// The disks that match.
        seen: String,
    },
}

impl RootDeviceHints {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether all that is said holds for the disk.
    pub fn matches(&self, disk: &Disk) -> bool {
        let same = |hint: &Option<String>, value: &Option<String>| {
            hint.as_ref()
                .is_none_or(|hint| value.as_ref().is_some_and(|v| v.trim() == hint.trim()))
        };
        let name = |text: &str| text.trim().trim_start_matches("/dev/").to_owned();
        self.name
            .as_ref()
            .is_none_or(|hint| name(hint) == name(&disk.name))
            && same(&self.serial, &disk.serial)
            && same(&self.model, &disk.model)
            && same(&self.vendor, &disk.vendor)
            && same(&self.hctl, &disk.hctl)
            && self.wwn.as_ref().is_none_or(|hint| {
                disk.wwn
                    .as_ref()
                    .is_some_and(|wwn| bare_wwn(wwn) == bare_wwn(hint))
            })
            && self
                .size
                .is_none_or(|size| size.0 / GIB == disk.size_bytes / GIB)
            && self.min_size.is_none_or(|size| disk.size_bytes >= size.0)
            && self
                .rotational
                .is_none_or(|rotational| rotational == disk.rotational)
    }

    /// The one disk that is meant.
    ///
    /// # Errors
    /// When there is not exactly one; the error names the disks.
    pub fn select<'a>(
        &self,
        disks: &'a [Disk],
        default: RootDeviceDefault,
    ) -> Result<&'a Disk, NoRootDisk> {
        let usable: Vec<&Disk> = disks
            .iter()
            .filter(|disk| unusable(disk).is_none())
            .collect();
        if usable.is_empty() {
            return Err(NoRootDisk::None {
                seen: describe(disks.iter()),
            });
        }
        if self.is_empty() && default == RootDeviceDefault::Smallest {
            let fitting = usable
                .iter()
                .filter(|disk| disk.size_bytes >= SMALLEST_ROOT);
            let smallest = fitting.min_by_key(|disk| (disk.size_bytes, disk.name.clone()));
            return smallest.copied().ok_or_else(|| NoRootDisk::NoMatch {
                seen: describe(disks.iter()),
            });
        }
        let matching: Vec<&Disk> = usable
            .into_iter()
            .filter(|disk| self.matches(disk))
            .collect();
        match matching[..] {
            [disk] => Ok(disk),
            [] => Err(NoRootDisk::NoMatch {
                seen: describe(disks.iter()),
            }),
            _ => Err(NoRootDisk::Several {
                count: matching.len(),
                seen: describe(matching.iter().copied()),
            }),
        }
    }
}

/// Why a disk cannot be a root device whatever the hints say.
pub fn unusable(disk: &Disk) -> Option<String> {
    if let Some(why) = &disk.in_use {
        return Some(why.clone());
    }
    let why = match disk {
        Disk { size_bytes: 0, .. } => "no medium",
        Disk {
            read_only: true, ..
        } => "read-only",
        Disk {
            removable: true, ..
        } => "removable",
        _ => return None,
    };
    Some(why.into())
}

fn bare_wwn(wwn: &str) -> String {
    let lower = wwn.trim().to_ascii_lowercase();
    let bare = ["0x", "naa.", "eui.", "wwn-0x"]
        .iter()
        .find_map(|prefix| lower.strip_prefix(prefix));
    bare.unwrap_or(&lower).to_owned()
}

fn describe<'a>(disks: impl Iterator<Item = &'a Disk>) -> String {
    let one = |disk: &Disk| {
        let serial = disk.serial.as_deref().unwrap_or("none");
        let why = unusable(disk)
            .map(|why| format!(", {why}"))
            .unwrap_or_default();
        format!(
            "{} (serial {serial}, {}{why})",
            disk.name,
            ByteSize(disk.size_bytes)
        )
    };
    let list: Vec<String> = disks.map(one).collect();
    if list.is_empty() {
        "no disk was found".into()
    } else {
        list.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, serial: &str, gib: u64) -> Disk {
        Disk {
            name: format!("/dev/{name}"),
            serial: Some(serial.into()),
            size_bytes: gib * GIB,
            ..Disk::default()
        }
    }

    fn hint(serial: &str) -> RootDeviceHints {
        RootDeviceHints {
            serial: Some(serial.into()),
            ..RootDeviceHints::default()
        }
    }

    #[test]
    fn exactly_one_disk_must_match() {
        let disks = [disk("sda", "A", 8), disk("sdb", "B", 8)];
        assert_eq!(
            hint("B")
                .select(&disks, RootDeviceDefault::Only)
                .unwrap()
                .name,
            "/dev/sdb"
        );
        let none = hint("C")
            .select(&disks, RootDeviceDefault::Only)
            .unwrap_err();
        assert!(
            none.to_string().contains("/dev/sda (serial A, 8.00 GiB)"),
            "{none}"
        );
        let both = RootDeviceHints {
            size: Some(ByteSize(8 * GIB)),
            ..RootDeviceHints::default()
        };
        let several = both.select(&disks, RootDeviceDefault::Only).unwrap_err();
        assert!(
            matches!(several, NoRootDisk::Several { count: 2, .. }),
            "{several}"
        );
    }

    #[test]
    fn without_a_hint_only_a_single_disk_or_the_set_default_will_do() {
        let no_hint = RootDeviceHints::default();
        let disks = [
            disk("sda", "A", 16),
            disk("sdb", "B", 8),
            disk("sdc", "C", 2),
        ];
        assert!(no_hint.select(&disks, RootDeviceDefault::Only).is_err());
        let smallest = no_hint.select(&disks, RootDeviceDefault::Smallest).unwrap();
        assert_eq!(smallest.name, "/dev/sdb");
        assert_eq!(
            no_hint
                .select(&disks[..1], RootDeviceDefault::Only)
                .unwrap()
                .name,
            "/dev/sda"
        );
    }

    #[test]
    fn media_read_only_and_held_disks_are_never_chosen() {
        let mut disks = vec![
            disk("sr0", "CD", 1),
            disk("sda", "A", 8),
            disk("sdb", "B", 8),
        ];
        disks[0].removable = true;
        disks[1].in_use = Some("mounted on /".into());
        disks[2].read_only = true;
        let error = RootDeviceHints::default().select(&disks, RootDeviceDefault::Smallest);
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("mounted on /") && text.contains("read-only"),
            "{text}"
        );
    }

    #[test]
    fn a_wwn_matches_in_any_of_its_spellings() {
        let mut one = disk("sda", "A", 8);
        one.wwn = Some("naa.5000C500AB".into());
        let hints = RootDeviceHints {
            wwn: Some("0x5000c500ab".into()),
            ..RootDeviceHints::default()
        };
        assert!(hints.matches(&one));
    }
}

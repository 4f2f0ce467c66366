//! Boot Loader Specification, type 1: text entries in `loader/entries/*.conf`. Pure.

use std::cmp::Ordering;

use super::Entry;

/// An entry as written, before a choice is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlsEntry {
    /// The file's name without `.conf` and boot counters.
    id: String,
    sort_key: String,
    machine_id: String,
    version: String,
    entry: Entry,
}

/// Why an entry is no choice.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadEntry {
    /// A key that changes what is started.
    #[error("it uses {0:?}, which kexec cannot follow")]
    Key(String),
    /// No kernel.
    #[error("it names no kernel")]
    NoKernel,
    /// A variable that GRUB would fill in.
    #[error("its options use ${0}, which is not known")]
    Variable(String),
}

/// Reads an entry. `variables` are those of `grubenv`, which Fedora's entries may use.
pub(crate) fn parse(
    file: &str,
    text: &str,
    variables: &dyn Fn(&str) -> Option<String>,
) -> Result<BlsEntry, BadEntry> {
    let mut entry = BlsEntry {
        id: id_of(file).to_owned(),
        sort_key: String::new(),
        machine_id: String::new(),
        version: String::new(),
        entry: Entry::default(),
    };
    let mut options: Vec<String> = Vec::new();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
    {
        let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        let value = value.trim();
        match key {
            "title" => value.clone_into(&mut entry.entry.title),
            "version" => value.clone_into(&mut entry.version),
            "machine-id" => value.clone_into(&mut entry.machine_id),
            "sort-key" => value.clone_into(&mut entry.sort_key),
            "linux" => value.clone_into(&mut entry.entry.linux),
            "initrd" => {
                for word in value.split_whitespace() {
                    let path = expand(word, variables)?;
                    entry
                        .entry
                        .initrds
                        .extend((!path.is_empty()).then_some(path));
                }
            }
            "options" => options.push(expand(value, variables)?),
            "efi" | "uki" | "devicetree" | "devicetree-overlay" => {
                return Err(BadEntry::Key(key.to_owned()));
            }
            _ => {}
        }
    }
    if entry.entry.linux.is_empty() {
        return Err(BadEntry::NoKernel);
    }
    options
        .join(" ")
        .trim()
        .clone_into(&mut entry.entry.options);
    Ok(entry)
}

/// `name+3-1.conf` counts boots: the id is `name`.
fn id_of(file: &str) -> &str {
    let stem = file.strip_suffix(".conf").unwrap_or(file);
    match stem.rsplit_once('+') {
        Some((id, count)) if count.chars().all(|c| c.is_ascii_digit() || c == '-') => id,
        _ => stem,
    }
}

/// Replaces `$name` by its value. Tuned's variables are empty when unset, as GRUB has them.
fn expand(text: &str, variables: &dyn Fn(&str) -> Option<String>) -> Result<String, BadEntry> {
    let mut words = Vec::new();
    for word in text.split_whitespace() {
        match word.strip_prefix('$') {
            None => words.push(word.to_owned()),
            Some(name) => match variables(name) {
                Some(value) => words.push(value),
                None if name.starts_with("tuned_") => {}
                None => return Err(BadEntry::Variable(name.to_owned())),
            },
        }
    }
    words.retain(|word| !word.is_empty());
    Ok(words.join(" "))
}

/// The default: the one that `wanted` names (a name, or a pattern with a `*` at its end), else the
/// first in the specification's order. Rescue entries are no default.
pub(crate) fn choose(mut entries: Vec<BlsEntry>, wanted: Option<&str>) -> Option<Entry> {
    let named = |entry: &&BlsEntry| wanted.is_some_and(|wanted| is_named(entry, wanted));
    if let Some(entry) = entries.iter().find(named) {
        return Some(entry.entry.clone());
    }
    entries.retain(|entry| !entry.id.contains("-0-rescue"));
    entries.sort_by(order);
    entries.into_iter().next().map(|entry| entry.entry)
}

fn is_named(entry: &BlsEntry, wanted: &str) -> bool {
    let wanted = wanted.strip_suffix(".conf").unwrap_or(wanted);
    match wanted.strip_suffix('*') {
        Some(start) => entry.id.starts_with(start),
        None => entry.id == wanted,
    }
}

/// Entries with a sort key first; by sort key, machine, version (new first), then id (new first).
fn order(one: &BlsEntry, other: &BlsEntry) -> Ordering {
    one.sort_key
        .is_empty()
        .cmp(&other.sort_key.is_empty())
        .then_with(|| one.sort_key.cmp(&other.sort_key))
        .then_with(|| one.machine_id.cmp(&other.machine_id))
        .then_with(|| compare_versions(&other.version, &one.version))
        .then_with(|| compare_versions(&other.id, &one.id))
}

/// Versions as people mean them: runs of digits by value, a `~` before anything else.
pub(crate) fn compare_versions(one: &str, other: &str) -> Ordering {
    let (mut one, mut other) = (pieces(one), pieces(other));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return Ordering::Equal,
            (Some(piece), None) => {
                return if piece == "~" {
                    Ordering::Less
                } else {
                    Ordering::Greater
                };
            }
            (None, Some(piece)) => {
                return if piece == "~" {
                    Ordering::Greater
                } else {
                    Ordering::Less
                };
            }
            (Some(a), Some(b)) => match compare_pieces(a, b) {
                Ordering::Equal => {}
                unequal => return unequal,
            },
        }
    }
}

fn compare_pieces(one: &str, other: &str) -> Ordering {
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    match (one == "~", other == "~") {
        (true, true) => return Ordering::Equal,
        (true, false) => return Ordering::Less,
        (false, true) => return Ordering::Greater,
        (false, false) => {}
    }
    match (digits(one), digits(other)) {
        (true, true) => {
            let (one, other) = (one.trim_start_matches('0'), other.trim_start_matches('0'));
            one.len().cmp(&other.len()).then_with(|| one.cmp(other))
        }
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => one.cmp(other),
    }
}

/// Runs of digits, runs of letters, and `~`; other characters only separate.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c: char| !c.is_ascii_alphanumeric() && c != '~');
        let first = rest.chars().next()?;
        let same = |c: char| match first {
            '~' => false,
            first => c.is_ascii_alphanumeric() && c.is_ascii_digit() == first.is_ascii_digit(),
        };
        let length = rest.find(|c| !same(c)).unwrap_or(rest.len()).max(1);
        let (piece, after) = rest.split_at_checked(length)?;
        rest = after;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn fedoras_entry_is_read() {
        let text = "title Fedora Linux (6.8.5)\nversion 6.8.5-301.fc40.x86_64\n\
                    linux /vmlinuz-6.8.5-301.fc40.x86_64\n\
                    initrd /initramfs-6.8.5.img $tuned_initrd\n\
                    options root=UUID=1 ro $kernelopts $tuned_params\ngrub_users $grub_users\n";
        let variables = |name: &str| (name == "kernelopts").then(|| "quiet splash".to_owned());
        let entry = parse("abc-6.8.5.conf", text, &variables).unwrap();
        assert_eq!(entry.entry.linux, "/vmlinuz-6.8.5-301.fc40.x86_64");
        assert_eq!(entry.entry.initrds, ["/initramfs-6.8.5.img"]);
        assert_eq!(entry.entry.options, "root=UUID=1 ro quiet splash");
        let unknown = parse("a.conf", text, &none).unwrap_err();
        assert_eq!(unknown, BadEntry::Variable("kernelopts".into()));
    }

    #[test]
    fn entries_that_kexec_cannot_follow_are_refused() {
        let error = parse("a.conf", "title x\nefi /shell.efi\n", &none).unwrap_err();
        assert_eq!(error, BadEntry::Key("efi".into()));
        assert_eq!(
            parse("a.conf", "title x\n", &none).unwrap_err(),
            BadEntry::NoKernel
        );
    }

    #[test]
    fn the_newest_is_the_default_unless_another_is_named() {
        let entry = |file: &str, version: &str| {
            parse(
                file,
                &format!("version {version}\nlinux /k-{version}\n"),
                &none,
            )
            .unwrap()
        };
        let entries = vec![
            entry("m-6.8.9.conf", "6.8.9"),
            entry("m-6.8.10+3-1.conf", "6.8.10"),
            entry("m-0-rescue-1.conf", "9"),
        ];
        assert_eq!(choose(entries.clone(), None).unwrap().linux, "/k-6.8.10");
        assert_eq!(
            choose(entries.clone(), Some("m-6.8.9")).unwrap().linux,
            "/k-6.8.9"
        );
        assert_eq!(
            choose(entries.clone(), Some("m-6.8.10*")).unwrap().linux,
            "/k-6.8.10"
        );
        assert_eq!(choose(entries, Some("gone")).unwrap().linux, "/k-6.8.10");
        assert!(choose(Vec::new(), None).is_none());
    }

    #[test]
    fn versions_compare_as_people_mean_them() {
        let order = [
            "6.1~rc1", "6.1", "6.1.9", "6.1.10", "6.2.0-a", "6.2.0-1", "010.0", "11",
        ];
        for (place, one) in order.iter().enumerate() {
            for (other_place, other) in order.iter().enumerate() {
                assert_eq!(
                    compare_versions(one, other),
                    place.cmp(&other_place),
                    "{one} {other}"
                );
            }
        }
        assert_eq!(compare_versions("é1", "é1"), Ordering::Equal);
    }
}

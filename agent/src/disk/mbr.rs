//! The master boot record: four partitions in the first 512 bytes. Logical partitions inside an
//! extended one are not read; to us they are part of it.

use super::gpt::Span;

/// Where the four entries begin, and how long each is.
const ENTRIES: usize = 446;
const ENTRY: usize = 16;
/// Type of the entry that protects a GPT.
pub(crate) const PROTECTIVE: u8 = 0xee;
/// Type of a FAT partition addressed by LBA.
const FAT_LBA: u8 = 0x0c;

/// An entry that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// 1 to 4.
    pub(crate) number: u32,
    pub(crate) kind: u8,
    pub(crate) first: u32,
    pub(crate) sectors: u32,
}

impl Entry {
    /// First and last sector.
    pub(crate) fn span(self) -> Span {
        let first = u64::from(self.first);
        Span {
            first,
            last: first + u64::from(self.sectors) - 1,
        }
    }
}

/// The entries in use; nothing when there is no boot record at all.
pub(crate) fn read(head: &[u8]) -> Option<Vec<Entry>> {
    if head.get(510..512)? != [0x55, 0xaa] {
        return None;
    }
    let raw = head[ENTRIES..510].chunks_exact(ENTRY);
    // A boot sector that is code or a FAT has other bytes here than 0x00 and 0x80.
    if raw.clone().any(|entry| entry[0] & 0x7f != 0) {
        return None;
    }
    let used = (1..).zip(raw).filter_map(|(number, entry)| {
        let word = |at: usize| {
            let bytes = entry[at..at + 4].try_into().unwrap_or_default();
            u32::from_le_bytes(bytes)
        };
        let (kind, first, sectors) = (entry[4], word(8), word(12));
        (kind != 0 && sectors != 0).then_some(Entry {
            number,
            kind,
            first,
            sectors,
        })
    });
    Some(used.collect())
}

/// Makes the protective entry cover a disk of so many sectors. A hybrid record is left as it is:
/// its entries mean something to somebody.
pub(crate) fn protect(head: &mut [u8], sectors: u64) {
    let Some(entries) = read(head) else { return };
    if let [entry] = entries[..]
        && entry.kind == PROTECTIVE
        && entry.first == 1
    {
        let covered = u32::try_from(sectors.saturating_sub(1)).unwrap_or(u32::MAX);
        let at = ENTRIES + (entry.number as usize - 1) * ENTRY + 12;
        head[at..at + 4].copy_from_slice(&covered.to_le_bytes());
    }
}

/// Adds a FAT partition in the first free place; its number, or nothing when all four are taken.
pub(crate) fn add(head: &mut [u8], first: u32, sectors: u32) -> Option<u32> {
    let used = read(head)?;
    let number = (1..=4).find(|number| used.iter().all(|entry| entry.number != *number))?;
    let at = ENTRIES + (number as usize - 1) * ENTRY;
    let entry = head.get_mut(at..at + ENTRY)?;
    // The cylinder numbers that mean: look at the LBA.
    entry.copy_from_slice(&[
        0, 0xfe, 0xff, 0xff, FAT_LBA, 0xfe, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0,
    ]);
    entry[8..12].copy_from_slice(&first.to_le_bytes());
    entry[12..16].copy_from_slice(&sectors.to_le_bytes());
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Vec<u8> {
        let mut head = vec![0; 4096];
        head[510..512].copy_from_slice(&[0x55, 0xaa]);
        head
    }

    #[test]
    fn four_partitions_fit_and_no_more() {
        let mut head = empty();
        for number in 1..=4 {
            assert_eq!(add(&mut head, number * 2048, 2048), Some(number));
        }
        assert_eq!(add(&mut head, 90_000, 2048), None);
        let entries = read(&head).unwrap();
        assert_eq!(entries.len(), 4);
        assert_eq!(
            entries[3].span(),
            Span {
                first: 8192,
                last: 10_239
            }
        );
    }

    #[test]
    fn no_record_is_none() {
        assert_eq!(read(&[0; 512]), None);
        assert_eq!(read(&[0x55; 100]), None);
        let mut fat = empty();
        fat[446] = 0x33;
        assert_eq!(read(&fat), None);
    }

    #[test]
    fn only_a_plain_protective_record_is_stretched() {
        let mut head = empty();
        add(&mut head, 1, 100).unwrap();
        head[450] = PROTECTIVE;
        protect(&mut head, 5000);
        assert_eq!(read(&head).unwrap()[0].sectors, 4999);
        protect(&mut head, u64::MAX);
        assert_eq!(read(&head).unwrap()[0].sectors, u32::MAX);
        add(&mut head, 200, 10).unwrap();
        protect(&mut head, 5000);
        assert_eq!(read(&head).unwrap()[0].sectors, u32::MAX);
    }
}

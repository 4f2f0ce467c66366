//! qcow2 files made by hand for tests: what QEMU would write, and where each thing lies is known,
//! so that a test can spoil exactly that. Other crates' tests include this file too.

use std::io::Write;

/// How a cluster is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    /// Not at all.
    Hole,
    /// As zeros, by name.
    Zero,
    /// As zeros, with a place set aside whose bytes do not count.
    SetAside,
    /// As it is.
    Plain,
    /// Compressed.
    Packed,
}

/// What is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) zstd: bool,
}

impl Default for Made {
    fn default() -> Self {
        Self {
            version: 3,
            cluster_bits: 16,
            zstd: false,
        }
    }
}

impl Made {
    pub(crate) const fn cluster(self) -> usize {
        1 << self.cluster_bits
    }

    /// Where the L1 table lies; the first L2 table follows it.
    pub(crate) const fn l1(self) -> usize {
        self.cluster()
    }

    /// Where the first L2 table lies, of disks whose L1 table takes a cluster.
    pub(crate) const fn l2(self) -> usize {
        2 * self.cluster()
    }

    /// A file that holds `disk`, each cluster as `how` says.
    pub(crate) fn file(self, disk: &[u8], how: impl Fn(usize, &[u8]) -> Stored) -> Vec<u8> {
        let cluster = self.cluster();
        let clusters: Vec<&[u8]> = disk.chunks(cluster).collect();
        let tables = clusters.len().div_ceil(cluster / 8).max(1);
        let l1_clusters = (tables * 8).div_ceil(cluster);
        let mut file = vec![0; cluster * (1 + l1_clusters + tables)];
        self.header(&mut file, disk.len(), tables);
        for table in 0..tables {
            let at = (cluster * (1 + l1_clusters + table)) as u64;
            put(&mut file, cluster + table * 8, at | 1 << 63);
        }
        // Compressed clusters lie close together, as QEMU writes them.
        let mut packing = 0;
        for (index, bytes) in clusters.iter().enumerate() {
            let mut whole = bytes.to_vec();
            whole.resize(cluster, 0);
            let packed = self.pack(&whole);
            let entry = match how(index, bytes) {
                Stored::Hole => 0,
                Stored::Zero => 1,
                Stored::SetAside => append(&mut file, &vec![0xee; cluster], cluster) | 1,
                // As QEMU does: what does not become smaller stays as it is.
                Stored::Packed if packed.len() >= cluster => {
                    append(&mut file, &whole, cluster) | 1 << 63
                }
                Stored::Plain => append(&mut file, &whole, cluster) | 1 << 63,
                Stored::Packed => {
                    if packing != file.len() {
                        file.resize(file.len().next_multiple_of(cluster), 0);
                    }
                    let at = file.len() as u64;
                    file.extend(&packed);
                    packing = file.len();
                    let more = (file.len() as u64 - 1) / 512 - at / 512;
                    at | more << (62 - (self.cluster_bits - 8)) | 1 << 62
                }
            };
            put(&mut file, cluster * (1 + l1_clusters) + index * 8, entry);
        }
        file
    }

    fn header(self, file: &mut [u8], size: usize, l1_entries: usize) {
        file[..4].copy_from_slice(b"QFI\xfb");
        put_word(file, 4, self.version);
        put_word(file, 20, self.cluster_bits);
        put(file, 24, size as u64);
        put_word(file, 36, u32::try_from(l1_entries).unwrap());
        put(file, 40, self.l1() as u64);
        if self.version == 3 {
            put(file, 72, if self.zstd { 1 << 3 } else { 0 });
            put_word(file, 96, 4);
            put_word(file, 100, 112);
            file[104] = u8::from(self.zstd);
        }
    }

    pub(crate) fn pack(self, bytes: &[u8]) -> Vec<u8> {
        if self.zstd {
            return zstd::bulk::compress(bytes, 3).unwrap();
        }
        let level = flate2::Compression::default();
        let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), level);
        deflate.write_all(bytes).unwrap();
        deflate.finish().unwrap()
    }
}

/// Appends at a cluster's start; where that is.
fn append(file: &mut Vec<u8>, bytes: &[u8], cluster: usize) -> u64 {
    file.resize(file.len().next_multiple_of(cluster), 0);
    let at = file.len() as u64;
    file.extend_from_slice(bytes);
    at
}

/// Sets eight bytes of a file.
pub(crate) fn put(file: &mut [u8], at: usize, value: u64) {
    file[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// Sets four bytes of a file.
pub(crate) fn put_word(file: &mut [u8], at: usize, value: u32) {
    file[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Eight bytes of a file.
pub(crate) fn get(file: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(file[at..at + 8].try_into().unwrap())
}

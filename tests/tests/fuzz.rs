//! The fuzz targets' checks on stable Rust, in seconds: their corpus, and mutations of it that are
//! the same each time. `make fuzz` searches further, with nightly Rust and what it covers.

use std::path::Path;
use std::time::{Duration, Instant};

use ferrite_tests::parsers::{CHECKS, Check};

/// Mutations of each file of a corpus; `FERRITE_LONG=1` makes a hundred times as many.
const MUTATIONS: u64 = 400;
/// No input may take longer, in a build that is not optimized, on a machine that does other things.
const SLOWEST: Duration = Duration::from_secs(5);

#[test]
fn nothing_that_is_parsed_panics_or_lingers() {
    let long = std::env::var_os("FERRITE_LONG").is_some();
    let mutations = if long { MUTATIONS * 100 } else { MUTATIONS };
    for (name, check) in CHECKS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(name);
        let mut files: Vec<_> = std::fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has no corpus");
        for path in files {
            let seed = std::fs::read(&path).unwrap();
            run(check, &seed, &format!("{} itself", path.display()));
            for number in 0..mutations {
                let mut random = Random(number);
                let bytes = mutated(&seed, &mut random);
                run(
                    check,
                    &bytes,
                    &format!("mutation {number} of {}", path.display()),
                );
            }
        }
    }
}

/// Says which bytes it was, whatever happens.
fn run(check: Check, bytes: &[u8], which: &str) {
    let started = Instant::now();
    let done = std::panic::catch_unwind(|| check(bytes));
    assert!(done.is_ok(), "{which} panics");
    let took = started.elapsed();
    assert!(took < SLOWEST, "{which} takes {took:?}");
}

/// The same numbers each time (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// A few places changed, the ends cut, parts doubled: what a damaged or a hostile file has.
fn mutated(seed: &[u8], random: &mut Random) -> Vec<u8> {
    const TELLING: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff_ffff, 1 << 62, 1 << 63, u64::MAX];
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(5) {
        if bytes.is_empty() {
            break;
        }
        // Half of them where headers are.
        let most = if random.byte() & 1 == 0 {
            bytes.len().min(128)
        } else {
            bytes.len()
        };
        let at = random.below(most);
        let end = bytes.len().min(at + 1 + random.below(64));
        match random.below(6) {
            0 => bytes[at] = random.byte(),
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            3 => {
                let value = TELLING[random.below(TELLING.len())];
                let width = 1 << random.below(4);
                let end = bytes.len().min(at + width);
                bytes[at..end].copy_from_slice(&value.to_be_bytes()[8 - (end - at)..]);
            }
            4 => {
                let from = random.below(bytes.len() - (end - at) + 1);
                bytes.copy_within(from..from + (end - at), at);
            }
            _ => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

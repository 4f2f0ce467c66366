//! How fast and how well simulated machines work: the times of firmware, disks and OS, and how
//! often something fails. The same seed fails at the same places.

use std::time::Duration;

/// How long a machine takes.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Power to the boot loader.
    pub post: Duration,
    /// DHCP, kernel and ramdisk, to the agent's first words.
    pub netboot: Duration,
    /// The step `inspect`.
    pub inspect: Duration,
    /// The step `erase`.
    pub erase: Duration,
    /// Bytes of an image.
    pub image_bytes: u64,
    /// Bytes that a disk takes in a second.
    pub write_rate: u64,
    /// Other steps.
    pub step: Duration,
    /// The deployed OS, to its daemon's first words.
    pub os: Duration,
    /// From there until cloud-init has ended.
    pub cloud_init: Duration,
}

impl Pace {
    /// As fast as machines that are not there can be: for tests of correctness.
    pub fn instant() -> Self {
        let moment = Duration::from_millis(50);
        Self {
            post: moment,
            netboot: moment,
            inspect: moment,
            erase: moment,
            image_bytes: 2 << 30,
            write_rate: 16 << 30,
            step: Duration::from_millis(10),
            os: moment,
            cloud_init: moment,
        }
    }

    /// A patient server's times, shortened where only waiting would be measured: 20 s to get
    /// through POST, 2 GiB at 200 MiB/s, 5 s for the OS.
    pub fn server() -> Self {
        Self {
            post: Duration::from_secs(20),
            netboot: Duration::from_secs(5),
            inspect: Duration::from_secs(2),
            erase: Duration::from_secs(2),
            image_bytes: 2 << 30,
            write_rate: 200 << 20,
            step: Duration::from_millis(500),
            os: Duration::from_secs(5),
            cloud_init: Duration::from_secs(5),
        }
    }

    /// How long the image takes.
    pub fn write(&self) -> Duration {
        let rate = self.write_rate.max(1);
        let millis = u128::from(self.image_bytes) * 1000 / u128::from(rate);
        Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    }
}

/// How often something fails, of a thousand times.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rates {
    /// A BMC answers 503.
    pub bmc: u32,
    /// A step fails.
    pub step: u32,
    /// A call's reply is lost on its way to the machine.
    pub reply: u32,
}

/// A small generator of numbers (SplitMix64): chances must be the same for the same seed.
#[derive(Debug)]
pub(super) struct Chance(u64);

impl Chance {
    /// Of a seed and a machine.
    pub(super) fn new(seed: u64, machine: u32) -> Self {
        Self(seed ^ (u64::from(machine) << 32))
    }

    /// The next number.
    pub(super) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Whether it happens this time.
    pub(super) fn happens(&mut self, per_mille: u32) -> bool {
        per_mille > 0 && self.number() % 1000 < u64::from(per_mille)
    }
}

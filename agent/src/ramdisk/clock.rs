//! The wall clock of a machine whose battery may be flat: set forward, never back.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::kernel::Kernel;

/// Furthest that a boot medium may set the clock: 2106, the end of unsigned 32-bit time.
const LATEST: i64 = u32::MAX as i64;

/// Sets the clock to the time at which the boot medium was made, when it is behind that. Returns
/// the seconds gained.
pub(crate) fn set_forward(kernel: &dyn Kernel, medium: i64) -> std::io::Result<Option<i64>> {
    match gain(now(), medium) {
        Some(seconds) => kernel.set_clock(medium).map(|()| Some(seconds)),
        None => Ok(None),
    }
}

fn gain(now: i64, medium: i64) -> Option<i64> {
    (medium > now && medium <= LATEST).then(|| medium - now)
}

/// Seconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_forward_only_and_not_to_nonsense() {
        assert_eq!(gain(100, 160), Some(60));
        assert_eq!(gain(160, 100), None);
        assert_eq!(gain(160, 160), None);
        assert_eq!(gain(100, i64::MAX), None);
    }
}

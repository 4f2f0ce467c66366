//! Tables as kubectl prints them: no lines, columns by the widest cell. And ages, as it has them.

use comfy_table::{Table, presets};
use jiff::Timestamp;

/// An empty table.
pub(crate) fn new(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.to_vec());
    table
}

/// Its text, without blanks at the ends of lines.
pub(crate) fn text(table: &Table) -> String {
    let trimmed = table.lines().map(|line| line.trim_end().to_owned() + "\n");
    trimmed.collect()
}

/// `45s`, `12m`, `5h`, `3d`.
pub(crate) fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_short() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let ages = [0, 119, 120, 7199, 7200, 172_800].map(|then| age(at(0), at(then)));
        assert_eq!(ages, ["0s", "119s", "2m", "119m", "2h", "2d"]);
        assert_eq!(age(at(9), at(0)), "0s");
    }
}

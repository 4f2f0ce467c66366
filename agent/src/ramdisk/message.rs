//! What a technician reads: lines on the child's standard error, which PID 1 copies to every
//! console.

use std::io::Write;

use ferrite_proto::step::Progress;

/// Longest line; the rest of a longer one is left out.
const LIMIT: usize = 500;

/// Says a line to whoever stands before the machine.
pub(crate) fn say(line: &str) {
    let text: String = line
        .chars()
        .filter(|c| !c.is_control())
        .take(LIMIT)
        .collect();
    // Nothing can be done about consoles that cannot be written.
    let _ = writeln!(std::io::stderr().lock(), "ferrite: {text}");
}

/// `write-image, writing: 120 MiB of 1024 MiB, 40 MiB/s, 22 s left`.
pub(crate) fn progress(step: &str, progress: &Progress) -> String {
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let mut parts = vec![step.to_owned()];
    if !progress.phase.is_empty() {
        parts.push(format!(", {}", progress.phase));
    }
    if progress.bytes_done > 0 {
        parts.push(format!(": {}", mib(progress.bytes_done)));
        parts.extend(
            progress
                .bytes_total
                .map(|total| format!(" of {}", mib(total))),
        );
        let rate = progress.bytes_per_second;
        parts.extend((rate > 0).then(|| format!(", {}/s", mib(rate))));
        let left = progress.bytes_total.filter(|_| rate > 0);
        let left = left.map(|total| total.saturating_sub(progress.bytes_done) / rate.max(1));
        parts.extend(left.map(|seconds| format!(", {seconds} s left")));
    }
    if progress.bytes_skipped > 0 {
        parts.push(format!(
            " ({} were right already)",
            mib(progress.bytes_skipped)
        ));
    }
    parts.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_well_with_and_without_figures() {
        let mut given = Progress {
            phase: "writing".into(),
            ..Progress::default()
        };
        assert_eq!(progress("write-image", &given), "write-image, writing");
        (given.bytes_done, given.bytes_total) = (120 << 20, Some(1 << 30));
        given.bytes_per_second = 40 << 20;
        let text = progress("write-image", &given);
        let figures = "write-image, writing: 120 MiB of 1024 MiB, 40 MiB/s, 22 s left";
        assert_eq!(text, figures);
        given.bytes_skipped = 100 << 20;
        let skipped = progress("write-image", &given);
        assert_eq!(skipped, format!("{figures} (100 MiB were right already)"));
    }
}

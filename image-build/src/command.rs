//! The one door to child processes: every failure names the argv, the exit status and what the
//! child said. There is no shell and no string that becomes a command.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// What a person can read of a child's stderr; the end is where tools say why they stopped.
const STDERR_SHOWN: usize = 4096;

/// Runs a command to its end and returns its stdout.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    tracing::debug!(argv = shown(command), "running");
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting `{}`: is it installed?", shown(command)))?;
    check(command, &out)?;
    Ok(out.stdout)
}

/// Runs a command to its end; its stdout is of no interest.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

fn check(command: &Command, out: &Output) -> Result<()> {
    if out.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&out.stderr);
    let text = text.trim();
    let from = text.len().saturating_sub(STDERR_SHOWN);
    let tail = text.get(from..).unwrap_or(text);
    bail!("`{}` ended with {}: {tail}", shown(command), out.status)
}

/// The argv as one would type it, for messages only.
fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_names_argv_and_stderr() {
        let error = run(Command::new("ls").arg("/no/such/thing"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("`ls /no/such/thing`"), "{error}");
        assert!(error.contains("No such file"), "{error}");
    }

    #[test]
    fn missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program-here"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("no-such-program-here"), "{error}");
    }
}

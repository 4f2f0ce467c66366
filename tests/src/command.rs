//! Child processes that run to their end: one door, so that every failure shows the argv and what
//! the tool said.
//!
//! Not for long-lived children (QEMU, the conductor): those are spawned by `net::Namespace`.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `argv` and returns its standard output. No shell is involved.
pub(crate) fn run(argv: &[&str]) -> Result<String> {
    let (program, arguments) = argv.split_first().context("an empty command")?;
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting `{}`: is it installed?", argv.join(" ")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{}` ended with {}: {}",
            argv.join(" "),
            output.status,
            said.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = run(&["ls", "/no/such/folder"]).unwrap_err().to_string();
        assert!(error.contains("ls /no/such/folder"), "{error}");
        assert!(error.contains("No such file"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = format!("{:#}", run(&["ferrite-no-such-tool"]).unwrap_err());
        assert!(error.contains("ferrite-no-such-tool"), "{error}");
    }
}

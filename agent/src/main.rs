//! Ferrite's agent: one static binary with several lives. Which one, the library chooses.

use std::process::ExitCode;

fn main() -> ExitCode {
    ferrite_agent::run()
}

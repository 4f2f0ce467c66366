//! The exit codes: they are as stable as the API.

use ferrite_proto::problem::{Code, Problem};

use super::client::Silent;

/// Some of it was done, some was refused; or it differs, or did not come true in time.
pub(crate) const FAILED: u8 = 1;
/// The command line or a file given with it is wrong. (clap's own, too.)
pub(crate) const USAGE: u8 = 2;
/// The conductor did not answer.
pub(crate) const SILENT: u8 = 3;
/// There is no such thing.
pub(crate) const ABSENT: u8 = 4;
/// It is not known who calls, or they may not.
pub(crate) const FORBIDDEN: u8 = 5;
/// It was changed meanwhile, exists already, or does not fit the present state.
pub(crate) const CONFLICT: u8 = 6;
/// `ferrite diff`: not everything could be compared.
pub(crate) const PARTLY: u8 = 7;

/// What is shown by `ferrite --help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0  done
  1  it failed, a host needs a person, `diff` found differences, `wait` waited in vain
  2  the command line, or a file given with it, is wrong
  3  the conductor does not answer
  4  there is no such thing
  5  not known, or not allowed
  6  changed meanwhile, there already, or not fitting the present state
  7  `diff` could not compare everything";

/// The code that an error ends with.
pub(crate) fn code(error: &anyhow::Error) -> u8 {
    if error.is::<Silent>() {
        return SILENT;
    }
    if error.is::<super::manifest::Unusable>() {
        return USAGE;
    }
    let Some(problem) = error.downcast_ref::<Problem>() else {
        return FAILED;
    };
    match problem.code {
        code if is_absent(code) => ABSENT,
        Code::Unauthorized | Code::Forbidden => FORBIDDEN,
        Code::Conflict | Code::HostExists | Code::RollUnderWay => CONFLICT,
        _ => FAILED,
    }
}

/// Whether it says that there is no such thing: `not-found`, `host-not-found`, …
pub(crate) fn is_absent(code: Code) -> bool {
    code.as_str().ends_with("not-found")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_help() {
        let of = |code| super::code(&Problem::new(code, "", "").into());
        assert_eq!(of(Code::HostNotFound), 4);
        assert_eq!(of(Code::Forbidden), 5);
        assert_eq!(of(Code::HostExists), 6);
        assert_eq!(of(Code::Internal), 1);
        let within = anyhow::Error::new(Problem::new(Code::Conflict, "", ""));
        assert_eq!(super::code(&within.context("host/a")), 6);
        for number in 0..=7 {
            assert!(HELP.contains(&format!("\n  {number}  ")));
        }
    }
}

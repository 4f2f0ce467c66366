//! What PID 1 and its child say to each other: a few lines of text over the child's standard
//! input and output. PID 1 understands a word and keeps the rest as it came.

use std::io::{self, BufRead, Write};

use crate::kernel::Departure;

/// Longest line that either side takes.
const LINE_LIMIT: usize = 16 * 1024;
/// Most lines of a handover.
const LINES_LIMIT: usize = 64;

/// What PID 1 hands to a new child.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Handover {
    /// Made once a boot.
    pub(crate) nonce: String,
    /// How many children there were before.
    pub(crate) restarts: u32,
    /// What an earlier child asked to keep.
    pub(crate) session: Option<String>,
    /// Why the last child ended, and its last words.
    pub(crate) reason: Vec<String>,
}

impl Handover {
    /// Writes it to a new child.
    pub(crate) fn write(&self, mut out: impl Write) -> io::Result<()> {
        writeln!(out, "nonce {}", self.nonce)?;
        writeln!(out, "restarts {}", self.restarts)?;
        if let Some(session) = &self.session {
            writeln!(out, "session {session}")?;
        }
        for line in &self.reason {
            writeln!(out, "reason {line}")?;
        }
        writeln!(out, "go")?;
        out.flush()
    }

    /// Reads it, up to `go`.
    pub(crate) fn read(input: impl BufRead) -> io::Result<Self> {
        let mut handover = Self::default();
        for line in input.lines().take(LINES_LIMIT) {
            let line = line?;
            match line.split_once(' ') {
                Some(("nonce", value)) => value.clone_into(&mut handover.nonce),
                Some(("restarts", value)) => handover.restarts = value.parse().unwrap_or(0),
                Some(("session", value)) => handover.session = Some(value.to_owned()),
                Some(("reason", value)) => handover.reason.push(value.to_owned()),
                _ if line == "go" => return Ok(handover),
                _ => {}
            }
        }
        let message = "PID 1's handover ended before `go`";
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, message))
    }
}

/// What the child asks of PID 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Word {
    /// Keep this for my successor.
    Session(String),
    /// Keep nothing: my successor says hello again.
    Forget,
    /// Leave the ramdisk when I have ended.
    Depart(Departure),
}

impl Word {
    /// Reads a line of the child's; nothing for a line that is none of the words.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        match line {
            "forget" => Some(Self::Forget),
            "depart reboot" => Some(Self::Depart(Departure::Reboot)),
            "depart kexec" => Some(Self::Depart(Departure::Kexec)),
            "depart power-off" => Some(Self::Depart(Departure::PowerOff)),
            _ => {
                let session = line.strip_prefix("session ")?;
                (session.len() <= LINE_LIMIT).then(|| Self::Session(session.to_owned()))
            }
        }
    }

    /// Tells PID 1.
    pub(crate) fn write(&self, mut out: impl Write) -> io::Result<()> {
        match self {
            Self::Session(session) => writeln!(out, "session {session}")?,
            Self::Forget => writeln!(out, "forget")?,
            Self::Depart(Departure::Reboot) => writeln!(out, "depart reboot")?,
            Self::Depart(Departure::Kexec) => writeln!(out, "depart kexec")?,
            Self::Depart(Departure::PowerOff) => writeln!(out, "depart power-off")?,
        }
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handover_survives_the_pipe() {
        let given = Handover {
            nonce: "n-1".into(),
            restarts: 3,
            session: Some("opaque".into()),
            reason: vec!["killed by signal 6".into(), "panicked at x y".into()],
        };
        let mut bytes = Vec::new();
        given.write(&mut bytes).unwrap();
        assert_eq!(Handover::read(bytes.as_slice()).unwrap(), given);
    }

    #[test]
    fn a_handover_that_was_cut_off_is_refused() {
        assert!(Handover::read(&b"nonce x\nrestarts 1\n"[..]).is_err());
    }

    #[test]
    fn words_survive_the_pipe_and_others_are_ignored() {
        let words = [
            Word::Session("abc".into()),
            Word::Forget,
            Word::Depart(Departure::Reboot),
            Word::Depart(Departure::Kexec),
            Word::Depart(Departure::PowerOff),
        ];
        for word in words {
            let mut bytes = Vec::new();
            word.write(&mut bytes).unwrap();
            let line = String::from_utf8(bytes).unwrap();
            assert_eq!(Word::parse(line.trim_end()), Some(word));
        }
        assert_eq!(Word::parse("depart to the moon"), None);
        assert_eq!(
            Word::parse(&format!("session {}", "x".repeat(LINE_LIMIT + 1))),
            None
        );
    }
}

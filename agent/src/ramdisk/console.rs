//! Every console that `console=` names, as one place to write to.
//!
//! A console that does not take bytes (a serial line held by flow control) is not waited for
//! longer than a moment: messages may be lost there, PID 1 may not.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::root::Root;

/// Longest wait for a console that is full, milliseconds.
const PATIENCE: u16 = 500;

/// The consoles.
#[derive(Debug)]
pub(crate) struct Consoles {
    files: Mutex<Vec<File>>,
}

impl Consoles {
    /// Opens all that the kernel uses; `/dev/console` when it names none that opens.
    pub(crate) fn open(root: &Root) -> Self {
        let active = root
            .text("/sys/class/tty/console/active")
            .unwrap_or_default();
        let mut files: Vec<File> = device_names(&active)
            .filter_map(|name| open_tty(root, name).ok())
            .collect();
        if files.is_empty() {
            files.extend(open_tty(root, "console").ok());
        }
        Self {
            files: Mutex::new(files),
        }
    }

    /// Writes the bytes to each.
    pub(crate) fn write(&self, bytes: &[u8]) {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        for file in files.iter() {
            // A console that fails is no reason to stop: there is nobody to tell.
            let _ = write_patiently(file, bytes);
        }
    }

    /// Writes one line of PID 1's own.
    pub(crate) fn say(&self, line: &str) {
        self.write(format!("ferrite: {line}\n").as_bytes());
    }
}

fn device_names(active: &str) -> impl Iterator<Item = &str> {
    let plain = |name: &&str| name.chars().all(|c| c.is_ascii_alphanumeric());
    active.split_whitespace().filter(plain)
}

fn open_tty(root: &Root, name: &str) -> io::Result<File> {
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let path = root.path("/dev").join(name);
    OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(path)
}

fn write_patiently(mut file: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(taken) => bytes = bytes.get(taken..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
                if nix::poll::poll(&mut polled, PollTimeout::from(PATIENCE))? == 0 {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_active_console_gets_each_line() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        std::fs::create_dir_all(root.path("/sys/class/tty/console")).unwrap();
        std::fs::create_dir_all(root.path("/dev")).unwrap();
        std::fs::write(
            root.path("/sys/class/tty/console/active"),
            "tty0 ttyS0 ../x\n",
        )
        .unwrap();
        for name in ["tty0", "ttyS0"] {
            std::fs::write(root.path("/dev").join(name), "").unwrap();
        }
        Consoles::open(&root).say("hello");
        for name in ["tty0", "ttyS0"] {
            assert_eq!(root.text(format!("/dev/{name}")).unwrap(), "ferrite: hello");
        }
    }

    #[test]
    fn a_full_pipe_does_not_hold_the_writer() {
        let (_reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        let started = std::time::Instant::now();
        assert!(write_patiently(&File::from(writer), &vec![b'x'; 1 << 20]).is_err());
        assert!(started.elapsed().as_secs() < 5);
    }
}

//! `boot`: prepares the way into the deployed OS. The caller reports the outcome first, then goes.

use ferrite_proto::step::{BootMethod, Outcome};

use super::Context;
use crate::boot;

/// Puts the image's kernel in memory, or says why the host goes through its firmware.
pub(crate) fn run(disk: &str, method: BootMethod, context: &Context<'_>) -> Outcome {
    nix::unistd::sync();
    let (method, detail) = match method {
        BootMethod::Reboot => (method, "asked for".to_owned()),
        BootMethod::Kexec => match boot::load(context.root, context.kernel, disk) {
            Ok(what) => (method, what),
            Err(why) => (BootMethod::Reboot, format!("kexec is not possible: {why}")),
        },
    };
    tracing::info!(?method, %detail, "leaving the ramdisk");
    Outcome::Booting { method, detail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use crate::root::Root;
    use std::sync::atomic::AtomicBool;

    #[derive(Debug)]
    struct Nothing;
    impl Kernel for Nothing {}

    #[test]
    fn a_disk_that_cannot_be_read_is_booted_by_a_reboot_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        let context = Context {
            root: &root,
            kernel: &Nothing,
            progress: &|_| {},
            cancelled: &AtomicBool::new(false),
        };
        let outcome = run("/dev/vda", BootMethod::Kexec, &context);
        let Outcome::Booting { method, detail } = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(method, BootMethod::Reboot);
        assert!(detail.contains("no file system of /dev/vda"), "{detail}");
    }
}

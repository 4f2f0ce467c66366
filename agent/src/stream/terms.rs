//! On which terms files are fetched: how patient with their servers, from where, and what is shown
//! to whom. It holds no bytes and opens nothing.

use std::time::Duration;

use ferrite_proto::address::Policy;
use ferrite_proto::image::{ImageRef, InvalidImage};
use ferrite_proto::image_server::ImageServer;

/// How long a server may make us wait, and where it may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For the connection.
    pub(crate) connect: Duration,
    /// For the next bytes.
    pub(crate) read: Duration,
    /// Fewer bytes a second than that, on average over `read`, are as good as none.
    pub(crate) slowest: u64,
    /// How often in a row nothing may come before it is given up.
    pub(crate) attempts: u32,
    /// The wait before the second attempt; it doubles each time.
    pub(crate) pause: Duration,
    /// Where bytes may come from.
    pub(crate) from: Policy,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            read: Duration::from_secs(30),
            slowest: 4 << 10,
            attempts: 5,
            pause: Duration::from_millis(500),
            from: Policy::Others,
        }
    }
}

/// All that matters to a fetch besides the image.
#[derive(Debug, Clone, Default)]
pub(crate) struct Terms {
    /// With every server.
    pub(crate) patience: Patience,
    /// What is known of some servers: who we are to them, their CA, the way to them.
    pub(crate) servers: Vec<ImageServer>,
    /// Files of this machine may be read: a person at a shell named one.
    pub(crate) local_files: bool,
}

impl Terms {
    /// What a person at a shell may do: name any server, the own machine's too, and a file.
    pub(crate) fn at_a_shell() -> Self {
        let patience = Patience {
            from: Policy::OthersAndLoopback,
            ..Patience::default()
        };
        Self {
            patience,
            local_files: true,
            ..Self::default()
        }
    }

    /// What holds for a step.
    pub(crate) fn of_a_step(servers: &[ImageServer]) -> Self {
        Self {
            servers: servers.to_vec(),
            ..Self::default()
        }
    }

    /// Whether the image says all that it must.
    pub(crate) fn check(&self, image: &ImageRef) -> Result<(), InvalidImage> {
        if self.local_files && image.url.starts_with("file://") {
            return image.check_vouched();
        }
        image.validate()
    }

    /// What is known of the server of a URL: of all that fit, the one that says most of it.
    pub(super) fn server(&self, url: &str) -> Option<&ImageServer> {
        let fitting = self.servers.iter().filter(|server| server.covers(url));
        fitting.max_by_key(|server| server.prefix.len())
    }
}

//! What can be written on the command line. Passwords and other secrets never can: they come from
//! files or from standard input.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ferrite_proto::digest::Digest;
use ferrite_proto::host::{AutomatedCleaning, BootVia, BootstrapFormat};
use ferrite_proto::image::Format;
use ferrite_proto::inventory::BootMode;
use ferrite_proto::mac::Mac;
use ferrite_proto::step::BootMethod;

use super::complete::Completion;
use super::contexts::{ContextCommand, Place};
use super::exit;
use super::verbs::Verb;

/// Bare metal to a running OS.
#[derive(Debug, Parser)]
#[command(name = "ferrite", version, arg_required_else_help = true, after_help = exit::HELP)]
pub(crate) struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Which conductor, and how answers look.
    #[command(flatten)]
    pub(crate) connection: Connection,
}

/// Where packages put the configuration.
const CONFIG: &str = "/etc/ferrite/ferrite.toml";

/// Which conductor, and how answers look.
#[derive(Debug, Args)]
pub(crate) struct Connection {
    /// How it is reached.
    #[command(flatten)]
    pub(crate) place: Place,
    /// One of your contexts; see `ferrite context`.
    #[arg(long, env = "FERRITE_CONTEXT", global = true)]
    pub(crate) context: Option<String>,
    /// File that `ferrite serve` wrote, for what is not given otherwise.
    ///
    /// Without it and without a context: /var/lib/ferrite/client.toml.
    #[arg(long, env = "FERRITE_CLIENT", global = true, value_name = "FILE")]
    pub(crate) client: Option<PathBuf>,
    /// How answers look.
    #[arg(long, short, value_enum, default_value_t = Output::Table, global = true)]
    pub(crate) output: Output,
}

/// How answers look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For people with wide screens.
    Wide,
    /// For programs.
    Json,
    /// For files that are applied again.
    Yaml,
    /// Only KIND/NAME.
    Name,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the conductor.
    Serve {
        /// The configuration, in TOML.
        #[arg(long)]
        config: PathBuf,
    },
    /// Show or check a configuration.
    Config {
        /// Which.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Work with hosts.
    Host {
        /// What to do.
        #[command(subcommand)]
        command: HostCommand,
    },
    /// Give images names, so that hosts can be given them by name.
    Image {
        /// What to do.
        #[command(subcommand)]
        command: super::image::ImageCommand,
    },
    /// Take in clusters that hosts join, and prove that they can.
    Cluster {
        /// What to do.
        #[command(subcommand)]
        command: super::cluster::ClusterCommand,
    },
    /// Say who may do what, and read what they did.
    #[command(flatten)]
    Access(super::access::AccessCommand),
    /// Work with resources.
    #[command(flatten)]
    Resources(Verb),
    /// Name the conductors that you work with.
    #[command(visible_alias = "contexts")]
    Context {
        /// What to do.
        #[command(subcommand)]
        command: ContextCommand,
    },
    /// Write everything that is stored into a file, while the conductor runs or not.
    Backup {
        /// The file; it must not be there yet.
        file: PathBuf,
        /// The conductor's configuration.
        #[arg(long, default_value = CONFIG)]
        config: PathBuf,
    },
    /// Bring a backup into a new, empty store. The conductor must be stopped.
    Restore {
        /// The backup.
        file: PathBuf,
        /// The conductor's configuration.
        #[arg(long, default_value = CONFIG)]
        config: PathBuf,
    },
    /// Work with the key under which secrets are sealed.
    Key {
        /// What to do.
        #[command(subcommand)]
        command: KeyCommand,
    },
    /// Write what help needs into one file: versions, configuration, hosts, events, figures, logs.
    SupportBundle {
        /// The file; named after the time otherwise.
        #[arg(long, short, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Print what makes your shell complete `ferrite`.
    Completion(Completion),
    /// Print versions.
    Version,
}

/// Work with the key under which secrets are sealed.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum KeyCommand {
    /// Seal everything anew under the present key. First make a new key the present one and name
    /// the old one in `store.old_key_files`, and start the conductor anew.
    Rotate {
        /// The conductor's configuration.
        #[arg(long, default_value = CONFIG)]
        config: PathBuf,
    },
}

/// Show or check a configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every default, with what it means.
    Defaults,
    /// Say whether a file can be used.
    Check {
        /// The file.
        file: PathBuf,
    },
}

/// Work with hosts.
#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Take a host in.
    Add(Box<Add>),
    /// Take in many hosts at once, from CSV or YAML.
    Import(super::import::Import),
    /// List hosts.
    List,
    /// Show a host.
    Show {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
    },
    /// Put an OS on a host.
    Provision(Box<Provision>),
    /// Take the OS away and clean the disks.
    Deprovision {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
        /// Take it back although pods still run on it.
        #[arg(long)]
        no_drain: bool,
        /// Follow it until it is available.
        #[arg(long)]
        wait: bool,
    },
    /// Try at once what failed.
    Retry {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
    },
    /// Change a host.
    Set(Box<Set>),
    /// Follow a host, or all, until nothing more happens.
    ///
    /// Exits with 1 when a host has a problem that needs a person.
    Watch {
        /// Its name; without one all hosts.
        #[arg(add = super::complete::hosts())]
        name: Option<String>,
    },
    /// Let a host go: it is switched off and forgotten.
    Delete {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
        /// Wait until it is gone.
        #[arg(long)]
        wait: bool,
    },
    /// Say what a host is doing, what comes next, and what can be done.
    Explain {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
    },
    /// Show where the seconds of a host went, as a waterfall.
    Timeline {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
        /// Which run, counted from the newest.
        #[arg(long, default_value_t = 1, value_name = "N")]
        run: usize,
    },
    /// Show a host's hardware, as JSON.
    Inventory {
        /// Its name.
        name: String,
    },
    /// Work beside the state.
    #[command(flatten)]
    Operate(super::operate::Operate),
    /// Show a host's log.
    Events {
        /// Its name.
        #[arg(add = super::complete::hosts())]
        name: String,
        /// How many lines.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
}

/// Take a host in.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// Its name.
    pub(crate) name: String,
    /// Its BMC: `redfish+https://10.0.0.5/redfish/v1/Systems/1`.
    #[arg(long, value_name = "URL")]
    pub(crate) bmc: String,
    /// Account on the BMC.
    #[arg(long)]
    pub(crate) username: String,
    /// File with the account's password; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: PathBuf,
    /// What may be set of any host.
    #[command(flatten)]
    pub(crate) common: Common,
    /// Image to put on it as soon as it is available.
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// cloud-init data.
    #[command(flatten)]
    pub(crate) data: Data,
    /// Follow it until it is available, or provisioned when an image is given.
    #[arg(long)]
    pub(crate) wait: bool,
}

/// Change a host.
#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Its name.
    #[arg(add = super::complete::hosts())]
    pub(crate) name: String,
    /// Its BMC.
    #[arg(long, value_name = "URL")]
    pub(crate) bmc: Option<String>,
    /// Account on the BMC.
    #[arg(long)]
    pub(crate) username: Option<String>,
    /// File with the account's password; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// What may be set of any host.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// What may be set of any host.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// NIC it boots from; needed for PXE.
    #[arg(long, value_name = "MAC")]
    pub(crate) boot_mac: Option<Mac>,
    /// How it reaches the ramdisk.
    #[arg(long, value_parser = word::<BootVia>, value_name = "pxe|virtual-media")]
    pub(crate) boot_via: Option<BootVia>,
    /// What its firmware is asked for.
    #[arg(long, value_parser = word::<BootMode>, value_name = "uefi|bios")]
    pub(crate) boot_mode: Option<BootMode>,
    /// Which disk the OS goes to: name, serial, wwn, model, vendor, hctl, size, `min_size`,
    /// rotational. All that is given must hold.
    #[arg(long, value_name = "HINT=VALUE")]
    pub(crate) root_device: Vec<String>,
    /// What cleaning does.
    #[arg(long, value_parser = word::<AutomatedCleaning>, value_name = "metadata|disabled")]
    pub(crate) cleaning: Option<AutomatedCleaning>,
    /// How the OS is started.
    #[arg(long, value_parser = word::<BootMethod>, value_name = "kexec|reboot")]
    pub(crate) boot_method: Option<BootMethod>,
    /// Do not check the BMC's certificate.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) insecure_bmc_tls: Option<bool>,
}

/// What an image's file holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageFormat {
    /// The bytes of the disk, compressed or not.
    #[default]
    Raw,
    /// QEMU's disk image.
    Qcow2,
    /// What `ferrite-image pack` writes.
    Packed,
}

impl From<ImageFormat> for Format {
    fn from(format: ImageFormat) -> Self {
        match format {
            ImageFormat::Raw => Self::Raw,
            ImageFormat::Qcow2 => Self::Qcow2,
            ImageFormat::Packed => Self::Packed,
        }
    }
}

/// An image.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// Where the host fetches the image: http://, https:// or
    /// `oci://registry/repo@sha256:…`.
    #[arg(long, value_name = "URL")]
    pub(crate) image: Option<String>,
    /// Another place of the same file, asked when the first does not answer. Several can be given.
    #[arg(long, requires = "image", value_name = "URL")]
    pub(crate) mirror: Vec<String>,
    /// Digest of the file as fetched: `sha256:…`, `sha512:…` or `blake3:…`. Of a packed image,
    /// what `ferrite-image info` prints.
    #[arg(long, requires = "image")]
    pub(crate) digest: Option<Digest>,
    /// Where its digest stands: a file as `sha256sum` or `sha512sum` write it.
    #[arg(
        long,
        requires = "image",
        conflicts_with = "digest",
        value_name = "URL"
    )]
    pub(crate) digest_url: Option<String>,
    /// What the file holds once decompressed.
    #[arg(long, requires = "image", value_enum, default_value_t)]
    pub(crate) image_format: ImageFormat,
    /// Who must have signed a packed image: minisign's public key, the line that begins with RW.
    #[arg(long, requires = "image", value_name = "KEY")]
    pub(crate) signed_by: Option<String>,
    /// Write it although nothing vouches for it.
    #[arg(long, requires = "image", conflicts_with_all = ["digest", "digest_url", "signed_by"])]
    pub(crate) allow_unverified: bool,
}

/// cloud-init data.
#[derive(Debug, Args)]
pub(crate) struct Data {
    /// File with cloud-init user data.
    #[arg(long = "user-data", value_name = "FILE")]
    pub(crate) user: Option<PathBuf>,
    /// File with what a bootstrap provider of Cluster API made: the key `value` of its Secret.
    #[arg(long = "bootstrap-data", value_name = "FILE")]
    pub(crate) bootstrap: Option<PathBuf>,
    /// The key `format` of that Secret.
    #[arg(
        long,
        requires = "bootstrap",
        value_parser = word::<BootstrapFormat>,
        value_name = "cloud-config|ignition"
    )]
    pub(crate) bootstrap_format: Option<BootstrapFormat>,
    /// File with `network_data.json`.
    #[arg(long = "network-data", value_name = "FILE")]
    pub(crate) network: Option<PathBuf>,
    /// File with cloud-init vendor data.
    #[arg(long = "vendor-data", value_name = "FILE")]
    pub(crate) vendor: Option<PathBuf>,
    /// A key for `meta_data.json`.
    #[arg(long = "meta-data", value_name = "KEY=VALUE")]
    pub(crate) meta: Vec<String>,
}

/// Put an OS on a host.
#[derive(Debug, Args)]
pub(crate) struct Provision {
    /// Its name.
    #[arg(add = super::complete::hosts())]
    pub(crate) name: String,
    /// An image by its name, instead of --image: see `ferrite image add`.
    #[arg(long, value_name = "NAME", conflicts_with = "image")]
    pub(crate) image_name: Option<String>,
    /// The image.
    #[command(flatten)]
    pub(crate) image: ImageArgs,
    /// cloud-init data.
    #[command(flatten)]
    pub(crate) data: Data,
    /// Which disk the OS goes to; see `ferrite host add --help`.
    #[arg(long, value_name = "HINT=VALUE")]
    pub(crate) root_device: Vec<String>,
    /// How the OS is started.
    #[arg(long, value_parser = word::<BootMethod>, value_name = "kexec|reboot")]
    pub(crate) boot_method: Option<BootMethod>,
    /// Read all of the image back from the disk before that becomes bootable.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) verify: Option<bool>,
    /// The cluster that it joins.
    #[command(flatten)]
    pub(crate) join: super::join::JoinArgs,
    /// Follow it until it is provisioned.
    #[arg(long)]
    pub(crate) wait: bool,
}

/// A word of the API, as the API writes it.
pub(super) fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_sound_and_take_no_password() {
        Arguments::command().debug_assert();
        let line = "ferrite host add n --bmc b --username u --password p";
        assert!(Arguments::try_parse_from(line.split(' ')).is_err());
        let line = "ferrite host add n --bmc b --username u --password-file - --boot-via disc";
        assert!(Arguments::try_parse_from(line.split(' ')).is_err());
    }
}

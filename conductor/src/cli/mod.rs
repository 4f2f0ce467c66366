//! The command line: a thin client of the API. What it prints goes to standard output, what went
//! wrong to standard error: `error: … [code]`, then `help: …`.

pub(crate) mod access;
mod apply;
pub(crate) mod args;
mod backup;
mod bundle;
pub(crate) mod client;
mod cluster;
pub(crate) mod complete;
mod contexts;
mod describe;
#[cfg(test)]
mod docs_tests;
mod edit;
mod exit;
mod files;
mod get;
mod host;
mod image;
mod import;
mod join;
pub(crate) mod kind;
mod log;
mod manifest;
mod metal3;
mod nearest;
mod operate;
mod roll;
mod show;
mod sse;
mod table;
mod timeline;
mod verbs;
mod wait;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use ferrite_proto::api::Version;
use ferrite_proto::problem::Problem;
use serde::Serialize;

use args::{Arguments, Command, ConfigCommand, Output};
use client::Client;
use verbs::Verb;

use crate::config::{self, Config};
use crate::{netboot, serve};

const CONFIG_ADVICE: &str = "`ferrite config defaults` prints every key with what it means";
const MANIFEST_ADVICE: &str = "correct what is told above; nothing was sent";
const NETBOOT_ADVICE: &str = "correct [netboot] in the configuration; `ferrite config check FILE` \
                              tells whether it can be used";

/// Does what the arguments say.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let connection = &arguments.connection;
    match arguments.command {
        Command::Serve { config } => {
            let config = Config::read(&config)?;
            let own_lines = serve::start_logs(&config.log)?;
            serve::run(config, own_lines).await?;
        }
        Command::Config { command } => config_command(command, connection.output).await?,
        Command::Host { command } => {
            let client = Client::open(connection)?;
            return host::run(&client, command, connection.output).await;
        }
        Command::Cluster {
            command: cluster::ClusterCommand::Rbac { kamaji },
        } => cluster::rbac(kamaji.as_deref())?,
        Command::Cluster { command } => {
            let client = Client::open(connection)?;
            return cluster::run(&client, command, connection.output).await;
        }
        Command::Image { command } => {
            let client = Client::open(connection)?;
            return image::run(&client, command, connection.output).await;
        }
        Command::Access(command) => {
            let client = Client::open(connection)?;
            return access::run(&client, command, connection.output).await;
        }
        Command::Resources(verb) => {
            let client = Client::open(connection)?;
            return on_its_own_scale(verb, &client, connection.output).await;
        }
        Command::Context { command } => contexts::run(command, connection)?,
        Command::Backup { file, config } => backup::write(&config, &file).await?,
        Command::Restore { file, config } => backup::restore(&config, &file).await?,
        Command::Key {
            command: args::KeyCommand::Rotate { config },
        } => backup::rotate(&config).await?,
        Command::SupportBundle { file } => {
            let client = Client::open(connection)?;
            bundle::run(&client, file).await?;
        }
        Command::Completion(completion) => return complete::print(&completion),
        Command::Version => version(connection).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `diff` tells with 1 that something differs: its failures are other numbers.
async fn on_its_own_scale(verb: Verb, client: &Client, output: Output) -> anyhow::Result<ExitCode> {
    let is_diff = matches!(verb, Verb::Diff(_));
    match verbs::run(client, verb, output).await {
        Err(error) if is_diff && exit::code(&error) == exit::FAILED => {
            failed(&error);
            Ok(ExitCode::from(exit::PARTLY))
        }
        done => done,
    }
}

async fn config_command(command: ConfigCommand, output: Output) -> anyhow::Result<()> {
    let file = match command {
        ConfigCommand::Defaults => return print(config::DEFAULTS),
        ConfigCommand::Check { file } => file,
    };
    let config = Config::read(&file)?;
    let served = match &config.netboot {
        Some(netboot) => netboot::check(netboot).await?,
        None => Vec::new(),
    };
    if matches!(output, Output::Json | Output::Yaml) {
        let url = &config.url;
        let told = serde_json::json!({"file": file, "url": url, "boot_files": served});
        return print_value(&told, output);
    }
    let boot_files = if served.is_empty() {
        "netboot.artifacts is not set: nothing is served to firmware".to_owned()
    } else {
        format!("boot files: {}", served.join(", "))
    };
    let (file, url) = (file.display(), &config.url);
    print(&format!("{file} is fine: {url}\n{boot_files}\n"))
}

async fn version(connection: &args::Connection) -> anyhow::Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    // The conductor's version is welcome, but `version` must work without one.
    let conductor = match Client::open(connection) {
        Ok(client) => client.get::<Version>("/v1/version").await.ok(),
        Err(_) => None,
    };
    let conductor = conductor.map(|version| version.version);
    if matches!(connection.output, Output::Json | Output::Yaml) {
        let told = serde_json::json!({"client": own, "conductor": conductor});
        return print_value(&told, connection.output);
    }
    let conductor = conductor.unwrap_or_else(|| "not reached".to_owned());
    print(&format!("ferrite {own}\nconductor {conductor}\n"))
}

/// Writes to standard output. A reader that went away is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes JSON to standard output.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Writes YAML where that is asked for, else JSON.
pub(crate) fn print_value(value: &impl Serialize, output: Output) -> anyhow::Result<()> {
    if output == Output::Yaml {
        return print(&yaml(value)?);
    }
    print_json(value)
}

/// A value as YAML.
pub(crate) fn yaml(value: &impl Serialize) -> anyhow::Result<String> {
    serde_saphyr::to_string(value).context("writing YAML")
}

/// Tells what went wrong.
pub(crate) fn failed(error: &anyhow::Error) -> ExitCode {
    let _ = std::io::stderr().lock().write_all(told(error).as_bytes());
    ExitCode::from(exit::code(error))
}

/// `error: … [code]`, and `help: …` where there is any.
fn told(error: &anyhow::Error) -> String {
    let chain: Vec<_> = error.chain().map(ToString::to_string).collect();
    let (code, advice) = match error.downcast_ref::<Problem>() {
        // Its code is among its words.
        Some(problem) => (String::new(), problem.advice.as_str()),
        None if error.is::<client::Silent>() => (
            " [conductor-unreachable]".to_owned(),
            client::Silent::ADVICE,
        ),
        None if error.is::<config::ConfigError>() => {
            (" [config-invalid]".to_owned(), CONFIG_ADVICE)
        }
        None if error.is::<manifest::Unusable>() => {
            (" [manifest-invalid]".to_owned(), MANIFEST_ADVICE)
        }
        None if error.is::<netboot::NetbootError>() => (" [netboot]".to_owned(), NETBOOT_ADVICE),
        None => (" [failed]".to_owned(), ""),
    };
    let help = match advice {
        "" => String::new(),
        advice => format!("help: {advice}\n"),
    };
    format!("error: {}{code}\n{help}", chain.join(": "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrite_proto::problem::Code;

    #[test]
    fn an_error_has_a_code_and_says_what_to_do() {
        let problem = Problem::new(Code::HostNotFound, "no host \"x\"", "list them");
        let lines = |error: anyhow::Error| told(&error);
        assert_eq!(
            lines(problem.into()),
            "error: no host \"x\" [host-not-found]\nhelp: list them\n"
        );
        let error = Config::parse("listen = 5").unwrap_err();
        let text = lines(error.into());
        assert!(text.contains("[config-invalid]\nhelp: "), "{text}");
        assert_eq!(lines(anyhow::anyhow!("odd")), "error: odd [failed]\n");
    }

    #[tokio::test]
    async fn a_check_opens_the_boot_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ferrite.toml");
        let text = format!(
            "url = \"https://c:1\"\n[netboot]\nartifacts = {0:?}\nipxe = {0:?}\n\
             http_url = \"http://10.0.0.1:2\"\ntftp = false\n",
            dir.path()
        );
        std::fs::write(&file, text).unwrap();
        let check = || config_command(ConfigCommand::Check { file: file.clone() }, Output::Json);
        let error = check().await.unwrap_err();
        assert!(told(&error).contains("snponly.efi"), "{}", told(&error));
        for name in ["snponly.efi", "undionly.kpxe"] {
            std::fs::write(dir.path().join(name), name).unwrap();
        }
        let error = check().await.unwrap_err();
        assert!(told(&error).contains("manifest.json"), "{}", told(&error));
    }
}

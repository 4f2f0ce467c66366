//! The command line: a thin client of the API. What it prints goes to standard output, what went
//! wrong to standard error: `error: … [code]`, then `help: …`.

pub(crate) mod args;
pub(crate) mod client;
mod host;
mod show;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use ferrite_proto::api::Version;
use ferrite_proto::problem::Problem;
use serde::Serialize;

use args::{Arguments, Command, ConfigCommand, Output};
use client::Client;

use crate::config::{self, Config};
use crate::serve;

/// Does what the arguments say.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let connection = &arguments.connection;
    match arguments.command {
        Command::Serve { config } => {
            let config = Config::read(&config)?;
            serve::start_logs(&config.log)?;
            serve::run(config).await?;
        }
        Command::Config { command } => config_command(command)?,
        Command::Host { command } => {
            let client = Client::open(connection)?;
            return host::run(&client, command, connection.output).await;
        }
        Command::Version => version(connection).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn config_command(command: ConfigCommand) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Defaults => print(config::DEFAULTS),
        ConfigCommand::Check { file } => {
            let config = Config::read(&file)?;
            print(&format!("{} is fine: {}\n", file.display(), config.url))
        }
    }
}

async fn version(connection: &args::Connection) -> anyhow::Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    // The conductor's version is welcome, but `version` must work without one.
    let conductor = match Client::open(connection) {
        Ok(client) => client.get::<Version>("/v1/version").await.ok(),
        Err(_) => None,
    };
    let conductor = conductor.map(|version| version.version);
    if connection.output == Output::Json {
        return print_json(&serde_json::json!({"client": own, "conductor": conductor}));
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

/// Tells what went wrong.
pub(crate) fn failed(error: &anyhow::Error) -> ExitCode {
    let mut out = std::io::stderr().lock();
    let chain: Vec<_> = error.chain().map(ToString::to_string).collect();
    let _ = writeln!(out, "error: {}", chain.join(": "));
    let advice = match error.downcast_ref::<Problem>() {
        Some(problem) => problem.advice.as_str(),
        None if error.is::<client::Silent>() => client::Silent::ADVICE,
        None => "",
    };
    if !advice.is_empty() {
        let _ = writeln!(out, "help: {advice}");
    }
    ExitCode::FAILURE
}

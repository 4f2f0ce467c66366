//! Completion by the shell, with the names that the conductor knows now. It is quick, or silent:
//! whatever goes wrong, there are just no names.

use std::ffi::OsStr;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, ValueEnum};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};

use super::args::{Arguments, Connection};
use super::client::Client;
use super::get::text;
use super::kind::Kind;

/// A person does not wait longer for a tab.
const TIME: Duration = Duration::from_millis(180);
/// Names that are asked for.
const MOST: u32 = 1000;

/// Print what makes your shell complete `ferrite`.
///
/// bash: add `source <(ferrite completion bash)` to ~/.bashrc. zsh: the same in ~/.zshrc. fish:
/// `ferrite completion fish > ~/.config/fish/completions/ferrite.fish`.
#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// Which shell.
    pub(crate) shell: Shell,
}

/// Shells that can be completed in.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// Answers the shell when it is a shell that asks; then there is nothing more to do.
pub(crate) fn answered() -> anyhow::Result<bool> {
    let completer = std::env::args_os()
        .next()
        .unwrap_or_else(|| "ferrite".into());
    let asked =
        CompleteEnv::with_factory(Arguments::command).completer(completer.to_string_lossy());
    Ok(asked.try_complete(std::env::args_os(), std::env::current_dir().ok().as_deref())?)
}

/// Prints the shell's part.
pub(crate) fn print(completion: &Completion) -> anyhow::Result<ExitCode> {
    let name = match completion.shell {
        Shell::Bash => "bash",
        Shell::Zsh => "zsh",
        Shell::Fish => "fish",
    };
    let mut text = Vec::new();
    if let Some(shell) = Shells::builtins().completer(name) {
        shell.write_registration("COMPLETE", "ferrite", "ferrite", "ferrite", &mut text)?;
    }
    std::io::stdout().lock().write_all(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Completes a host's name.
pub(crate) fn hosts() -> ArgValueCompleter {
    ArgValueCompleter::new(|start: &OsStr| candidates(Kind::Host, "", start))
}

/// Completes a kind, or `KIND/NAME`.
pub(crate) fn things() -> ArgValueCompleter {
    ArgValueCompleter::new(|start: &OsStr| {
        let written = start.to_string_lossy();
        match written.split_once('/') {
            Some((word, _)) => match Kind::from_word(word) {
                Ok(kind) => candidates(kind, &format!("{word}/"), start),
                Err(_) => Vec::new(),
            },
            None => kinds(&written),
        }
    })
}

fn kinds(start: &str) -> Vec<CompletionCandidate> {
    let words = Kind::ALL
        .into_iter()
        .flat_map(|kind| [kind.plural().to_owned(), format!("{}/", kind.singular())]);
    words
        .filter(|word| word.starts_with(start))
        .map(CompletionCandidate::new)
        .collect()
}

fn candidates(kind: Kind, prefix: &str, start: &OsStr) -> Vec<CompletionCandidate> {
    let start = start.to_string_lossy();
    let names = names(kind).unwrap_or_default().into_iter();
    let whole = names.map(|name| format!("{prefix}{name}"));
    whole
        .filter(|word| word.starts_with(&*start))
        .map(CompletionCandidate::new)
        .collect()
}

/// Where `FERRITE_…` and the current context lead.
#[derive(Parser)]
struct Environment {
    #[command(flatten)]
    connection: Connection,
}

fn names(kind: Kind) -> Option<Vec<String>> {
    let environment = Environment::try_parse_from(["ferrite"]).ok()?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .ok()?;
    let names = runtime.block_on(async {
        let asked = listed(&environment.connection, kind);
        tokio::time::timeout(TIME, asked).await.ok()?.ok()
    });
    // A name that is still being looked up must not hold up the shell.
    runtime.shutdown_background();
    names
}

async fn listed(connection: &Connection, kind: Kind) -> anyhow::Result<Vec<String>> {
    let client = Client::open(connection)?;
    let project = client
        .project()
        .map(|project| format!("&project={project}"));
    let path = format!(
        "{}?limit={MOST}{}",
        kind.collection(),
        project.unwrap_or_default()
    );
    let list: serde_json::Value = client.get(&path).await?;
    let items = list
        .get("items")
        .and_then(serde_json::Value::as_array)
        .cloned();
    let items = items.unwrap_or_default();
    Ok(items
        .iter()
        .map(|item| text(item, "/metadata/name"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_completed_without_a_conductor() {
        let words = |start| {
            let found = kinds(start);
            let words = found
                .iter()
                .map(|one| one.get_value().to_string_lossy().into_owned());
            words.collect::<Vec<_>>()
        };
        assert_eq!(words("ho"), ["hosts", "host/"]);
        assert!(words("x").is_empty());
    }
}

//! Which conductor is meant: named contexts in a file of the person's own, and what goes before
//! them. Paths and names, never secrets: those stay in their files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use super::args::{Connection, Output};
use super::client::ClientFile;
use super::{nearest, print, print_value};

/// What `ferrite serve` writes.
const CLIENT_FILE: &str = "/var/lib/ferrite/client.toml";

/// How one conductor is reached. In a file everything may be left out that is given otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, Args)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Place {
    /// `https://host:port` of the conductor.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, env = "FERRITE_SERVER", global = true)]
    pub(crate) server: Option<String>,
    /// File with the conductor's CA certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, env = "FERRITE_CA_FILE", global = true, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// File with your token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, env = "FERRITE_TOKEN_FILE", global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// File with your certificate, instead of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(
        long,
        env = "FERRITE_CERT_FILE",
        global = true,
        value_name = "FILE",
        requires = "key_file"
    )]
    pub(crate) cert_file: Option<PathBuf>,
    /// File with your certificate's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(
        long,
        env = "FERRITE_KEY_FILE",
        global = true,
        value_name = "FILE",
        requires = "cert_file"
    )]
    pub(crate) key_file: Option<PathBuf>,
    /// Look only at this project, and put into it what is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, env = "FERRITE_PROJECT", global = true)]
    pub(crate) project: Option<String>,
}

impl Place {
    /// What is given here, then what is given there. A token here goes before a certificate there,
    /// and the other way round.
    fn or(self, other: Self) -> Self {
        let own = self.token_file.is_some() || self.cert_file.is_some();
        let (token_file, cert_file, key_file) = if own {
            (self.token_file, self.cert_file, self.key_file)
        } else {
            (other.token_file, other.cert_file, other.key_file)
        };
        Self {
            server: self.server.or(other.server),
            ca_file: self.ca_file.or(other.ca_file),
            token_file,
            cert_file,
            key_file,
            project: self.project.or(other.project),
        }
    }

    fn is_whole(&self) -> bool {
        let known = self.token_file.is_some() || self.cert_file.is_some();
        self.server.is_some() && self.ca_file.is_some() && known
    }
}

impl From<ClientFile> for Place {
    fn from(file: ClientFile) -> Self {
        Self {
            server: Some(file.server),
            ca_file: Some(file.ca_file),
            token_file: Some(file.token_file),
            ..Self::default()
        }
    }
}

/// A person's contexts.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Contexts {
    /// The one that is meant when nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    /// By name.
    contexts: BTreeMap<String, Place>,
}

impl Contexts {
    fn read(file: &Path) -> anyhow::Result<Self> {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
        };
        toml::from_str(&text).with_context(|| format!("{} holds no contexts", file.display()))
    }

    fn write(&self, file: &Path) -> anyhow::Result<()> {
        let context = || format!("writing {}", file.display());
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder).with_context(context)?;
        }
        let text = toml::to_string(self).with_context(context)?;
        crate::token::write_private(file, text.as_bytes()).with_context(context)
    }

    fn find(&self, name: &str) -> anyhow::Result<&Place> {
        self.contexts.get(name).with_context(|| {
            let near = nearest::hint(name, self.contexts.keys().map(String::as_str));
            format!("there is no context {name:?}{near}; `ferrite context list` shows all")
        })
    }
}

/// `$FERRITE_CONFIG`, or `ferrite/config.toml` where people's settings are.
fn file() -> anyhow::Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(file) = set("FERRITE_CONFIG") {
        return Ok(file.into());
    }
    let folder = set("XDG_CONFIG_HOME").map(PathBuf::from);
    let folder = folder.or_else(|| Some(PathBuf::from(set("HOME")?).join(".config")));
    let folder = folder.context("there is no HOME; set FERRITE_CONFIG")?;
    Ok(folder.join("ferrite/config.toml"))
}

/// By arguments and the environment; then `--context`, else `--client`, else the current context,
/// else what `ferrite serve` wrote on this machine.
pub(crate) fn resolve(connection: &Connection) -> anyhow::Result<Place> {
    let given = connection.place.clone();
    let place = if let Some(name) = &connection.context {
        given.or(Contexts::read(&file()?)?.find(name)?.clone())
    } else if let Some(file) = &connection.client {
        given.or(client_file(file)?)
    } else if given.is_whole() {
        given
    } else {
        given.or(usual()?)
    };
    if !place.is_whole() {
        bail!(
            "which conductor? server, ca_file and token_file (or cert_file and key_file) are \
             needed, and not all are given"
        );
    }
    Ok(place)
}

fn usual() -> anyhow::Result<Place> {
    let contexts = file().and_then(|file| Contexts::read(&file))?;
    match &contexts.current {
        Some(name) => contexts.find(name).cloned(),
        None => client_file(Path::new(CLIENT_FILE)),
    }
}

fn client_file(file: &Path) -> anyhow::Result<Place> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("reading {}", file.display()))
        .context(
            "which conductor? choose a context (`ferrite context set`), give --server, \
             --token-file and --ca-file, or --client with the client.toml from its state folder",
        )?;
    let file: ClientFile =
        toml::from_str(&text).with_context(|| format!("{} is no client file", file.display()))?;
    Ok(file.into())
}

/// Name the conductors that you work with.
///
/// They are kept in `$FERRITE_CONFIG`, or ~/.config/ferrite/config.toml.
#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// List them; a star marks the current one.
    List,
    /// Print the name of the current one.
    Current,
    /// Make one current.
    Use {
        /// Its name.
        name: String,
    },
    /// Make or change one, from --server, --ca-file, --token-file and so on.
    ///
    /// With --client FILE everything is taken from a client.toml first. The first context is
    /// current at once.
    Set {
        /// Its name.
        name: String,
    },
    /// Forget one.
    Delete {
        /// Its name.
        name: String,
    },
}

/// Does what the arguments say.
pub(crate) fn run(command: ContextCommand, connection: &Connection) -> anyhow::Result<()> {
    let file = file()?;
    let mut contexts = Contexts::read(&file)?;
    match command {
        ContextCommand::List => return list(&contexts, connection.output),
        ContextCommand::Current => {
            let name = contexts.current.context("no context is current")?;
            return print(&format!("{name}\n"));
        }
        ContextCommand::Use { name } => {
            contexts.find(&name)?;
            contexts.current = Some(name);
        }
        ContextCommand::Set { name } => set(&mut contexts, name, connection)?,
        ContextCommand::Delete { name } => {
            contexts.find(&name)?;
            contexts.contexts.remove(&name);
            contexts.current = contexts.current.filter(|current| *current != name);
        }
    }
    contexts.write(&file)
}

fn set(contexts: &mut Contexts, name: String, connection: &Connection) -> anyhow::Result<()> {
    let mut place = connection.place.clone();
    if let Some(file) = &connection.client {
        place = place.or(client_file(file)?);
    }
    if let Some(old) = contexts.contexts.remove(&name) {
        place = place.or(old);
    }
    let files = [
        &mut place.ca_file,
        &mut place.token_file,
        &mut place.cert_file,
        &mut place.key_file,
    ];
    for file in files.into_iter().flatten() {
        // A context is used from other folders than the one where it was made.
        *file = std::path::absolute(&*file)?;
    }
    if place == Place::default() {
        bail!("nothing is given: at least --server, or --client with a client.toml");
    }
    contexts.current.get_or_insert_with(|| name.clone());
    contexts.contexts.insert(name, place);
    Ok(())
}

fn list(contexts: &Contexts, output: Output) -> anyhow::Result<()> {
    if matches!(output, Output::Json | Output::Yaml) {
        return print_value(contexts, output);
    }
    if output == Output::Name {
        let names = contexts.contexts.keys();
        let lines = names.flat_map(|name| [name.as_str(), "\n"]);
        return print(&lines.collect::<String>());
    }
    print(&table(contexts))
}

fn table(contexts: &Contexts) -> String {
    let mut table = super::table::new(&["", "NAME", "SERVER", "PROJECT", "AS"]);
    for (name, place) in &contexts.contexts {
        let mark = contexts.current.as_ref() == Some(name);
        let who = place.cert_file.as_ref().or(place.token_file.as_ref());
        table.add_row([
            if mark { "*" } else { "" }.to_owned(),
            name.clone(),
            place.server.clone().unwrap_or_default(),
            place.project.clone().unwrap_or_default(),
            who.map_or_else(String::new, |file| file.display().to_string()),
        ]);
    }
    super::table::text(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(server: &str) -> Place {
        Place {
            server: Some(server.to_owned()),
            ca_file: Some("/ca".into()),
            token_file: Some("/token".into()),
            ..Place::default()
        }
    }

    #[test]
    fn contexts_are_kept_and_misspelt_ones_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/config.toml");
        let mut contexts = Contexts::read(&file).unwrap();
        assert_eq!(contexts, Contexts::default());
        contexts.current = Some("lab".into());
        for name in ["lab", "site"] {
            let at = format!("https://{name}:1");
            contexts.contexts.insert(name.to_owned(), place(&at));
        }
        contexts.write(&file).unwrap();
        assert_eq!(Contexts::read(&file).unwrap(), contexts);
        assert_eq!(
            table(&contexts),
            "    NAME  SERVER          PROJECT  AS\n \
             *  lab   https://lab:1            /token\n    \
             site  https://site:1           /token\n"
        );
        let error = contexts.find("lap").unwrap_err().to_string();
        assert!(error.contains("did you mean `lab`?"), "{error}");
        std::fs::write(&file, "[contexts.x]\npassword = 'p'\n").unwrap();
        assert!(Contexts::read(&file).is_err());
    }

    #[test]
    fn what_is_given_goes_first_and_a_credential_is_one() {
        let certificate = Place {
            cert_file: Some("/cert".into()),
            key_file: Some("/key".into()),
            ..Place::default()
        };
        let both = certificate.or(place("https://c:1"));
        assert!(both.is_whole());
        assert_eq!(both.token_file, None);
        assert_eq!(both.server.as_deref(), Some("https://c:1"));
        assert!(!Place::default().or(Place::default()).is_whole());
    }
}

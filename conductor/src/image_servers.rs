//! Servers of images, as the configuration names them. Their secrets are read at the start, held
//! in memory, and handed to a host with the step that needs them; they are stored nowhere.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use ferrite_proto::image_server::{ImageServer, Login};
use ferrite_proto::secret::Secret;
use serde::Deserialize;

/// Longest file of a certificate or a secret.
const LONGEST: u64 = 1 << 20;

/// One of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageServerConfig {
    prefix: String,
    ca_file: Option<PathBuf>,
    proxy: Option<Secret<String>>,
    username: Option<String>,
    password_file: Option<PathBuf>,
    bearer_file: Option<PathBuf>,
}

impl ImageServerConfig {
    /// Which key is wrong, and what about it.
    pub(crate) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let schemes = ["http://", "https://", "oci://", "oci+http://"];
        let rest = schemes.iter().find_map(|s| self.prefix.strip_prefix(s));
        if rest.is_none_or(|rest| rest.is_empty() || rest.starts_with('/') || rest.contains('@')) {
            let what = "is not http://host/…, https://host/… or oci://host/…, without a password";
            return Err(("prefix", what));
        }
        let proxied = self.proxy.as_ref().map(Secret::expose);
        if proxied.is_some_and(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
            return Err(("proxy", "is neither http://host:port nor https://host:port"));
        }
        if proxied.is_some_and(|url| url.contains('@')) {
            let what = "carries a password, which whoever reads the configuration would see";
            return Err(("proxy", what));
        }
        match (&self.username, &self.password_file, &self.bearer_file) {
            (Some(name), Some(_), None) if name.contains(':') => Err((
                "username",
                "has a colon, which no server could tell from its end",
            )),
            (Some(_), Some(_), None) | (None, None, _) => Ok(()),
            (Some(_), None, _) => Err(("password_file", "is needed with username")),
            (None, Some(_), _) => Err(("username", "is needed with password_file")),
            (Some(_), Some(_), Some(_)) => Err((
                "bearer_file",
                "is not for use with username: a server knows us by one",
            )),
        }
    }

    fn read(&self) -> anyhow::Result<ImageServer> {
        let password = self.password_file.as_deref().map(read_secret).transpose()?;
        let bearer = self.bearer_file.as_deref().map(read_secret).transpose()?;
        let login = match (&self.username, password) {
            (Some(username), Some(password)) => Some(Login::Basic {
                username: username.clone(),
                password,
            }),
            _ => bearer.map(Login::Bearer),
        };
        Ok(ImageServer {
            prefix: self.prefix.clone(),
            ca: self.ca_file.as_deref().map(read_text).transpose()?,
            proxy: self.proxy.clone(),
            login,
        })
    }
}

/// Reads what the files say.
pub(crate) fn read(servers: &[ImageServerConfig]) -> anyhow::Result<Vec<ImageServer>> {
    servers.iter().map(ImageServerConfig::read).collect()
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    let reading = || format!("reading {}", path.display());
    let length = std::fs::metadata(path).with_context(reading)?.len();
    ensure!(length <= LONGEST, "{} is longer than 1 MiB", path.display());
    std::fs::read_to_string(path).with_context(reading)
}

fn read_secret(path: &Path) -> anyhow::Result<Secret<String>> {
    let text = read_text(path)?;
    let text = text.trim_end_matches(['\r', '\n']);
    ensure!(!text.is_empty(), "{} is empty", path.display());
    Ok(Secret::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> ImageServerConfig {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn secrets_come_from_files_and_are_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "hunter2\n").unwrap();
        let config = config(&format!(
            "prefix = \"https://h/\"\nusername = \"me\"\npassword_file = {file:?}"
        ));
        assert_eq!(config.check(), Ok(()));
        let server = config.read().unwrap();
        let Some(Login::Basic { password, .. }) = &server.login else {
            panic!("{server:?}")
        };
        assert_eq!(password.expose(), "hunter2");
        assert!(!format!("{server:?}").contains("hunter2"));
        std::fs::write(&file, "\n").unwrap();
        assert!(config.read().is_err(), "an empty password is a mistake");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_key() {
        for (text, wrong) in [
            ("prefix = 'ftp://h/'", "prefix"),
            ("prefix = 'https://'", "prefix"),
            ("prefix = 'https://u@h/'", "prefix"),
            ("prefix = 'https://h/'\nproxy = 'socks5://p'", "proxy"),
            ("prefix = 'https://h/'\nproxy = 'http://u:p@p'", "proxy"),
            ("prefix = 'https://h/'\nusername = 'a'", "password_file"),
            ("prefix = 'https://h/'\npassword_file = 'a'", "username"),
            (
                "prefix = 'https://h/'\nusername = 'a:b'\npassword_file = 'c'",
                "username",
            ),
            (
                "prefix = 'https://h/'\nusername = 'a'\npassword_file = 'b'\nbearer_file = 'c'",
                "bearer_file",
            ),
        ] {
            let (key, _) = config(text).check().unwrap_err();
            assert_eq!(key, wrong, "{text}");
        }
    }
}

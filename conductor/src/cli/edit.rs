//! `ferrite edit`: a resource in the person's editor, and what changed back to the conductor.
//!
//! Only what was changed is sent, as a merge patch, and only if nobody else changed the resource
//! meanwhile; if somebody did, the editor comes up again with both changes. So it does, with the
//! reason, when the conductor refuses.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use ferrite_proto::merge;
use ferrite_proto::problem::{Code, Problem};
use reqwest::Method;
use serde_json::{Value, json};

use super::apply::shown;
use super::client::Client;
use super::kind::{self, Kind};
use super::{manifest, print, yaml};

/// Times that the editor comes up.
const ROUNDS: u32 = 20;

/// Change something in your editor: $VISUAL, $EDITOR, or vi.
#[derive(Debug, Args)]
pub(crate) struct Edit {
    /// `host/NAME`.
    #[arg(
        required = true,
        num_args = 1..=2,
        value_name = "KIND/NAME",
        add = super::complete::things(),
    )]
    pub(crate) what: Vec<String>,
}

/// Does what the arguments say.
pub(crate) async fn run(client: &Client, edit: Edit) -> anyhow::Result<ExitCode> {
    let targets = kind::named(&edit.what)?;
    let [(kind, name)] = &targets[..] else {
        bail!("only one thing can be edited at a time");
    };
    let editor = editor()?;
    let mut change = Editing::begin(client, *kind, name).await?;
    for _ in 0..ROUNDS {
        if !change.ask(&editor)? {
            return print("edit cancelled, nothing was changed\n").map(|()| ExitCode::SUCCESS);
        }
        if change.send(client).await? {
            let title = format!("{}/{name}", kind.singular());
            return print(&format!("{title} edited\n")).map(|()| ExitCode::SUCCESS);
        }
    }
    bail!(
        "given up after {ROUNDS} rounds; what was written is in {}",
        change.file.display()
    )
}

struct Editing {
    path: String,
    file: std::path::PathBuf,
    /// As it was read.
    live: Value,
    version: String,
    /// What stands in the editor.
    text: String,
    /// Why it comes up again.
    reason: Option<String>,
    /// What stands there is new to the person: saving it as it is means yes.
    rebased: bool,
}

impl Editing {
    async fn begin(client: &Client, kind: Kind, name: &str) -> anyhow::Result<Self> {
        let path = kind.item(name);
        let (live, version) = read(client, &path).await?;
        let dir = std::env::temp_dir();
        let file = dir.join(format!("ferrite-edit-{}-{name}.yaml", std::process::id()));
        let text = yaml(&live)?;
        Ok(Self {
            path,
            file,
            live,
            version,
            text,
            reason: None,
            rebased: false,
        })
    }

    /// False when the person changed nothing (since the last refusal).
    fn ask(&mut self, editor: &[String]) -> anyhow::Result<bool> {
        let whole = format!("{}{}", comment(self.reason.as_deref()), self.text);
        crate::token::write_private(&self.file, whole.as_bytes())
            .with_context(|| format!("writing {}", self.file.display()))?;
        start(editor, &self.file)?;
        let context = || format!("reading {}", self.file.display());
        let edited = std::fs::read_to_string(&self.file).with_context(context)?;
        let edited = without_comment(&edited);
        let rebased = std::mem::take(&mut self.rebased);
        if edited.trim().is_empty() || (edited == self.text && !rebased) {
            // Refused and left as it was: what was written is kept for the person.
            if let Some(reason) = &self.reason {
                let kept = self.file.display();
                bail!("not changed: {reason}\nwhat was written is in {kept}");
            }
            std::fs::remove_file(&self.file).with_context(context)?;
            return Ok(false);
        }
        self.text = edited;
        Ok(true)
    }

    /// False when the editor has to come up again.
    async fn send(&mut self, client: &Client) -> anyhow::Result<bool> {
        let edited: Value = match manifest::located(&self.text, &self.file) {
            Ok(edited) => edited,
            Err(problem) => return Ok(self.again(problem)),
        };
        let Some(mut patch) = merge::diff(&self.live, &edited) else {
            return Ok(self.again("nothing differs".to_owned()));
        };
        patch["metadata"]["resourceVersion"] = json!(self.version);
        let sent = client
            .exchange(Method::PATCH, &self.path, Some(&patch))
            .await;
        let Err(error) = sent else {
            let _ = std::fs::remove_file(&self.file);
            return Ok(true);
        };
        match error.downcast_ref::<Problem>().map(|problem| problem.code) {
            Some(Code::Conflict) => {
                let (live, version) = read(client, &self.path).await?;
                if version == self.version {
                    return Ok(self.again(format!("{error:#}")));
                }
                self.rebase(&edited, live, version)?;
                Ok(false)
            }
            Some(_) => Ok(self.again(format!("{error:#}"))),
            None => Err(error),
        }
    }

    fn again(&mut self, reason: String) -> bool {
        self.reason = Some(reason);
        false
    }

    /// The person's change, over what somebody else changed meanwhile.
    fn rebase(&mut self, edited: &Value, live: Value, version: String) -> anyhow::Result<()> {
        let mut both = live.clone();
        if let Some(change) = merge::diff(&self.live, edited) {
            merge::apply(&mut both, &change);
        }
        self.text = yaml(&both)?;
        (self.live, self.version) = (live, version);
        let reason = "it was changed by somebody else meanwhile: below is their version with your \
                      change. Save to send it, empty the file to cancel";
        self.reason = Some(reason.to_owned());
        self.rebased = true;
        Ok(())
    }
}

async fn read(client: &Client, path: &str) -> anyhow::Result<(Value, String)> {
    let (_, live) = client.exchange(Method::GET, path, None).await?;
    let version = super::get::text(&live, "/metadata/resourceVersion");
    let mut shown = shown(&live);
    if let Some(metadata) = shown.get_mut("metadata").and_then(Value::as_object_mut) {
        for part in ["labels", "annotations"] {
            metadata.entry(part).or_insert_with(|| json!({}));
        }
    }
    // What was applied last is not for people, but stays.
    let annotation = live.pointer("/metadata/annotations");
    if let Some(last) = annotation.and_then(|all| all.get(super::apply::LAST_APPLIED)) {
        shown["metadata"]["annotations"][super::apply::LAST_APPLIED] = last.clone();
    }
    Ok((shown, version))
}

const MARK: &str = "#| ";

fn comment(reason: Option<&str>) -> String {
    let mut lines = vec![
        "Save to send what you changed; leave it as it is, or empty it, to change nothing.",
        "Secrets are not shown. To set one, add `secrets: {bmc_password: …}`.",
    ];
    if let Some(reason) = reason {
        lines.push("");
        lines.extend(reason.lines());
    }
    lines
        .into_iter()
        .flat_map(|line| [MARK, line, "\n"])
        .collect()
}

fn without_comment(text: &str) -> String {
    let kept = text
        .lines()
        .filter(|line| !line.starts_with(MARK.trim_end()));
    kept.flat_map(|line| [line, "\n"]).collect()
}

fn editor() -> anyhow::Result<Vec<String>> {
    let set = |name| {
        std::env::var(name)
            .ok()
            .filter(|value| !value.trim().is_empty())
    };
    let line = set("VISUAL").or_else(|| set("EDITOR"));
    words(line.as_deref().unwrap_or("vi"))
}

/// Splits as a shell does, with quotes and backslashes, and does nothing else that a shell does.
fn words(line: &str) -> anyhow::Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, ' ' | '\t') => words.extend(word.take()),
            (None | Some('"'), '\\') => {
                let next = letters
                    .next()
                    .context("the editor's name ends in a backslash")?;
                word.get_or_insert_default().push(next);
            }
            (_, letter) => word.get_or_insert_default().push(letter),
        }
    }
    anyhow::ensure!(
        quote.is_none(),
        "a quote in the editor's name is not closed"
    );
    words.extend(word);
    anyhow::ensure!(!words.is_empty(), "the editor has no name");
    Ok(words)
}

fn start(editor: &[String], file: &Path) -> anyhow::Result<()> {
    let status = std::process::Command::new(&editor[0])
        .args(&editor[1..])
        .arg(file)
        .status()
        .with_context(|| format!("starting the editor {:?}", editor[0]))?;
    anyhow::ensure!(
        status.success(),
        "the editor {:?} ended with {status}",
        editor[0]
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_editor_is_split_without_a_shell() {
        for (line, wanted) in [
            ("vi", vec!["vi"]),
            ("code  --wait", vec!["code", "--wait"]),
            (
                "'/opt/my editor' -c \"a b\"",
                vec!["/opt/my editor", "-c", "a b"],
            ),
            ("e $(touch x);", vec!["e", "$(touch", "x);"]),
            (r"a\ b ''", vec!["a b", ""]),
        ] {
            assert_eq!(words(line).unwrap(), wanted);
        }
        for bad in ["", "  ", "'vi", r"vi\"] {
            assert!(words(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn comments_are_ours_and_go_again() {
        let text = format!("{}a: 1\n# theirs\n", comment(Some("one\ntwo")));
        assert!(text.contains("#| two\n"));
        assert_eq!(without_comment(&text), "a: 1\n# theirs\n");
    }

    #[test]
    fn a_change_goes_over_what_somebody_else_changed() {
        let mut editing = Editing {
            path: String::new(),
            file: "/nowhere".into(),
            live: json!({"spec": {"a": 1, "b": 1}}),
            version: "1".into(),
            text: String::new(),
            reason: None,
            rebased: false,
        };
        let edited = json!({"spec": {"a": 2, "b": 1}});
        let theirs = json!({"spec": {"a": 1, "b": 9}});
        editing.rebase(&edited, theirs, "2".into()).unwrap();
        assert_eq!(editing.text, "spec:\n  a: 2\n  b: 9\n");
        assert_eq!(editing.version, "2");
        assert!(editing.reason.unwrap().contains("somebody else"));
    }
}

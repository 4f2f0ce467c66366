//! What people write: YAML or JSON files with resources in Kubernetes' form, several in a file.
//!
//! Everything is read and checked before anything is sent, and each problem names file and line.
//! Secrets stand in a Host's `secrets`, as text or as `valueFrom: {file: PATH}` or
//! `valueFrom: {env: NAME}`; a path is relative to the manifest.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use ferrite_proto::host::{BootstrapFormat, HostKind, HostSpec};
use ferrite_proto::resource::{ApiVersion, Metadata};
use ferrite_proto::secret::Secret;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value};

use super::kind::Kind;
use super::{files, nearest};

/// Bytes of a file of manifests: 10,000 hosts fit.
const FILE_LIMIT: u64 = 64 << 20;
/// Bytes of a file with a secret.
const SECRET_LIMIT: u64 = 512 << 10;

/// A resource as a person wrote it. It may hold secrets: it is never shown.
#[derive(Clone)]
pub(crate) struct Manifest {
    /// File and line that it begins at.
    pub(crate) origin: String,
    /// What it is.
    pub(crate) kind: Kind,
    /// Its name.
    pub(crate) name: String,
    /// What is sent: apiVersion, kind, metadata, spec, secrets.
    pub(crate) body: Value,
}

impl std::fmt::Debug for Manifest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.title(), self.origin)
    }
}

impl Manifest {
    /// A host that was made of something else.
    pub(crate) const fn host(origin: String, name: String, body: Value) -> Self {
        Self {
            origin,
            kind: Kind::Host,
            name,
            body,
        }
    }

    /// `host/r1-n4`
    pub(crate) fn title(&self) -> String {
        format!("{}/{}", self.kind.singular(), self.name)
    }
}

/// Files that cannot be used, with everything that is wrong in them.
#[derive(Debug, thiserror::Error)]
#[error("nothing was sent, because of\n  {}", .0.join("\n  "))]
pub(crate) struct Unusable(pub(crate) Vec<String>);

/// Reads files, folders (their `.yaml`, `.yml` and `.json`) and `-`, standard input.
pub(crate) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Manifest>> {
    let mut found = Vec::new();
    let mut wrong = Vec::new();
    for path in paths {
        for file in files_of(path)? {
            let text = files::read(&file, "manifests", FILE_LIMIT)?;
            for one in read_text(&text, &file) {
                match one {
                    Ok(one) => found.push(one),
                    Err(problem) => wrong.push(problem),
                }
            }
        }
    }
    wrong.extend(twins(&found));
    if !wrong.is_empty() {
        return Err(Unusable(wrong).into());
    }
    anyhow::ensure!(!found.is_empty(), "there is no resource in what was given");
    found.sort_by_key(|manifest| manifest.kind);
    Ok(found)
}

/// Every resource of a text, or what is wrong with it.
pub(crate) fn read_text(text: &str, file: &Path) -> Vec<Result<Manifest, String>> {
    let documents = documents(text);
    let parsed = documents
        .iter()
        .flat_map(|document| match parse(document, file) {
            Ok(found) => found.into_iter().map(Ok).collect(),
            Err(problem) => vec![Err(problem)],
        });
    parsed.collect()
}

/// Every document of a text with its origin, whatever it holds.
pub(crate) fn values(text: &str, file: &Path) -> Vec<Result<(String, Value), String>> {
    let documents = documents(text).into_iter();
    documents
        .map(|document| {
            let origin = format!("{}:{}", file.display(), document.line);
            located(&document.text, file).map(|value| (origin, value))
        })
        .collect()
}

fn files_of(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let context = || format!("reading the folder {}", path.display());
    let entries = std::fs::read_dir(path).with_context(context)?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.with_context(context)?.path();
        let ending = file.extension().and_then(|ending| ending.to_str());
        if matches!(ending, Some("yaml" | "yml" | "json")) && file.is_file() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// The same resource twice: the second would undo the first.
fn twins(found: &[Manifest]) -> Vec<String> {
    let mut seen = BTreeMap::new();
    let mut wrong = Vec::new();
    for manifest in found {
        let key = (manifest.kind, manifest.name.as_str());
        if let Some(first) = seen.insert(key, &manifest.origin) {
            let (title, origin) = (manifest.title(), &manifest.origin);
            wrong.push(format!("{origin}: {title} stands at {first} already"));
        }
    }
    wrong
}

/// A document of a file, after as many empty lines as stand before it: its line numbers are the
/// file's.
struct Document {
    line: usize,
    text: String,
}

/// `---` at the start of a line begins a document, in all of YAML.
fn documents(text: &str) -> Vec<Document> {
    let mut all = Vec::new();
    let mut current = String::new();
    let mut begun = 1;
    for (at, line) in text.lines().enumerate() {
        if line == "---" || line.starts_with("--- ") || line.starts_with("---\t") {
            let padding = "\n".repeat(at + 1);
            let text = std::mem::replace(&mut current, padding);
            all.push(Document { line: begun, text });
            begun = at + 2;
            let inline = line.trim_start_matches('-').trim();
            if !inline.is_empty() && !inline.starts_with('#') {
                current.truncate(at);
                current.push_str(inline);
                current.push('\n');
                begun = at + 1;
            }
            continue;
        }
        current.push_str(line);
        current.push('\n');
    }
    all.push(Document {
        line: begun,
        text: current,
    });
    all.retain(|document| !document.is_empty());
    all
}

impl Document {
    fn is_empty(&self) -> bool {
        let lines = self.text.lines().map(str::trim);
        lines
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
            .all(|line| line == "...")
    }
}

fn parse(document: &Document, file: &Path) -> Result<Vec<Manifest>, String> {
    let origin = format!("{}:{}", file.display(), document.line);
    let whole: Value = located(&document.text, file)?;
    let kind = whole.get("kind").and_then(Value::as_str).unwrap_or("");
    if kind == "List" || kind.ends_with("List") {
        let items = whole.get("items").and_then(Value::as_array);
        let items = items.ok_or_else(|| format!("{origin}: a {kind} without items"))?;
        let of_list = |(at, item): (usize, &Value)| {
            let text = item.to_string();
            let origin = format!("{origin}: items[{at}]");
            check(&text, item, file).map_err(|problem| format!("{origin}: {problem}"))?;
            manifest(item.clone(), origin, file)
        };
        return items.iter().enumerate().map(of_list).collect();
    }
    check(&document.text, &whole, file)?;
    Ok(vec![manifest(whole, origin, file)?])
}

/// Reads YAML; a mistake is told with file, line and the nearest name.
pub(crate) fn located<T: DeserializeOwned>(text: &str, file: &Path) -> Result<T, String> {
    serde_saphyr::from_str(text).map_err(|error| {
        let place = error
            .location()
            .map_or_else(String::new, |at| format!(":{}:{}", at.line(), at.column()));
        let words = error.without_snippet().to_string();
        format!("{}{place}: {}", file.display(), clearer(&words))
    })
}

/// `unknown field …, expected one of …`: with the nearest name first, and without the place, which
/// stands before.
pub(crate) fn clearer(words: &str) -> String {
    let words = words.strip_prefix("error: ").unwrap_or(words);
    let words = match (words.find("line "), words.find(": ")) {
        (Some(0), Some(colon)) => &words[colon + 2..],
        _ => words.rfind(" at line ").map_or(words, |at| &words[..at]),
    };
    let Some(at) = words.find("unknown field `") else {
        return words.to_owned();
    };
    let (field, rest) = words[at + 15..].split_once('`').unwrap_or_default();
    // serde quotes the known names, others do not.
    let known = rest.rsplit("expected one of ").next().unwrap_or_default();
    let known = known.rsplit("expected ").next().unwrap_or_default();
    let known: Vec<_> = known
        .split(", ")
        .map(|name| name.trim_matches('`'))
        .collect();
    match nearest::hint(field, known.iter().copied()) {
        near if near.is_empty() => words.to_owned(),
        near => format!("unknown field `{field}`{near}"),
    }
}

/// A host's manifest, field by field. What other kinds hold, the conductor checks.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HostDocument {
    #[serde(rename = "apiVersion")]
    _api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: HostKind,
    #[serde(rename = "metadata")]
    _metadata: Metadata,
    #[serde(rename = "spec")]
    _spec: HostSpec,
    #[serde(rename = "secrets", default)]
    _secrets: Secrets,
    #[serde(rename = "status", default)]
    _status: Option<IgnoredAny>,
}

/// The same for every other kind.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AnyDocument {
    #[serde(rename = "apiVersion")]
    _api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(rename = "metadata")]
    _metadata: Metadata,
    #[serde(rename = "spec")]
    _spec: Map<String, Value>,
    #[serde(rename = "secrets", default)]
    _secrets: BTreeMap<String, SecretSource>,
    #[serde(rename = "status", default)]
    _status: Option<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Secrets {
    bmc_password: Option<SecretSource>,
    user_data: Option<SecretSource>,
    bootstrap_data: Option<SecretSource>,
    bootstrap_format: Option<BootstrapFormat>,
    network_data: Option<SecretSource>,
    vendor_data: Option<SecretSource>,
    meta_data: Option<BTreeMap<String, String>>,
}

/// A secret, or where it is.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum SecretSource {
    From {
        #[serde(rename = "valueFrom")]
        _value_from: Place,
    },
    Text(#[expect(dead_code, reason = "only its form is checked")] Secret<String>),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Place {
    File(PathBuf),
    Env(String),
}

fn check(text: &str, whole: &Value, file: &Path) -> Result<(), String> {
    if whole.get("kind").and_then(Value::as_str) == Some(Kind::Host.as_str()) {
        return located::<HostDocument>(text, file).map(|_| ());
    }
    located::<AnyDocument>(text, file).map(|_| ())
}

fn manifest(mut body: Value, origin: String, file: &Path) -> Result<Manifest, String> {
    let at = |problem: String| format!("{origin}: {problem}");
    let word = body.get("kind").and_then(Value::as_str).unwrap_or_default();
    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == word);
    let kind = kind.filter(|kind| kind.is_written()).ok_or_else(|| {
        let known = Kind::ALL.into_iter().filter(|kind| kind.is_written());
        let known: Vec<_> = known.map(Kind::as_str).collect();
        let near = nearest::hint(word, known.iter().copied());
        at(format!(
            "kind {word:?} cannot be applied{near} (can be: {})",
            known.join(", ")
        ))
    })?;
    let name = body.pointer("/metadata/name").and_then(Value::as_str);
    let name = name.unwrap_or_default().to_owned();
    if let Some(whole) = body.as_object_mut() {
        whole.remove("status");
        if let Some(Value::Object(secrets)) = whole.get_mut("secrets") {
            resolve(secrets, file).map_err(at)?;
        }
    }
    Ok(Manifest {
        origin,
        kind,
        name,
        body,
    })
}

/// Puts each secret in the place of its source.
fn resolve(secrets: &mut Map<String, Value>, file: &Path) -> Result<(), String> {
    for (name, value) in secrets {
        let Some(place) = value.get("valueFrom") else {
            continue;
        };
        let told = |problem: String| format!("secrets.{name}: {problem}");
        let place = Place::deserialize(place).map_err(|error| told(error.to_string()))?;
        let mut text = fetch(&place, file).map_err(told)?;
        if name == "bmc_password" {
            // Written by an editor or `echo`: the end of the line is no part of it.
            text.truncate(text.lines().next().map_or(0, str::len));
        }
        *value = Value::String(text);
    }
    Ok(())
}

fn fetch(place: &Place, manifest: &Path) -> Result<String, String> {
    match place {
        Place::Env(name) => std::env::var(name)
            .map_err(|_| format!("there is no environment variable {name} with text")),
        Place::File(path) => {
            let folder = manifest.parent().unwrap_or_else(|| Path::new(""));
            files::read(&folder.join(path), "a secret", SECRET_LIMIT)
                .map_err(|error| format!("{error:#}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
apiVersion: ferrite/v1
kind: Host
metadata:
  name: r1-n4
  labels: {rack: r1}
spec:
  bmc:
    address: redfish://10.0.0.5
    username: root
  boot_mac: 52:54:00:00:00:01
secrets:
  bmc_password: hunter2
";

    fn of(text: &str) -> Result<Vec<Manifest>, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("hosts.yaml");
        std::fs::write(&file, text).unwrap();
        let folder = format!("{}/", dir.path().display());
        read(&[dir.path().to_owned()]).map_err(|error| error.to_string().replace(&folder, ""))
    }

    #[test]
    fn several_resources_stand_in_a_file() {
        let image = "apiVersion: ferrite/v1\nkind: Image\nmetadata: {name: d}\nspec: {url: x}\n";
        let found = of(&format!("# hosts\n---\n{GOOD}---\n{image}--- # end\n...\n")).unwrap();
        let titles: Vec<_> = found.iter().map(Manifest::title).collect();
        assert_eq!(titles, ["image/d", "host/r1-n4"]);
        assert_eq!(found[1].body["secrets"]["bmc_password"], "hunter2");
        assert!(!format!("{found:?}").contains("hunter2"));
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_the_nearest_name() {
        for (right, wrong, told) in [
            (
                "  boot_mac:",
                "  bot_mac:",
                "hosts.yaml:10:3: unknown field `bot_mac`, did you mean `boot_mac`?",
            ),
            (
                "    username:",
                "    user_name:",
                "hosts.yaml:9:5: unknown field `user_name`, did you mean `username`?",
            ),
            (
                "  bmc_password:",
                "  password_bmc:",
                "hosts.yaml:12:3: unknown field `password_bmc`, expected one of",
            ),
            ("ferrite/v1", "v1", "hosts.yaml:1:13: unknown variant `v1`"),
            ("kind: Host", "kind: Hots", "did you mean `Host`?"),
            ("52:54:00:00:00:01", "52:54", "hosts.yaml:10:13: "),
        ] {
            let error = of(&GOOD.replace(right, wrong)).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn every_mistake_is_told_at_once_and_with_the_files_lines() {
        let bad = GOOD.replace("boot_mac", "boot_mack");
        let error = of(&format!("{bad}---\n{bad}")).unwrap_err();
        assert!(error.contains("hosts.yaml:10:3"), "{error}");
        assert!(error.contains("hosts.yaml:23:3"), "{error}");
        let error = of(&format!("{GOOD}---\n{GOOD}")).unwrap_err();
        assert!(
            error.contains("host/r1-n4 stands at hosts.yaml:1 already"),
            "{error}"
        );
    }

    #[test]
    fn a_list_is_its_items() {
        let item: Value = serde_saphyr::from_str(GOOD).unwrap();
        let list = serde_json::json!({
            "apiVersion": "ferrite/v1", "kind": "HostList", "metadata": {}, "items": [item]
        });
        assert_eq!(of(&list.to_string()).unwrap().len(), 1);
    }

    #[test]
    fn secrets_come_from_files_and_the_environment() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pw"), "from a file\n").unwrap();
        let file = dir.path().join("h.json");
        let manifest = |source: &str| GOOD.replace("hunter2", source);
        std::fs::write(&file, manifest("{valueFrom: {file: pw}}")).unwrap();
        let found = read(std::slice::from_ref(&file)).unwrap();
        assert_eq!(found[0].body["secrets"]["bmc_password"], "from a file");
        std::fs::write(&file, manifest("{valueFrom: {env: HOME}}")).unwrap();
        let found = read(std::slice::from_ref(&file)).unwrap();
        let home = std::env::var("HOME").unwrap();
        assert_eq!(found[0].body["secrets"]["bmc_password"], home);
        for bad in ["{valueFrom: {file: gone}}", "{valueFrom: {vault: x}}"] {
            std::fs::write(&file, manifest(bad)).unwrap();
            let error = read(std::slice::from_ref(&file)).unwrap_err().to_string();
            assert!(error.contains("h.json:"), "{error}");
        }
    }
}

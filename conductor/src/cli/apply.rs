//! `ferrite apply` and `ferrite diff`: from manifests to what the conductor keeps.
//!
//! As with kubectl, a field that a manifest never named stays as it is, and one that it named
//! before and no longer names is taken away: what was applied last is kept in an annotation. So an
//! image that was set by `ferrite host provision` is not taken away by a manifest without one.
//! Two parts are taken whole, because half of an old one and half of a new one mean nothing:
//! `spec.image` and `spec.root_device_hints`.

use std::io::Write;
use std::process::ExitCode;

use ferrite_proto::problem::Problem;
use futures_util::StreamExt;
use futures_util::stream;
use reqwest::Method;
use serde_json::{Map, Value, json};
use similar::TextDiff;

use super::args::Output;
use super::client::Client;
use super::manifest::Manifest;
use super::{exit, print, print_value, told, yaml};

/// The annotation with what was applied last, without secrets.
pub(crate) const LAST_APPLIED: &str = "ferrite/last-applied";
/// Calls under way at once.
const AT_ONCE: usize = 32;
/// Parts of a spec that are taken whole.
const WHOLE: [&str; 2] = ["image", "root_device_hints"];
/// What the conductor keeps of a resource's metadata, and nobody writes.
const KEPT: [&str; 4] = ["uid", "resourceVersion", "generation", "creationTimestamp"];

/// What became of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was not there.
    Created,
    /// It was there, and is different now.
    Configured,
    /// It was there like this.
    Unchanged,
}

impl Outcome {
    /// In kubectl's words.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        }
    }
}

/// A manifest that was applied, or would be.
#[derive(Debug)]
pub(crate) struct Applied {
    /// `host/NAME`
    pub(crate) title: String,
    /// What became of it.
    pub(crate) outcome: Outcome,
    /// Before.
    live: Option<Value>,
    /// After.
    pub(crate) stored: Value,
}

/// Applies all, kind after kind, and tells of each; what is refused does not stop the others.
pub(crate) async fn apply(
    client: &Client,
    manifests: Vec<Manifest>,
    dry_run: bool,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut stored = Vec::new();
    let code = each(client, manifests, dry_run, |applied| {
        match output {
            Output::Table | Output::Wide => {
                let word = applied.outcome.as_str();
                let dry = if dry_run { " (dry run)" } else { "" };
                print(&format!("{} {word}{dry}\n", applied.title))?;
            }
            Output::Name => print(&format!("{}\n", applied.title))?,
            Output::Json | Output::Yaml => stored.push(applied.stored),
        }
        Ok(())
    })
    .await?;
    if matches!(output, Output::Json | Output::Yaml) {
        print_value(&list(&stored), output)?;
    }
    Ok(code)
}

/// Shows what applying would change. 1 when there is something, 0 when not; more when it failed.
pub(crate) async fn diff(client: &Client, manifests: Vec<Manifest>) -> anyhow::Result<ExitCode> {
    let mut differs = false;
    let code = each(client, manifests, true, |applied| {
        let text = difference(&applied)?;
        differs |= !text.is_empty();
        print(&text)
    })
    .await?;
    match (code == ExitCode::SUCCESS, differs) {
        (false, _) => Ok(ExitCode::from(exit::PARTLY)),
        (true, true) => Ok(ExitCode::FAILURE),
        (true, false) => Ok(ExitCode::SUCCESS),
    }
}

/// Sends all, some at once, and hands each answer on in the manifests' order.
pub(crate) async fn each(
    client: &Client,
    manifests: Vec<Manifest>,
    dry_run: bool,
    mut done: impl FnMut(Applied) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    // A conductor that does not know of dry runs would do it.
    anyhow::ensure!(
        !dry_run || can_dry_run(client).await,
        "this conductor cannot try without doing: it is older than this command line"
    );
    let mut code = None;
    // Profiles before the hosts that name them.
    for kind in manifests.chunk_by(|a, b| a.kind == b.kind) {
        let calls = stream::iter(kind).map(|manifest| async move {
            let applied = one(client, manifest, dry_run).await;
            (manifest, applied)
        });
        let mut calls = calls.buffered(AT_ONCE);
        while let Some((manifest, applied)) = calls.next().await {
            match applied {
                Ok(applied) => done(applied)?,
                Err(error) => {
                    let at = format!("{}, {}", manifest.title(), manifest.origin);
                    let error = error.context(at);
                    let _ = std::io::stderr().lock().write_all(told(&error).as_bytes());
                    code.get_or_insert(exit::code(&error));
                }
            }
        }
    }
    Ok(code.map_or(ExitCode::SUCCESS, ExitCode::from))
}

/// Whether the conductor's own description says that it can try without doing.
pub(crate) async fn can_dry_run(client: &Client) -> bool {
    let Ok((_, described)) = client.exchange(Method::GET, "/openapi.json", None).await else {
        return false;
    };
    let call = described.pointer("/paths/~1v1~1hosts~1{name}/patch/parameters");
    let parameters = call.and_then(Value::as_array).into_iter().flatten();
    let mut names = parameters.map(|one| one.get("name").and_then(Value::as_str));
    names.any(|name| name == Some("dry_run"))
}

async fn one(client: &Client, manifest: &Manifest, dry_run: bool) -> anyhow::Result<Applied> {
    let item = manifest.kind.item(&manifest.name);
    let live = match client.exchange(Method::GET, &item, None).await {
        Ok((_, live)) => Some(live),
        Err(error) if is_absent(&error) => None,
        Err(error) => return Err(error),
    };
    let wanted = remembering(&manifest.body, client.project());
    let query = if dry_run { "?dry_run=true" } else { "" };
    let (outcome, stored) = match &live {
        None => {
            let call = format!("{}{query}", manifest.kind.collection());
            let (_, stored) = client.exchange(Method::POST, &call, Some(&wanted)).await?;
            (Outcome::Created, stored)
        }
        Some(live) => {
            let patch = patch(live, &wanted);
            let call = format!("{item}{query}");
            let (_, stored) = client.exchange(Method::PATCH, &call, Some(&patch)).await?;
            let same = is_same(live, &stored, dry_run);
            let outcome = if same {
                Outcome::Unchanged
            } else {
                Outcome::Configured
            };
            (outcome, stored)
        }
    };
    Ok(Applied {
        title: manifest.title(),
        outcome,
        live,
        stored,
    })
}

/// Whether nothing was asked that was not so. A host changes by itself meanwhile, so its version
/// says nothing; its generation grows with what is wanted, secrets among it.
fn is_same(live: &Value, stored: &Value, dry_run: bool) -> bool {
    let of = |what: &str| (live["metadata"].get(what), stored["metadata"].get(what));
    let alike = match of("generation") {
        (None, _) | (_, None) => {
            let (before, after) = of("resourceVersion");
            dry_run || before == after
        }
        (before, after) => before == after,
    };
    alike && shown(live) == shown(stored)
}

/// Whether it says that there is no such thing.
pub(crate) fn is_absent(error: &anyhow::Error) -> bool {
    let problem = error.downcast_ref::<Problem>();
    problem.is_some_and(|problem| exit::is_absent(problem.code))
}

/// The manifest, with itself in an annotation, and with the chosen project when it names none.
fn remembering(body: &Value, project: Option<&str>) -> Value {
    let mut wanted = body.clone();
    let mut last = body.clone();
    if let Some(last) = last.as_object_mut() {
        last.remove("secrets");
    }
    let Some(Value::Object(metadata)) = wanted.get_mut("metadata") else {
        return wanted;
    };
    for kept in KEPT {
        metadata.remove(kept);
        last["metadata"]
            .as_object_mut()
            .map(|last| last.remove(kept));
    }
    if let (Some(project), false) = (project, metadata.contains_key("project")) {
        metadata.insert("project".to_owned(), json!(project));
    }
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.remove(LAST_APPLIED);
        annotations.insert(LAST_APPLIED.to_owned(), json!(last.to_string()));
    }
    wanted
}

/// What makes `wanted` of `live`: all that is wanted, and `null` for what was applied last and is
/// wanted no longer.
fn patch(live: &Value, wanted: &Value) -> Value {
    let mut patch = wanted.clone();
    let last = live.pointer("/metadata/annotations");
    let last = last.and_then(|all| all.get(LAST_APPLIED)?.as_str());
    let last = last.and_then(|text| serde_json::from_str::<Value>(text).ok());
    for part in ["metadata", "spec"] {
        let last = last.as_ref().and_then(|last| last.get(part));
        if let (Some(last), Some(patch)) = (last, patch.get_mut(part)) {
            remove_what_is_gone(last, patch);
        }
    }
    for part in WHOLE {
        let live = live.pointer(&format!("/spec/{part}"));
        let patch = patch.pointer_mut(&format!("/spec/{part}"));
        if let (Some(live), Some(patch)) = (live, patch) {
            remove_what_is_gone(live, patch);
        }
    }
    patch
}

fn remove_what_is_gone(old: &Value, patch: &mut Value) {
    let (Value::Object(old), Value::Object(patch)) = (old, patch) else {
        return;
    };
    for (key, had) in old {
        match patch.get_mut(key) {
            Some(wanted) => remove_what_is_gone(had, wanted),
            None => {
                patch.insert(key.clone(), Value::Null);
            }
        }
    }
}

/// What people write of a resource: without status, and without what the conductor keeps.
pub(crate) fn shown(resource: &Value) -> Value {
    let mut shown = resource.clone();
    if let Some(whole) = shown.as_object_mut() {
        whole.remove("status");
    }
    if let Some(Value::Object(metadata)) = shown.get_mut("metadata") {
        for kept in KEPT {
            metadata.remove(kept);
        }
        if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
            annotations.remove(LAST_APPLIED);
        }
        metadata.retain(|_, value| !value.as_object().is_some_and(Map::is_empty));
    }
    shown
}

/// A unified diff; empty when nothing differs.
fn difference(applied: &Applied) -> anyhow::Result<String> {
    let before = applied.live.as_ref().map(|live| yaml(&shown(live)));
    let before = before.transpose()?.unwrap_or_default();
    let after = yaml(&shown(&applied.stored))?;
    let title = &applied.title;
    if before == after {
        return Ok(match applied.outcome {
            Outcome::Unchanged => String::new(),
            Outcome::Created | Outcome::Configured => format!("secrets differ: {title}\n"),
        });
    }
    let diff = TextDiff::from_lines(&before, &after);
    let mut unified = diff.unified_diff();
    unified.header(&format!("live/{title}"), &format!("applied/{title}"));
    Ok(unified.to_string())
}

/// Several resources as one.
pub(crate) fn list(items: &[Value]) -> Value {
    json!({"apiVersion": "ferrite/v1", "kind": "List", "metadata": {}, "items": items})
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrite_proto::merge;

    fn host(spec: &Value) -> Value {
        json!({"apiVersion": "ferrite/v1", "kind": "Host", "metadata": {"name": "a"},
               "spec": spec, "secrets": {"bmc_password": "hunter2"}})
    }

    /// What the conductor would keep.
    fn applied(live: &Value, manifest: &Value) -> Value {
        let mut new = live.clone();
        merge::apply(&mut new, &patch(live, &remembering(manifest, None)));
        new
    }

    #[test]
    fn what_a_manifest_never_named_stays_and_what_it_names_no_longer_goes() {
        let first = host(&json!({"boot_mac": "m", "bmc": {"address": "a", "insecure_tls": true}}));
        let mut live = applied(&json!({"metadata": {"name": "a"}, "spec": {}}), &first);
        live["spec"]["image"] = json!({"url": "u", "digest": "d"});
        let second = host(&json!({"bmc": {"address": "b"}}));
        let live = applied(&live, &second);
        assert_eq!(
            live["spec"],
            json!({"bmc": {"address": "b"}, "image": {"url": "u", "digest": "d"}})
        );
        let annotation = live["metadata"]["annotations"][LAST_APPLIED].as_str();
        assert!(!annotation.unwrap().contains("hunter2"));
        let third = applied(&live, &second);
        assert_eq!(third, live);
    }

    #[test]
    fn an_image_is_taken_whole() {
        let live =
            json!({"metadata": {}, "spec": {"image": {"url": "u", "allow_unverified": true}}});
        let live = applied(&live, &host(&json!({"image": {"url": "v", "digest": "d"}})));
        assert_eq!(live["spec"]["image"], json!({"url": "v", "digest": "d"}));
    }

    #[test]
    fn a_project_is_chosen_once() {
        let mut manifest = host(&json!({}));
        let wanted = remembering(&manifest, Some("blue"));
        assert_eq!(wanted["metadata"]["project"], "blue");
        manifest["metadata"]["project"] = json!("red");
        let wanted = remembering(&manifest, Some("blue"));
        assert_eq!(wanted["metadata"]["project"], "red");
    }

    #[test]
    fn a_difference_is_a_unified_diff_of_what_people_write() {
        let resource = |version: &str, mac: &str| {
            json!({"apiVersion": "ferrite/v1", "kind": "Host", "status": {"state": version},
                   "metadata": {"name": "a", "resourceVersion": version, "labels": {}},
                   "spec": {"boot_mac": mac}})
        };
        let mut applied = Applied {
            title: "host/a".into(),
            outcome: Outcome::Configured,
            live: Some(resource("1", "m1")),
            stored: resource("2", "m2"),
        };
        assert_eq!(
            difference(&applied).unwrap(),
            "--- live/host/a\n+++ applied/host/a\n@@ -3,4 +3,4 @@\n metadata:\n   name: a\n \
             spec:\n-  boot_mac: m1\n+  boot_mac: m2\n"
        );
        applied.stored = resource("3", "m1");
        assert_eq!(difference(&applied).unwrap(), "secrets differ: host/a\n");
        applied.outcome = Outcome::Unchanged;
        assert_eq!(difference(&applied).unwrap(), "");
    }

    #[test]
    fn what_a_host_does_by_itself_is_no_difference() {
        let host = |version: &str, generation: u64| {
            json!({"metadata": {"name": "a", "resourceVersion": version,
                               "generation": generation}})
        };
        assert!(is_same(&host("1", 1), &host("9", 1), false));
        assert!(!is_same(&host("1", 1), &host("2", 2), false));
        let image = |version: &str| json!({"metadata": {"name": "i", "resourceVersion": version}});
        assert!(is_same(&image("1"), &image("1"), false));
        assert!(!is_same(&image("1"), &image("2"), false));
        assert!(is_same(&image("1"), &image("2"), true));
    }
}

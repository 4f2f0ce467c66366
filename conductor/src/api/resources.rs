//! Images, profiles and clusters: documents with a spec. All projects may use them; who changes
//! them needs a role everywhere.
//!
//! Not here: what they are used for.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use ferrite_proto::catalog::{Image, Profile};
use ferrite_proto::cluster::Cluster;
use ferrite_proto::merge;
use ferrite_proto::named_image::ImageStatus;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::resource::Metadata;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::App;
use super::body::{self, Body, Query};
use super::catalog;
use super::error::Answered;
use super::hosts::{DryRun, misnamed};
use super::list::{self, ListQuery};
use super::preconditions::{Preconditions, etag};
use super::watch::{self, Shown, Source, Watchers};
use crate::access::caller::{Visible, actor};
use crate::clock;
use crate::crash::{self, Moment, Work};
use crate::lifecycle::intent::check_metadata;
use crate::store::{AuditEntry, Document, Expect};
use crate::token;

/// A kind of resource that is a document.
pub(crate) trait Resource: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// As it is written, and stored.
    const KIND: &'static str;
    /// What is the same for all.
    fn metadata(&self) -> &Metadata;
    /// Whether its spec can be used.
    fn check(&self) -> Result<(), Problem>;
    /// What of it is sealed, and never shown.
    fn secret(&self) -> Option<Value> {
        None
    }
    /// What is seen of it once it is written, if this was seen before.
    fn status(&self, _generation: u64, before: Option<&Value>) -> Option<Value> {
        before.cloned()
    }
}

macro_rules! resource {
    ($name:ident, $check:path) => {
        impl Resource for $name {
            const KIND: &'static str = stringify!($name);
            fn metadata(&self) -> &Metadata {
                &self.metadata
            }
            fn check(&self) -> Result<(), Problem> {
                $check(&self.spec)
            }
        }
    };
}

impl Resource for Image {
    const KIND: &'static str = "Image";
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    fn check(&self) -> Result<(), Problem> {
        catalog::check_image(&self.spec)
    }
    fn status(&self, generation: u64, before: Option<&Value>) -> Option<Value> {
        let same = before.filter(|status| status["observed_generation"] == generation);
        let anew = || json!(ImageStatus::new(generation, clock::now()));
        let status = || same.cloned().unwrap_or_else(anew);
        self.spec.pack.then(status)
    }
}

resource!(Profile, catalog::check_profile);

impl Resource for Cluster {
    const KIND: &'static str = crate::cluster::KIND;
    fn metadata(&self) -> &Metadata {
        &self.metadata
    }
    fn check(&self) -> Result<(), Problem> {
        catalog::check_cluster(self)
    }
    fn secret(&self) -> Option<Value> {
        (!self.secrets.is_empty()).then(|| json!(self.secrets))
    }
}

/// `GET /v1/images` and the like.
pub(crate) async fn list<R: Resource>(
    State(app): State<Arc<App>>,
    Extension(watchers): Extension<Watchers>,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Answered {
    let selectors = query.selectors()?;
    if query.watch {
        let from = watch::from(&headers, query.version()?);
        let all = Visible::all();
        return Ok(watch::start(
            &app,
            &watchers,
            source::<R>(),
            all,
            selectors,
            from,
        )?);
    }
    let (after, limit) = (query.after()?.unwrap_or_default(), query.limit()?);
    let revision = app.hosts.revision();
    let all = app.hosts.documents().list(R::KIND);
    let meant = all
        .iter()
        .filter(|document| document.name > after)
        .map(|document| (document.name.as_str(), shown::<R>(document)))
        .filter(|(_, resource)| selectors.is_empty() || selectors.select_json(resource));
    let (items, next) = list::page(meant, limit, |(name, _)| name);
    let items: Vec<_> = items.into_iter().map(|(_, resource)| resource).collect();
    let all = json!({
        "apiVersion": "ferrite/v1",
        "kind": format!("{}List", R::KIND),
        "metadata": list::metadata(revision, next),
        "items": items,
    });
    Ok(Json(all).into_response())
}

fn source<R: Resource>() -> Source {
    Source {
        change_kind: R::KIND,
        kind: R::KIND,
        names: Box::new(|app| {
            let all = app.hosts.documents().list(R::KIND);
            all.iter().map(|document| document.name.clone()).collect()
        }),
        read: Box::new(|app, name| {
            let document = app.hosts.documents().get(R::KIND, name)?;
            Some(Shown {
                version: document.revision,
                project: String::new(),
                json: Box::new(move || shown::<R>(&document)),
            })
        }),
    }
}

/// A document as people see it.
pub(super) fn shown<R: Resource>(document: &Document) -> Value {
    let body = &document.body;
    let mut shown = json!({
        "apiVersion": "ferrite/v1",
        "kind": R::KIND,
        "metadata": {
            "name": document.name,
            "uid": body["uid"],
            "labels": body["labels"],
            "annotations": body["annotations"],
            "resourceVersion": document.revision.to_string(),
            "generation": body["generation"],
            "creationTimestamp": document.created,
        },
        "spec": body["spec"],
    });
    if !body["status"].is_null() {
        shown["status"] = body["status"].clone();
    }
    shown
}

fn answer<R: Resource>(status: StatusCode, document: &Document) -> Response {
    let resource = shown::<R>(document);
    (status, etag(document.revision), Json(resource)).into_response()
}

pub(super) fn find<R: Resource>(app: &App, name: &str) -> Result<Arc<Document>, Problem> {
    let found = app.hosts.documents().get(R::KIND, name);
    found.ok_or_else(|| {
        let kind = R::KIND.to_ascii_lowercase();
        Problem::new(
            Code::NotFound,
            format!("there is no {kind} {name:?}"),
            format!("GET /v1/{kind}s names all"),
        )
    })
}

/// `GET /v1/images/{name}`
pub(crate) async fn get<R: Resource>(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Answered {
    Ok(answer::<R>(StatusCode::OK, &*find::<R>(&app, &name)?))
}

/// `POST /v1/images`
pub(crate) async fn create<R: Resource>(
    State(app): State<Arc<App>>,
    Query(query): Query<DryRun>,
    Body(body): Body<Value>,
) -> Answered {
    let resource: R = body::read_value(body)?;
    let document = draft(&resource, None)?;
    write::<R>(&app, document, Expect::Absent, query).await
}

/// `PUT /v1/images/{name}`
pub(crate) async fn put<R: Resource>(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<DryRun>,
    expected: Preconditions,
    Body(body): Body<Value>,
) -> Answered {
    let resource: R = body::read_value(body)?;
    if resource.metadata().name != name {
        return Err(misnamed(&name, &resource.metadata().name).into());
    }
    let before = app.hosts.documents().get(R::KIND, &name);
    expected.check(before.as_ref().map(|document| document.revision))?;
    replace(&app, &resource, before, query).await
}

/// `PATCH /v1/images/{name}`
pub(crate) async fn patch<R: Resource>(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<DryRun>,
    expected: Preconditions,
    Body(patch): Body<Value>,
) -> Answered {
    let before = find::<R>(&app, &name)?;
    expected.check(Some(before.revision))?;
    let mut whole = shown::<R>(&before);
    merge::apply(&mut whole, &patch);
    let resource: R = body::read_value(whole)?;
    if resource.metadata().name != name {
        return Err(misnamed(&name, &resource.metadata().name).into());
    }
    replace(&app, &resource, Some(before), query).await
}

/// `DELETE /v1/images/{name}`
pub(crate) async fn delete<R: Resource>(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<DryRun>,
    expected: Preconditions,
) -> Answered {
    let before = find::<R>(&app, &name)?;
    expected.check(Some(before.revision))?;
    if !query.dry_run {
        let entry = audit::<R>("remove", &name);
        let expect = Expect::Revision(before.revision);
        let documents = app.hosts.documents();
        crash::point(Work::DropResource, Moment::Before);
        documents
            .remove(R::KIND, &name, expect, vec![entry])
            .await?;
        crash::point(Work::DropResource, Moment::After);
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn replace<R: Resource>(
    app: &App,
    resource: &R,
    before: Option<Arc<Document>>,
    query: DryRun,
) -> Answered {
    let document = draft(resource, before.as_deref())?;
    match before {
        Some(before) if document.body == before.body && document.secret == before.secret => {
            Ok(answer::<R>(StatusCode::OK, &before))
        }
        Some(before) => write::<R>(app, document, Expect::Revision(before.revision), query).await,
        None => write::<R>(app, document, Expect::Absent, query).await,
    }
}

/// The document that a resource is kept as.
fn draft<R: Resource>(resource: &R, before: Option<&Document>) -> Result<Document, Problem> {
    let metadata = resource.metadata();
    check_metadata(metadata)?;
    if metadata.project.is_some() {
        return Err(Problem::new(
            Code::RequestInvalid,
            format!(
                "metadata.project: {}s are for all projects",
                R::KIND.to_lowercase()
            ),
            "leave it out",
        ));
    }
    resource.check()?;
    compare(metadata, before)?;
    let spec = serde_json::to_value(resource).unwrap_or_default()["spec"].take();
    // What is sealed cannot be read: a change that has nothing of it leaves it as it is.
    let kept = before.and_then(|before| before.secret.clone());
    let secret = resource.secret().or_else(|| kept.clone());
    let generation = before.map_or(1, |before| {
        let old = before.body["generation"].as_u64().unwrap_or(1);
        old + u64::from(before.body["spec"] != spec || secret != kept)
    });
    let uid = before.and_then(|before| before.body["uid"].as_str().map(str::to_owned));
    let mut body = json!({
        "uid": uid.unwrap_or_else(token::uid),
        "labels": metadata.labels,
        "annotations": metadata.annotations,
        "generation": generation,
        "spec": spec,
    });
    let before_status = before.and_then(|before| before.body.get("status"));
    if let Some(status) = resource.status(generation, before_status) {
        body["status"] = status;
    }
    Ok(Document {
        kind: R::KIND.to_owned(),
        name: metadata.name.clone(),
        project: String::new(),
        revision: before.map_or(0, |before| before.revision),
        created: before.map_or_else(clock::now, |before| before.created),
        expires: None,
        body,
        secret,
    })
}

/// A change of what somebody read is a change of just that.
fn compare(metadata: &Metadata, before: Option<&Document>) -> Result<(), Problem> {
    let version = before.map(|before| before.revision);
    let uid = before.and_then(|before| before.body["uid"].as_str());
    let same_version = metadata
        .resource_version
        .is_none_or(|asked| Some(asked.0) == version);
    let same_uid = metadata
        .uid
        .as_deref()
        .is_none_or(|asked| Some(asked) == uid);
    if same_version && same_uid {
        return Ok(());
    }
    Err(Problem::new(
        Code::Conflict,
        format!("{} is not, or no longer, what was read", metadata.name),
        "read it again and repeat the change",
    ))
}

async fn write<R: Resource>(
    app: &App,
    mut document: Document,
    expect: Expect,
    query: DryRun,
) -> Answered {
    let is_new = expect == Expect::Absent;
    let documents = app.hosts.documents();
    if query.dry_run {
        if is_new && documents.get(R::KIND, &document.name).is_some() {
            let what = format!("there is a {} {:?}", R::KIND, document.name);
            let advice = "take another name, or change it";
            return Err(Problem::new(Code::AlreadyExists, what, advice).into());
        }
        return Ok(answer::<R>(StatusCode::OK, &document));
    }
    let action = if is_new { "create" } else { "change" };
    let entry = audit::<R>(action, &document.name);
    crash::point(Work::PutResource, Moment::Before);
    document.revision = documents.put(document.clone(), expect, vec![entry]).await?;
    crash::point(Work::PutResource, Moment::After);
    app.images.wake();
    let status = if is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok(answer::<R>(status, &document))
}

fn audit<R: Resource>(action: &str, name: &str) -> AuditEntry {
    AuditEntry::of(
        &actor(),
        clock::now(),
        action,
        (R::KIND, name, ""),
        Value::Null,
    )
}

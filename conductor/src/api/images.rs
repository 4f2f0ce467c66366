//! The bytes of images: people give a file, hosts fetch what was made of it.
//!
//! Hosts fetch over the same HTTPS as everything else, from a server that they trust already.
//! There is no login: the path holds the digest of the index, 256 bits that nobody guesses, and
//! whoever knows them has the image or was told of it. The digest vouches for the bytes, whoever
//! sends them.

use std::io::SeekFrom;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE,
    LOCATION, RANGE,
};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use ferrite_imaging::Hasher;
use ferrite_proto::catalog::Image;
use ferrite_proto::digest::{Digest, to_hex};
use ferrite_proto::named_image::{ImagePhase, ImageSpec};
use ferrite_proto::problem::{Code, Problem};
use futures_util::StreamExt;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use super::App;
use super::error::Answered;
use super::resources;
use crate::access::caller::actor;
use crate::clock;
use crate::images::{self, Images, shelf};
use crate::ranges::{Asked, parse_range};
use crate::store::{AuditEntry, Document};

/// Bytes of a file in memory, for each call.
const BUFFER: usize = 256 << 10;
/// How long nothing of a file may come.
const SILENCE: Duration = Duration::from_secs(30);
/// Bytes between two looks at the room that is left.
const LOOK: u64 = 16 << 20;

/// `GET /images/{file}`
pub(crate) async fn file(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answered {
    let digest = shelf::digest_of(&name).ok_or_else(|| no_file(&name))?;
    let path = app.images.shelf.packed(&digest);
    match File::open(&path).await {
        Ok(file) => Ok(part(&app.images, file, &path, &digest, &headers).await?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let elsewhere = elsewhere(&app, &digest).ok_or_else(|| no_file(&name))?;
            let to = [(LOCATION, elsewhere)];
            Ok((StatusCode::TEMPORARY_REDIRECT, to).into_response())
        }
        Err(error) => Err(app.images.shelf.problem(&path, &error).into()),
    }
}

fn no_file(name: &str) -> Problem {
    Problem::new(
        Code::NotFound,
        format!("there is no packed image {name:?}"),
        "`ferrite get images -o json` shows which there are, and where",
    )
}

/// Where another conductor has it.
fn elsewhere(app: &App, digest: &Digest) -> Option<String> {
    let documents = app.hosts.documents().list("Image");
    let statuses = documents.iter().filter_map(|d| images::named(d)?.status);
    let mut others = statuses.filter(|status| {
        let ready = status.phase == ImagePhase::Ready && status.digest.as_ref() == Some(digest);
        ready && status.conductor.as_ref() != Some(&app.images.me)
    });
    others.find_map(|status| status.url)
}

/// As much of a file as is asked for.
async fn part(
    images: &Images,
    mut file: File,
    path: &FilePath,
    digest: &Digest,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let broken = |error: std::io::Error| images.shelf.problem(path, &error);
    let length = file.metadata().await.map_err(broken)?.len();
    let tag = format!("\"{}\"", to_hex(digest.as_bytes()));
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let same = text(IF_RANGE).is_none_or(|asked| asked == tag);
    let asked = text(RANGE).filter(|_| same);
    let (status, range) = match asked.map_or(Asked::Whole, |text| parse_range(text, length)) {
        Asked::Whole => (StatusCode::OK, 0..length),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Beyond => {
            let whole = [(CONTENT_RANGE, format!("bytes */{length}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, whole).into_response());
        }
    };
    file.seek(SeekFrom::Start(range.start))
        .await
        .map_err(broken)?;
    let count = range.end - range.start;
    let bytes = ReaderStream::with_capacity(file.take(count), BUFFER);
    let head = [
        (ACCEPT_RANGES, "bytes".to_owned()),
        (CONTENT_TYPE, "application/zstd".to_owned()),
        (CONTENT_LENGTH, count.to_string()),
        (ETAG, tag),
        (
            CACHE_CONTROL,
            "public, immutable, max-age=31536000".to_owned(),
        ),
    ];
    let mut response = (status, head, Body::from_stream(bytes)).into_response();
    if status == StatusCode::PARTIAL_CONTENT {
        let last = range.end.saturating_sub(1);
        let value = format!("bytes {}-{last}/{length}", range.start);
        let value = value.parse().map_err(|_| no_file("with such a length"))?;
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    Ok(response)
}

/// `PUT /v1/images/{name}/content`
pub(crate) async fn upload(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    body: Body,
) -> Answered {
    let document = resources::find::<Image>(&app, &name)?;
    let spec = takes_content(&name, &document)?;
    let uid = document.body["uid"].as_str().unwrap_or_default();
    let images = &app.images;
    let _slot = images.uploads.try_acquire().map_err(|_| {
        let what = "four files are being given to this conductor already";
        Problem::new(
            Code::TooManyRequests,
            what,
            "give this one when one of them is there",
        )
    })?;
    let temporary = Temporary(images.shelf.temporary(&crate::token::uid()));
    receive(images, body, &temporary.0, &spec).await?;
    images
        .shelf
        .put(&temporary.0, &images.shelf.uploaded(uid))?;
    let generation = document.body["generation"].as_u64().unwrap_or_default();
    let documents = app.hosts.documents();
    let taken = images::note(&documents, (&name, uid, generation), |status| {
        status.attempts = 0;
        status.conductor = Some(images.me.clone());
        status.enter(ImagePhase::Pending, clock::now());
        true
    });
    if !taken.await? {
        let what = format!("image {name} was changed or removed meanwhile");
        return Err(Problem::new(Code::Conflict, what, "give the file again").into());
    }
    let entry = AuditEntry::of(
        &actor(),
        clock::now(),
        "give content",
        ("Image", &name, ""),
        serde_json::Value::Null,
    );
    app.hosts.audit(vec![entry]).await?;
    images.wake();
    let document = resources::find::<Image>(&app, &name)?;
    Ok((
        StatusCode::ACCEPTED,
        Json(resources::shown::<Image>(&document)),
    )
        .into_response())
}

/// Whether a file may be given for the image now.
fn takes_content(name: &str, document: &Document) -> Result<ImageSpec, Problem> {
    let conflict = |what: String, advice: &str| Problem::new(Code::Conflict, what, advice);
    let named = images::named(document);
    let spec = named.as_ref().map(|named| named.spec.clone());
    let spec = spec.filter(ImageSpec::is_uploaded).ok_or_else(|| {
        let what = format!("image {name} is fetched from a server");
        conflict(
            what,
            "give a file to an image whose spec.url is upload://NAME",
        )
    })?;
    let phase = named.and_then(|named| Some(named.status?.phase));
    match phase {
        Some(ImagePhase::Pending | ImagePhase::Failed) | None => Ok(spec),
        Some(ImagePhase::Fetching | ImagePhase::Packing | ImagePhase::Ready) => Err(conflict(
            format!("image {name} has its file already, and hosts may have been promised it"),
            "add an image of another name, or remove this one first",
        )),
    }
}

/// Removed when it is not needed any more, also when the caller went away.
struct Temporary(std::path::PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(file = %self.0.display(), %error, "it stays until the next start");
            }
            _ => {}
        }
    }
}

/// Writes a body to a file, and checks that it is the right one.
async fn receive(
    images: &Images,
    body: Body,
    into: &FilePath,
    spec: &ImageSpec,
) -> Result<(), Problem> {
    let full = |error: std::io::Error| images.shelf.problem(into, &error);
    let mut file = File::create(into).await.map_err(full)?;
    let mut hasher = spec.digest.as_ref().map(|d| Hasher::new(d.algorithm()));
    let (mut parts, mut at, mut looked) = (body.into_data_stream(), 0_u64, 0);
    images.shelf.check_room(0)?;
    loop {
        let part = tokio::time::timeout(SILENCE, parts.next()).await;
        let Some(part) = part.map_err(|_| silent(at))? else {
            break;
        };
        let part = part.map_err(|error| cut_off(at, &error))?;
        if let Some(hasher) = &mut hasher {
            hasher.update(&part);
        }
        file.write_all(&part).await.map_err(full)?;
        at += part.len() as u64;
        if at >= looked + LOOK {
            images.shelf.check_room(0)?;
            looked = at;
        }
    }
    file.flush().await.map_err(full)?;
    file.sync_all().await.map_err(full)?;
    match (&spec.digest, hasher.map(Hasher::finish)) {
        (Some(wanted), Some(found)) if *wanted != found => Err(Problem::new(
            Code::ImageInvalid,
            format!("the file ({at} bytes) has the digest {found}, but {wanted} was demanded"),
            "nothing is kept of it; give the right file, or correct spec.digest",
        )),
        _ => Ok(()),
    }
}

fn silent(at: u64) -> Problem {
    let what = format!("nothing of the file came for {SILENCE:?} after byte {at}");
    Problem::new(
        Code::BodyTooSlow,
        what,
        "look at the network; give it again",
    )
}

fn cut_off(at: u64, error: &axum::Error) -> Problem {
    let what = format!("the file broke off at byte {at}: {error}");
    Problem::new(
        Code::RequestInvalid,
        what,
        "give it again; nothing is kept of it",
    )
}

//! Calls about the roll of a cluster's hosts to another image.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use ferrite_proto::address::Policy;
use ferrite_proto::image::ImageRef;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::rolling::{ClusterRoll, RollRequest, RollSpec};

use super::{Answer, ApiError, App, Body, catalog};
use crate::access::caller::actor;
use crate::rolling::ask::{self, Ask};

/// `GET /v1/clusters/{name}/roll`
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Answer<ClusterRoll> {
    Ok(Json(ask::of(&app.hosts, &name)?))
}

/// `POST /v1/clusters/{name}/roll`
pub(crate) async fn begin(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(request): Body<RollRequest>,
) -> Result<(StatusCode, Json<ClusterRoll>), ApiError> {
    let spec = RollSpec {
        image: image(&app, &request)?,
        image_name: request.image_name,
        max_unavailable: request.max_unavailable,
        canary: request.canary,
    };
    let begun = ask::begin(&app.hosts, &name, spec, &actor()).await?;
    Ok((StatusCode::CREATED, Json(begun)))
}

/// `POST /v1/clusters/{name}/roll/pause`
pub(crate) async fn pause(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Answer<ClusterRoll> {
    asked(&app, &name, Ask::Pause).await
}

/// `POST /v1/clusters/{name}/roll/resume`
pub(crate) async fn resume(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Answer<ClusterRoll> {
    asked(&app, &name, Ask::Resume).await
}

/// `POST /v1/clusters/{name}/roll/abort`
pub(crate) async fn abort(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Answer<ClusterRoll> {
    asked(&app, &name, Ask::Abort).await
}

async fn asked(app: &App, name: &str, what: Ask) -> Answer<ClusterRoll> {
    Ok(Json(ask::ask(&app.hosts, name, what, &actor()).await?))
}

/// The image, as itself or by its name.
fn image(app: &App, request: &RollRequest) -> Result<ImageRef, Problem> {
    let invalid = |what: String| Problem::new(Code::RequestInvalid, what, "correct the image");
    match (&request.image, &request.image_name) {
        (Some(image), None) => image
            .validate()
            .and_then(|()| image.check_address(Policy::Others))
            .map(|()| image.clone())
            .map_err(|error| invalid(format!("image: {error}"))),
        (None, Some(name)) => catalog::image_of(app, name),
        (Some(_), Some(_)) | (None, None) => Err(invalid(
            "one of image and image_name is needed, and not both".to_owned(),
        )),
    }
}

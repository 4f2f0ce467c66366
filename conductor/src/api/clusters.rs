//! The check of a cluster. What clusters are, they are as other resources: `resources.rs`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use ferrite_proto::cluster::ClusterReport;
use ferrite_proto::problem::{Code, Problem};
use serde::Deserialize;

use super::{Answer, ApiError, App, Query};

/// Characters of a version.
pub(crate) const LONGEST: usize = 63;

/// What is known beside the cluster.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CheckQuery {
    /// Of the image that hosts will run.
    kubelet_version: Option<String>,
}

/// `POST /v1/clusters/{name}/check`
pub(crate) async fn check(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<CheckQuery>,
) -> Answer<ClusterReport> {
    let kubelet = query.kubelet_version.as_deref();
    if kubelet.is_some_and(|version| version.chars().count() > LONGEST) {
        return Err(ApiError(Problem::new(
            Code::QueryInvalid,
            format!("kubelet_version has more than {LONGEST} characters"),
            "give it as `kubelet --version` prints it: v1.34.1",
        )));
    }
    Ok(Json(app.world.clusters.check(&name, kubelet).await?))
}

/// `GET /v1/clusters/{name}/check`
pub(crate) async fn last_check(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Answer<ClusterReport> {
    let report = app.world.clusters.report(&name).ok_or_else(|| {
        Problem::new(
            Code::NotFound,
            format!("this conductor has not checked a cluster {name:?} since it started"),
            format!("POST /v1/clusters/{name}/check checks it"),
        )
    })?;
    Ok(Json(report))
}

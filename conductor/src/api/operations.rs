//! Calls that begin, stop and approve operations beside a host's state.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use ferrite_proto::host::Host;
use ferrite_proto::operation::{Approve, Clean, Rescue, RescuePassword, Service};
use ferrite_proto::problem::Problem;
use ferrite_proto::secret::Secret;

use super::{Answer, ApiError, App, Body};
use crate::access::caller::actor;
use crate::crash::{self, Moment, Work};
use crate::crypt;
use crate::lifecycle::change::Change;
use crate::lifecycle::record::RescueSecret;
use crate::token;

/// Characters of a rescue's password: 144 bits.
const PASSWORD: usize = 24;

async fn changed(
    app: &App,
    name: &str,
    work: Work,
    change: impl FnMut(&mut Change) -> Result<(), Problem>,
) -> Result<Host, ApiError> {
    let actor = actor();
    let changed = app.hosts.update(name, &actor, change);
    let (stored, ()) = changed.await?;
    crash::point(work, Moment::After);
    Ok(app.hosts.shown(&stored))
}

/// `POST /v1/hosts/{name}/clean`
pub(crate) async fn clean(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(asked): Body<Clean>,
) -> Answer<Host> {
    let host = changed(&app, &name, Work::Clean, |change| change.clean(&asked));
    Ok(Json(host.await?))
}

/// `POST /v1/hosts/{name}/service`
pub(crate) async fn service(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(asked): Body<Service>,
) -> Answer<Host> {
    let host = changed(&app, &name, Work::Service, |change| change.service(&asked));
    Ok(Json(host.await?))
}

/// `POST /v1/hosts/{name}/rescue`: the password is in the answer, and nowhere else.
pub(crate) async fn rescue(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(asked): Body<Rescue>,
) -> Answer<RescuePassword> {
    let mut password = token::random().expose().clone();
    password.truncate(PASSWORD);
    let hash = crypt::sha512(&password, token::random().expose());
    let secret = RescueSecret {
        password_hash: Secret::new(hash),
        authorized_keys: asked.authorized_keys,
    };
    changed(&app, &name, Work::Rescue, |change| {
        change.rescue(secret.clone())
    })
    .await?;
    Ok(Json(RescuePassword {
        host: name,
        user: "root".to_owned(),
        password: Secret::new(password),
    }))
}

/// `POST /v1/hosts/{name}/unrescue`
pub(crate) async fn unrescue(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Answer<Host> {
    let host = changed(&app, &name, Work::Unrescue, Change::unrescue);
    Ok(Json(host.await?))
}

/// `POST /v1/hosts/{name}/abort`
pub(crate) async fn abort(State(app): State<Arc<App>>, Path(name): Path<String>) -> Answer<Host> {
    let host = changed(&app, &name, Work::Abort, Change::abort);
    Ok(Json(host.await?))
}

/// `POST /v1/hosts/{name}/approve`
pub(crate) async fn approve(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(asked): Body<Approve>,
) -> Answer<Host> {
    let host = changed(&app, &name, Work::Approve, |change| {
        change.approve(&asked.plan)
    });
    Ok(Json(host.await?))
}

//! The BMCs of a swarm: Redfish over plain HTTP, as much of it as the conductor uses. One listener
//! on all of 127.0.0.0/8, so that every BMC has an address of its own as in a rack.

use std::net::Ipv4Addr;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use super::Shared;
use super::machine::{Machine, Source};

/// Account of every BMC.
pub const USER: &str = "admin";
/// And its password.
pub const PASSWORD: &str = "swarm";

type All = State<Arc<Shared>>;

/// The BMC's own address within 127.0.0.0/8.
pub(super) fn address(number: u32) -> Ipv4Addr {
    let [_, a, b, c] = (number + 0x0001_0001).to_be_bytes();
    Ipv4Addr::new(127, a, b, c)
}

/// All BMCs.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/redfish/v1/", get(root))
        .route("/redfish/v1/SessionService/Sessions", post(log_in))
        .route("/redfish/v1/Systems/{number}", get(system).patch(configure))
        .route(
            "/redfish/v1/Systems/{number}/Actions/ComputerSystem.Reset",
            post(reset),
        )
        .route("/redfish/v1/Systems/{number}/VirtualMedia", get(drives))
        .route("/redfish/v1/Systems/{number}/VirtualMedia/Cd", get(drive))
        .route(
            "/redfish/v1/Systems/{number}/VirtualMedia/Cd/Actions/VirtualMedia.InsertMedia",
            post(insert),
        )
        .route(
            "/redfish/v1/Systems/{number}/VirtualMedia/Cd/Actions/VirtualMedia.EjectMedia",
            post(eject),
        )
        .with_state(shared)
}

async fn root() -> Json<Value> {
    Json(json!({
        "Systems": {"@odata.id": "/redfish/v1/Systems"},
        "SessionService": {"@odata.id": "/redfish/v1/SessionService"},
    }))
}

async fn log_in(Json(body): Json<Value>) -> Response {
    if body["UserName"] != USER || body["Password"] != PASSWORD {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let token = HeaderName::from_static("x-auth-token");
    let at = "/redfish/v1/SessionService/Sessions/1";
    let headers = [(token, "swarm-session"), (header::LOCATION, at)];
    (StatusCode::CREATED, headers, Json(json!({"Id": "1"}))).into_response()
}

/// The machine of a number, unless its BMC has a bad moment.
fn machine(shared: &Shared, number: &str) -> Result<Arc<Machine>, StatusCode> {
    let found = number
        .parse()
        .ok()
        .and_then(|number: usize| shared.machines.get(number));
    let machine = found.ok_or(StatusCode::NOT_FOUND)?;
    machine.count_bmc_request();
    if machine.happens(shared.settings.rates.bmc) {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    Ok(Arc::clone(machine))
}

async fn system(State(shared): All, Path(number): Path<String>) -> Response {
    match machine(&shared, &number) {
        Ok(machine) => Json(document(&machine)).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

fn document(machine: &Machine) -> Value {
    let path = format!("/redfish/v1/Systems/{}", machine.number);
    let once = machine.boots_once();
    let target = match once {
        Some(Source::Network) => "Pxe",
        Some(Source::Cd) => "Cd",
        None => "None",
    };
    json!({
        "@odata.id": path,
        "Id": machine.number.to_string(),
        "UUID": machine.uuid,
        "SerialNumber": machine.serial(),
        "Manufacturer": "Ferrite",
        "Model": "Swarm",
        "BiosVersion": "1.0",
        "PowerState": if machine.is_on() { "On" } else { "Off" },
        "Boot": {
            "BootSourceOverrideEnabled": if once.is_some() { "Once" } else { "Disabled" },
            "BootSourceOverrideTarget": target,
            "BootSourceOverrideMode": "UEFI",
            "BootSourceOverrideTarget@Redfish.AllowableValues": ["None", "Pxe", "Cd", "Hdd"],
        },
        "Actions": {"#ComputerSystem.Reset": {
            "target": format!("{path}/Actions/ComputerSystem.Reset"),
            "ResetType@Redfish.AllowableValues": ["On", "ForceOff", "ForceRestart"],
        }},
        "VirtualMedia": {"@odata.id": format!("{path}/VirtualMedia")},
        "Status": {"State": "Enabled", "Health": "OK"},
    })
}

async fn drives(State(shared): All, Path(number): Path<String>) -> Response {
    match machine(&shared, &number) {
        Ok(_) => {
            let drive = format!("/redfish/v1/Systems/{number}/VirtualMedia/Cd");
            Json(json!({"Members": [{"@odata.id": drive}]})).into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn drive(State(shared): All, Path(number): Path<String>) -> Response {
    let machine = match machine(&shared, &number) {
        Ok(machine) => machine,
        Err(refusal) => return refusal.into_response(),
    };
    let path = format!("/redfish/v1/Systems/{number}/VirtualMedia/Cd");
    let actions = format!("{path}/Actions/VirtualMedia");
    let medium = machine.medium();
    Json(json!({
        "@odata.id": path,
        "Id": "Cd",
        "MediaTypes": ["CD", "DVD"],
        "ConnectedVia": if medium.is_some() { "URI" } else { "NotConnected" },
        "Inserted": medium.is_some(),
        "Image": medium,
        "Actions": {
            "#VirtualMedia.InsertMedia": {"target": format!("{actions}.InsertMedia")},
            "#VirtualMedia.EjectMedia": {"target": format!("{actions}.EjectMedia")},
        },
    }))
    .into_response()
}

async fn insert(
    State(shared): All,
    Path(number): Path<String>,
    Json(body): Json<Value>,
) -> Response {
    let Some(image) = body["Image"].as_str() else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    load(&shared, &number, Some(image.to_owned()))
}

async fn eject(State(shared): All, Path(number): Path<String>) -> Response {
    load(&shared, &number, None)
}

fn load(shared: &Shared, number: &str, medium: Option<String>) -> Response {
    match machine(shared, number) {
        Ok(machine) => {
            machine.load(medium);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}

async fn configure(
    State(shared): All,
    Path(number): Path<String>,
    Json(body): Json<Value>,
) -> Response {
    let machine = match machine(&shared, &number) {
        Ok(machine) => machine,
        Err(refusal) => return refusal.into_response(),
    };
    let boot = &body["Boot"];
    match (
        boot["BootSourceOverrideEnabled"].as_str(),
        boot["BootSourceOverrideTarget"].as_str(),
    ) {
        (Some("Disabled"), _) | (_, Some("None")) => machine.boot_once(None),
        (_, Some("Pxe")) => machine.boot_once(Some(Source::Network)),
        (_, Some("Cd")) => machine.boot_once(Some(Source::Cd)),
        _ => return StatusCode::BAD_REQUEST.into_response(),
    }
    StatusCode::NO_CONTENT.into_response()
}

async fn reset(
    State(shared): All,
    Path(number): Path<String>,
    Json(body): Json<Value>,
) -> Response {
    let machine = match machine(&shared, &number) {
        Ok(machine) => machine,
        Err(refusal) => return refusal.into_response(),
    };
    match body["ResetType"].as_str() {
        Some("On") => machine.power_on(),
        Some("ForceOff") => machine.switch_off(),
        Some("ForceRestart") => machine.restart(),
        _ => return StatusCode::BAD_REQUEST.into_response(),
    }
    StatusCode::NO_CONTENT.into_response()
}

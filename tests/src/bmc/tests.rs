//! The virtual BMC over HTTP, with a double for the hardware: no QEMU, no namespace, no root.

use std::net::TcpListener;
use std::time::Instant;

use serde_json::json;

use super::*;
use crate::machine::BootDevice;

#[derive(Debug)]
struct Double {
    machine: Machine,
    state: Mutex<Panel>,
}

#[derive(Debug)]
struct Panel {
    power: Power,
    boot: BootOverride,
    media: Option<Vec<u8>>,
    done: Vec<&'static str>,
}

impl Double {
    fn note(&self, what: &'static str, power: Option<Power>) {
        let mut state = self.state.lock().unwrap();
        state.done.push(what);
        if let Some(power) = power {
            state.power = power;
        }
    }
}

impl Hardware for Arc<Double> {
    fn machine(&self) -> &Machine {
        &self.machine
    }
    fn power(&self) -> Power {
        self.state.lock().unwrap().power
    }
    fn power_on(&self) -> Result<()> {
        self.note("on", Some(Power::On));
        Ok(())
    }
    fn power_off(&self) -> Result<()> {
        self.note("off", Some(Power::Off));
        Ok(())
    }
    fn press_button(&self) -> Result<()> {
        self.note("button", None);
        Ok(())
    }
    fn reset(&self) -> Result<()> {
        self.note("reset", None);
        Ok(())
    }
    fn nmi(&self) -> Result<()> {
        self.note("nmi", None);
        Ok(())
    }
    fn boot_override(&self) -> BootOverride {
        self.state.lock().unwrap().boot
    }
    fn set_boot(&self, boot: BootOverride) -> Result<()> {
        self.state.lock().unwrap().boot = boot;
        Ok(())
    }
    fn insert_media(&self, path: &Path) -> Result<()> {
        self.state.lock().unwrap().media = Some(std::fs::read(path)?);
        Ok(())
    }
    fn eject_media(&self) -> Result<()> {
        self.state.lock().unwrap().media = None;
        Ok(())
    }
}

struct World {
    bmc: Arc<Bmc>,
    double: Arc<Double>,
    base: String,
    client: reqwest::Client,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let (power, boot) = (Power::Off, BootOverride::None);
        let state = Mutex::new(Panel {
            power,
            boot,
            media: None,
            done: Vec::new(),
        });
        let double = Arc::new(Double {
            machine: Machine::new(7),
            state,
        });
        let dir = tempfile::tempdir().unwrap();
        let bmc = Bmc::new(Arc::clone(&double), dir.path());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        bmc.serve(listener).unwrap();
        Self {
            bmc,
            double,
            base,
            client: crate::http_client().unwrap(),
            _dir: dir,
        }
    }

    async fn call(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let method = method.parse().unwrap();
        let request = self.client.request(method, format!("{}{path}", self.base));
        let request = request.basic_auth(USER, Some(PASSWORD));
        let request = if body.is_null() {
            request
        } else {
            request.json(&body)
        };
        let reply = request.send().await.unwrap();
        let status = reply.status().as_u16();
        (
            status,
            serde_json::from_str(&reply.text().await.unwrap()).unwrap_or(Value::Null),
        )
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.call("GET", path, Value::Null).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }
}

const SYSTEM: &str = "/redfish/v1/Systems/1";
const RESET: &str = "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset";
const CD: &str = "/redfish/v1/Managers/1/VirtualMedia/Cd";

#[tokio::test]
async fn every_link_leads_somewhere() {
    let world = World::new();
    let (mut todo, mut seen) = (vec!["/redfish/v1".to_owned()], Vec::new());
    while let Some(path) = todo.pop() {
        if seen.contains(&path) {
            continue;
        }
        let body = world.get(&path).await;
        assert_eq!(body["@odata.id"], path.as_str());
        collect_links(&body, &mut todo);
        seen.push(path);
    }
    for expected in [SYSTEM, CD, "/redfish/v1/Systems/1/EthernetInterfaces/1"] {
        assert!(
            seen.iter().any(|path| path == expected),
            "{expected} is not reachable"
        );
    }
}

fn collect_links(value: &Value, links: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            links.extend(
                map.get("@odata.id")
                    .and_then(Value::as_str)
                    .map(str::to_owned),
            );
            map.values().for_each(|value| collect_links(value, links));
        }
        Value::Array(items) => items.iter().for_each(|value| collect_links(value, links)),
        _ => (),
    }
}

#[tokio::test]
async fn wrong_credentials_learn_nothing_and_change_nothing() {
    let world = World::new();
    let url = format!("{}{RESET}", world.base);
    let request = world.client.post(&url).basic_auth(USER, Some("guess"));
    let reply = request
        .json(&json!({ "ResetType": "On" }))
        .send()
        .await
        .unwrap();
    assert_eq!(reply.status(), 401);
    let body: Value = reply.json().await.unwrap();
    assert!(
        body["error"]["@Message.ExtendedInfo"][0]["Message"].is_string(),
        "{body}"
    );
    assert_eq!(world.client.get(&url).send().await.unwrap().status(), 401);
    assert!(world.double.state.lock().unwrap().done.is_empty());
}

#[tokio::test]
async fn a_session_opens_works_and_ends() {
    let world = World::new();
    let sessions = format!("{}/redfish/v1/SessionService/Sessions", world.base);
    let credentials = json!({ "UserName": USER, "Password": PASSWORD });
    let reply = world
        .client
        .post(&sessions)
        .json(&credentials)
        .send()
        .await
        .unwrap();
    assert_eq!(reply.status(), 201);
    let token = reply.headers()["X-Auth-Token"].clone();
    let location = reply.headers()["Location"].to_str().unwrap().to_owned();
    let system = format!("{}{SYSTEM}", world.base);
    let with_token = || {
        world
            .client
            .get(&system)
            .header("X-Auth-Token", token.clone())
    };
    assert_eq!(with_token().send().await.unwrap().status(), 200);
    assert_eq!(world.call("DELETE", &location, Value::Null).await.0, 204);
    assert_eq!(with_token().send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn power_actions_reach_the_hardware() {
    let world = World::new();
    assert_eq!(world.get(SYSTEM).await["PowerState"], "Off");
    for (kind, status) in [
        ("ForceRestart", 409),
        ("On", 204),
        ("ForceRestart", 204),
        ("GracefulShutdown", 204),
        ("Nmi", 204),
        ("PowerCycle", 204),
        ("Explode", 400),
        ("ForceOff", 204),
    ] {
        let (answered, body) = world
            .call("POST", RESET, json!({ "ResetType": kind }))
            .await;
        assert_eq!(answered, status, "{kind}: {body}");
    }
    let done = world.double.state.lock().unwrap().done.join(" ");
    assert_eq!(done, "on reset button nmi off on off");
}

#[tokio::test]
async fn the_boot_override_is_kept_and_checked() {
    let world = World::new();
    let boot = |target: &str, enabled: &str, mode: &str| {
        json!({ "Boot": { "BootSourceOverrideTarget": target,
            "BootSourceOverrideEnabled": enabled, "BootSourceOverrideMode": mode } })
    };
    assert_eq!(
        world
            .call("PATCH", SYSTEM, boot("Pxe", "Once", "UEFI"))
            .await
            .0,
        204
    );
    assert_eq!(
        world.double.boot_override(),
        BootOverride::Once(BootDevice::Network)
    );
    assert_eq!(
        world.get(SYSTEM).await["Boot"]["BootSourceOverrideTarget"],
        "Pxe"
    );
    assert_eq!(
        world
            .call("PATCH", SYSTEM, boot("Floppy", "Once", "UEFI"))
            .await
            .0,
        400
    );
    assert_eq!(
        world
            .call("PATCH", SYSTEM, boot("Cd", "Once", "Legacy"))
            .await
            .0,
        400
    );
    assert_eq!(
        world
            .call("PATCH", SYSTEM, boot("Cd", "Continuous", "UEFI"))
            .await
            .0,
        204
    );
    assert_eq!(
        world.double.boot_override(),
        BootOverride::Always(BootDevice::Cd)
    );
    let stale = world.client.patch(format!("{}{SYSTEM}", world.base));
    let stale = stale
        .basic_auth(USER, Some(PASSWORD))
        .header("If-Match", "W/\"0\"");
    let stale = stale
        .json(&boot("Pxe", "Once", "UEFI"))
        .send()
        .await
        .unwrap();
    assert_eq!(stale.status(), 412);
    assert_eq!(
        world.double.boot_override(),
        BootOverride::Always(BootDevice::Cd)
    );
}

#[tokio::test]
async fn media_is_fetched_inserted_and_ejected() {
    let world = World::new();
    let (insert, eject) = (
        format!("{CD}/Actions/VirtualMedia.InsertMedia"),
        format!("{CD}/Actions/VirtualMedia.EjectMedia"),
    );
    let image = format!("{}/redfish", world.base); // any URL that answers without credentials
    let body = json!({ "Image": image });
    let (status, reply) = world.call("POST", &insert, body.clone()).await;
    assert_eq!(status, 204, "{reply}");
    let loaded = world.double.state.lock().unwrap().media.clone().unwrap();
    assert_eq!(loaded, br#"{"v1":"/redfish/v1/"}"#);
    assert_eq!(world.bmc.media_bytes(), loaded.len() as u64);
    assert_eq!(world.get(CD).await["Inserted"], true);
    assert_eq!(world.call("POST", &insert, body).await.0, 409);
    assert_eq!(world.call("POST", &eject, json!({})).await.0, 204);
    assert_eq!(world.get(CD).await["Inserted"], false);
    let missing = json!({ "Image": format!("{}/nothing.iso", world.base) });
    let (status, reply) = world.call("POST", &insert, missing).await;
    assert_eq!(status, 500);
    assert!(
        reply["error"]["message"]
            .as_str()
            .unwrap()
            .contains("nothing.iso"),
        "{reply}"
    );
    assert!(world.double.state.lock().unwrap().media.is_none());
}

#[tokio::test]
async fn faults_strike_as_asked() {
    let world = World::new();
    world
        .bmc
        .faults
        .add(Fault::new(SYSTEM, Effect::Status(503)).times(1));
    assert_eq!(world.call("GET", SYSTEM, Value::Null).await.0, 503);
    world.bmc.faults.add(Fault::power_lies());
    assert_eq!(world.get(SYSTEM).await["PowerState"], "On");
    world.bmc.faults.clear();
    assert_eq!(world.get(SYSTEM).await["PowerState"], "Off");

    world.bmc.faults.add(Fault::power_stuck());
    assert_eq!(
        world
            .call("POST", RESET, json!({ "ResetType": "On" }))
            .await
            .0,
        204
    );
    assert_eq!(world.double.power(), Power::Off);

    world.bmc.faults.add(
        Fault::new("*", Effect::Slow)
            .delay(Duration::from_millis(300))
            .times(1),
    );
    let start = Instant::now();
    world.get(SYSTEM).await;
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_dropped_a_stalled_and_an_unplugged_bmc_give_no_answer() {
    let world = World::new();
    let url = format!("{}/redfish/v1", world.base);
    world.bmc.faults.add(Fault::hangs_up().times(1));
    let dropped = world.client.get(&url).send().await;
    assert!(dropped.is_err(), "{dropped:?}");
    world.bmc.faults.add(Fault::no_answer().times(1));
    let stalled = world
        .client
        .get(&url)
        .timeout(Duration::from_millis(300))
        .send()
        .await;
    assert!(stalled.unwrap_err().is_timeout());
    assert_eq!(world.client.get(&url).send().await.unwrap().status(), 200);
    assert_eq!(
        world
            .bmc
            .requests()
            .iter()
            .map(|seen| seen.status)
            .collect::<Vec<_>>(),
        [0, 0, 200]
    );
    world.bmc.unplug();
    assert!(world.client.get(&url).send().await.is_err());
}

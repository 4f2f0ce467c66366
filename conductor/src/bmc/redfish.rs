//! A BMC that speaks Redfish: power, boot override, virtual media.
//!
//! Documents are read as loose JSON, because no two BMCs fill in the same fields; how they differ
//! stands in `quirks.rs`, and how they are talked to in `wire.rs`.

use ferrite_proto::host::{BmcSpec, Power};
use ferrite_proto::inventory::BootMode;
use ferrite_proto::secret::Secret;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::address::Address;
use super::wire::{Patience, Wire};
use super::{Bmc, BmcError, BmcFuture, BmcIdentity, BootDevice, PowerAction, media, quirks};

/// One system of a Redfish service.
#[derive(Debug)]
pub(super) struct Redfish {
    wire: Wire,
    address: Address,
    /// Path of the system, once it was found.
    system: OnceCell<String>,
}

impl Redfish {
    pub(super) fn new(
        client: reqwest::Client,
        address: Address,
        spec: &BmcSpec,
        password: &Secret<String>,
        patience: Patience,
    ) -> Self {
        Self {
            wire: Wire::new(client, &address.base, spec, password, patience),
            address,
            system: OnceCell::new(),
        }
    }

    async fn system_path(&self) -> Result<&str, BmcError> {
        let path = self.system.get_or_try_init(|| async {
            match &self.address.system {
                Some(path) => Ok(path.clone()),
                None => self.only_system().await,
            }
        });
        path.await.map(String::as_str)
    }

    /// The system of a BMC that has one. With several a person must say which.
    async fn only_system(&self) -> Result<String, BmcError> {
        let root = self.wire.root().await?;
        let systems = link(&root["Systems"]).unwrap_or("/redfish/v1/Systems");
        let members = members(&self.wire.get(systems).await?.body);
        match members.as_slice() {
            [only] => Ok(only.clone()),
            [] => Err(self.wire.protocol(systems, "it has no system")),
            several => Err(self.wire.protocol(
                systems,
                format!(
                    "it has several systems: put the path of one of these into the host's BMC \
                     address: {}",
                    several.join(", ")
                ),
            )),
        }
    }

    async fn system(&self) -> Result<Value, BmcError> {
        let path = self.system_path().await?;
        match self.wire.get(path).await {
            Ok(answer) => Ok(answer.body),
            // Not for a person alone: some BMCs answer so for a while after their own restart.
            Err(BmcError::Status { status: 404, .. }) => Err(self.wire.protocol(
                path,
                "there is no such system: check the path in the host's BMC address, or leave it \
                 out (HTTP 404)",
            )),
            Err(error) => Err(error),
        }
    }

    async fn read_power(&self) -> Result<Power, BmcError> {
        let system = self.system().await?;
        // On its way down is still on: "off" must mean that nothing runs any more.
        match system["PowerState"].as_str() {
            Some("Off") => Ok(Power::Off),
            Some("On" | "PoweringOn" | "PoweringOff" | "Paused") => Ok(Power::On),
            other => {
                let path = self.system_path().await?;
                let reason = format!("PowerState is {}", other.unwrap_or("not there"));
                Err(self.wire.protocol(path, reason))
            }
        }
    }

    async fn reset(&self, action: PowerAction) -> Result<(), BmcError> {
        let (wanted, goal): (&[&str], _) = match (action, self.read_power().await?) {
            (PowerAction::On, Power::On) | (PowerAction::ForceOff, Power::Off) => return Ok(()),
            // A machine that is off cannot be reset, and "on" is what a restart ends with.
            (PowerAction::On | PowerAction::ForceRestart, Power::Off) => {
                (&["On", "ForceOn", "PushPowerButton"], Some(Power::On))
            }
            (PowerAction::ForceOff, Power::On) => {
                (&["ForceOff", "PushPowerButton"], Some(Power::Off))
            }
            (PowerAction::ForceRestart, Power::On) => {
                (&["ForceRestart", "PowerCycle", "FullPowerCycle"], None)
            }
        };
        let system = self.system().await?;
        let reset = &system["Actions"]["#ComputerSystem.Reset"];
        let path = self.system_path().await?;
        let target = reset["target"].as_str().map_or_else(
            || format!("{path}/Actions/ComputerSystem.Reset"),
            str::to_owned,
        );
        let allowed = self.reset_types(reset).await?;
        let Some(kind) = quirks::first_allowed(wanted, &allowed) else {
            let reason = format!("it can do none of {wanted:?}, only {allowed:?}");
            return Err(self.wire.protocol(&target, reason));
        };
        match self.wire.post(&target, &json!({ "ResetType": kind })).await {
            Ok(_) => Ok(()),
            // Ironic: several answer 400 or 409 to what is so already.
            Err(
                error @ BmcError::Status {
                    status: 400 | 409, ..
                },
            ) => match (goal, self.read_power().await) {
                (Some(goal), Ok(power)) if power == goal => Ok(()),
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// What resets the BMC lists, in the action or in its `ActionInfo`; empty when it lists none.
    async fn reset_types(&self, reset: &Value) -> Result<Vec<String>, BmcError> {
        let listed = strings(&reset["ResetType@Redfish.AllowableValues"]);
        let Some(info) = reset["@Redfish.ActionInfo"].as_str() else {
            return Ok(listed);
        };
        if !listed.is_empty() {
            return Ok(listed);
        }
        let info = self.wire.get(info).await?.body;
        let parameters = info["Parameters"].as_array().into_iter().flatten();
        let of_type = |p: &&Value| p["Name"] == "ResetType";
        Ok(parameters
            .filter(of_type)
            .flat_map(|p| strings(&p["AllowableValues"]))
            .collect())
    }

    async fn override_boot(&self, device: BootDevice, mode: BootMode) -> Result<(), BmcError> {
        let system = self.system().await?;
        let boot = &system["Boot"];
        let allowed = strings(&boot["BootSourceOverrideTarget@Redfish.AllowableValues"]);
        let target = match device {
            BootDevice::Pxe => "Pxe",
            BootDevice::Cd => {
                quirks::cd_target(system["Manufacturer"].as_str().unwrap_or(""), &allowed)
            }
        };
        let mode = match mode {
            BootMode::Uefi => "UEFI",
            BootMode::Bios => "Legacy",
        };
        let bodies = quirks::boot_bodies(boot, target, mode);
        self.patch_boot(&system, &bodies).await
    }

    async fn reset_boot(&self) -> Result<(), BmcError> {
        let system = self.system().await?;
        if system["Boot"]["BootSourceOverrideEnabled"] == "Disabled" {
            return Ok(());
        }
        self.patch_boot(&system, &quirks::clear_boot_bodies()).await
    }

    /// Tries `bodies` in order on the system, then on its settings resource, where Nokia and
    /// Lenovo SE450 want them (Ironic).
    async fn patch_boot(&self, system: &Value, bodies: &[Value]) -> Result<(), BmcError> {
        let settings = link(&system["@Redfish.Settings"]["SettingsObject"]);
        let mut first_refusal = None;
        for path in [Some(self.system_path().await?), settings]
            .into_iter()
            .flatten()
        {
            for body in bodies {
                let Err(error) = self.wire.patch(path, body).await else {
                    return Ok(());
                };
                let may_do = matches!(&error, BmcError::Status { status, .. }
                    if quirks::another_form_may_do(*status) || *status == 404);
                if !may_do {
                    return Err(error);
                }
                first_refusal.get_or_insert(error);
            }
        }
        Err(first_refusal.expect("there is a body, so it was accepted or refused"))
    }

    /// CD slots of the system and of its manager: they lie at the manager up to 2021's schema and
    /// at the system since.
    async fn slots(&self) -> Result<Vec<media::Slot>, BmcError> {
        let system = self.system().await?;
        let mut collections: Vec<String> = Vec::new();
        collections.extend(link(&system["VirtualMedia"]).map(str::to_owned));
        for manager in self.managers(&system).await? {
            let manager = self.wire.get(&manager).await?.body;
            collections.extend(link(&manager["VirtualMedia"]).map(str::to_owned));
        }
        collections.dedup();
        let mut slots = Vec::new();
        for collection in collections {
            slots.extend(media::slots(&self.wire, &collection).await?);
        }
        Ok(slots)
    }

    /// Paths of the system's managers; the BMC's only one where the link is missing (HPE).
    async fn managers(&self, system: &Value) -> Result<Vec<String>, BmcError> {
        let linked = system["Links"]["ManagedBy"].as_array();
        let linked: Vec<String> = linked
            .into_iter()
            .flatten()
            .filter_map(|m| link(m).map(str::to_owned))
            .collect();
        if !linked.is_empty() {
            return Ok(linked);
        }
        let root = self.wire.root().await?;
        let Some(managers) = link(&root["Managers"]) else {
            return Ok(Vec::new());
        };
        Ok(members(&self.wire.get(managers).await?.body))
    }
}

impl Bmc for Redfish {
    fn identity(&self) -> BmcFuture<'_, BmcIdentity> {
        Box::pin(async {
            let system = self.system().await?;
            let text = |key: &str| {
                let text = system[key].as_str().map(str::trim);
                text.filter(|t| !t.is_empty()).map(str::to_owned)
            };
            Ok(BmcIdentity {
                uuid: text("UUID").map(|uuid| uuid.to_ascii_lowercase()),
                serial: text("SerialNumber"),
                vendor: text("Manufacturer"),
                model: text("Model"),
                firmware: text("BiosVersion"),
            })
        })
    }

    fn power(&self) -> BmcFuture<'_, Power> {
        Box::pin(self.read_power())
    }

    fn set_power(&self, action: PowerAction) -> BmcFuture<'_, ()> {
        Box::pin(self.reset(action))
    }

    fn set_boot_once(&self, device: BootDevice, mode: BootMode) -> BmcFuture<'_, ()> {
        Box::pin(self.override_boot(device, mode))
    }

    fn clear_boot_override(&self) -> BmcFuture<'_, ()> {
        Box::pin(self.reset_boot())
    }

    fn insert_media<'a>(&'a self, url: &'a str) -> BmcFuture<'a, ()> {
        Box::pin(async move { media::insert(&self.wire, &self.slots().await?, url).await })
    }

    fn eject_media(&self) -> BmcFuture<'_, ()> {
        Box::pin(async {
            for slot in self.slots().await? {
                media::eject(&self.wire, &slot).await?;
            }
            Ok(())
        })
    }
}

/// Where a link leads.
pub(super) fn link(value: &Value) -> Option<&str> {
    value["@odata.id"]
        .as_str()
        .filter(|path| path.starts_with('/'))
}

/// Where a collection's members are.
pub(super) fn members(collection: &Value) -> Vec<String> {
    let members = collection["Members"].as_array().into_iter().flatten();
    members.filter_map(|m| link(m).map(str::to_owned)).collect()
}

fn strings(value: &Value) -> Vec<String> {
    let strings = value.as_array().into_iter().flatten();
    strings
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bmc::clients;
    use crate::bmc::tests::{Mock, Rule};
    use ferrite_proto::problem::Code;
    use std::time::Duration;

    const TOKEN: &str = "secret-token-of-a-host";

    fn client(mock: &Mock, password: &str) -> Redfish {
        let spec = BmcSpec {
            address: mock.address(),
            username: "admin".into(),
            insecure_tls: false,
        };
        let patience = Patience {
            connect: Duration::from_millis(500),
            read: Duration::from_secs(5),
            pause: Duration::from_millis(5),
            tries: 3,
        };
        let address = Address::parse(&spec.address).unwrap();
        let password = Secret::new(password.to_owned());
        let client = clients::client(spec.insecure_tls, patience).unwrap();
        Redfish::new(client, address, &spec, &password, patience)
    }

    #[tokio::test]
    async fn the_only_system_is_found_with_one_login() {
        let mock = Mock::start().await;
        let bmc = client(&mock, "secret");
        let identity = bmc.identity().await.unwrap();
        assert_eq!(
            identity.uuid.as_deref(),
            Some("00000000-0000-4000-8000-00000000ab01")
        );
        assert_eq!(identity.serial.as_deref(), Some("lab-1"));
        assert_eq!(bmc.power().await.unwrap(), Power::Off);
        assert_eq!(mock.count("POST /redfish/v1/SessionService/Sessions"), 1);
    }

    #[tokio::test]
    async fn several_systems_are_named() {
        let mock = Mock::start().await;
        mock.set(
            "/redfish/v1/Systems/Members/1/@odata.id",
            &json!("/redfish/v1/Systems/2"),
        );
        let error = client(&mock, "secret")
            .power()
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("Systems/1, /redfish/v1/Systems/2"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_system_that_is_not_there_points_to_the_address() {
        let mock = Mock::start().await;
        let mut bmc = client(&mock, "secret");
        bmc.address.system = Some("/redfish/v1/Systems/9".into());
        let error = bmc.power().await.unwrap_err().to_string();
        assert!(
            error.contains("Systems/9") && error.contains("BMC address"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_wrong_password_is_tried_once_and_needs_a_person() {
        let mock = Mock::start().await;
        let problem = client(&mock, "wrong").power().await.unwrap_err().problem();
        assert_eq!(problem.code, Code::BmcCredentialsRefused);
        assert!(problem.message.contains(&mock.base()), "{problem}");
        assert!(problem.message.contains("no such account"), "{problem}");
        assert_eq!(mock.count("POST /redfish/v1/SessionService/Sessions"), 1);
        assert_eq!(mock.count("GET /redfish/v1/Systems"), 0);
    }

    #[tokio::test]
    async fn a_session_that_ended_is_renewed() {
        let mock = Mock::start().await;
        let bmc = client(&mock, "secret");
        bmc.power().await.unwrap();
        mock.forget_sessions();
        bmc.power().await.unwrap();
        assert_eq!(mock.count("POST /redfish/v1/SessionService/Sessions"), 2);
    }

    #[tokio::test]
    async fn without_sessions_the_password_goes_along() {
        let mock = Mock::start().await;
        mock.rule(Rule::new("POST /redfish/v1/SessionService/Sessions", 404).always());
        let bmc = client(&mock, "secret");
        assert_eq!(bmc.power().await.unwrap(), Power::Off);
        let problem = client(&mock, "wrong").power().await.unwrap_err().problem();
        assert_eq!(problem.code, Code::BmcCredentialsRefused);
    }

    #[tokio::test]
    async fn a_bmc_that_is_not_there_is_named() {
        let mock = Mock::start().await;
        let bmc = client(&mock, "secret");
        mock.stop().await;
        let problem = bmc.power().await.unwrap_err().problem();
        assert_eq!(problem.code, Code::BmcUnreachable);
        assert!(problem.message.contains(&mock.base()), "{problem}");
        assert!(problem.message.contains("refused"), "{problem}");
    }

    #[tokio::test]
    async fn reading_is_tried_again_and_an_action_that_failed_is_not() {
        let mock = Mock::start().await;
        mock.rule(Rule::new("GET /redfish/v1/Systems/1", 500).times(2));
        let bmc = client(&mock, "secret");
        bmc.power().await.unwrap();
        let reset = "POST /redfish/v1/Systems/1/Actions/ComputerSystem.Reset";
        mock.rule(Rule::new(reset, 500).says("Base.1.12.InternalError", "fan on fire"));
        let problem = bmc.set_power(PowerAction::On).await.unwrap_err().problem();
        assert!(
            problem.message.contains("HTTP 500: fan on fire"),
            "{problem}"
        );
        assert_eq!(mock.count(reset), 1);
        mock.rule(Rule::new(reset, 400).says("iLO.2.1.UnableToModifyDuringSystemPOST", "POST"));
        bmc.set_power(PowerAction::On).await.unwrap();
        assert_eq!(bmc.power().await.unwrap(), Power::On);
    }

    #[tokio::test]
    async fn power_is_set_and_not_toggled() {
        let mock = Mock::start().await;
        let bmc = client(&mock, "secret");
        bmc.set_power(PowerAction::ForceOff).await.unwrap();
        bmc.set_power(PowerAction::On).await.unwrap();
        bmc.set_power(PowerAction::On).await.unwrap();
        bmc.set_power(PowerAction::ForceRestart).await.unwrap();
        bmc.set_power(PowerAction::ForceOff).await.unwrap();
        assert_eq!(mock.resets(), ["On", "PowerCycle", "ForceOff"]);
    }

    #[tokio::test]
    async fn a_restart_of_a_machine_that_is_off_switches_it_on() {
        let mock = Mock::start().await;
        let bmc = client(&mock, "secret");
        bmc.set_power(PowerAction::ForceRestart).await.unwrap();
        assert_eq!(mock.resets(), ["On"]);
    }

    #[tokio::test]
    async fn a_boot_override_is_set_once_and_cleared() {
        let mock = Mock::start().await;
        let bmc = client(&mock, "secret");
        bmc.set_boot_once(BootDevice::Pxe, BootMode::Bios)
            .await
            .unwrap();
        let boot = mock.get("/redfish/v1/Systems/1/Boot");
        assert_eq!(boot["BootSourceOverrideTarget"], "Pxe");
        assert_eq!(boot["BootSourceOverrideEnabled"], "Once");
        assert_eq!(boot["BootSourceOverrideMode"], "Legacy");
        bmc.clear_boot_override().await.unwrap();
        let boot = mock.get("/redfish/v1/Systems/1/Boot");
        assert_eq!(boot["BootSourceOverrideEnabled"], "Disabled");
    }

    #[tokio::test]
    async fn a_mode_that_is_refused_is_left_out_and_an_etag_too() {
        let mock = Mock::start().await;
        let patch = "PATCH /redfish/v1/Systems/1";
        mock.rule(Rule::new(patch, 412).times(2));
        mock.rule(Rule::new(patch, 400).says("Base.1.0.PropertyNotWritable", "no mode"));
        let bmc = client(&mock, "secret");
        bmc.set_boot_once(BootDevice::Cd, BootMode::Uefi)
            .await
            .unwrap();
        let boot = mock.get("/redfish/v1/Systems/1/Boot");
        assert_eq!(boot["BootSourceOverrideTarget"], "Cd");
        assert_eq!(boot["BootSourceOverrideMode"], "UEFI", "as it was");
        let etags = mock.etags(patch);
        assert_eq!(etags[..3], ["W/\"1\"", "\"1\"", ""]);
    }

    #[tokio::test]
    async fn stale_media_is_ejected_and_a_missing_parameter_added() {
        let mock = Mock::start().await;
        mock.set(
            "/redfish/v1/Managers/1/VirtualMedia/Cd/Image",
            &json!("http://old/x.iso"),
        );
        let insert = "POST /redfish/v1/Managers/1/VirtualMedia/Cd/Actions/VirtualMedia.InsertMedia";
        let missing = (
            "Base.1.8.ActionParameterMissing",
            "TransferProtocolType is missing",
        );
        mock.rule(Rule::new(insert, 400).says(missing.0, missing.1));
        let bmc = client(&mock, "secret");
        let url = format!("http://10.77.0.1:7080/iso/{TOKEN}/ramdisk.iso");
        bmc.insert_media(&url).await.unwrap();
        assert_eq!(
            mock.get("/redfish/v1/Managers/1/VirtualMedia/Cd/Image"),
            json!(url)
        );
        let eject = "POST /redfish/v1/Managers/1/VirtualMedia/Cd/Actions/VirtualMedia.EjectMedia";
        assert_eq!(mock.count(eject), 1);
        assert_eq!(mock.bodies(insert)[1]["TransferProtocolType"], "HTTP");
        bmc.eject_media().await.unwrap();
        bmc.eject_media().await.unwrap();
        assert_eq!(mock.count(eject), 2);
    }

    #[tokio::test]
    async fn refused_media_is_explained_without_the_token() {
        let mock = Mock::start().await;
        let insert = "POST /redfish/v1/Managers/1/VirtualMedia/Cd/Actions/VirtualMedia.InsertMedia";
        let url = format!("http://10.77.0.1:7080/iso/{TOKEN}/ramdisk.iso");
        let said = format!("cannot fetch {url}");
        mock.rule(
            Rule::new(insert, 400)
                .says("Base.1.8.GeneralError", &said)
                .always(),
        );
        let error = client(&mock, "secret")
            .insert_media(&url)
            .await
            .unwrap_err();
        let problem = error.problem();
        assert_eq!(problem.code, Code::BmcMediaRefused);
        assert!(problem.message.contains("cannot fetch"), "{problem}");
        assert!(
            !format!("{error:?} {problem:?}").contains(TOKEN),
            "{problem}"
        );
    }

    #[tokio::test]
    async fn what_a_bmc_sends_is_bounded() {
        let mock = Mock::start().await;
        let long = "x".repeat(5 << 20);
        mock.set("/redfish/v1/Systems/1/Name", &json!(long));
        let problem = client(&mock, "secret").power().await.unwrap_err().problem();
        assert_eq!(problem.code, Code::BmcProtocol);
        assert!(problem.message.contains("4 MiB"), "{problem}");
    }
}

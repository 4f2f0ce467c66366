//! The Redfish documents of a virtual BMC. Pure: state in, JSON out.

use serde_json::{Value, json};

use super::{Bmc, mode};
use crate::machine::BootDevice;
use crate::vm::{BootOverride, Power};

pub(super) const RESET_TYPES: [&str; 6] = [
    "On",
    "ForceOff",
    "GracefulShutdown",
    "ForceRestart",
    "PowerCycle",
    "Nmi",
];
pub(super) const BOOT_TARGETS: [&str; 4] = ["None", "Pxe", "Cd", "Hdd"];

const ROOT: &str = "/redfish/v1";

/// The document at `path`, without a slash at its end.
pub(super) fn document(bmc: &Bmc, path: &str) -> Option<Value> {
    let rest = path.strip_prefix(ROOT)?;
    let mut parts = rest.split('/').skip(1);
    let place = [
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
    ];
    let mut document = match place {
        [None, ..] => service_root(),
        [Some("Systems"), None, ..] => collection("ComputerSystem", path, &["1"]),
        [Some("Systems"), Some("1"), None, ..] => system(bmc),
        [
            Some("Systems"),
            Some("1"),
            Some("EthernetInterfaces"),
            None,
            ..,
        ] => nics(bmc, path),
        [
            Some("Systems"),
            Some("1"),
            Some("EthernetInterfaces"),
            Some(nic),
            None,
        ] => nic_of(bmc, nic)?,
        [Some("Managers"), None, ..] => collection("Manager", path, &["1"]),
        [Some("Managers"), Some("1"), None, ..] => manager(),
        [Some("Managers"), Some("1"), Some("VirtualMedia"), None, ..] => {
            collection("VirtualMedia", path, &["Cd"])
        }
        [
            Some("Managers"),
            Some("1"),
            Some("VirtualMedia"),
            Some("Cd"),
            None,
        ] => media(bmc),
        [Some("Chassis"), None, ..] => collection("Chassis", path, &["1"]),
        [Some("Chassis"), Some("1"), None, ..] => chassis(bmc),
        [Some("SessionService"), None, ..] => session_service(),
        [Some("SessionService"), Some("Sessions"), None, ..] => sessions(bmc, path),
        _ => return None,
    };
    document["@odata.id"] = json!(path);
    Some(document)
}

fn service_root() -> Value {
    json!({
        "@odata.type": "#ServiceRoot.v1_9_0.ServiceRoot",
        "Id": "RootService",
        "Name": "Ferrite lab BMC",
        "RedfishVersion": "1.11.0",
        "Vendor": "Ferrite",
        "Product": "Lab BMC",
        "Systems": link("Systems"),
        "Managers": link("Managers"),
        "Chassis": link("Chassis"),
        "SessionService": link("SessionService"),
        "Links": { "Sessions": link("SessionService/Sessions") },
    })
}

fn system(bmc: &Bmc) -> Value {
    let machine = bmc.hardware.machine();
    let memory = f64::from(machine.memory_mib) / 1024.0;
    json!({
        "@odata.type": "#ComputerSystem.v1_13_0.ComputerSystem",
        "Id": "1",
        "Name": format!("Lab host {}", machine.number),
        "SystemType": "Physical",
        "Manufacturer": "Ferrite",
        "Model": "Lab Host",
        "SerialNumber": machine.serial(),
        "UUID": machine.uuid(),
        "PowerState": power(bmc.hardware.power()),
        "Status": { "State": "Enabled", "Health": "OK" },
        "ProcessorSummary": { "Count": 1, "LogicalProcessorCount": machine.cpus },
        "MemorySummary": { "TotalSystemMemoryGiB": memory },
        "Boot": boot(bmc),
        "EthernetInterfaces": link("Systems/1/EthernetInterfaces"),
        "Links": { "ManagedBy": [link("Managers/1")], "Chassis": [link("Chassis/1")] },
        "Actions": { "#ComputerSystem.Reset": {
            "target": format!("{ROOT}/Systems/1/Actions/ComputerSystem.Reset"),
            "ResetType@Redfish.AllowableValues": RESET_TYPES,
        } },
    })
}

fn boot(bmc: &Bmc) -> Value {
    let (enabled, device) = match bmc.hardware.boot_override() {
        BootOverride::None => ("Disabled", None),
        BootOverride::Once(device) => ("Once", Some(device)),
        BootOverride::Always(device) => ("Continuous", Some(device)),
    };
    let target = match device {
        None => "None",
        Some(BootDevice::Disk) => "Hdd",
        Some(BootDevice::Network) => "Pxe",
        Some(BootDevice::Cd) => "Cd",
    };
    let mode = mode(bmc.hardware.machine().firmware);
    json!({
        "BootSourceOverrideEnabled": enabled,
        "BootSourceOverrideEnabled@Redfish.AllowableValues": ["Disabled", "Once", "Continuous"],
        "BootSourceOverrideTarget": target,
        "BootSourceOverrideTarget@Redfish.AllowableValues": BOOT_TARGETS,
        "BootSourceOverrideMode": mode,
        "BootSourceOverrideMode@Redfish.AllowableValues": [mode],
    })
}

fn nics(bmc: &Bmc, path: &str) -> Value {
    let ids: Vec<_> = (1..=bmc.hardware.machine().nics)
        .map(|nic| nic.to_string())
        .collect();
    collection(
        "EthernetInterface",
        path,
        &ids.iter().map(String::as_str).collect::<Vec<_>>(),
    )
}

fn nic_of(bmc: &Bmc, id: &str) -> Option<Value> {
    let machine = bmc.hardware.machine();
    let index = id.parse::<u8>().ok()?.checked_sub(1)?;
    (index < machine.nics).then(|| {
        json!({
            "@odata.type": "#EthernetInterface.v1_6_0.EthernetInterface",
            "Id": id,
            "Name": format!("NIC {id}"),
            "MACAddress": machine.mac(index),
            "PermanentMACAddress": machine.mac(index),
            "Status": { "State": "Enabled", "Health": "OK" },
        })
    })
}

fn manager() -> Value {
    json!({
        "@odata.type": "#Manager.v1_11_0.Manager",
        "Id": "1",
        "Name": "Ferrite lab BMC",
        "ManagerType": "BMC",
        "FirmwareVersion": env!("CARGO_PKG_VERSION"),
        "Status": { "State": "Enabled", "Health": "OK" },
        "VirtualMedia": link("Managers/1/VirtualMedia"),
        "Links": { "ManagerForServers": [link("Systems/1")] },
    })
}

fn media(bmc: &Bmc) -> Value {
    let url = bmc.media_url();
    let name = url.as_deref().and_then(|url| url.rsplit('/').next());
    let actions = format!("{ROOT}/Managers/1/VirtualMedia/Cd/Actions/VirtualMedia");
    json!({
        "@odata.type": "#VirtualMedia.v1_4_0.VirtualMedia",
        "Id": "Cd",
        "Name": "Virtual CD",
        "MediaTypes": ["CD", "DVD"],
        "ConnectedVia": if url.is_some() { "URI" } else { "NotConnected" },
        "Inserted": url.is_some(),
        "Image": url,
        "ImageName": name,
        "WriteProtected": true,
        "Actions": {
            "#VirtualMedia.InsertMedia": { "target": format!("{actions}.InsertMedia") },
            "#VirtualMedia.EjectMedia": { "target": format!("{actions}.EjectMedia") },
        },
    })
}

fn chassis(bmc: &Bmc) -> Value {
    json!({
        "@odata.type": "#Chassis.v1_14_0.Chassis",
        "Id": "1",
        "Name": "Lab chassis",
        "ChassisType": "RackMount",
        "SerialNumber": format!("chassis-{}", bmc.hardware.machine().serial()),
        "PowerState": power(bmc.hardware.power()),
        "Status": { "State": "Enabled", "Health": "OK" },
        "Links": { "ComputerSystems": [link("Systems/1")], "ManagedBy": [link("Managers/1")] },
    })
}

fn session_service() -> Value {
    json!({
        "@odata.type": "#SessionService.v1_1_8.SessionService",
        "Id": "SessionService",
        "Name": "Session service",
        "ServiceEnabled": true,
        "SessionTimeout": 1800,
        "Sessions": link("SessionService/Sessions"),
    })
}

fn sessions(bmc: &Bmc, path: &str) -> Value {
    let ids: Vec<_> = bmc
        .lock()
        .sessions
        .iter()
        .map(|(id, _)| id.clone())
        .collect();
    collection(
        "Session",
        path,
        &ids.iter().map(String::as_str).collect::<Vec<_>>(),
    )
}

pub(super) fn session(id: &str) -> Value {
    json!({
        "@odata.id": format!("{ROOT}/SessionService/Sessions/{id}"),
        "@odata.type": "#Session.v1_3_0.Session",
        "Id": id,
        "Name": "Session",
        "UserName": super::USER,
    })
}

fn power(power: Power) -> &'static str {
    match power {
        Power::On => "On",
        Power::Off => "Off",
    }
}

fn collection(kind: &str, path: &str, ids: &[&str]) -> Value {
    let members: Vec<_> = ids
        .iter()
        .map(|id| json!({ "@odata.id": format!("{path}/{id}") }))
        .collect();
    json!({
        "@odata.type": format!("#{kind}Collection.{kind}Collection"),
        "Name": format!("{kind} collection"),
        "Members@odata.count": members.len(),
        "Members": members,
    })
}

fn link(path: &str) -> Value {
    json!({ "@odata.id": format!("{ROOT}/{path}") })
}

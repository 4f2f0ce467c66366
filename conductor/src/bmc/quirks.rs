//! What BMCs do differently: one small predicate or ladder for each defect, with its evidence.
//!
//! Nothing else in Ferrite asks for a vendor. Where it can be, a defect is met by what the BMC
//! answers and not by who made it: the same firmware is sold under many names. "Ironic" names the
//! experience of Ironic and sushy with that hardware.

use serde_json::{Map, Value, json};

use super::error::Said;

/// GETs that are worth asking again: any 5xx, and a BMC that says it is not ready.
/// Ironic: Dell answers `SYS518` for minutes after its restart, iLO 400 with
/// `InvalidOperationForSystemState`.
pub(super) fn passes_by_itself(status: u16, said: &Said) -> bool {
    status >= 500 || is_busy(status, said)
}

/// A refusal that says "nothing was done, come back". Ironic: HPE during POST
/// (`UnableToModifyDuringSystemPOST`), iLO (`InvalidOperationForSystemState`), iDRAC (`SYS518`),
/// iDRAC 10 on power-on right after power-off (409 `ActionParameterValueConflict`).
pub(super) fn is_busy(status: u16, said: &Said) -> bool {
    const IDS: [&str; 5] = [
        "UnableToModifyDuringSystemPOST",
        "InvalidOperationForSystemState",
        "SYS518",
        "ServiceTemporarilyUnavailable",
        "ResourceInStandby",
    ];
    let named = |id: &&str| said.ids.iter().any(|given| given.ends_with(*id));
    match status {
        503 => true,
        409 => named(&"ActionParameterValueConflict") || IDS.iter().any(named),
        400.. => IDS.iter().any(named),
        _ => false,
    }
}

/// `If-Match` values to try, in order, while the answer is 412. HPE makes weak tags of compressed
/// answers and compares them strongly; others send one and never accept any (Ironic: sushy's
/// ladder: as given, strong, none). An empty tag is none.
pub(super) fn etags_to_try(etag: Option<&str>) -> Vec<Option<String>> {
    let Some(etag) = etag.filter(|e| !e.is_empty()) else {
        return vec![None];
    };
    let mut tries = vec![Some(etag.to_owned())];
    tries.extend(etag.strip_prefix("W/").map(|s| Some(s.to_owned())));
    tries.push(None);
    tries
}

/// Why a task ended badly, if it did.
pub(super) fn task_failed(task: &Value) -> Option<String> {
    let state = task["TaskState"].as_str()?;
    let failed = matches!(state, "Exception" | "Killed" | "Cancelled" | "Interrupted");
    failed.then(|| {
        let message = task["Messages"][0]["Message"].as_str();
        format!(
            "the task ended as {state}: {}",
            message.unwrap_or("no message")
        )
    })
}

/// Whether a task is over, also when its monitor still answers 202.
pub(super) fn task_ended(task: &Value) -> bool {
    task["TaskState"].as_str() == Some("Completed")
}

/// The kind of reset to ask for, of those that are wanted, in order. A BMC that lists none is
/// asked for the first (the list came with Redfish 1.0.2 and is optional).
pub(super) fn first_allowed<'a>(wanted: &[&'a str], allowed: &[String]) -> Option<&'a str> {
    if allowed.is_empty() {
        return wanted.first().copied();
    }
    let listed = |w: &&&str| allowed.iter().any(|a| a == **w);
    wanted.iter().find(listed).copied()
}

/// The boot target of a virtual CD. Supermicro shows it as `UsbCd` and ignores `Cd` (Ironic;
/// all but ARS-111GL-NHR, which lists only `Cd`).
pub(super) fn cd_target(vendor: &str, allowed: &[String]) -> &'static str {
    let lists = |target: &str| allowed.iter().any(|a| a == target);
    let supermicro = vendor.to_ascii_lowercase().contains("supermicro");
    if lists("UsbCd") && (supermicro || !lists("Cd")) {
        "UsbCd"
    } else {
        "Cd"
    }
}

/// Bodies for a boot override, to try in order while they are refused with 4xx. Target, Enabled
/// and Mode together first: AMI, `ASRock` Rack and Supermicro want all three. HPE Gen9 and others
/// cannot set a mode; some refuse an `Enabled` that is set already (Ironic).
pub(super) fn boot_bodies(boot: &Value, target: &str, mode: &str) -> Vec<Value> {
    let full = json!({
        "BootSourceOverrideTarget": target,
        "BootSourceOverrideEnabled": "Once",
        "BootSourceOverrideMode": mode,
    });
    let short = json!({
        "BootSourceOverrideTarget": target,
        "BootSourceOverrideEnabled": "Once",
    });
    let mut bodies = vec![full, short];
    if boot.get("BootSourceOverrideMode").is_none() {
        bodies.remove(0);
    }
    if boot["BootSourceOverrideEnabled"] == "Once" {
        bodies.push(json!({ "BootSourceOverrideTarget": target }));
    }
    bodies.into_iter().map(|b| json!({ "Boot": b })).collect()
}

/// Bodies that clear a boot override, to try in order.
pub(super) fn clear_boot_bodies() -> [Value; 2] {
    [
        json!({ "Boot": { "BootSourceOverrideEnabled": "Disabled" } }),
        // Some take `Disabled` only beside a target.
        json!({ "Boot": {
            "BootSourceOverrideTarget": "None",
            "BootSourceOverrideEnabled": "Disabled",
        } }),
    ]
}

/// Whether another body is worth a try after this answer. 501 and 500 are here because AMI and
/// NVIDIA answer them for parameters that they miss.
pub(super) fn another_form_may_do(status: u16) -> bool {
    matches!(status, 400 | 405 | 409 | 412 | 415 | 422 | 500 | 501)
}

/// Whether a slot of a `VirtualMedia` collection can hold our ISO. Cisco UCS calls its CD a DVD.
pub(super) fn takes_cds(slot: &Value) -> bool {
    let kinds = slot["MediaTypes"].as_array();
    kinds.is_some_and(|k| k.iter().any(|k| k == "CD" || k == "DVD"))
}

/// Bodies for `InsertMedia`, to try in order while they are refused. The bare form first:
/// Supermicro X11 and X12 refuse `Inserted` and `WriteProtected`, which are the defaults anyway.
/// Then what some demand on top: `TransferProtocolType` (Cisco, NVIDIA), `TransferMethod` (AMI's
/// `GeneralError`), a user name and password even for none (NVIDIA DGX); at last the long form
/// (Ironic, all).
pub(super) fn insert_bodies(url: &str) -> Vec<Value> {
    let protocol = if url.starts_with("https:") {
        "HTTPS"
    } else {
        "HTTP"
    };
    let more = [
        vec![],
        vec![("TransferProtocolType", json!(protocol))],
        vec![("TransferMethod", json!("Stream"))],
        vec![("UserName", json!("none")), ("Password", json!("none"))],
        vec![("Inserted", json!(true)), ("WriteProtected", json!(true))],
    ];
    let mut body = Map::new();
    body.insert("Image".to_owned(), json!(url));
    let mut bodies = Vec::new();
    for fields in more {
        body.extend(fields.into_iter().map(|(k, v)| (k.to_owned(), v)));
        bodies.push(Value::Object(body.clone()));
    }
    bodies
}

/// The body that inserts by PATCH, for a slot without an `InsertMedia` action (Lenovo SD530).
pub(super) fn insert_patch(url: &str) -> Value {
    json!({ "Image": url, "Inserted": true, "WriteProtected": true })
}

/// The body that ejects by PATCH, for the same.
pub(super) fn eject_patch() -> Value {
    json!({ "Image": null, "Inserted": false })
}

/// Whether something is in a slot. iDRAC keeps `Image` of a medium that is gone, so both count:
/// ejecting an empty slot does less harm than inserting into a full one.
pub(super) fn is_loaded(slot: &Value) -> bool {
    slot["Inserted"] == true
        || slot["Image"]
            .as_str()
            .is_some_and(|image| !image.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(id: &str) -> Said {
        Said {
            ids: vec![id.to_owned()],
            message: String::new(),
        }
    }

    #[test]
    fn busy_is_what_says_so() {
        assert!(is_busy(
            400,
            &said("iLO.2.24.UnableToModifyDuringSystemPOST")
        ));
        assert!(is_busy(500, &said("IDRAC.2.8.SYS518")));
        assert!(is_busy(
            409,
            &said("Base.1.12.ActionParameterValueConflict")
        ));
        assert!(!is_busy(
            400,
            &said("Base.1.12.ActionParameterValueConflict")
        ));
        assert!(!is_busy(400, &said("Base.1.12.PropertyUnknown")));
    }

    #[test]
    fn etags_go_from_weak_to_none() {
        assert_eq!(
            etags_to_try(Some("W/\"a\"")),
            [Some("W/\"a\"".to_owned()), Some("\"a\"".to_owned()), None]
        );
        assert_eq!(etags_to_try(Some("")), [None]);
        assert_eq!(etags_to_try(None), [None]);
    }

    #[test]
    fn supermicros_cd_is_a_usb_cd() {
        let both = ["Cd".to_owned(), "UsbCd".to_owned()];
        assert_eq!(cd_target("Supermicro", &both), "UsbCd");
        assert_eq!(cd_target("HPE", &both), "Cd");
        assert_eq!(cd_target("Supermicro", &both[..1]), "Cd");
        assert_eq!(cd_target("", &both[1..]), "UsbCd");
        assert_eq!(cd_target("", &[]), "Cd");
    }

    #[test]
    fn a_restart_falls_back_to_a_power_cycle() {
        let wanted = ["ForceRestart", "PowerCycle"];
        assert_eq!(first_allowed(&wanted, &[]), Some("ForceRestart"));
        assert_eq!(
            first_allowed(&wanted, &["On".into(), "PowerCycle".into()]),
            Some("PowerCycle")
        );
        assert_eq!(first_allowed(&wanted, &["On".into()]), None);
    }

    #[test]
    fn a_mode_is_left_out_where_there_is_none() {
        let with = json!({ "BootSourceOverrideMode": "Legacy" });
        assert_eq!(boot_bodies(&with, "Pxe", "UEFI").len(), 2);
        let bodies = boot_bodies(&json!({}), "Pxe", "UEFI");
        assert_eq!(bodies.len(), 1);
        assert!(bodies[0]["Boot"].get("BootSourceOverrideMode").is_none());
    }

    #[test]
    fn insert_begins_bare_and_only_adds() {
        let bodies = insert_bodies("http://10.0.0.1/a.iso");
        assert_eq!(bodies[0], json!({ "Image": "http://10.0.0.1/a.iso" }));
        assert_eq!(bodies[1]["TransferProtocolType"], "HTTP");
        assert_eq!(bodies.last().unwrap()["WriteProtected"], true);
    }

    #[test]
    fn a_task_that_failed_says_why() {
        let task = json!({ "TaskState": "Exception", "Messages": [{ "Message": "no route" }] });
        assert!(task_failed(&task).unwrap().contains("no route"));
        assert_eq!(task_failed(&json!({ "TaskState": "Running" })), None);
    }
}

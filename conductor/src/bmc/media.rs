//! Virtual media over Redfish: finding a CD drive, filling it, emptying it.
//!
//! What is inserted is not fetched here, nor is it known whether the BMC can reach it until it
//! says so.

use reqwest::Url;
use serde_json::{Value, json};

use super::redfish::members;
use super::wire::Wire;
use super::{BmcError, quirks};

/// A CD drive that the BMC presents.
#[derive(Debug)]
pub(super) struct Slot {
    path: String,
    insert: Option<String>,
    eject: Option<String>,
    document: Value,
}

/// The drives of one collection that take CDs.
pub(super) async fn slots(wire: &Wire, collection: &str) -> Result<Vec<Slot>, BmcError> {
    let mut slots = Vec::new();
    for path in members(&wire.get(collection).await?.body) {
        let document = wire.get(&path).await?.body;
        let target = |action: &str| document["Actions"][action]["target"].as_str();
        if quirks::takes_cds(&document) {
            slots.push(Slot {
                insert: target("#VirtualMedia.InsertMedia").map(str::to_owned),
                eject: target("#VirtualMedia.EjectMedia").map(str::to_owned),
                path,
                document,
            });
        }
    }
    Ok(slots)
}

/// Puts the ISO at `url` into the first drive that takes it; every drive is emptied before, so
/// that an old ISO never boots.
pub(super) async fn insert(wire: &Wire, slots: &[Slot], url: &str) -> Result<(), BmcError> {
    for slot in slots {
        eject(wire, slot).await?;
    }
    let mut refusals = Vec::new();
    for slot in slots {
        match insert_into(wire, slot, url).await {
            Ok(()) => return Ok(()),
            // Cisco C845A and OpenBMC have drives that take nothing: the next one may.
            Err(error @ (BmcError::Status { .. } | BmcError::Media { .. })) => {
                refusals.push(error.to_string().replace(url, &without_token(url)));
            }
            Err(error) => return Err(error),
        }
    }
    if refusals.is_empty() {
        refusals.push("it has no virtual CD or DVD drive".to_owned());
    }
    Err(refused(wire, url, refusals.join("; ")))
}

async fn insert_into(wire: &Wire, slot: &Slot, url: &str) -> Result<(), BmcError> {
    let Some(action) = &slot.insert else {
        wire.patch(&slot.path, &quirks::insert_patch(url)).await?;
        return inserted(wire, slot, url).await;
    };
    let mut last = None;
    for body in quirks::insert_bodies(url) {
        match wire.post(action, &body).await {
            Ok(_) => return inserted(wire, slot, url).await,
            Err(BmcError::Status {
                status,
                said,
                bmc,
                path,
                method,
            }) if quirks::another_form_may_do(status) => {
                last = Some(BmcError::Status {
                    status,
                    said,
                    bmc,
                    path,
                    method,
                });
            }
            Err(error) => return Err(error),
        }
    }
    Err(last.expect("there is a body, so it was accepted or refused"))
}

/// Waits until the drive shows what was put into it: some accept and fail later.
async fn inserted(wire: &Wire, slot: &Slot, url: &str) -> Result<(), BmcError> {
    for _ in 0..wire.patience.tries.max(2) {
        if quirks::is_loaded(&wire.get(&slot.path).await?.body) {
            return Ok(());
        }
        tokio::time::sleep(wire.patience.pause).await;
    }
    let reason = format!("{} took it, but stays empty", slot.path);
    Err(refused(wire, url, reason))
}

/// Empties a drive. One that was empty when it was looked at is left alone.
pub(super) async fn eject(wire: &Wire, slot: &Slot) -> Result<(), BmcError> {
    if !quirks::is_loaded(&slot.document) {
        return Ok(());
    }
    let Some(action) = &slot.eject else {
        return wire
            .patch(&slot.path, &quirks::eject_patch())
            .await
            .map(drop);
    };
    let mut tried = 1;
    loop {
        // HPE demands a body, be it an empty one; nobody minds it.
        let Err(error) = wire.post(action, &json!({})).await else {
            return Ok(());
        };
        let document = wire.get(&slot.path).await?.body;
        if !quirks::is_loaded(&document) {
            return Ok(());
        }
        let passing = matches!(&error, BmcError::Status { status: 500.., .. });
        if !passing || tried >= wire.patience.tries {
            return Err(error);
        }
        tokio::time::sleep(wire.patience.pause).await;
        tried += 1;
    }
}

fn refused(wire: &Wire, url: &str, reason: String) -> BmcError {
    BmcError::Media {
        bmc: wire.bmc(),
        url: without_token(url),
        reason,
    }
}

/// The URL as it may be shown: the path carries a host's token.
fn without_token(url: &str) -> String {
    match Url::parse(url) {
        Ok(url) => format!("{}/…", url.origin().ascii_serialization()),
        Err(_) => "the ISO".to_owned(),
    }
}

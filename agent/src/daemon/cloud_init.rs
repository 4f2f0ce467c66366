//! What cloud-init says of itself: `/run/cloud-init/status.json` while it works, `result.json` when
//! it has finished (cloud-init 22.4 of Debian 12, and newer).

use ferrite_proto::agent_api::{CloudInit, CloudInitStage};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::root::Root;

/// Most errors that are passed on, and most characters of each.
const ERRORS: usize = 20;
const ERROR_CHARS: usize = 500;

/// Both files have this around their content.
#[derive(Deserialize)]
struct Version1 {
    v1: Value,
}

/// Reads both files.
pub(crate) fn read(root: &Root) -> CloudInit {
    let text = |name: &str| root.text(format!("/run/cloud-init/{name}.json")).ok();
    parse(text("status").as_deref(), text("result").as_deref())
}

fn parse(status: Option<&str>, result: Option<&str>) -> CloudInit {
    let inside = |text: &str| {
        serde_json::from_str::<Version1>(text)
            .ok()
            .map(|file| file.v1)
    };
    let status = status.and_then(inside);
    let Some(result) = result.and_then(inside) else {
        let running = status.is_some();
        return CloudInit {
            stage: if running {
                CloudInitStage::Running
            } else {
                CloudInitStage::Absent
            },
            datasource: status.as_ref().and_then(datasource),
            ..CloudInit::default()
        };
    };
    let errors = errors(&result);
    CloudInit {
        stage: if errors.is_empty() {
            CloudInitStage::Done
        } else {
            CloudInitStage::Failed
        },
        datasource: datasource(&result),
        errors,
        finished_at: status.as_ref().and_then(finished_at),
    }
}

fn datasource(file: &Value) -> Option<String> {
    let text = file.get("datasource")?.as_str()?;
    (!text.is_empty()).then(|| text.chars().take(ERROR_CHARS).collect())
}

fn errors(result: &Value) -> Vec<String> {
    let list = result.get("errors").and_then(Value::as_array);
    let texts = list.into_iter().flatten().map(|error| match error {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    });
    texts
        .take(ERRORS)
        .map(|text| text.chars().take(ERROR_CHARS).collect())
        .collect()
}

/// When the last stage ended, seconds since 1970 with a fraction.
fn finished_at(status: &Value) -> Option<Timestamp> {
    let seconds = status.get("modules-final")?.get("finished")?.as_f64()?;
    if !(0.0..4e9).contains(&seconds) {
        return None;
    }
    let since = jiff::SignedDuration::try_from_secs_f64(seconds).ok()?;
    Timestamp::from_duration(since).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = r#"{"v1": {"datasource": "DataSourceConfigDrive [source=/dev/vda16]",
        "init": {"errors": [], "finished": 1795000001.5, "start": 1795000000.25},
        "init-local": {"errors": [], "finished": 1795000000.0, "start": 1794999999.0},
        "modules-config": {"errors": [], "finished": 1795000002.0, "start": 1795000001.75},
        "modules-final": {"errors": [], "finished": 1795000003.5, "start": 1795000002.5},
        "stage": null}}"#;

    #[test]
    fn nothing_there_is_absent_and_a_status_alone_is_running() {
        assert_eq!(parse(None, None), CloudInit::default());
        let running = parse(
            Some(r#"{"v1": {"datasource": null, "stage": "init"}}"#),
            None,
        );
        assert_eq!(running.stage, CloudInitStage::Running);
        assert_eq!(running.datasource, None);
        assert_eq!(parse(Some("{torn"), None).stage, CloudInitStage::Absent);
    }

    #[test]
    fn a_result_without_errors_is_done() {
        let result = r#"{"v1": {"datasource": "DataSourceConfigDrive", "errors": []}}"#;
        let done = parse(Some(STATUS), Some(result));
        assert_eq!(done.stage, CloudInitStage::Done);
        assert_eq!(done.datasource.as_deref(), Some("DataSourceConfigDrive"));
        assert_eq!(
            done.finished_at.unwrap().as_millisecond(),
            1_795_000_003_500
        );
    }

    #[test]
    fn errors_make_it_failed_and_are_bounded() {
        let long = "x".repeat(9000);
        let many = vec![format!("('runcmd', {long})"); 50];
        let result = serde_json::json!({"v1": {"datasource": "d", "errors": many}}).to_string();
        let failed = parse(Some(STATUS), Some(&result));
        assert_eq!(failed.stage, CloudInitStage::Failed);
        assert_eq!(failed.errors.len(), ERRORS);
        assert_eq!(failed.errors[0].len(), ERROR_CHARS);
    }
}

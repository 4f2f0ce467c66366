//! Traces as a collector reads them.

use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;

use super::*;

/// A field of a protobuf message, as it stands on the wire.
#[derive(Debug, Clone)]
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

/// Reads a message: numbers of fields and what they hold. Enough of protobuf to be a second
/// opinion on the exporter's.
fn message(mut bytes: &[u8]) -> Vec<(u64, Field)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            1 => {
                let (fixed, rest) = bytes.split_at(8);
                bytes = rest;
                Field::Number(u64::from_le_bytes(fixed.try_into().unwrap()))
            }
            2 => {
                let length = usize::try_from(varint(&mut bytes)).unwrap();
                let (held, rest) = bytes.split_at(length);
                bytes = rest;
                Field::Bytes(held.to_vec())
            }
            5 => {
                let (fixed, rest) = bytes.split_at(4);
                bytes = rest;
                Field::Number(u32::from_le_bytes(fixed.try_into().unwrap()).into())
            }
            kind => panic!("no such wire type: {kind}"),
        };
        fields.push((key >> 3, field));
    }
    fields
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            break;
        }
    }
    value
}

fn all(fields: &[(u64, Field)], number: u64) -> Vec<Vec<u8>> {
    let of_number = fields.iter().filter(|(field, _)| *field == number);
    of_number
        .map(|(_, field)| match field {
            Field::Bytes(bytes) => bytes.clone(),
            Field::Number(value) => value.to_be_bytes().to_vec(),
        })
        .collect()
}

fn one(fields: &[(u64, Field)], number: u64) -> Vec<u8> {
    all(fields, number).into_iter().next().unwrap_or_default()
}

fn number(fields: &[(u64, Field)], wanted: u64) -> u64 {
    let found = one(fields, wanted);
    found.try_into().map_or(0, u64::from_be_bytes)
}

/// What a collector makes of a span (opentelemetry/proto/trace/v1/trace.proto).
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    trace: Vec<u8>,
    id: Vec<u8>,
    parent: Vec<u8>,
    name: String,
    from: u64,
    to: u64,
    about: Vec<(String, String)>,
    failed: Option<String>,
}

fn seen(span: &[u8]) -> Seen {
    let span = message(span);
    let about = all(&span, 9).into_iter().map(|pair| {
        let pair = message(&pair);
        let value = message(&one(&pair, 2));
        let key = String::from_utf8(one(&pair, 1)).unwrap();
        let text = match &value[0] {
            (1, Field::Bytes(text)) => String::from_utf8(text.clone()).unwrap(),
            (3, Field::Number(value)) => value.to_string(),
            other => panic!("{other:?}"),
        };
        (key, text)
    });
    let status = message(&one(&span, 15));
    let failed = number(&status, 3) == 2;
    Seen {
        trace: one(&span, 1),
        id: one(&span, 2),
        parent: one(&span, 4),
        name: String::from_utf8(one(&span, 5)).unwrap(),
        from: number(&span, 7),
        to: number(&span, 8),
        about: about.collect(),
        failed: failed.then(|| String::from_utf8(one(&status, 2)).unwrap()),
    }
}

#[derive(Debug, Default)]
struct Collector {
    refuse: Mutex<u32>,
    calls: Mutex<Vec<(String, Bytes)>>,
}

async fn collect(
    State(collector): State<Arc<Collector>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let mut refuse = collector.refuse.lock().unwrap();
    if *refuse > 0 {
        *refuse -= 1;
        return StatusCode::BAD_REQUEST;
    }
    let token = headers["authorization"].to_str().unwrap().to_owned();
    collector.calls.lock().unwrap().push((token, body));
    StatusCode::OK
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn nanos(at: Timestamp) -> u64 {
    u64::try_from(at.as_nanosecond()).unwrap()
}

fn stage(name: &str, from: i64, seconds: Option<f64>, bytes: Option<u64>) -> Stage {
    Stage {
        name: name.into(),
        started: at(from),
        seconds,
        bytes,
        detail: Some(format!("of {name}")),
    }
}

fn deployment() -> Run {
    Run {
        host: "rack-1".into(),
        kind: "deploy".into(),
        started: at(0),
        ended: Some(at(90)),
        outcome: Some("provisioned".into()),
        stages: vec![
            stage("firmware", 1, Some(40.5), None),
            stage("write-image", 42, Some(12.25), Some(2 << 30)),
            stage("netboot", 60, None, None),
        ],
    }
}

async fn collector() -> (Arc<Collector>, TracesConfig, tempfile::TempDir) {
    let collector = Arc::new(Collector::default());
    let router = axum::Router::new()
        .route("/v1/traces", post(collect))
        .with_state(Arc::clone(&collector));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let dir = tempfile::tempdir().unwrap();
    let headers_file = dir.path().join("headers");
    std::fs::write(&headers_file, "Authorization: Bearer collector\n").unwrap();
    let config = TracesConfig {
        endpoint,
        headers_file: Some(headers_file),
        ca_file: None,
    };
    (collector, config, dir)
}

/// What reaches the collector, decoded by other code than what encoded it, is the run.
#[tokio::test]
async fn a_collector_reads_the_stages_of_the_run() {
    let (collector, config, _dir) = collector().await;
    *collector.refuse.lock().unwrap() = 2;
    let exporter = Exporter::new(&config, Duration::from_millis(1)).unwrap();
    let (to, from) = mpsc::channel(QUEUE);
    to.send(deployment()).await.unwrap();
    drop(to);
    exporter.run(from, CancellationToken::new()).await;

    let calls = collector.calls.lock().unwrap().clone();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].0, "Bearer collector");
    let request = message(&calls[0].1);
    let of_resource = message(&one(&request, 1));
    let resource = String::from_utf8_lossy(&one(&of_resource, 1)).into_owned();
    assert!(resource.contains("service.name") && resource.contains("ferrite"));
    let of_scope = message(&one(&of_resource, 2));
    let spans: Vec<Seen> = all(&of_scope, 2).iter().map(|span| seen(span)).collect();
    let run = deployment();
    assert_eq!(spans.len(), 1 + run.stages.len());
    let root = &spans[0];
    assert_eq!((root.name.as_str(), &root.parent), ("deploy", &Vec::new()));
    assert_eq!((root.from, root.to), (nanos(at(0)), nanos(at(90))));
    assert_eq!((root.trace.len(), root.id.len()), (16, 8));
    assert!(
        root.about
            .contains(&("ferrite.outcome".into(), "provisioned".into()))
    );
    for (span, stage) in spans[1..].iter().zip(&run.stages) {
        assert_eq!((&span.trace, &span.parent), (&root.trace, &root.id));
        assert_eq!((&span.name, span.from), (&stage.name, nanos(stage.started)));
        assert!(
            span.about
                .contains(&("ferrite.host".into(), "rack-1".into()))
        );
        let detail = stage.detail.clone().unwrap();
        assert!(span.about.contains(&("ferrite.detail".into(), detail)));
    }
    assert_eq!(spans[1].to - spans[1].from, 40_500_000_000);
    assert_eq!(spans[2].to - spans[2].from, 12_250_000_000);
    let bytes = (2_u64 << 30).to_string();
    assert!(spans[2].about.contains(&("ferrite.bytes".into(), bytes)));
    let failed: Vec<_> = spans.iter().map(|span| span.failed.as_deref()).collect();
    assert_eq!(failed, [None, None, None, Some("of netboot")]);
    assert_eq!(spans[3].to, nanos(at(90)));
}

#[test]
fn the_same_run_is_the_same_trace_and_another_is_not() {
    let (one, again) = (spans(&deployment()), spans(&deployment()));
    assert_eq!(one, again);
    let mut ids: Vec<_> = one.iter().map(|span| span.span_context.span_id()).collect();
    ids.dedup();
    assert_eq!(ids.len(), 4);
    let mut other = deployment();
    other.started = at(1);
    let other = spans(&other)[0].span_context.trace_id();
    assert_ne!(one[0].span_context.trace_id(), other);
}

#[tokio::test]
async fn a_stop_sends_what_waits_and_waits_for_nobody() {
    let (collector, config, _dir) = collector().await;
    let exporter = Exporter::new(&config, Duration::from_mins(1)).unwrap();
    let (to, from) = mpsc::channel(QUEUE);
    let stop = CancellationToken::new();
    stop.cancel();
    to.send(deployment()).await.unwrap();
    let ran = exporter.run(from, stop);
    tokio::time::timeout(Duration::from_secs(5), ran)
        .await
        .unwrap();
    assert_eq!(collector.calls.lock().unwrap().len(), 1);
}

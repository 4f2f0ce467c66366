//! One trace for each run of a host, one span for each of its stages, sent to a collector over
//! OTLP (http/protobuf) once the run has ended.
//!
//! Spans are made from what is stored of a run, not from what this process happened to see: a run
//! that outlived three conductors is one trace, and sent twice it is the same trace.

use std::time::{Duration, SystemTime};

use ferrite_proto::host::{Run, Stage};
use jiff::Timestamp;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::config::{self, FileError, TracesConfig};

/// Runs that wait to be sent; more are dropped, and counted.
pub(super) const QUEUE: usize = 1024;
/// Runs of one call.
const BATCH: usize = 64;
/// How often a call that failed is made again.
const ATTEMPTS: u32 = 6;
/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TracesError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Anything else that was configured.
    #[error("traces cannot be sent: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Sends traces.
#[derive(Debug)]
pub(crate) struct Exporter {
    inner: opentelemetry_otlp::SpanExporter,
    first_pause: Duration,
}

impl Exporter {
    /// Reads headers and authorities.
    pub(crate) fn new(config: &TracesConfig, first_pause: Duration) -> Result<Self, TracesError> {
        let headers = match &config.headers_file {
            Some(path) => config::headers(path)?,
            None => Vec::new(),
        };
        let headers = headers
            .into_iter()
            .map(|(name, value)| (name, value.into_inner()))
            .collect();
        let mut inner = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(config::client(config.ca_file.as_deref(), PATIENCE)?)
            .with_endpoint(&config.endpoint)
            .with_headers(headers)
            .with_timeout(PATIENCE)
            .build()?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder_empty()
            .with_service_name("ferrite")
            .with_attribute(version)
            .build();
        inner.set_resource(&resource);
        Ok(Self { inner, first_pause })
    }

    /// Sends until it is told to stop; then what waits, once.
    pub(crate) async fn run(self, mut runs: mpsc::Receiver<Run>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut left = Vec::new();
        loop {
            let got = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                got = runs.recv_many(&mut batch, BATCH) => got,
            };
            if got == 0 {
                return;
            }
            let drawn: Vec<SpanData> = batch.drain(..).flat_map(|run| spans(&run)).collect();
            let ended = tokio::select! {
                () = self.send(&drawn) => true,
                () = stop.cancelled() => false,
            };
            if !ended {
                left = drawn;
                break;
            }
        }
        runs.close();
        while let Ok(run) = runs.try_recv() {
            left.extend(spans(&run));
        }
        if !left.is_empty()
            && let Err(error) = self.inner.export(left).await
        {
            tracing::warn!(%error, "the last traces were not taken");
        }
    }

    async fn send(&self, spans: &[SpanData]) {
        let mut pause = self.first_pause;
        for attempt in 1..=ATTEMPTS {
            match self.inner.export(spans.to_vec()).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(%error, attempt, "traces were not taken"),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        tracing::error!(
            spans = spans.len(),
            "traces are dropped: the collector does not answer"
        );
    }
}

/// A run as spans: its own, then one for each stage.
fn spans(run: &Run) -> Vec<SpanData> {
    let trace = Ids::of(run);
    let last = run.stages.iter().map(end).max();
    let ended = run.ended.or(last).unwrap_or(run.started);
    let mut about = vec![
        KeyValue::new("ferrite.host", run.host.clone()),
        KeyValue::new("ferrite.run", run.kind.clone()),
    ];
    if let Some(outcome) = &run.outcome {
        about.push(KeyValue::new("ferrite.outcome", outcome.clone()));
    }
    let root = Drawn {
        name: run.kind.clone(),
        from: run.started,
        to: ended,
        about,
        status: Status::Unset,
    };
    let mut all = vec![root.data(&trace, 0)];
    for (number, stage) in (1..).zip(&run.stages) {
        all.push(drawn(stage, run, ended).data(&trace, number));
    }
    all
}

fn drawn(stage: &Stage, run: &Run, ended: Timestamp) -> Drawn {
    let mut about = vec![KeyValue::new("ferrite.host", run.host.clone())];
    if let Some(bytes) = stage.bytes {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        about.push(KeyValue::new("ferrite.bytes", bytes));
    }
    if let Some(detail) = &stage.detail {
        about.push(KeyValue::new("ferrite.detail", detail.clone()));
    }
    // A stage without an end came to nothing, and says why.
    let status = match (stage.seconds, &stage.detail) {
        (Some(_), _) => Status::Unset,
        (None, detail) => Status::error(detail.clone().unwrap_or_else(|| "did not end".into())),
    };
    Drawn {
        name: stage.name.clone(),
        from: stage.started,
        to: stage.seconds.map_or(ended, |_| end(stage)),
        about,
        status,
    }
}

fn end(stage: &Stage) -> Timestamp {
    let seconds = stage.seconds.filter(|seconds| seconds.is_finite());
    let took = jiff::SignedDuration::try_from_secs_f64(seconds.unwrap_or(0.0));
    let ended = took
        .ok()
        .and_then(|took| stage.started.checked_add(took).ok());
    ended.unwrap_or(stage.started)
}

/// A span, before it has its numbers.
struct Drawn {
    name: String,
    from: Timestamp,
    to: Timestamp,
    about: Vec<KeyValue>,
    status: Status,
}

impl Drawn {
    fn data(self, ids: &Ids, number: u32) -> SpanData {
        let span = ids.span(number);
        let sampled = TraceFlags::SAMPLED;
        let parent = if number == 0 {
            SpanId::INVALID
        } else {
            ids.span(0)
        };
        SpanData {
            span_context: SpanContext::new(ids.trace, span, sampled, false, TraceState::NONE),
            parent_span_id: parent,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: self.name.into(),
            start_time: SystemTime::from(self.from),
            end_time: SystemTime::from(self.to.max(self.from)),
            attributes: self.about,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: self.status,
            instrumentation_scope: InstrumentationScope::builder("ferrite").build(),
        }
    }
}

/// Numbers that follow from the run.
struct Ids {
    trace: TraceId,
    seed: [u8; 32],
}

impl Ids {
    fn of(run: &Run) -> Self {
        let text = format!("{}|{}|{}", run.host, run.kind, run.started);
        let seed: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        let mut trace = [0; 16];
        trace.copy_from_slice(&seed[..16]);
        Self {
            trace: TraceId::from_bytes(trace),
            seed,
        }
    }

    fn span(&self, number: u32) -> SpanId {
        let mut hash = Sha256::new();
        hash.update(self.seed);
        hash.update(number.to_be_bytes());
        let digest: [u8; 32] = hash.finalize().into();
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        SpanId::from_bytes(id)
    }
}

#[cfg(test)]
mod tests;

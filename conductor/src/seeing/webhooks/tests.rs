//! Webhooks against a receiver that behaves as it is told.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;

use super::*;

const KEY: &str = "a key of this very test";

/// A log and cursors that outlive a webhook's task.
#[derive(Debug, Default)]
struct Memory {
    lines: Mutex<Vec<Line>>,
    cursor: Mutex<Option<Held>>,
    shared: AtomicBool,
}

impl Outbox for Memory {
    fn after(&self, place: u64, limit: u32) -> Kept<'_, Vec<Line>> {
        let lines = self.lines.lock().unwrap();
        let after = lines.iter().filter(|line| line.id > place);
        let after = after.take(limit as usize).cloned().collect();
        Box::pin(async { Ok(after) })
    }
    fn end(&self) -> Kept<'_, u64> {
        let end = self.lines.lock().unwrap().last().map_or(0, |line| line.id);
        Box::pin(async move { Ok(end) })
    }
    fn cursor<'a>(&'a self, _: &'a str) -> Kept<'a, Option<Held>> {
        let cursor = self.cursor.lock().unwrap().clone();
        Box::pin(async { Ok(cursor) })
    }
    fn keep<'a>(&'a self, _: &'a str, held: &'a Held) -> Kept<'a, Option<u64>> {
        let mut kept = self.cursor.lock().unwrap();
        let known = kept.as_ref().and_then(|kept| kept.revision);
        let mut revision = None;
        if known == held.revision {
            revision = Some(known.unwrap_or_default() + 1);
            let cursor = held.cursor.clone();
            *kept = Some(Held { cursor, revision });
        }
        Box::pin(async move { Ok(revision) })
    }
    fn is_shared(&self) -> bool {
        self.shared.load(Ordering::Relaxed)
    }
}

impl Memory {
    /// The cursor that a webhook has kept.
    fn kept(&self) -> Cursor {
        self.cursor.lock().unwrap().clone().unwrap().cursor
    }

    fn add(&self, count: u64, kind: &str) {
        let mut lines = self.lines.lock().unwrap();
        for _ in 0..count {
            let id = lines.len() as u64 + 1;
            lines.push(Line {
                id,
                host: "n".into(),
                kind: kind.into(),
                at: Timestamp::UNIX_EPOCH,
                text: format!("event {id}"),
            });
        }
    }
}

/// Answers with `status`, `refusals` times, then 204; keeps what it took.
#[derive(Debug, Default)]
struct Receiver {
    status: AtomicU16,
    refusals: AtomicUsize,
    taken: Mutex<Vec<u64>>,
    calls: AtomicUsize,
}

async fn receive(
    State(receiver): State<Arc<Receiver>>,
    headers: HeaderMap,
    body: String,
) -> StatusCode {
    receiver.calls.fetch_add(1, Ordering::Relaxed);
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    let time: i64 = text("webhook-timestamp").parse().unwrap();
    let wanted = sign(KEY.as_bytes(), &text("webhook-id"), time, &body);
    assert_eq!(text("webhook-signature"), wanted);
    let refuse = receiver
        .refusals
        .try_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        });
    if refuse.is_ok() {
        return StatusCode::from_u16(receiver.status.load(Ordering::Relaxed)).unwrap();
    }
    let event: serde_json::Value = serde_json::from_str(&body).unwrap();
    let id = event["data"]["id"].as_u64().unwrap();
    assert_eq!(text("webhook-id"), format!("evt_{id}"));
    receiver.taken.lock().unwrap().push(id);
    StatusCode::NO_CONTENT
}

struct World {
    memory: Arc<Memory>,
    receiver: Arc<Receiver>,
    seeing: Arc<Seeing>,
    config: WebhookConfig,
    news: watch::Sender<u64>,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let receiver = Arc::new(Receiver::default());
        let router = axum::Router::new()
            .route("/hook", post(receive))
            .with_state(Arc::clone(&receiver));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let dir = tempfile::tempdir().unwrap();
        let secret_file = dir.path().join("key");
        std::fs::write(&secret_file, KEY).unwrap();
        Self {
            memory: Arc::default(),
            receiver,
            seeing: Arc::default(),
            config: WebhookConfig {
                name: "ops".into(),
                url: format!("http://{at}/hook"),
                secret_file,
                kinds: Vec::new(),
                ca_file: None,
            },
            news: watch::Sender::new(0),
            _dir: dir,
        }
    }

    fn start(&self) -> (CancellationToken, tokio::task::JoinHandle<()>) {
        let backoff = Backoff {
            first: Duration::from_millis(5),
            longest: Duration::from_millis(20),
        };
        let outbox: Arc<dyn Outbox> = Arc::<Memory>::clone(&self.memory);
        let seeing = Arc::clone(&self.seeing);
        let mut webhook = Webhook::new(self.config.clone(), backoff, outbox, seeing).unwrap();
        webhook.lease = Lease {
            holds: Duration::from_millis(300),
            renewal: Duration::from_millis(50),
            look: Duration::from_millis(20),
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn(webhook.run(self.news.subscribe(), stop.clone()));
        (stop, task)
    }

    async fn until(&self, what: &str, is: impl Fn(&[u64]) -> bool) {
        for _ in 0..1000 {
            if is(&self.receiver.taken.lock().unwrap()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let taken = self.receiver.taken.lock().unwrap();
        panic!("never {what}: {taken:?}");
    }
}

#[test]
fn a_signature_is_the_one_that_standard_webhooks_show() {
    // The example of the specification's own libraries.
    let key = BASE64_STANDARD
        .decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        .unwrap();
    let signed = sign(
        &key,
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1_614_265_330,
        "{\"test\": 2432232314}",
    );
    assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
}

#[test]
fn pauses_grow_to_a_bound_and_differ() {
    let backoff = Backoff::default();
    let pauses: Vec<_> = (0..12).map(|n| backoff.pause(n, 1.0).as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    assert_eq!(backoff.pause(3, 0.0), Duration::from_secs(4));
    assert_eq!(backoff.pause(u32::MAX, 1.0), Duration::from_mins(5));
}

#[tokio::test]
async fn a_webhook_that_is_new_is_told_what_is_new_and_nothing_twice() {
    let world = World::new().await;
    world.memory.add(5, "state");
    let (stop, task) = world.start();
    for _ in 0..1000 {
        if world.memory.cursor.lock().unwrap().is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.memory.add(450, "state");
    world.news.send_replace(1);
    world.until("all", |taken| taken.len() >= 450).await;
    // What was taken is noted when the answer is there, and a stop may come in between.
    world
        .until("noted", |_| world.memory.kept().after == 455)
        .await;
    stop.cancel();
    task.await.unwrap();
    let wanted: Vec<u64> = (6..=455).collect();
    assert_eq!(*world.receiver.taken.lock().unwrap(), wanted);
    assert_eq!(world.memory.kept().after, 455);
}

/// Refused, killed, started again: everything arrives, first arrivals in order.
#[tokio::test]
async fn nothing_is_lost_by_refusals_and_kills() {
    let world = World::new().await;
    world.receiver.status.store(500, Ordering::Relaxed);
    let (stop, task) = world.start();
    tokio::time::sleep(Duration::from_millis(50)).await;
    stop.cancel();
    task.await.unwrap();
    world.memory.add(300, "state");
    for round in 0..6 {
        world.receiver.refusals.store(3, Ordering::Relaxed);
        world.news.send_replace(round);
        let (_stop, killed) = world.start();
        tokio::time::sleep(Duration::from_millis(25)).await;
        // Without a word, at any instruction.
        killed.abort();
    }
    assert!(
        !world.receiver.taken.lock().unwrap().contains(&300),
        "nobody was killed"
    );
    let (stop, task) = world.start();
    world.until("all", |taken| taken.contains(&300)).await;
    stop.cancel();
    task.await.unwrap();
    let taken = world.receiver.taken.lock().unwrap();
    let missing: Vec<u64> = (1..=300).filter(|id| !taken.contains(id)).collect();
    assert!(missing.is_empty(), "lost: {missing:?}");
}

#[tokio::test]
async fn a_refusal_holds_what_comes_after_it() {
    let world = World::new().await;
    world.receiver.status.store(503, Ordering::Relaxed);
    let (stop, task) = world.start();
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.receiver.refusals.store(7, Ordering::Relaxed);
    world.memory.add(20, "state");
    world.news.send_replace(1);
    world.until("all", |taken| taken.len() >= 20).await;
    stop.cancel();
    task.await.unwrap();
    let wanted: Vec<u64> = (1..=20).collect();
    assert_eq!(*world.receiver.taken.lock().unwrap(), wanted);
    assert_eq!(world.receiver.calls.load(Ordering::Relaxed), 27);
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_left_alone_until_it_moves() {
    let mut world = World::new().await;
    world.config.kinds = vec!["error".into()];
    world.receiver.status.store(410, Ordering::Relaxed);
    world.receiver.refusals.store(1, Ordering::Relaxed);
    let (stop, task) = world.start();
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.memory.add(3, "state");
    world.memory.add(3, "error");
    world.news.send_replace(1);
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        world.news.send_modify(|news| *news += 1);
    }
    stop.cancel();
    task.await.unwrap();
    assert_eq!(world.receiver.calls.load(Ordering::Relaxed), 1);
    assert!(world.memory.kept().gone);
    world.config.url += "?moved";
    let (stop, task) = world.start();
    world.until("the errors", |taken| taken == [4, 5, 6]).await;
    stop.cancel();
    task.await.unwrap();
}

/// A receiver that takes the connection and says nothing is given up after its time; stopping
/// does not wait for it.
#[tokio::test]
async fn a_stuck_receiver_is_waited_for_by_nobody() {
    let mut world = World::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.config.url = format!("http://{}/", listener.local_addr().unwrap());
    let (stop, task) = world.start();
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.memory.add(1, "state");
    world.news.send_replace(1);
    let (_held, _) = listener.accept().await.unwrap();
    stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(2), task).await;
    ended.expect("it waits for the receiver").unwrap();
}

/// Two replicas: the first renews while it is refused; when it is killed the second goes on.
#[tokio::test]
async fn of_two_replicas_one_delivers_and_the_other_takes_over() {
    let world = World::new().await;
    world.memory.shared.store(true, Ordering::Relaxed);
    world.receiver.status.store(503, Ordering::Relaxed);
    let (_, first) = world.start();
    tokio::time::sleep(Duration::from_millis(50)).await;
    // Refused for longer than a lease holds: renewed all the while.
    world.receiver.refusals.store(usize::MAX, Ordering::Relaxed);
    world.memory.add(300, "state");
    world.news.send_replace(1);
    while world.receiver.calls.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let held_by = world.memory.kept().owner;
    let (stop, second) = world.start();
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(
        world.memory.kept().owner,
        held_by,
        "taken from one that renews"
    );
    assert!(world.memory.kept().beat > 5, "not renewed");
    world.receiver.refusals.store(0, Ordering::Relaxed);
    world.until("all", |taken| taken.len() >= 300).await;
    let all: Vec<u64> = (1..=300).collect();
    assert_eq!(*world.receiver.taken.lock().unwrap(), all, "told twice");
    first.abort();
    world.memory.add(100, "state");
    world.news.send_replace(2);
    world.until("the rest", |taken| taken.contains(&400)).await;
    stop.cancel();
    second.await.unwrap();
    let taken = world.receiver.taken.lock().unwrap();
    let missing: Vec<u64> = (1..=400).filter(|id| !taken.contains(id)).collect();
    assert!(missing.is_empty(), "lost: {missing:?}");
    assert_ne!(world.memory.kept().owner, held_by);
}

//! systemd: it is told when the conductor serves and when it stops, and now and then that it is
//! alive. Without it (`NOTIFY_SOCKET` is not set) nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

/// Tells the manager. That it cannot be told is no reason not to serve.
pub(crate) fn tell(news: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(news) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Gives a sign of life, twice in the time that the manager waits for one. It comes from the
/// runtime that serves calls: when that hangs, it does not come.
pub(crate) async fn watch() {
    if let Some(limit) = sd_notify::watchdog_enabled() {
        signs_of_life(limit).await;
    }
}

async fn signs_of_life(limit: Duration) {
    let mut turn = tokio::time::interval(limit / 2);
    loop {
        turn.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

//! A BMC whose calls are timed and logged.

use std::sync::Arc;
use std::time::Instant;

use ferrite_proto::host::Power;
use ferrite_proto::inventory::BootMode;
use tracing::Instrument;

use super::Seeing;
use crate::bmc::{Bmc, BmcFuture, BmcIdentity, BootDevice, PowerAction};

/// `inner`, with a clock beside it.
#[derive(Debug)]
pub(crate) struct Measured {
    inner: Box<dyn Bmc>,
    seeing: Arc<Seeing>,
}

impl Measured {
    /// Of this BMC.
    pub(crate) fn of(inner: Box<dyn Bmc>, seeing: Arc<Seeing>) -> Box<dyn Bmc> {
        Box::new(Self { inner, seeing })
    }

    fn timed<'a, T: Send + 'a>(
        &'a self,
        call: &'static str,
        asked: BmcFuture<'a, T>,
    ) -> BmcFuture<'a, T> {
        let span = tracing::info_span!("bmc", call);
        let timed = async move {
            let started = Instant::now();
            let answer = asked.await;
            let took = started.elapsed();
            let outcome = match &answer {
                Ok(_) => "ok",
                Err(error) => error.problem().code.as_str(),
            };
            tracing::debug!(outcome, ?took, "asked the BMC");
            self.seeing.metrics.bmc_call(call, outcome, took);
            answer
        };
        Box::pin(timed.instrument(span))
    }
}

impl Bmc for Measured {
    fn identity(&self) -> BmcFuture<'_, BmcIdentity> {
        self.timed("identity", self.inner.identity())
    }

    fn power(&self) -> BmcFuture<'_, Power> {
        self.timed("power", self.inner.power())
    }

    fn set_power(&self, action: PowerAction) -> BmcFuture<'_, ()> {
        self.timed("set-power", self.inner.set_power(action))
    }

    fn set_boot_once(&self, device: BootDevice, mode: BootMode) -> BmcFuture<'_, ()> {
        self.timed("set-boot-once", self.inner.set_boot_once(device, mode))
    }

    fn clear_boot_override(&self) -> BmcFuture<'_, ()> {
        self.timed("clear-boot-override", self.inner.clear_boot_override())
    }

    fn insert_media<'a>(&'a self, url: &'a str) -> BmcFuture<'a, ()> {
        self.timed("insert-media", self.inner.insert_media(url))
    }

    fn eject_media(&self) -> BmcFuture<'_, ()> {
        self.timed("eject-media", self.inner.eject_media())
    }
}

//! Where the seconds of a host went: stages with a beginning, an end, bytes and a detail. Pure.

use ferrite_proto::host::{Run, Stage};
use jiff::Timestamp;

/// Stages that are kept.
const KEPT: usize = 100;

/// The stages of what is being done with a host, being added to.
pub(crate) struct Stages<'a> {
    host: &'a str,
    doing: &'a mut Option<Run>,
}

impl<'a> Stages<'a> {
    /// Of what is being done with this host.
    pub(crate) const fn new(host: &'a str, doing: &'a mut Option<Run>) -> Self {
        Self { host, doing }
    }

    /// A stage begins.
    pub(crate) fn open(&mut self, name: &str, at: Timestamp) {
        self.open_with(name, at, None);
    }

    /// A stage begins, of which something is known already.
    pub(crate) fn open_with(&mut self, name: &str, at: Timestamp, detail: Option<String>) {
        self.push(Stage {
            name: name.to_owned(),
            started: at,
            seconds: None,
            bytes: None,
            detail,
        });
    }

    /// A stage that is over is noted whole.
    pub(crate) fn past(
        &mut self,
        name: &str,
        from: Timestamp,
        to: Timestamp,
        bytes: Option<u64>,
        detail: Option<String>,
    ) {
        self.push(Stage {
            name: name.to_owned(),
            started: from,
            seconds: Some(between(from, to)),
            bytes,
            detail,
        });
    }

    /// The open stage of that name ends. False when none is open.
    pub(crate) fn close(
        &mut self,
        name: &str,
        at: Timestamp,
        bytes: Option<u64>,
        detail: Option<String>,
    ) -> bool {
        let open = |stage: &&mut Stage| stage.name == name && stage.seconds.is_none();
        let Some(stage) = self.all().rev().find(open) else {
            return false;
        };
        stage.seconds = Some(between(stage.started, at));
        stage.bytes = bytes.or(stage.bytes);
        stage.detail = detail.or(stage.detail.take());
        true
    }

    /// What was under way came to nothing: open stages stay without an end, and say why.
    pub(crate) fn give_up(&mut self, why: &str) {
        let open = |stage: &&mut Stage| stage.seconds.is_none() && stage.detail.is_none();
        for stage in self.all().filter(open) {
            stage.detail = Some(format!("given up: {why}"));
        }
    }

    fn all(&mut self) -> impl DoubleEndedIterator<Item = &mut Stage> {
        self.doing.iter_mut().flat_map(|run| &mut run.stages)
    }

    /// What takes time while nothing is being done is upkeep.
    fn push(&mut self, stage: Stage) {
        let upkeep = || new_run(self.host, "upkeep", stage.started);
        let list = &mut self.doing.get_or_insert_with(upkeep).stages;
        if list.len() >= KEPT {
            list.remove(0);
        }
        list.push(stage);
    }
}

/// Something that begins.
pub(crate) fn new_run(host: &str, kind: &str, started: Timestamp) -> Run {
    Run {
        host: host.to_owned(),
        kind: kind.to_owned(),
        started,
        ended: None,
        outcome: None,
        stages: Vec::new(),
    }
}

/// A ramdisk said hello: firmware and netboot ended when its kernel started.
pub(crate) fn ramdisk_came(
    stages: &mut Stages<'_>,
    kernel_start: Timestamp,
    hello: Timestamp,
    bytes: u64,
    kernel: &str,
) {
    let moved = (bytes > 0).then_some(bytes);
    stages.close("firmware", kernel_start, None, None);
    stages.close("netboot", kernel_start, moved, None);
    stages.past(
        "ramdisk",
        kernel_start,
        hello,
        None,
        Some(kernel.to_owned()),
    );
}

fn between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn stages_follow_each_other_without_a_gap() {
        let mut doing = None;
        let mut stages = Stages::new("n", &mut doing);
        stages.open("firmware", at(10));
        assert!(stages.close("firmware", at(14), None, None));
        assert!(!stages.close("firmware", at(15), None, None));
        stages.open("netboot", at(14));
        ramdisk_came(&mut stages, at(20), at(24), 7, "6.1");
        let told: Vec<_> = doing
            .iter()
            .flat_map(|run| &run.stages)
            .map(|s| (s.name.as_str(), s.seconds, s.bytes))
            .collect();
        assert_eq!(
            told,
            [
                ("firmware", Some(4.0), None),
                ("netboot", Some(6.0), Some(7)),
                ("ramdisk", Some(4.0), None)
            ]
        );
    }

    #[test]
    fn only_so_many_stages_are_kept_and_the_oldest_go() {
        let mut doing = None;
        for second in 0..150 {
            Stages::new("n", &mut doing).past("x", at(second), at(second), None, None);
        }
        let list = doing.unwrap().stages;
        assert_eq!(list.len(), KEPT);
        assert_eq!(list[0].started, at(50));
    }
}

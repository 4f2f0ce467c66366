//! Where the seconds of a host went: stages with a beginning, an end, bytes and a detail. Pure.

use ferrite_proto::host::Stage;
use jiff::Timestamp;

/// Stages that are kept.
const KEPT: usize = 100;

/// The stages of a host, being added to.
pub(crate) struct Stages<'a> {
    list: &'a mut Vec<Stage>,
}

impl<'a> Stages<'a> {
    /// Of this list.
    pub(crate) const fn new(list: &'a mut Vec<Stage>) -> Self {
        Self { list }
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
        let Some(stage) = self.list.iter_mut().rev().find(open) else {
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
        for stage in self.list.iter_mut().filter(open) {
            stage.detail = Some(format!("given up: {why}"));
        }
    }

    fn push(&mut self, stage: Stage) {
        if self.list.len() >= KEPT {
            self.list.remove(0);
        }
        self.list.push(stage);
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
        let mut list = Vec::new();
        let mut stages = Stages::new(&mut list);
        stages.open("firmware", at(10));
        assert!(stages.close("firmware", at(14), None, None));
        assert!(!stages.close("firmware", at(15), None, None));
        stages.open("netboot", at(14));
        ramdisk_came(&mut stages, at(20), at(24), 7, "6.1");
        let told: Vec<_> = list
            .iter()
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
        let mut list = Vec::new();
        for second in 0..150 {
            Stages::new(&mut list).past("x", at(second), at(second), None, None);
        }
        assert_eq!(list.len(), KEPT);
        assert_eq!(list[0].started, at(50));
    }
}

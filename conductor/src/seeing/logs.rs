//! Lines that are kept in memory, the oldest of which go: the conductor's own, for the support
//! bundle, and those of each host's agent, for whoever follows them.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferrite_proto::api::LogLine;
use jiff::Timestamp;
use tokio::sync::broadcast;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of the conductor's own lines.
const OWN_BYTES: usize = 1 << 20;
/// Lines of one agent.
const AGENT_LINES: usize = 500;
/// Bytes of all agents' lines.
const ALL_BYTES: usize = 32 << 20;
/// Lines that a slow follower may be behind.
const BEHIND: usize = 256;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A line that was cut by a panic hurts nobody.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The conductor's own last lines.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnLines(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl OwnLines {
    /// All that is kept, oldest first.
    pub(crate) fn text(&self) -> Vec<u8> {
        lock(&self.0).lines.iter().flatten().copied().collect()
    }
}

impl Write for OwnLines {
    /// tracing writes a line with one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut kept = lock(&self.0);
        kept.bytes += line.len();
        kept.lines.push_back(line.to_vec());
        while kept.bytes > OWN_BYTES
            && let Some(oldest) = kept.lines.pop_front()
        {
            kept.bytes -= oldest.len();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for OwnLines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// The last lines of every host's agent.
#[derive(Debug, Default)]
pub(crate) struct AgentLines(Mutex<All>);

#[derive(Debug, Default)]
struct All {
    hosts: BTreeMap<String, HostLines>,
    last: u64,
    bytes: usize,
}

#[derive(Debug, Default)]
struct HostLines {
    lines: VecDeque<LogLine>,
    /// Of the last poll that had lines.
    sequence: u64,
    /// Only while somebody follows: its room for lines is larger than all else of a host at rest.
    followers: Option<broadcast::Sender<LogLine>>,
}

impl HostLines {
    /// Tells those who follow; whoever was the last has gone meanwhile.
    fn tell(&mut self, line: &LogLine) {
        let told = self.followers.as_ref().map(|all| all.send(line.clone()));
        if matches!(told, Some(Err(_))) {
            self.followers = None;
        }
    }
}

impl AgentLines {
    /// Takes the lines of a poll, unless it is the last one come again.
    pub(crate) fn take(&self, host: &str, sequence: u64, at: Timestamp, lines: Vec<String>) {
        if lines.is_empty() {
            return;
        }
        let mut all = lock(&self.0);
        let of_host = all.hosts.entry(host.to_owned()).or_default();
        let last = std::mem::replace(&mut of_host.sequence, sequence);
        drop(all);
        if last != sequence {
            for line in lines {
                self.add(host, at, line);
            }
        }
    }

    /// A new agent counts its polls anew.
    pub(crate) fn new_agent(&self, host: &str) {
        if let Some(of_host) = lock(&self.0).hosts.get_mut(host) {
            of_host.sequence = 0;
        }
    }

    /// A line of a host.
    pub(crate) fn add(&self, host: &str, at: Timestamp, text: String) {
        let mut all = lock(&self.0);
        let by_time = u64::try_from(at.as_microsecond()).unwrap_or(0);
        all.last = by_time.max(all.last + 1);
        all.bytes += text.len();
        let line = LogLine {
            number: all.last,
            at,
            text,
        };
        let of_host = all.hosts.entry(host.to_owned()).or_default();
        of_host.tell(&line);
        of_host.lines.push_back(line);
        let oldest = (of_host.lines.len() > AGENT_LINES)
            .then(|| of_host.lines.pop_front())
            .flatten();
        all.bytes -= oldest.map_or(0, |oldest| oldest.text.len());
        while all.bytes > ALL_BYTES && all.drop_half_of_the_longest() {}
    }

    /// The last lines of a host, oldest first.
    pub(crate) fn tail(&self, host: &str, most: usize) -> Vec<LogLine> {
        let all = lock(&self.0);
        let Some(of_host) = all.hosts.get(host) else {
            return Vec::new();
        };
        let skip = of_host.lines.len().saturating_sub(most);
        of_host.lines.iter().skip(skip).cloned().collect()
    }

    /// The last lines of a host, and those that are to come.
    pub(crate) fn follow(
        &self,
        host: &str,
        most: usize,
    ) -> (Vec<LogLine>, broadcast::Receiver<LogLine>) {
        // Heard before it is read: a line in between comes twice, and its number tells.
        let heard = lock(&self.0)
            .hosts
            .entry(host.to_owned())
            .or_default()
            .followers
            .get_or_insert_with(|| broadcast::Sender::new(BEHIND))
            .subscribe();
        (self.tail(host, most), heard)
    }

    /// A host is gone.
    pub(crate) fn forget(&self, host: &str) {
        let mut all = lock(&self.0);
        if let Some(gone) = all.hosts.remove(host) {
            let bytes: usize = gone.lines.iter().map(|line| line.text.len()).sum();
            all.bytes -= bytes;
        }
    }
}

impl All {
    /// Whoever talks most is cut first. False when there is nothing to cut.
    fn drop_half_of_the_longest(&mut self) -> bool {
        let longest = self.hosts.values_mut().max_by_key(|host| host.lines.len());
        let Some(longest) = longest.filter(|host| !host.lines.is_empty()) else {
            return false;
        };
        let half = longest.lines.len().div_ceil(2);
        let cut: usize = longest
            .lines
            .drain(..half)
            .map(|line| line.text.len())
            .sum();
        self.bytes -= cut;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_stay_within_their_bytes() {
        let mut own = OwnLines::default();
        for number in 0..3000 {
            let line = format!("{number:01023}\n");
            own.write_all(line.as_bytes()).unwrap();
        }
        let text = String::from_utf8(own.text()).unwrap();
        assert_eq!(text.len(), OWN_BYTES);
        assert!(text.ends_with("2999\n") && !text.contains("01975\n"));
    }

    #[test]
    fn agents_have_so_many_lines_each_and_so_many_bytes_together() {
        let lines = AgentLines::default();
        for number in 0..AGENT_LINES + 10 {
            lines.add("a", Timestamp::UNIX_EPOCH, number.to_string());
        }
        let tail = lines.tail("a", 3);
        let told: Vec<_> = tail.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(told, ["507", "508", "509"]);
        assert_eq!(lines.tail("a", 10_000).len(), AGENT_LINES);
        for host in 0..200 {
            for _ in 0..AGENT_LINES {
                let line = "x".repeat(1000);
                lines.add(&format!("h{host}"), Timestamp::UNIX_EPOCH, line);
            }
        }
        let all = lock(&lines.0);
        let held = all.hosts.values().flat_map(|host| &host.lines);
        let held: usize = held.map(|line| line.text.len()).sum();
        assert_eq!(held, all.bytes);
        assert!(held <= ALL_BYTES, "{held}");
    }

    #[tokio::test]
    async fn a_follower_hears_what_comes_and_a_slow_one_is_told_that_it_missed_some() {
        let lines = AgentLines::default();
        lines.add("a", Timestamp::UNIX_EPOCH, "before".into());
        let (tail, mut heard) = lines.follow("a", 10);
        assert_eq!(tail.len(), 1);
        lines.add("b", Timestamp::UNIX_EPOCH, "another's".into());
        lines.add("a", Timestamp::UNIX_EPOCH, "after".into());
        assert_eq!(heard.recv().await.unwrap().text, "after");
        for number in 0..BEHIND + 10 {
            lines.add("a", Timestamp::UNIX_EPOCH, number.to_string());
        }
        let lagged = heard.recv().await.unwrap_err();
        assert!(matches!(lagged, broadcast::error::RecvError::Lagged(_)));
        let room = |host: &str| lock(&lines.0).hosts[host].followers.is_some();
        assert!(
            room("a") && !room("b"),
            "only whoever is followed has room for it"
        );
        drop(heard);
        lines.add("a", Timestamp::UNIX_EPOCH, "nobody hears".into());
        assert!(!room("a"), "and no longer than that");
        lines.forget("a");
        assert!(lines.tail("a", 10).is_empty());
    }
}

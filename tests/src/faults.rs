//! Faults that a test or a person puts into a BMC or into the image server while it runs.
//!
//! A rule is data, so that `ferrite-lab fault` and a Rust test say the same thing. Nothing here
//! performs a fault: the servers ask the table what to do with a request.

use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Only the delay of the rule.
    Slow,
    /// Answer with this status and, for a BMC, a standard error body; the request has no effect.
    Status(u16),
    /// Answer 200 with these words; the request has no effect.
    Body(String),
    /// Close the connection without an answer.
    Drop,
    /// Take the request and never answer.
    Stall,
    /// Do what was asked, but lie in the answer: the JSON value at the pointer is replaced.
    Lie { pointer: String, value: Value },
    /// Send this many bytes of the body that was announced, then close the connection.
    Cut(u64),
    /// Serve the file as if it ended here: every header is right, the file is not.
    Truncate(u64),
    /// Turn over every bit of the byte at this offset.
    Flip(u64),
    /// At most this many bytes a second.
    Rate(u64),
    /// Send this many bytes, then nothing more, with the connection left open.
    StallAfter(u64),
}

/// A fault, where it strikes and how often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// `*` is any method.
    pub method: String,
    /// `*` stands for any characters, slashes too.
    pub path: String,
    pub effect: Effect,
    /// Waited before anything else.
    pub delay: Duration,
    /// Strikes that are left; `None`: until cleared.
    pub times: Option<u32>,
}

impl Fault {
    pub fn new(path: &str, effect: Effect) -> Self {
        let (method, path) = ("*".to_owned(), path.to_owned());
        Self {
            method,
            path,
            effect,
            delay: Duration::ZERO,
            times: None,
        }
    }

    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        method.clone_into(&mut self.method);
        self
    }

    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// The BMC says "On" whatever is true.
    pub fn power_lies() -> Self {
        let (pointer, value) = ("/PowerState".to_owned(), Value::from("On"));
        Self::new("/redfish/v1/Systems/1", Effect::Lie { pointer, value }).method("GET")
    }

    /// Every power action is accepted and nothing happens.
    pub fn power_stuck() -> Self {
        Self::new("*/Actions/ComputerSystem.Reset", Effect::Status(204)).method("POST")
    }

    /// The BMC takes the connection and says nothing.
    pub fn no_answer() -> Self {
        Self::new("*", Effect::Stall)
    }

    /// The BMC cuts every connection.
    pub fn hangs_up() -> Self {
        Self::new("*", Effect::Drop)
    }

    /// The BMC will not take virtual media.
    pub fn media_refused() -> Self {
        Self::new("*/Actions/VirtualMedia.InsertMedia", Effect::Status(400)).method("POST")
    }

    fn matches(&self, method: &str, path: &str) -> bool {
        let method_fits = self.method == "*" || self.method.eq_ignore_ascii_case(method);
        method_fits && self.times != Some(0) && glob(&self.path, path)
    }
}

/// Written as a preset (`power-lies`, `power-stuck`, `no-answer`, `hangs-up`, `media-refused`) or
/// as
/// `[METHOD] PATH EFFECT [delay=SECONDS] [times=N]`, for example
/// `GET /redfish/v1/Systems/1 status=503 times=3`.
impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace().peekable();
        let first = *words.peek().context("an empty rule")?;
        let mut fault = match preset(first) {
            Some(fault) => fault,
            None => Self::new("*", Effect::Slow),
        };
        let mut effects = usize::from(preset(first).is_some());
        for word in words.skip(effects) {
            effects += usize::from(fault.read_word(word)?);
        }
        ensure!(effects <= 1, "`{text}`: one effect for each rule");
        ensure!(
            effects == 1 || !fault.delay.is_zero(),
            "`{text}`: nothing would go wrong"
        );
        Ok(fault)
    }
}

impl Fault {
    /// True when the word was an effect.
    fn read_word(&mut self, word: &str) -> Result<bool> {
        if word.starts_with(['/', '*']) {
            word.clone_into(&mut self.path);
            return Ok(false);
        }
        if !word.is_empty() && word.chars().all(|letter| letter.is_ascii_uppercase()) {
            word.clone_into(&mut self.method);
            return Ok(false);
        }
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match key {
            "times" => self.times = Some(number(key, value)?),
            "delay" => {
                let seconds = number(key, value.trim_end_matches('s'))?;
                self.delay = Duration::try_from_secs_f64(seconds).context("delay")?;
            }
            _ => self.effect = effect(key, value)?,
        }
        Ok(!matches!(key, "times" | "delay"))
    }
}

fn preset(word: &str) -> Option<Fault> {
    match word {
        "power-lies" => Some(Fault::power_lies()),
        "power-stuck" => Some(Fault::power_stuck()),
        "no-answer" => Some(Fault::no_answer()),
        "hangs-up" => Some(Fault::hangs_up()),
        "media-refused" => Some(Fault::media_refused()),
        _ => None,
    }
}

fn effect(key: &str, value: &str) -> Result<Effect> {
    Ok(match key {
        "status" => Effect::Status(number(key, value)?),
        "body" => Effect::Body(value.to_owned()),
        "drop" => Effect::Drop,
        "stall" => Effect::Stall,
        "cut" => Effect::Cut(number(key, value)?),
        "truncate" => Effect::Truncate(number(key, value)?),
        "flip" => Effect::Flip(number(key, value)?),
        "rate" => Effect::Rate(number(key, value)?),
        "stall-after" => Effect::StallAfter(number(key, value)?),
        "lie" => {
            let (pointer, value) = value.split_once(':').context("write lie=/POINTER:VALUE")?;
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
            Effect::Lie {
                pointer: pointer.to_owned(),
                value,
            }
        }
        _ => bail!(
            "`{key}` is no effect; there are status= body= drop stall lie= cut= truncate= flip= \
             rate= stall-after= and the presets power-lies power-stuck no-answer hangs-up \
             media-refused"
        ),
    })
}

fn number<T: FromStr>(key: &str, value: &str) -> Result<T> {
    value
        .parse()
        .ok()
        .with_context(|| format!("`{key}={value}`: not a fitting number"))
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|rest| {
            let mut starts = (0..=rest.len()).filter(|at| rest.is_char_boundary(*at));
            starts.any(|at| glob(tail, &rest[at..]))
        }),
    }
}

/// The rules in force. The first that fits a request strikes.
#[derive(Debug, Default)]
pub struct Faults {
    rules: Mutex<Vec<Fault>>,
}

impl Faults {
    pub fn add(&self, fault: Fault) {
        self.lock().push(fault);
    }

    pub fn clear(&self) {
        self.lock().clear();
    }

    pub fn list(&self) -> Vec<Fault> {
        self.lock().clone()
    }

    /// Takes one strike of the first rule that fits.
    pub(crate) fn strike(&self, method: &str, path: &str) -> Option<Fault> {
        let mut rules = self.lock();
        let index = rules.iter().position(|rule| rule.matches(method, path))?;
        let struck = rules[index].clone();
        if let Some(times) = &mut rules[index].times {
            *times -= 1;
        }
        rules.retain(|rule| rule.times != Some(0));
        Some(struck)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_spans_slashes() {
        assert!(glob("*", "/a/b"));
        assert!(glob("/redfish/*/Reset", "/redfish/v1/Systems/1/Reset"));
        assert!(glob("/a*b*c", "/axbxbc"));
        assert!(!glob("/redfish/*/Reset", "/redfish/v1/Systems/1"));
        assert!(!glob("/a", "/ab"));
    }

    #[test]
    fn a_rule_strikes_as_often_as_it_says_and_only_where_it_fits() {
        let faults = Faults::default();
        faults.add("GET /x status=500 times=2".parse().unwrap());
        assert!(faults.strike("POST", "/x").is_none());
        assert!(faults.strike("GET", "/y").is_none());
        assert_eq!(
            faults.strike("GET", "/x").unwrap().effect,
            Effect::Status(500)
        );
        assert!(faults.strike("get", "/x").is_some());
        assert!(
            faults.strike("GET", "/x").is_none(),
            "the rule struck a third time"
        );
    }

    #[test]
    fn rules_are_read_as_written() {
        let fault: Fault = "* delay=1.5s drop".parse().unwrap();
        assert_eq!(
            (fault.effect, fault.delay),
            (Effect::Drop, Duration::from_millis(1500))
        );
        let lie: Fault = "/s lie=/PowerState:On".parse().unwrap();
        let (pointer, value) = ("/PowerState".to_owned(), Value::from("On"));
        assert_eq!(lie.effect, Effect::Lie { pointer, value });
        assert_eq!("power-lies".parse::<Fault>().unwrap(), Fault::power_lies());
    }

    #[test]
    fn nonsense_is_refused_with_the_choices() {
        for text in [
            "",
            "GET /x",
            "explode",
            "status=abc",
            "drop stall",
            "delay=-1",
            "power-lies drop",
        ] {
            assert!(text.parse::<Fault>().is_err(), "`{text}` was taken");
        }
        let error = "explode".parse::<Fault>().unwrap_err().to_string();
        assert!(error.contains("power-lies"), "{error}");
    }
}

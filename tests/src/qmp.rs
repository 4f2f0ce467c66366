//! QEMU's monitor (QMP) over the child's own standard input and output: no socket file to find, to
//! leak or to race.
//!
//! Commands are strictly one after another. Events go to the closure given at the start, on the
//! reader's thread, which therefore must not send commands itself.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

/// QEMU under emulation on a busy machine answers late, but it answers.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Qmp {
    wire: Mutex<Wire>,
}

#[derive(Debug)]
struct Wire {
    input: ChildStdin,
    answers: Receiver<Value>,
}

impl Qmp {
    /// Shakes hands. `on_event` gets each event's name and data.
    pub(crate) fn start(
        input: ChildStdin,
        output: ChildStdout,
        on_event: impl Fn(&str, &Value) + Send + 'static,
    ) -> Result<Self> {
        let (sender, answers) = mpsc::channel();
        std::thread::Builder::new()
            .name("ferrite-qmp".into())
            .spawn(move || read_all(output, &sender, on_event))?;
        let qmp = Self {
            wire: Mutex::new(Wire { input, answers }),
        };
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    pub(crate) fn execute(&self, command: &str, arguments: &Value) -> Result<Value> {
        let mut wire = self
            .wire
            .lock()
            .map_err(|_| anyhow!("a monitor command panicked"))?;
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(wire.input, "{request}").with_context(|| format!("sending {command} to QEMU"))?;
        let answer = wire.answers.recv_timeout(PATIENCE);
        let answer = answer.with_context(|| format!("QEMU did not answer {command}"))?;
        if let Some(error) = answer.get("error") {
            bail!(
                "QEMU refused {command} {arguments}: {}",
                error["desc"].as_str().unwrap_or("?")
            );
        }
        Ok(answer.get("return").cloned().unwrap_or(Value::Null))
    }
}

fn read_all(output: ChildStdout, answers: &Sender<Value>, on_event: impl Fn(&str, &Value)) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        let Ok(message) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        if let Some(event) = message["event"].as_str() {
            on_event(event, &message["data"]);
        } else if message.get("QMP").is_none() && answers.send(message).is_err() {
            return;
        }
    }
}

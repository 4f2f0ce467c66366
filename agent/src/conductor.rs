//! The client of the conductor: JSON over HTTPS with a pinned CA, bounded replies, one connection.
//! The agent always calls and is never called. What a call means is its caller's business.

use std::io::Read as _;
use std::time::Duration;

use ferrite_proto::boot::CaPin;
use ferrite_proto::problem::Problem;
use ferrite_proto::secret::Secret;
use reqwest::blocking::{Client, Response};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest reply: an order with the config drive's files.
const REPLY_LIMIT: u64 = 8 << 20;
/// Longest wait for the connection itself.
const CONNECT: Duration = Duration::from_secs(10);

/// A call that gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer at all.
    #[error("the conductor at {url} does not answer ({why})")]
    Unreachable {
        /// Who was called.
        url: String,
        /// What the network or TLS said.
        why: String,
    },
    /// 401 or 403.
    #[error("the conductor at {url} refuses this machine ({detail})")]
    Unauthorized {
        /// Who was called.
        url: String,
        /// What it said.
        detail: String,
    },
    /// Another status than 200.
    #[error("the conductor at {url} answered status {status} ({detail})")]
    Status {
        /// Who was called.
        url: String,
        /// The status.
        status: u16,
        /// What it said.
        detail: String,
    },
    /// A reply that is not what the protocol says.
    #[error("the conductor at {url} answered what cannot be read ({why})")]
    Malformed {
        /// Who was called.
        url: String,
        /// Where reading stopped.
        why: String,
    },
    /// The client itself could not be made.
    #[error("TLS cannot be set up ({0})")]
    Setup(String),
}

/// The conductor.
#[derive(Debug)]
pub(crate) struct Conductor {
    client: Client,
    url: String,
}

impl Conductor {
    /// A client for one conductor; connects at the first call.
    pub(crate) fn new(url: &str, pin: CaPin) -> Result<Self, CallError> {
        let config =
            crate::tls::pinned(pin).map_err(|error| CallError::Setup(error.to_string()))?;
        let client = Client::builder()
            .tls_backend_preconfigured(config)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(1)
            .connect_timeout(CONNECT)
            .user_agent(concat!("ferrite-agent/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| CallError::Setup(innermost(&error)))?;
        Ok(Self {
            client,
            url: url.trim_end_matches('/').to_owned(),
        })
    }

    /// Where it is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Posts JSON and reads JSON.
    pub(crate) fn call<Q: Serialize, R: DeserializeOwned>(
        &self,
        path: &str,
        token: Option<&Secret<String>>,
        body: &Q,
        patience: Duration,
    ) -> Result<R, CallError> {
        let bytes = self.post(path, token, body, patience)?;
        serde_json::from_slice(&bytes).map_err(|error| self.malformed(error.to_string()))
    }

    fn post<Q: Serialize>(
        &self,
        path: &str,
        token: Option<&Secret<String>>,
        body: &Q,
        patience: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let body = serde_json::to_vec(body).map_err(|error| self.malformed(error.to_string()))?;
        let mut request = self
            .client
            .post(format!("{}{path}", self.url))
            .timeout(patience)
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
                .map_err(|_| self.malformed("a token that no header can carry".to_owned()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let response = request.send().map_err(|error| self.unreachable(&error))?;
        self.body(response)
    }

    fn body(&self, response: Response) -> Result<Vec<u8>, CallError> {
        let status = response.status();
        let mut bytes = Vec::new();
        response
            .take(REPLY_LIMIT + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| self.unreachable(&error))?;
        if bytes.len() as u64 > REPLY_LIMIT {
            return Err(self.malformed(format!("more than {REPLY_LIMIT} bytes")));
        }
        read_reply(&self.url, status.as_u16(), bytes)
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> CallError {
        CallError::Unreachable {
            url: self.url.clone(),
            why: innermost(error),
        }
    }

    fn malformed(&self, why: String) -> CallError {
        CallError::Malformed {
            url: self.url.clone(),
            why,
        }
    }
}

/// What an answer of the conductor at `url` comes to: its body, or the refusal in it.
pub fn read_reply(url: &str, status: u16, bytes: Vec<u8>) -> Result<Vec<u8>, CallError> {
    let url = url.to_owned();
    match status {
        200..=299 => Ok(bytes),
        401 | 403 => Err(CallError::Unauthorized {
            url,
            detail: detail(&bytes),
        }),
        status => Err(CallError::Status {
            url,
            status,
            detail: detail(&bytes),
        }),
    }
}

/// What an error's body says to a person.
fn detail(bytes: &[u8]) -> String {
    if let Ok(problem) = serde_json::from_slice::<Problem>(bytes) {
        return problem.to_string();
    }
    let text = String::from_utf8_lossy(bytes.get(..200).unwrap_or(bytes)).into_owned();
    text.chars().filter(|c| !c.is_control()).collect()
}

/// The innermost cause: what is around it only says that a request was sent.
fn innermost(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.last().map_or_else(String::new, ToString::to_string)
}

/// A conductor in this process, for the tests of whoever calls one.
#[cfg(test)]
pub(crate) mod fixture {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    use rustls::{ServerConfig, ServerConnection, StreamOwned};
    use rustls_pki_types::PrivateKeyDer;
    use serde_json::Value;

    use super::Conductor;
    use crate::tls::fixture::Authority;

    /// What a fake conductor does with a request.
    pub(crate) enum Answer {
        /// Replies with a status and JSON.
        Reply(u16, Value),
        /// Closes the connection without a reply, after it has read the request.
        Lose,
    }

    /// Serves HTTPS on a free port of the loopback interface until the test ends; `answer` is
    /// given path, `Authorization` and body.
    pub(crate) fn serve(
        mut answer: impl FnMut(&str, &str, Value) -> Answer + Send + 'static,
    ) -> Conductor {
        let authority = Authority::new(&["127.0.0.1"], (2020, 2090));
        let key = PrivateKeyDer::try_from(authority.key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(authority.chain(), key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let _ = exchange(stream, &config, &mut answer);
            }
        });
        Conductor::new(&url, authority.pin()).unwrap()
    }

    fn exchange(
        stream: TcpStream,
        config: &Arc<ServerConfig>,
        answer: &mut dyn FnMut(&str, &str, Value) -> Answer,
    ) -> std::io::Result<()> {
        let connection = ServerConnection::new(Arc::clone(config)).unwrap();
        let mut reader = BufReader::new(StreamOwned::new(connection, stream));
        loop {
            let mut request = String::new();
            if reader.read_line(&mut request)? == 0 {
                return Ok(());
            }
            let (mut length, mut authorization) = (0, String::new());
            loop {
                let mut line = String::new();
                reader.read_line(&mut line)?;
                let Some((name, value)) = line.trim().split_once(':') else {
                    break;
                };
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.trim().parse().unwrap(),
                    "authorization" => value.trim().clone_into(&mut authorization),
                    _ => {}
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            let path = request.split(' ').nth(1).unwrap();
            let body = serde_json::from_slice(&body).unwrap();
            let Answer::Reply(status, reply) = answer(path, &authorization, body) else {
                return Ok(());
            };
            let reply = reply.to_string();
            let head = format!(
                "HTTP/1.1 {status} x\r\nContent-Length: {}\r\n\r\n",
                reply.len()
            );
            reader
                .get_mut()
                .write_all(format!("{head}{reply}").as_bytes())?;
            reader.get_mut().flush()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::{Answer, serve};
    use super::*;
    use serde_json::{Value, json};

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn a_call_carries_the_token_and_brings_the_reply() {
        let conductor = serve(|path, authorization, body| {
            Answer::Reply(
                200,
                json!({"path": path, "authorization": authorization, "body": body}),
            )
        });
        let token = Secret::new("t0k".to_owned());
        let reply: Value = conductor
            .call("/v1/x", Some(&token), &json!({"a": 1}), PATIENCE)
            .unwrap();
        assert_eq!(
            reply,
            json!({"path": "/v1/x", "authorization": "Bearer t0k", "body": {"a": 1}})
        );
    }

    #[test]
    fn refusals_and_lost_replies_are_told_apart() {
        let conductor = serve(|path, _, _| match path {
            "/401" => Answer::Reply(401, json!({"code": "unauthorized", "message": "no"})),
            "/500" => Answer::Reply(500, json!("boom")),
            "/odd" => Answer::Reply(200, json!("not a number")),
            _ => Answer::Lose,
        });
        let call = |path| {
            conductor
                .call::<_, u32>(path, None, &json!({}), PATIENCE)
                .unwrap_err()
        };
        let text = call("/401").to_string();
        assert!(
            text.contains("refuses this machine (no [unauthorized])"),
            "{text}"
        );
        assert!(matches!(
            call("/500"),
            CallError::Status { status: 500, .. }
        ));
        assert!(matches!(call("/odd"), CallError::Malformed { .. }));
        assert!(matches!(call("/lost"), CallError::Unreachable { .. }));
    }

    #[test]
    fn another_ca_is_not_spoken_to() {
        let conductor = serve(|_, _, _| panic!("must not be asked"));
        let foreign = Conductor::new(conductor.url(), CaPin([9; 32])).unwrap();
        let error = foreign
            .call::<_, Value>("/", None, &json!({}), PATIENCE)
            .unwrap_err();
        assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    }
}

//! One file on a server: a client that goes nowhere else, one request for bytes of it, and the
//! proof that they are of the same file as before. Trying again is `source`'s business.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use ferrite_proto::address::Refused;
use ferrite_proto::image_server::{ImageServer, Login};
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderMap, HeaderName,
    HeaderValue, IF_RANGE, LAST_MODIFIED, RANGE, RETRY_AFTER,
};
use reqwest::{Client, Proxy, Response, StatusCode, Url};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::runtime::{Builder, Runtime};

use super::gate::Gate;
use super::source::FetchError;
use super::terms::{Patience, Terms};
use super::{GLANCE, reach};

/// A server that says when to come back is not waited for longer than that.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Drives the connections of a source.
#[derive(Debug)]
pub(super) struct Engine(Option<Runtime>);

impl Engine {
    /// For readers on many threads: its own drive their connections.
    pub(super) fn for_many() -> std::io::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.min(4))
            .thread_name("network")
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// For one reader at a time, which drives its connection while it waits: nothing is handed
    /// from thread to thread, and what the kernel gave is still in the processor's cache.
    pub(super) fn for_one() -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self(Some(runtime)))
    }

    /// Waits for something, not longer than `limit`, and not when nobody wants it any more.
    pub(super) fn wait<T>(
        &self,
        limit: Duration,
        stop: &AtomicBool,
        what: impl Future<Output = T>,
    ) -> Result<T, Waited> {
        let Some(runtime) = &self.0 else {
            return Err(Waited::Stopped);
        };
        let until = Instant::now() + limit;
        runtime.block_on(async {
            let mut what = std::pin::pin!(what);
            loop {
                if stop.load(Ordering::Relaxed) {
                    return Err(Waited::Stopped);
                }
                let left = until.saturating_duration_since(Instant::now());
                match tokio::time::timeout(left.min(GLANCE), what.as_mut()).await {
                    Ok(done) => return Ok(done),
                    Err(_) if Instant::now() >= until => return Err(Waited::TooLong(limit)),
                    Err(_) => {}
                }
            }
        })
    }
}

impl Drop for Engine {
    /// A name that is being resolved cannot be interrupted, and nobody waits for it.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Why there is nothing to show for a wait.
#[derive(Debug)]
pub(super) enum Waited {
    Stopped,
    TooLong(Duration),
}

/// Which bytes are wanted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask {
    /// All, without saying so: every server can do that.
    Whole,
    /// From one byte on, to another if said (exclusive).
    Part(u64, Option<u64>),
}

/// How long a file is, if its server says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Length(pub(super) Option<u64>);

/// A file on a server.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) url: String,
    client: Client,
    authorization: Option<HeaderValue>,
    /// Of a registry: it says itself how it wants to know us.
    gate: Option<Gate>,
    accept: Option<&'static str>,
    patience: Patience,
    /// A strong `ETag`, else Last-Modified: what it said first.
    mark: OnceLock<Option<String>>,
    /// Why it is not asked any more.
    pub(super) given_up: OnceLock<FetchError>,
}

impl Remote {
    /// A file at a URL; nothing is asked yet.
    pub(super) fn new(url: &str, terms: &Terms) -> Result<Self, FetchError> {
        let server = terms.server(url);
        let login = server.and_then(|server| server.login.as_ref());
        let authorization = login.map(authorization).transpose();
        let authorization = authorization.map_err(|why| setup(url, why))?;
        Self::made(url, server, authorization, terms.patience)
    }

    /// Something of a registry's API. `named` is how a person names it, and its server.
    pub(super) fn of_registry(
        url: &str,
        named: &str,
        accept: Option<&'static str>,
        terms: &Terms,
    ) -> Result<Self, FetchError> {
        let server = terms.server(named);
        let login = server.and_then(|server| server.login.clone());
        let gate = Gate::new(url, login, terms.patience.from).map_err(|why| setup(url, why))?;
        Ok(Self {
            gate: Some(gate),
            accept,
            ..Self::made(url, server, None, terms.patience)?
        })
    }

    fn made(
        url: &str,
        server: Option<&ImageServer>,
        authorization: Option<HeaderValue>,
        patience: Patience,
    ) -> Result<Self, FetchError> {
        let parsed = Url::parse(url).map_err(|error| setup(url, error.to_string()))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            let why = format!("nothing is fetched by {}:", parsed.scheme());
            return Err(setup(url, why));
        }
        reach::check(patience.from, &parsed).map_err(|why| FetchError::Forbidden {
            url: url.to_owned(),
            why,
        })?;
        Ok(Self {
            url: url.to_owned(),
            client: client(patience, server).map_err(|why| setup(url, why))?,
            authorization,
            gate: None,
            accept: None,
            patience,
            mark: OnceLock::new(),
            given_up: OnceLock::new(),
        })
    }

    /// Asks for bytes. Those that come are of the file that the first answer was of, and that has
    /// the `known` length.
    pub(super) fn ask(
        &self,
        ask: Ask,
        known: Option<Length>,
        engine: &Engine,
        stop: &AtomicBool,
    ) -> Result<(Response, Length), FetchError> {
        let mut response = self.send(ask, engine, stop)?;
        if let (StatusCode::UNAUTHORIZED, Some(gate)) = (response.status(), &self.gate) {
            // A registry's tokens hold for minutes, and a large file takes longer.
            engine
                .wait(self.limit(), stop, gate.pass(&self.client, &response))
                .map_err(|waited| self.waited(&waited))?
                .map_err(|error| error.about(&self.url))?;
            response = self.send(ask, engine, stop)?;
        }
        let found = self.check(&response, ask)?;
        self.check_same(&response, known, found)?;
        Ok((response, found))
    }

    fn send(&self, ask: Ask, engine: &Engine, stop: &AtomicBool) -> Result<Response, FetchError> {
        engine
            .wait(self.limit(), stop, self.request(ask)?.send())
            .map_err(|waited| self.waited(&waited))?
            .map_err(|error| self.not_sent(&error))
    }

    /// For the connection, and as long as for other bytes for the answer's head.
    fn limit(&self) -> Duration {
        self.patience.connect + self.patience.read
    }

    fn request(&self, ask: Ask) -> Result<reqwest::RequestBuilder, FetchError> {
        let mut request = self.client.get(&self.url);
        request = request.header(ACCEPT_ENCODING, "identity");
        let at_the_gate = || self.gate.as_ref()?.token();
        if let Some(shown) = self.authorization.clone().or_else(at_the_gate) {
            request = request.header(AUTHORIZATION, shown);
        }
        if let Some(accept) = self.accept {
            request = request.header(ACCEPT, accept);
        }
        let Ask::Part(start, end) = ask else {
            return Ok(request);
        };
        let last = end.map_or(String::new(), |end| (end.saturating_sub(1)).to_string());
        request = request.header(RANGE, format!("bytes={start}-{last}"));
        match self.mark.get() {
            Some(Some(mark)) => Ok(request.header(IF_RANGE, mark)),
            Some(None) => Err(self.not_the_same(
                "the server gives neither ETag nor Last-Modified to tell a changed file by",
            )),
            None => Ok(request),
        }
    }

    /// Whether the answer is to what was asked; and the file's length, if it says so.
    fn check(&self, response: &Response, ask: Ask) -> Result<Length, FetchError> {
        let status = response.status();
        let Ask::Part(start, end) = ask else {
            return match status {
                StatusCode::OK => Ok(Length(response.content_length())),
                _ => Err(self.status(response)),
            };
        };
        match status {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK if self.mark.get().is_some() => {
                return Err(self.not_the_same("the file changed, or its server cannot continue"));
            }
            StatusCode::OK => {
                return Err(FetchError::NoRanges {
                    url: self.url.clone(),
                });
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(self.not_the_same("the server's file ends here"));
            }
            _ => return Err(self.status(response)),
        }
        let range = response.headers().get(CONTENT_RANGE);
        let found = range
            .and_then(|range| parse_range(range.to_str().ok()?))
            .ok_or_else(|| self.not_the_same("the server continues without saying where"))?;
        // A server may give less than was asked for; never something else.
        let fits = found.start == start && end.is_none_or(|end| found.end <= end);
        if fits && found.start < found.end {
            Ok(Length(found.total))
        } else {
            Err(self.not_the_same("the server gives other bytes than were asked for"))
        }
    }

    fn check_same(
        &self,
        response: &Response,
        known: Option<Length>,
        found: Length,
    ) -> Result<(), FetchError> {
        if let Some(known) = known
            && known != found
        {
            return Err(match (known.0, found.0) {
                (Some(wanted), Some(has)) => FetchError::OtherLength {
                    url: self.url.clone(),
                    has,
                    wanted,
                },
                _ => self.not_the_same("the server does not say how long its file is"),
            });
        }
        let mark = mark(response.headers());
        if *self.mark.get_or_init(|| mark.clone()) == mark {
            Ok(())
        } else {
            Err(self.not_the_same("the server continues with another file"))
        }
    }

    pub(super) fn waited(&self, waited: &Waited) -> FetchError {
        match waited {
            Waited::Stopped => FetchError::Stopped,
            Waited::TooLong(limit) => {
                self.unreachable(format!("nothing came for {} s", limit.as_secs()))
            }
        }
    }

    fn not_sent(&self, error: &reqwest::Error) -> FetchError {
        match Refused::behind(error) {
            Some(why) => FetchError::Forbidden {
                url: self.url.clone(),
                why: why.clone(),
            },
            None => self.unreachable(chain(error)),
        }
    }

    pub(super) fn unreachable(&self, why: String) -> FetchError {
        FetchError::Unreachable {
            url: self.url.clone(),
            why,
        }
    }

    fn not_the_same(&self, why: &'static str) -> FetchError {
        FetchError::NotTheSame {
            url: self.url.clone(),
            why,
        }
    }

    fn status(&self, response: &Response) -> FetchError {
        let after = response.headers().get(RETRY_AFTER);
        // The other form of it is a date, and clocks differ.
        let seconds = after.and_then(|after| after.to_str().ok()?.trim().parse().ok());
        FetchError::Status {
            url: self.url.clone(),
            status: response.status(),
            after: seconds.map(|seconds| Duration::from_secs(seconds).min(LONGEST_PAUSE)),
        }
    }
}

fn setup(url: &str, why: String) -> FetchError {
    FetchError::Setup {
        url: url.to_owned(),
        why,
    }
}

fn client(patience: Patience, server: Option<&ImageServer>) -> Result<Client, String> {
    let mut roots = RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    if let Some(pem) = server.and_then(|server| server.ca.as_deref()) {
        add_certificates(&mut roots, pem)?;
    }
    let config = ClientConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut client = reach::bounded(Client::builder(), patience.from)
        .tls_backend_preconfigured(config)
        .no_proxy()
        .referer(false)
        .connect_timeout(patience.connect)
        .user_agent(concat!("ferrite-agent/", env!("CARGO_PKG_VERSION")));
    if let Some(proxy) = server.and_then(|server| server.proxy.as_ref()) {
        let proxy =
            Proxy::all(proxy.expose()).map_err(|error| format!("its proxy: {}", chain(&error)))?;
        client = client.proxy(proxy);
    }
    client.build().map_err(|error| chain(&error))
}

fn add_certificates(roots: &mut RootCertStore, pem: &str) -> Result<(), String> {
    let mut found = 0;
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("its CA: {error}"))?;
        let added = roots.add(certificate);
        added.map_err(|error| format!("its CA: {error}"))?;
        found += 1;
    }
    match found {
        0 => Err("its CA has no certificate in PEM".to_owned()),
        _ => Ok(()),
    }
}

/// The header that shows who we are, marked so that nothing prints it.
pub(super) fn authorization(login: &Login) -> Result<HeaderValue, String> {
    let text = match login {
        Login::Basic { username, password } => {
            let pair = format!("{username}:{}", password.expose());
            let pair = base64::engine::general_purpose::STANDARD.encode(pair);
            format!("Basic {pair}")
        }
        Login::Bearer(token) => format!("Bearer {}", token.expose()),
    };
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| "its password or token has characters that no header takes".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

fn mark(headers: &HeaderMap) -> Option<String> {
    let text = |name: HeaderName| {
        let value = headers.get(name)?.to_str().ok()?;
        (value.len() <= 256).then(|| value.to_owned())
    };
    let strong = text(ETAG).filter(|tag| !tag.starts_with("W/"));
    strong.or_else(|| text(LAST_MODIFIED))
}

/// Of `Content-Range`.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    start: u64,
    /// Exclusive.
    end: u64,
    total: Option<u64>,
}

/// `bytes 100-199/200`.
fn parse_range(text: &str) -> Option<Part> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let (start, last) = (start.trim().parse().ok()?, last.trim().parse::<u64>().ok()?);
    Some(Part {
        start,
        end: last.checked_add(1)?,
        total: total.trim().parse().ok(),
    })
}

/// An error and what caused it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    let mut text = error.to_string();
    for cause in causes.take(8) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_says_where_it_is_and_how_long_the_whole_is() {
        let part = |start, end, total| Some(Part { start, end, total });
        assert_eq!(parse_range("bytes 100-199/200"), part(100, 200, Some(200)));
        assert_eq!(parse_range("bytes 0-0/*"), part(0, 1, None));
        assert_eq!(parse_range("items 0-0/1"), None);
        assert_eq!(parse_range("bytes */200"), None);
        assert_eq!(parse_range("bytes 0-18446744073709551615/*"), None);
    }
}

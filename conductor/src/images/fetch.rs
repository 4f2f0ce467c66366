//! A file from a server to our disk: continued where a connection broke, as long as it provably is
//! the same file, and hashed as it comes. Never held in memory.

use std::path::Path;
use std::time::{Duration, Instant};

use ferrite_imaging::Hasher;
use ferrite_proto::address::{Policy, Refused};
use ferrite_proto::digest::Digest;
use ferrite_proto::image::ImageRef;
use ferrite_proto::image_server::ImageServer;
use ferrite_proto::problem::{Code, Problem};
use futures_util::StreamExt;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, RANGE};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use super::progress::Progress;
use super::reach::{self, chain};
use super::shelf::Shelf;

/// Attempts in a row that may bring nothing worth having.
const ATTEMPTS: u32 = 5;
/// First pause between two; each further one is twice as long.
const PAUSE: Duration = Duration::from_millis(500);
/// What an attempt must bring to be worth another; else one that sends a byte and hangs up would
/// be asked for ever.
const WORTHWHILE: u64 = 64 << 10;
/// Bytes between two looks at the room that is left.
const LOOK: u64 = 16 << 20;
/// A server that is slower for a minute is given up.
const SLOWEST: u64 = 64 << 10;
const MINUTE: Duration = Duration::from_mins(1);

/// How a fetch may be made, and where to.
pub(super) struct Fetch<'a> {
    pub(super) shelf: &'a Shelf,
    pub(super) policy: Policy,
    pub(super) servers: &'a [ImageServer],
    pub(super) progress: &'a Progress,
}

/// Why an attempt ended.
enum Broken {
    /// The next may go better.
    Passing(Problem),
    /// It will not.
    Lasting(Problem),
}

impl From<Problem> for Broken {
    fn from(problem: Problem) -> Self {
        Self::Lasting(problem)
    }
}

impl Fetch<'_> {
    /// Fetches the file of an image from the first of its places that has it, and checks that it
    /// is the right one.
    pub(super) async fn image(&self, image: &ImageRef, into: &Path) -> Result<(), Problem> {
        let mut first = None;
        for url in std::iter::once(&image.url).chain(&image.mirrors) {
            let mut download = Download::new(self, url, into, image.digest.as_ref()).await?;
            match download.run().await {
                Ok(()) => return download.finish(image.digest.as_ref()).await,
                Err(problem) if problem.code == Code::ImageStoreFull => return Err(problem),
                Err(problem) => {
                    tracing::warn!(url, %problem, "an image cannot be fetched from here");
                    first.get_or_insert(problem);
                }
            }
        }
        Err(first.unwrap_or_else(|| {
            Problem::new(Code::ImageInvalid, "the image has no URL", "give it one")
        }))
    }
}

/// A file on the way.
struct Download<'a> {
    fetch: &'a Fetch<'a>,
    url: &'a str,
    into: &'a Path,
    client: Client,
    server: Option<&'a ImageServer>,
    file: File,
    hasher: Option<Hasher>,
    wanted: Option<&'a Digest>,
    at: u64,
    total: Option<u64>,
    /// The strong `ETag` that the first answer had.
    mark: Option<String>,
}

impl<'a> Download<'a> {
    async fn new(
        fetch: &'a Fetch<'a>,
        url: &'a str,
        into: &'a Path,
        wanted: Option<&'a Digest>,
    ) -> Result<Self, Problem> {
        let covering = fetch.servers.iter().filter(|server| server.covers(url));
        let server = covering.max_by_key(|server| server.prefix.len());
        let parsed = Url::parse(url).map_err(|error| invalid(url, &error.to_string()))?;
        let allowed = reach::check(fetch.policy, &parsed);
        allowed.map_err(|refused| invalid(url, &refused.to_string()))?;
        let client = reach::client(fetch.policy, server).map_err(|why| invalid(url, &why))?;
        let file = File::create(into).await;
        Ok(Self {
            file: file.map_err(|error| fetch.shelf.problem(into, &error))?,
            hasher: wanted.map(|digest| Hasher::new(digest.algorithm())),
            fetch,
            url,
            into,
            client,
            server,
            wanted,
            at: 0,
            total: None,
            mark: None,
        })
    }

    async fn run(&mut self) -> Result<(), Problem> {
        let (mut failures, mut pause) = (0, PAUSE);
        loop {
            let before = self.at;
            let problem = match self.attempt().await {
                Ok(()) => return Ok(()),
                Err(Broken::Lasting(problem)) => return Err(problem),
                Err(Broken::Passing(problem)) => problem,
            };
            if self.at >= before.saturating_add(WORTHWHILE) {
                (failures, pause) = (0, PAUSE);
            }
            failures += 1;
            if failures >= ATTEMPTS {
                return Err(problem);
            }
            tracing::debug!(url = self.url, at = self.at, %problem, "going on with an image");
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// One request, from where the file ends here.
    async fn attempt(&mut self) -> Result<(), Broken> {
        if self.at > 0 && self.mark.is_none() {
            self.begin_anew().await?;
        }
        let response = self.ask().await?;
        self.accept(&response).await?;
        self.fetch.progress.set(self.at, self.total);
        let mut body = response.bytes_stream();
        let (mut looked, mut since, mut slow_from) = (self.at, Instant::now(), self.at);
        while let Some(part) = body.next().await {
            let part = part.map_err(|error| Broken::Passing(self.unreachable(&chain(&error))))?;
            self.take(&part).await?;
            if self.at >= looked + LOOK {
                self.fetch.shelf.check_room(0)?;
                looked = self.at;
            }
            if since.elapsed() >= MINUTE {
                if self.at - slow_from < SLOWEST {
                    let why = "its server sends less than 64 KiB a minute";
                    return Err(Broken::Passing(self.unreachable(why)));
                }
                (since, slow_from) = (Instant::now(), self.at);
            }
        }
        match self.total {
            Some(total) if self.at != total => Err(Broken::Passing(Problem::new(
                Code::ImageTruncated,
                format!("{} ended at byte {} of {total}", self.url, self.at),
                "check that the server holds the whole file; it is tried again by itself",
            ))),
            _ => Ok(()),
        }
    }

    async fn begin_anew(&mut self) -> Result<(), Problem> {
        (self.at, self.total, self.mark) = (0, None, None);
        self.hasher = self.wanted.map(|digest| Hasher::new(digest.algorithm()));
        let emptied = match self.file.set_len(0).await {
            Ok(()) => self.file.rewind().await.map(|_| ()),
            failed => failed,
        };
        emptied.map_err(|error| self.fetch.shelf.problem(self.into, &error))
    }

    async fn ask(&self) -> Result<Response, Broken> {
        let mut request = self.client.get(self.url);
        request = request.header(ACCEPT_ENCODING, "identity");
        if let (true, Some(mark)) = (self.at > 0, &self.mark) {
            request = request.header(RANGE, format!("bytes={}-", self.at));
            request = request.header(IF_RANGE, mark);
        }
        let sent = reach::log_in(request, self.server).send().await;
        sent.map_err(|error| match Refused::behind(&error) {
            Some(refused) => Broken::Lasting(invalid(self.url, &refused.to_string())),
            None if error.is_redirect() => Broken::Lasting(invalid(self.url, &chain(&error))),
            None => Broken::Passing(self.unreachable(&chain(&error))),
        })
    }

    /// Whether the answer goes on with what is here; else what is here is given up for it.
    async fn accept(&mut self, response: &Response) -> Result<(), Broken> {
        let (status, headers) = (response.status(), response.headers());
        let mark = mark(headers);
        match status {
            StatusCode::OK => {
                self.begin_anew().await?;
                self.mark = mark;
                self.total = response.content_length();
                if let Some(total) = self.total {
                    self.fetch.shelf.check_room(total)?;
                }
                Ok(())
            }
            StatusCode::PARTIAL_CONTENT if self.at > 0 => {
                let range = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
                let goes_on = range.is_some_and(|range| continues(range, self.at, self.total));
                if goes_on && mark == self.mark {
                    return Ok(());
                }
                self.mark = None;
                Err(Broken::Passing(
                    self.unreachable("its server continues with other bytes"),
                ))
            }
            StatusCode::RANGE_NOT_SATISFIABLE if self.at > 0 => {
                self.mark = None;
                Err(Broken::Passing(
                    self.unreachable("its server's file ends before ours does"),
                ))
            }
            _ => Err(self.refused(status)),
        }
    }

    async fn take(&mut self, part: &[u8]) -> Result<(), Problem> {
        self.at += part.len() as u64;
        if let Some(total) = self.total.filter(|total| self.at > *total) {
            let what = format!("{} is longer than the {total} bytes it says", self.url);
            let advice = "look at its server";
            return Err(Problem::new(Code::ImageInvalid, what, advice));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(part);
        }
        let written = self.file.write_all(part).await;
        written.map_err(|error| self.fetch.shelf.problem(self.into, &error))?;
        self.fetch.progress.set(self.at, self.total);
        Ok(())
    }

    async fn finish(mut self, wanted: Option<&Digest>) -> Result<(), Problem> {
        let flushed = self.file.flush().await;
        flushed.map_err(|error| self.fetch.shelf.problem(self.into, &error))?;
        let found = self.hasher.map(Hasher::finish);
        match (wanted, found) {
            (Some(wanted), Some(found)) if *wanted != found => Err(wrong_digest(
                &format!("{} ({} bytes)", self.url, self.at),
                wanted,
                &found,
            )),
            _ => Ok(()),
        }
    }

    fn unreachable(&self, why: &str) -> Problem {
        Problem::new(
            Code::ImageUnreachable,
            format!("{} cannot be fetched: {why}", self.url),
            "check that the conductor reaches the image's server: address, name, port, \
             certificate; it is tried again by itself",
        )
    }

    fn refused(&self, status: StatusCode) -> Broken {
        let may_pass = status.is_server_error()
            || status == StatusCode::TOO_MANY_REQUESTS
            || status == StatusCode::REQUEST_TIMEOUT;
        let why = format!("its server answers {status}");
        if may_pass {
            return Broken::Passing(self.unreachable(&why));
        }
        Broken::Lasting(Problem::new(
            Code::ImageNotFound,
            format!("{} cannot be fetched: {why}", self.url),
            "correct the image's URL, or put the file there, or say in images.servers who we are",
        ))
    }
}

/// The file is not the one that was meant.
pub(super) fn wrong_digest(what: &str, wanted: &Digest, found: &Digest) -> Problem {
    Problem::new(
        Code::ImageDigestMismatch,
        format!("{what} has the digest {found}, but {wanted} was demanded"),
        "nothing is kept of it; correct the digest, or put the right file there",
    )
}

fn invalid(url: &str, why: &str) -> Problem {
    Problem::new(
        Code::ImageInvalid,
        format!("{url} is not fetched: {why}"),
        "put the image on a server that the conductor may fetch from, and name that",
    )
}

/// A strong `ETag`: anything else could be of another file of the same second.
fn mark(headers: &HeaderMap) -> Option<String> {
    let tag = headers.get(ETAG)?.to_str().ok()?;
    (!tag.starts_with("W/") && tag.len() <= 256).then(|| tag.to_owned())
}

/// Whether `bytes 100-199/200` goes on at a byte, in a file of this length.
fn continues(range: &str, at: u64, total: Option<u64>) -> bool {
    let parts = || {
        let (range, whole) = range.strip_prefix("bytes ")?.split_once('/')?;
        let (start, _) = range.split_once('-')?;
        let whole: Option<u64> = whole.trim().parse().ok();
        Some((start.trim().parse::<u64>().ok()?, whole))
    };
    parts().is_some_and(|(start, whole)| start == at && (total.is_none() || whole == total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_on_only_where_it_ended() {
        assert!(continues("bytes 100-199/200", 100, Some(200)));
        assert!(continues("bytes 100-199/*", 100, None));
        assert!(!continues("bytes 99-199/200", 100, Some(200)));
        assert!(!continues("bytes 100-199/300", 100, Some(200)));
        assert!(!continues("items 100-199/200", 100, Some(200)));
        assert!(!continues("bytes */200", 0, None));
    }
}

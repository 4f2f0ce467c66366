//! Fulfils what is wanted of images: fetch, pack, keep; and forgets what nobody wants any more.
//!
//! How far an image is stands in its document and nowhere else, so a conductor that was killed
//! begins again with what it had begun. Fetching is done for a few images at once, packing for one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrite_proto::digest::Digest;
use ferrite_proto::named_image::{ImagePhase, ImageSpec, ImageStatus};
use ferrite_proto::problem::{Class, Code, Problem};
use jiff::Timestamp;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::fetch::Fetch;
use super::pack::{Done, Pack};
use super::progress::{Progress, StopOnDrop};
use super::{Images, named, shelf};
use crate::clock;
use crate::crash::{self, Moment, Work};
use crate::documents::Documents;
use crate::hosts::Hosts;
use crate::store::{Document, Expect};

/// The kind of the documents.
const KIND: &str = "Image";
/// Between looks for something to do.
const ROUND: Duration = Duration::from_secs(2);
/// Images that are worked on at once.
const AT_ONCE: usize = 4;
/// Between looks whether the image is still wanted.
const LOOK: Duration = Duration::from_millis(500);
/// Between notes of how far it is; one who works on it is heard as often.
const TELL: Duration = Duration::from_secs(5);
/// A conductor that was not heard for so long does not work on it any more. One that does after
/// all loses nothing but its work: both make the same file.
const SILENCE: Duration = Duration::from_secs(30);
/// First pause before another attempt; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);
/// How often a note is made anew because somebody else wrote in between.
const ATTEMPTS: u32 = 5;

/// Begins to work, until it is told to stop.
pub(crate) fn start(
    images: &Arc<Images>,
    hosts: &Arc<Hosts>,
    stop: &CancellationToken,
) -> JoinHandle<()> {
    tokio::spawn(run(Arc::clone(images), Arc::clone(hosts), stop.clone()))
}

async fn run(images: Arc<Images>, hosts: Arc<Hosts>, stop: CancellationToken) {
    let mut tasks = JoinSet::new();
    let (mut busy, mut unnamed) = (BTreeSet::new(), BTreeMap::new());
    let packing = Arc::new(Semaphore::new(1));
    loop {
        for job in due(&images, &hosts) {
            if busy.len() < AT_ONCE && busy.insert(job.name.clone()) {
                tasks.spawn(job.run(Arc::clone(&packing)));
            }
        }
        if busy.is_empty() {
            clear(&images, &hosts, &mut unnamed);
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = tasks.join_next() => match ended {
                Ok(name) => drop(busy.remove(&name)),
                // A panic is a bug; whatever it was about is begun again.
                Err(panic) => {
                    tracing::error!(%panic, "an image broke off");
                    tasks.shutdown().await;
                    busy.clear();
                }
            },
            () = images.wake.notified() => {}
            () = tokio::time::sleep(ROUND) => {}
        }
    }
    tasks.shutdown().await;
}

/// What is to be done by this conductor.
fn due(images: &Arc<Images>, hosts: &Arc<Hosts>) -> Vec<Job> {
    let documents = hosts.documents().list(KIND);
    let jobs = documents.iter().filter_map(|document| {
        let job = Job::of(document, images, hosts)?;
        let status = named(document)?.status?;
        job.is_due(&status, clock::now()).then_some(job)
    });
    jobs.collect()
}

/// Removes files that no image and no host names.
fn clear(images: &Images, hosts: &Hosts, unnamed: &mut BTreeMap<PathBuf, Instant>) {
    let mut names = BTreeSet::new();
    for document in hosts.documents().list(KIND) {
        let status = named(&document).and_then(|named| named.status);
        let digest = status.as_ref().and_then(|status| status.digest.as_ref());
        names.extend(digest.map(shelf::name_of));
        if status.is_some_and(|status| status.phase != ImagePhase::Ready) {
            names.extend(uid_of(&document));
        }
    }
    for stored in hosts.all() {
        let deployment = stored.record.run.deployment.as_ref();
        let kept = deployment.and_then(|deployment| deployment.kept.as_ref());
        names.extend(
            kept.and_then(|kept| kept.digest.as_ref())
                .map(shelf::name_of),
        );
    }
    if let Err(error) = images.shelf.clear(&names, unnamed) {
        tracing::warn!(%error, "images that nobody names stay for now");
    }
}

fn uid_of(document: &Document) -> Option<String> {
    document.body["uid"].as_str().map(str::to_owned)
}

/// Changes the status of an image, as long as it is the one of this uid and generation and `change`
/// wants to. False when it is not.
pub(crate) async fn note(
    documents: &Documents,
    (name, uid, generation): (&str, &str, u64),
    mut change: impl FnMut(&mut ImageStatus) -> bool,
) -> Result<bool, Problem> {
    for _ in 0..ATTEMPTS {
        let Some(found) = documents.get(KIND, name) else {
            return Ok(false);
        };
        let status = named(&found).and_then(|named| named.status);
        let same = found.body["uid"] == uid && found.body["generation"] == generation;
        let Some(mut status) = status.filter(|_| same) else {
            return Ok(false);
        };
        if !change(&mut status) {
            return Ok(false);
        }
        let mut document = Document::clone(&found);
        document.body["status"] = serde_json::to_value(status).unwrap_or_default();
        let expect = Expect::Revision(document.revision);
        match documents.put(document, expect, Vec::new()).await {
            Err(problem) if problem.code == Code::Conflict => {}
            written => return written.map(|_| true),
        }
    }
    let what = format!("image {name} is written by others all the time");
    Err(Problem::new(Code::Conflict, what, "it is tried again"))
}

/// One image that is to be packed.
struct Job {
    images: Arc<Images>,
    hosts: Arc<Hosts>,
    name: String,
    uid: String,
    generation: u64,
    spec: ImageSpec,
}

impl Job {
    fn of(document: &Document, images: &Arc<Images>, hosts: &Arc<Hosts>) -> Option<Self> {
        let spec = named(document)?.spec;
        spec.pack.then_some(Self {
            images: Arc::clone(images),
            hosts: Arc::clone(hosts),
            name: document.name.clone(),
            uid: uid_of(document)?,
            generation: document.body["generation"].as_u64()?,
            spec,
        })
    }

    /// Whether it is for this conductor to do, now.
    fn is_due(&self, status: &ImageStatus, now: Timestamp) -> bool {
        let packed = status
            .digest
            .as_ref()
            .is_some_and(|digest| self.is_kept(digest));
        let given = self.images.shelf.uploaded(&self.uid).exists();
        if self.spec.is_uploaded() && !given && !packed {
            return false;
        }
        // Whoever is alone has all of it, whatever it was called before.
        let alone = !self.hosts.ownership().is_shared();
        let mine = alone || status.conductor.as_ref() == Some(&self.images.me);
        let after =
            |pause: Duration, at: Timestamp| at.saturating_add(pause).is_ok_and(|at| at <= now);
        match status.phase {
            ImagePhase::Pending => true,
            ImagePhase::Fetching | ImagePhase::Packing => mine || after(SILENCE, status.updated),
            ImagePhase::Failed => status.retry_at.is_some_and(|at| {
                // The clock was set back: such a pause was never made.
                let never_made = at > now + LONGEST_PAUSE;
                never_made || (mine && at <= now) || after(SILENCE, at)
            }),
            ImagePhase::Ready => {
                let digest = status.digest.as_ref().filter(|_| mine);
                digest.is_some_and(|digest| {
                    !self.is_kept(digest) || status.url != Some(self.images.url_of(digest))
                })
            }
        }
    }

    async fn note(&self, change: impl FnMut(&mut ImageStatus) -> bool) -> Result<bool, Problem> {
        let which = (self.name.as_str(), self.uid.as_str(), self.generation);
        note(&self.hosts.documents(), which, change).await
    }

    /// Packs the image, and notes what came of it. Gives its name.
    async fn run(self, packing: Arc<Semaphore>) -> String {
        let name = self.name.clone();
        let noted = match self.work(&packing).await {
            Ok(()) => Ok(true),
            Err(problem) if problem.code == Code::StepCancelled => {
                tracing::info!(image = name, "it is not wanted any more");
                Ok(true)
            }
            Err(problem) => {
                tracing::warn!(image = name, %problem, "an image cannot be packed");
                self.failed(&problem).await
            }
        };
        let tidied = self.tidy(noted.as_ref().is_ok_and(|noted| *noted));
        if let Err(problem) = noted {
            tracing::warn!(image = name, %problem, "what came of the image is not noted");
        }
        if let Err(error) = tidied {
            tracing::warn!(image = name, %error, "what is left of the image stays for now");
        }
        name
    }

    async fn failed(&self, problem: &Problem) -> Result<bool, Problem> {
        self.note(|status| {
            let now = clock::now();
            status.attempts = status.attempts.saturating_add(1);
            let factor = 1 << status.attempts.saturating_sub(1).min(16);
            let pause = FIRST_PAUSE.saturating_mul(factor).min(LONGEST_PAUSE);
            let again = problem.class() == Class::Retry;
            status.retry_at = again.then(|| now.saturating_add(pause).unwrap_or(now));
            status.problem = Some(problem.clone());
            status.enter(ImagePhase::Failed, now);
            true
        })
        .await
    }

    /// Removes what was made on the way; and what people gave, if it cannot become an image.
    fn tidy(&self, noted: bool) -> std::io::Result<()> {
        let remove = |path: &Path| match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        remove(&self.fetched())?;
        remove(&self.packing())?;
        let document = self.hosts.documents().get(KIND, &self.name);
        let status = document.and_then(|document| named(&document)?.status);
        let again = status.is_some_and(|status| {
            let waits = status.phase == ImagePhase::Failed && status.retry_at.is_some();
            waits || !matches!(status.phase, ImagePhase::Failed | ImagePhase::Ready)
        });
        if noted && !again {
            remove(&self.images.shelf.uploaded(&self.uid))?;
        }
        Ok(())
    }

    fn fetched(&self) -> PathBuf {
        let name = format!("{}.fetched", self.uid);
        self.images.shelf.temporary(&name)
    }

    fn packing(&self) -> PathBuf {
        let name = format!("{}.packed", self.uid);
        self.images.shelf.temporary(&name)
    }

    fn is_kept(&self, digest: &Digest) -> bool {
        self.images.shelf.packed(digest).exists()
    }

    /// Says where hosts fetch a file that is here already: this conductor was called otherwise.
    async fn moved(&self) -> Result<bool, Problem> {
        self.note(|status| {
            let ready = status.phase == ImagePhase::Ready;
            let kept = status.digest.clone().filter(|d| ready && self.is_kept(d));
            status.url = kept.as_ref().map(|digest| self.images.url_of(digest));
            status.conductor = Some(self.images.me.clone());
            kept.is_some()
        })
        .await
    }

    async fn work(&self, packing: &Semaphore) -> Result<(), Problem> {
        if self.moved().await? {
            return Ok(());
        }
        let me = &self.images.me;
        let claimed = self.note(|status| {
            let due = self.is_due(status, clock::now());
            status.enter(ImagePhase::Fetching, clock::now());
            status.conductor = Some(me.clone());
            due
        });
        if !claimed.await? {
            return Ok(());
        }
        crash::point(Work::PackImage, Moment::Before);
        let progress = Arc::new(Progress::default());
        let from = self.fetch(&progress).await?;
        let turn = async { packing.acquire().await.map_err(|_| self.unwanted()) };
        let _turn = self.told(&progress, turn).await?;
        let begun = self.note(|status| {
            status.enter(ImagePhase::Packing, clock::now());
            true
        });
        if !begun.await? {
            return Err(self.unwanted());
        }
        let progress = Arc::new(Progress::default());
        let packed = self.pack(from, Arc::clone(&progress));
        let done = self.told(&progress, packed).await?;
        let shelf = &self.images.shelf;
        shelf.put(&self.packing(), &shelf.packed(&done.digest))?;
        crash::point(Work::PackImage, Moment::Acted);
        self.ready(&done).await?;
        crash::point(Work::PackImage, Moment::After);
        tracing::info!(image = self.name, digest = %done.digest, "packed");
        Ok(())
    }

    /// Where the file lies, once it does.
    async fn fetch(&self, progress: &Progress) -> Result<PathBuf, Problem> {
        if self.spec.is_uploaded() {
            return Ok(self.images.shelf.uploaded(&self.uid));
        }
        let (image, into) = (self.spec.source(), self.fetched());
        let fetch = Fetch {
            shelf: &self.images.shelf,
            policy: self.images.policy,
            servers: &self.images.servers,
            progress,
        };
        self.told(progress, fetch.image(&image, &into)).await?;
        Ok(into)
    }

    /// Packs in a thread of its own, which is less urgent than those of everybody else.
    async fn pack(&self, from: PathBuf, progress: Arc<Progress>) -> Result<Done, Problem> {
        let stopper = Arc::clone(&progress);
        let _stop = StopOnDrop(&stopper);
        let (tell, told) = oneshot::channel();
        let (images, spec) = (Arc::clone(&self.images), self.spec.clone());
        let (name, into) = (self.name.clone(), self.packing());
        let pack = move || {
            let pack = Pack {
                shelf: &images.shelf,
                spec: &spec,
                name: &name,
                from: &from,
                into: &into,
                key: images.key.as_ref(),
                progress: &progress,
            };
            // Nobody listens any more when it was stopped.
            let _ = tell.send(pack.run());
        };
        let thread = std::thread::Builder::new().name("pack".to_owned());
        let broken = |what: String| Problem::new(Code::Internal, what, "report this");
        thread
            .spawn(pack)
            .map_err(|error| broken(format!("no thread to pack in: {error}")))?;
        told.await
            .map_err(|_| broken(format!("packing {} broke off", self.name)))?
    }

    /// Waits for a piece of work and notes how far it is, as long as somebody wants it.
    async fn told<T>(
        &self,
        progress: &Progress,
        work: impl Future<Output = Result<T, Problem>>,
    ) -> Result<T, Problem> {
        let mut work = std::pin::pin!(work);
        let mut told = Instant::now();
        loop {
            if let Ok(done) = tokio::time::timeout(LOOK, work.as_mut()).await {
                return done;
            }
            let still = if told.elapsed() >= TELL {
                told = Instant::now();
                let (done, total) = progress.get();
                let noted = self.note(|status| {
                    (status.bytes_done, status.bytes_total) = (done, total);
                    status.updated = clock::now();
                    true
                });
                // Whoever cannot store that cannot store the end either, and tries it then.
                noted.await.unwrap_or(true)
            } else {
                self.is_wanted()
            };
            if !still {
                return Err(self.unwanted());
            }
        }
    }

    fn unwanted(&self) -> Problem {
        let what = format!("image {} is not wanted any more", self.name);
        Problem::new(Code::StepCancelled, what, "")
    }

    fn is_wanted(&self) -> bool {
        let found = self.hosts.documents().get(KIND, &self.name);
        found.is_some_and(|found| {
            found.body["uid"] == self.uid && found.body["generation"] == self.generation
        })
    }

    async fn ready(&self, done: &Done) -> Result<bool, Problem> {
        let images = &self.images;
        self.note(|status| {
            status.attempts = 0;
            status.digest = Some(done.digest.clone());
            status.image_bytes = Some(done.image_bytes);
            status.packed_bytes = Some(done.packed_bytes);
            status.url = Some(images.url_of(&done.digest));
            status.signed_by = images
                .key
                .as_ref()
                .map(ferrite_imaging::packed::SigningKey::public);
            status.enter(ImagePhase::Ready, clock::now());
            true
        })
        .await
    }
}

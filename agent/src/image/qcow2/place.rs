//! Jobs become the disk's bytes: several at once, each where it belongs.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

use ferrite_imaging::qcow2::{BadQcow2, Inflater};
use ferrite_proto::problem::Problem;

use super::super::edges::Edges;
use super::super::read_back::ReadBack;
use super::super::zeros::Zeros;
use super::layout::Layout;
use super::original::Originals;
use super::sort::{Job, Sorter};
use super::{changed, internal, unreadable};
use crate::disk::Device;
use crate::disk::aligned::Aligned;
use crate::stream::write::Writer;
use crate::stream::{PIECE, cancelled_problem};

/// Most workers: each has three buffers.
const WORKERS: usize = 4;

/// What the workers share.
pub(super) struct Place<'a> {
    pub(super) url: &'a str,
    pub(super) device: &'a Device<'a>,
    pub(super) layout: &'a Layout,
    /// The disk's first bytes as they were read before, which are held back.
    pub(super) head: &'a [u8],
    pub(super) edges: Mutex<Edges>,
    /// What was written, where it shall be read back.
    pub(super) read_back: Option<Mutex<ReadBack>>,
    /// What the disk will not have as it came, where a digest of the content is demanded.
    pub(super) originals: Option<Mutex<Originals>>,
    /// The first thing that went wrong.
    pub(super) failure: Mutex<Option<Problem>>,
    pub(super) stop: AtomicBool,
    /// Nobody wants it any more.
    pub(super) cancelled: &'a AtomicBool,
}

/// What a worker has done.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Done {
    pub(super) written: u64,
    pub(super) zeroed: u64,
}

impl AddAssign for Done {
    fn add_assign(&mut self, more: Self) {
        self.written += more.written;
        self.zeroed += more.zeroed;
    }
}

impl Place<'_> {
    /// Has workers do what is sorted, and zeroes the rest meanwhile, until all is done and durable.
    pub(super) fn by_workers(
        &self,
        zeros: &Zeros,
        sort: impl FnOnce(Sorter<'_>) -> Result<(), Problem>,
    ) -> Result<Done, Problem> {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        let workers = processors.min(WORKERS);
        let (jobs, queue) = mpsc::sync_channel(workers);
        let queue = Arc::new(Mutex::new(queue));
        let (home, spares) = mpsc::channel();
        // Two are being filled, the others are with the workers or on their way to them.
        for _ in 0..2 * workers + 2 {
            let _ = home.send(Aligned::zeroed(PIECE));
        }
        let (sorted, placed) = std::thread::scope(|scope| {
            let start = |_| {
                let (queue, home) = (Arc::clone(&queue), home.clone());
                let thread = std::thread::Builder::new().name("place".to_owned());
                thread.spawn_scoped(scope, move || self.work(&queue, &home))
            };
            let mut threads: Vec<_> = (0..workers).map(start).collect();
            let thread = std::thread::Builder::new().name("zeros".to_owned());
            threads.push(thread.spawn_scoped(scope, || self.done(self.zero(zeros))));
            // When all of them have ended, the sorter must find out.
            drop((queue, home));
            let sorted = sort(Sorter::new(self.layout, jobs, spares));
            if sorted.is_err() {
                self.stop.store(true, Ordering::Relaxed);
            }
            let mut placed = Done::default();
            for thread in threads {
                match thread.map(ScopedJoinHandle::join) {
                    Ok(Ok(done)) => placed += done,
                    Ok(Err(_)) => self.fail(internal("a thread that writes has ended")),
                    Err(error) => self.fail(internal(&format!("no thread: {error}"))),
                }
            }
            (sorted, placed)
        });
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        match failure.take() {
            Some(problem) => Err(problem),
            None => sorted.map(|()| placed),
        }
    }

    /// Does jobs until there are no more.
    fn work(&self, jobs: &Arc<Mutex<Receiver<Job>>>, home: &Sender<Aligned>) -> Done {
        self.done(self.jobs(jobs, home))
    }

    fn done(&self, done: Result<Done, Problem>) -> Done {
        done.unwrap_or_else(|problem| {
            self.fail(problem);
            Done::default()
        })
    }

    /// Zeroes what the tables say nothing of.
    fn zero(&self, zeros: &Zeros) -> Result<Done, Problem> {
        let mut writer = Writer::new(self.device, 0);
        while let Some(range) = zeros.next() {
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(cancelled_problem());
            }
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            writer.jump(range.start)?;
            writer.push_zeros(range.end - range.start)?;
        }
        let (written, zeroed) = writer.end()?;
        Ok(Done { written, zeroed })
    }

    fn jobs(
        &self,
        jobs: &Arc<Mutex<Receiver<Job>>>,
        home: &Sender<Aligned>,
    ) -> Result<Done, Problem> {
        let mut writer = Writer::new(self.device, 0);
        let inflater = Inflater::new(&self.layout.image);
        let mut inflater = inflater.map_err(|error| internal(&error.to_string()))?;
        // Made when the first compressed cluster comes.
        let mut inflated = Aligned::zeroed(0);
        while let Some(mut job) = next(jobs) {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            if job.clusters.is_empty() {
                self.put(&mut writer, &mut job.buffer, job.guest, job.used)?;
            } else {
                let length = self.inflate(&mut inflater, &job, &mut inflated)?;
                self.put(&mut writer, &mut inflated, job.guest, length)?;
            }
            // Nobody takes it back when the file has ended.
            let _ = home.send(job.buffer);
        }
        let (written, zeroed) = writer.end()?;
        Ok(Done { written, zeroed })
    }

    fn fail(&self, problem: Problem) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(problem);
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Decompresses a job's clusters; how many bytes they have on the disk.
    fn inflate(
        &self,
        inflater: &mut Inflater,
        job: &Job,
        into: &mut Aligned,
    ) -> Result<usize, Problem> {
        if into.is_empty() {
            *into = Aligned::zeroed(PIECE);
        }
        let image = &self.layout.image;
        let cluster = usize::try_from(image.cluster_bytes()).unwrap_or(PIECE);
        let starts = std::iter::once(&0).chain(&job.clusters);
        let ends = starts
            .zip(&job.clusters)
            .zip(into.chunks_exact_mut(cluster));
        for ((&start, &end), cluster) in ends {
            let inflated = inflater.inflate(&job.buffer[start..end], cluster);
            inflated.map_err(|why| {
                unreadable(
                    self.url,
                    &BadQcow2::Cluster { at: job.host, why }.to_string(),
                )
            })?;
        }
        let left = usize::try_from(image.size() - job.guest).unwrap_or(usize::MAX);
        Ok((job.clusters.len() * cluster).min(left))
    }

    /// Writes a stretch of the disk, but for what is held back.
    fn put(
        &self,
        writer: &mut Writer<'_, '_>,
        buffer: &mut Aligned,
        guest: u64,
        length: usize,
    ) -> Result<(), Problem> {
        self.check_head(&buffer[..length], guest)?;
        // A disk takes whole sectors; behind the image's end, the last has zeros.
        let sector = usize::try_from(self.device.sector()).unwrap_or(4096);
        let mut whole = length;
        if guest + length as u64 == self.layout.image.size() && guest.is_multiple_of(sector as u64)
        {
            whole = length.next_multiple_of(sector).min(buffer.len());
            buffer[length..whole].fill(0);
        }
        let body = {
            let mut edges = self.edges.lock().unwrap_or_else(PoisonError::into_inner);
            if edges.touch(guest..guest + whole as u64) {
                self.keep(&buffer[..length], guest);
            }
            edges.hold(&mut buffer[..whole], guest);
            edges.body()
        };
        let held = usize::try_from(body.start.saturating_sub(guest))
            .unwrap_or(whole)
            .min(whole);
        if held < whole {
            writer.jump(guest + held as u64)?;
            writer.push(&buffer[held..whole])?;
            if let Some(read_back) = &self.read_back {
                let mut read_back = read_back.lock().unwrap_or_else(PoisonError::into_inner);
                read_back.remember(&buffer[held..whole], guest + held as u64);
            }
        }
        Ok(())
    }

    /// Remembers a stretch as it came, where a digest of the content is demanded.
    fn keep(&self, bytes: &[u8], guest: u64) {
        if let Some(originals) = &self.originals {
            let mut originals = originals.lock().unwrap_or_else(PoisonError::into_inner);
            originals.keep(bytes, guest);
        }
    }

    /// What is held back was read before; it must be the same still.
    fn check_head(&self, bytes: &[u8], guest: u64) -> Result<(), Problem> {
        let at = usize::try_from(guest).unwrap_or(usize::MAX);
        let head = self.head.get(at..).unwrap_or_default();
        let count = head.len().min(bytes.len());
        if head[..count] == bytes[..count] {
            return Ok(());
        }
        Err(changed(
            self.url,
            "the first MiB of its disk is not what it was when it was read first",
        ))
    }
}

fn next(jobs: &Arc<Mutex<Receiver<Job>>>) -> Option<Job> {
    jobs.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .recv()
        .ok()
}

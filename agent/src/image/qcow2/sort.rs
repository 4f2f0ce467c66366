//! The file comes by from its first byte to its last; what means something is collected into jobs,
//! each of which is a stretch of the disk.

use std::sync::mpsc::{Receiver, SyncSender};

use super::layout::{Layout, Part, What};
use crate::disk::aligned::Aligned;
use crate::stream::PIECE;

/// A stretch of the disk, for a worker.
#[derive(Debug)]
pub(super) struct Job {
    /// Where on the disk.
    pub(super) guest: u64,
    /// Where in the file the last part of it lies, for messages.
    pub(super) host: u64,
    pub(super) buffer: Aligned,
    /// How much of the buffer counts.
    pub(super) used: usize,
    /// Of compressed clusters: where each ends in the buffer. They follow one another on the disk.
    pub(super) clusters: Vec<usize>,
}

/// Why there can be no more jobs.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unsorted {
    #[error("its table at byte {at} is not what it was when it was read first")]
    Changed { at: u64 },
    #[error("it ends at byte {at}, before all that its tables name")]
    Ended { at: u64 },
    /// The workers have ended; one of them knows why.
    #[error("nobody writes any more")]
    Nobody,
}

/// Sorts the file's bytes as they come.
pub(super) struct Sorter<'l> {
    layout: &'l Layout,
    jobs: SyncSender<Job>,
    spares: Receiver<Aligned>,
    /// How much of the file has come by.
    at: u64,
    /// The part that is next or at hand.
    next: usize,
    /// A table of which only the beginning has come.
    table: Vec<u8>,
    data: Option<Job>,
    packed: Option<Job>,
}

impl<'l> Sorter<'l> {
    pub(super) fn new(
        layout: &'l Layout,
        jobs: SyncSender<Job>,
        spares: Receiver<Aligned>,
    ) -> Self {
        Self {
            layout,
            jobs,
            spares,
            at: 0,
            next: 0,
            table: Vec::new(),
            data: None,
            packed: None,
        }
    }

    /// Takes the file's next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Unsorted> {
        let mut rest = bytes;
        while let Some(&part) = self.layout.parts.get(self.next) {
            let gap = usize::try_from(part.host.saturating_sub(self.at)).unwrap_or(usize::MAX);
            rest = self.pass(rest, gap).1;
            if rest.is_empty() {
                return Ok(());
            }
            let left = usize::try_from(part.end() - self.at).unwrap_or(usize::MAX);
            let done = self.at - part.host;
            let (now, later) = self.pass(rest, left);
            match part.what {
                What::Table => self.table(&part, now)?,
                What::Data => self.data(part.guest + done, now)?,
                What::Packed => self.packed(&part, done, now)?,
            }
            if self.at == part.end() {
                self.next += 1;
            }
            rest = later;
        }
        self.at += rest.len() as u64;
        Ok(())
    }

    /// After the file's last byte.
    pub(super) fn end(mut self) -> Result<(), Unsorted> {
        if self.next < self.layout.parts.len() {
            return Err(Unsorted::Ended { at: self.at });
        }
        for job in [self.data.take(), self.packed.take()].into_iter().flatten() {
            self.send(job)?;
        }
        Ok(())
    }

    /// Goes past so many bytes, or those that there are.
    fn pass<'b>(&mut self, bytes: &'b [u8], most: usize) -> (&'b [u8], &'b [u8]) {
        let count = most.min(bytes.len());
        self.at += count as u64;
        bytes.split_at(count)
    }

    fn table(&mut self, part: &Part, bytes: &[u8]) -> Result<(), Unsorted> {
        self.table.extend_from_slice(bytes);
        if self.at < part.end() {
            return Ok(());
        }
        let same = self.layout.is_same(part, &self.table);
        self.table.clear();
        if same {
            Ok(())
        } else {
            Err(Unsorted::Changed { at: part.host })
        }
    }

    fn data(&mut self, guest: u64, bytes: &[u8]) -> Result<(), Unsorted> {
        let (mut guest, mut rest) = (guest, bytes);
        while !rest.is_empty() {
            let fits = |job: &Job| job.guest + job.used as u64 == guest && job.used < PIECE;
            if !self.data.as_ref().is_some_and(fits) {
                let full = self.data.take();
                self.data = Some(self.begin(full, guest)?);
            }
            let Some(job) = &mut self.data else { break };
            let count = rest.len().min(PIECE - job.used);
            let (now, later) = rest.split_at(count);
            job.buffer[job.used..job.used + count].copy_from_slice(now);
            job.used += count;
            guest += count as u64;
            rest = later;
        }
        Ok(())
    }

    fn packed(&mut self, part: &Part, done: u64, bytes: &[u8]) -> Result<(), Unsorted> {
        if done == 0 {
            let cluster = usize::try_from(self.layout.image.cluster_bytes()).unwrap_or(PIECE);
            let fits = |job: &Job| {
                let before = job.clusters.len() * cluster;
                job.guest + before as u64 == part.guest
                    && before + cluster <= PIECE
                    && job.used + part.bytes as usize <= PIECE
            };
            if !self.packed.as_ref().is_some_and(fits) {
                let full = self.packed.take();
                self.packed = Some(self.begin(full, part.guest)?);
            }
        }
        let Some(job) = &mut self.packed else {
            return Ok(());
        };
        // No cluster is compressed to more than it has: what is said beyond that is not its own.
        let count = bytes.len().min(PIECE - job.used);
        job.buffer[job.used..job.used + count].copy_from_slice(&bytes[..count]);
        job.used += count;
        if self.at == part.end() {
            job.clusters.push(job.used);
            job.host = part.host;
        }
        Ok(())
    }

    /// Hands on the job before, and begins another.
    fn begin(&self, before: Option<Job>, guest: u64) -> Result<Job, Unsorted> {
        if let Some(job) = before {
            self.send(job)?;
        }
        // Workers give their buffers back, and end only when something is wrong.
        let buffer = self.spares.recv().map_err(|_| Unsorted::Nobody)?;
        Ok(Job {
            guest,
            host: self.at,
            buffer,
            used: 0,
            clusters: Vec::new(),
        })
    }

    fn send(&self, job: Job) -> Result<(), Unsorted> {
        self.jobs.send(job).map_err(|_| Unsorted::Nobody)
    }
}

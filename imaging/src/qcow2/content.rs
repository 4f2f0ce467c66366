//! The disk's bytes in the disk's order, for who reads them one after the other.

use std::io::{self, Read};

use super::{BadQcow2, Held, Inflater, Map, Qcow2, Run};
use crate::ReadAt;

/// A disk that is read from its first byte to its last. What is wrong with the file comes as an
/// [`io::Error`] of the kind [`io::ErrorKind::InvalidData`] around a [`BadQcow2`].
#[derive(Debug)]
pub struct Content<'s> {
    cluster_bytes: u64,
    map: Map<'s>,
    source: Source<'s>,
    inflater: Inflater,
    run: Option<Run>,
    /// The compressed cluster at hand, decompressed, and how much of it has been read.
    cluster: Vec<u8>,
    packed: Vec<u8>,
    at: usize,
}

struct Source<'s>(&'s dyn ReadAt);

impl std::fmt::Debug for Source<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Source")
    }
}

impl<'s> Content<'s> {
    pub(super) fn new(image: &'s Qcow2, source: &'s dyn ReadAt) -> io::Result<Self> {
        Ok(Self {
            cluster_bytes: image.cluster_bytes(),
            map: image.map(source),
            source: Source(source),
            inflater: Inflater::new(image)?,
            run: None,
            cluster: Vec::new(),
            packed: Vec::new(),
            at: 0,
        })
    }

    /// The part of the disk that is read next, if there is more.
    fn part(&mut self) -> io::Result<Option<Run>> {
        if let Some(run) = self.run.filter(|run| run.length > 0) {
            return Ok(Some(run));
        }
        let run = self.map.next().transpose()?;
        if let Some(Run {
            held: Held::Compressed { host, bytes },
            ..
        }) = run
        {
            self.inflate(host, bytes)?;
        }
        self.run = run;
        Ok(run)
    }

    fn inflate(&mut self, host: u64, bytes: u32) -> io::Result<()> {
        self.packed.resize(bytes as usize, 0);
        self.source.0.read_exact_at(&mut self.packed, host)?;
        let length = usize::try_from(self.cluster_bytes).unwrap_or(0);
        self.cluster.resize(length, 0);
        self.at = 0;
        let inflated = self.inflater.inflate(&self.packed, &mut self.cluster);
        inflated.map_err(|why| BadQcow2::Cluster { at: host, why }.into())
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(run) = self.part()? else {
            return Ok(0);
        };
        let count = usize::try_from(run.length).map_or(buffer.len(), |most| most.min(buffer.len()));
        let into = &mut buffer[..count];
        let held = match run.held {
            Held::Zero => {
                into.fill(0);
                Held::Zero
            }
            Held::Data { host } => {
                self.source.0.read_exact_at(into, host)?;
                Held::Data {
                    host: host + count as u64,
                }
            }
            Held::Compressed { .. } => {
                into.copy_from_slice(&self.cluster[self.at..self.at + count]);
                self.at += count;
                run.held
            }
        };
        let (guest, length) = (run.guest + count as u64, run.length - count as u64);
        self.run = Some(Run {
            guest,
            length,
            held,
        });
        Ok(count)
    }
}

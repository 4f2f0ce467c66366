//! A range of a file as a stream, with an extent of it replaced on the way: how one built ISO
//! becomes every host's own.
//!
//! It knows nothing of ISO 9660; where the extent lies is in the manifest.

use std::io::{self, SeekFrom};
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use futures_util::Stream;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

const CHUNK: u64 = 256 << 10;

/// Bytes that stand in for the file's own from `at` on.
#[derive(Debug, Clone)]
pub(super) struct Extent {
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
}

/// Streams `range` of the file, with `extent` in place of what is there. `sent` is called with
/// the length of each chunk as it goes out.
pub(super) async fn stream(
    path: &Path,
    range: Range<u64>,
    extent: Option<Extent>,
    sent: impl FnMut(u64) + Send + 'static,
) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static> {
    let mut file = File::open(path).await?;
    file.seek(SeekFrom::Start(range.start)).await?;
    let start = (file, range, extent, sent);
    Ok(futures_util::stream::try_unfold(start, |state| async {
        let (mut file, range, extent, mut sent) = state;
        let length = CHUNK.min(range.end.saturating_sub(range.start));
        if length == 0 {
            return Ok(None);
        }
        let mut chunk = vec![0; usize::try_from(length).expect("a chunk is small")];
        file.read_exact(&mut chunk).await?;
        if let Some(extent) = &extent {
            replace(&mut chunk, range.start, extent);
        }
        sent(length);
        let rest = range.start + length..range.end;
        Ok(Some((Bytes::from(chunk), (file, rest, extent, sent))))
    }))
}

/// Puts the part of `extent` that lies in `chunk`, which begins at `start`, in its place.
fn replace(chunk: &mut [u8], start: u64, extent: &Extent) {
    let from = start.max(extent.at);
    let chunk_end = start + chunk.len() as u64;
    let until = chunk_end.min(extent.at + extent.bytes.len() as u64);
    if from >= until {
        return;
    }
    let part = |base: u64| {
        let index = |at: u64| usize::try_from(at - base).expect("within a slice");
        index(from)..index(until)
    };
    chunk[part(start)].copy_from_slice(&extent.bytes[part(extent.at)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::TryStreamExt;
    use proptest::prelude::*;

    fn file_bytes() -> Vec<u8> {
        (0..600_000_u32)
            .map(|i| u8::try_from(i / 251 % 256).unwrap())
            .collect()
    }

    fn index(at: u64) -> usize {
        at.try_into().unwrap()
    }

    async fn read(path: &Path, range: Range<u64>, extent: Extent) -> Vec<u8> {
        let stream = stream(path, range, Some(extent), |_| {}).await.unwrap();
        let chunks: Vec<Bytes> = stream.try_collect().await.unwrap();
        chunks.concat()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Every range of the stream is that range of the file with the extent replaced, also
        /// where the range or a chunk's border (262,144) cuts the extent.
        #[test]
        fn a_range_is_the_range_of_the_patched_file(
            at in prop_oneof![0_u64..4_000, 258_000_u64..263_000, 590_000_u64..595_904],
            from in 0_u64..600_000,
            length in 0_u64..600_000,
            near in any::<bool>(),
        ) {
            let start = if near { at.saturating_sub(2000) + from % 6000 } else { from };
            let start = start.min(600_000);
            let end = (start + length).min(600_000);
            let extent = Extent { at, bytes: vec![0xEE; 4096] };
            let mut wanted = file_bytes();
            wanted[index(at)..index(at) + 4096].fill(0xEE);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("iso");
            std::fs::write(&path, file_bytes()).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let got = runtime.block_on(read(&path, start..end, extent));
            prop_assert!(got == wanted[index(start)..index(end)]);
        }
    }
}

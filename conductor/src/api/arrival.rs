//! Bodies, read whole before anybody looks at them: not too long, in time, and not too many at
//! once. Whoever sends one by the drop, or sends what is too long, is told so early.
//!
//! Not here: who sends it; the door asks that first, of those who must say so.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use bytes::{Bytes, BytesMut};
use ferrite_proto::problem::{Code, Problem};
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of a body, and how long it may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Most {
    bytes: usize,
    time: Duration,
    is_known: bool,
}

/// Of people and daemons.
pub(crate) const CALL: Most = Most {
    bytes: super::BODY,
    time: TIME,
    is_known: true,
};
/// Of agents: it may carry an inventory.
pub(crate) const POLL: Most = Most {
    bytes: super::POLL_BODY,
    ..CALL
};
/// Of those who are not known before it was read: a hello, an enrolment.
pub(crate) const STRANGER: Most = Most {
    bytes: super::STRANGERS_BODY,
    time: Duration::from_secs(if cfg!(test) { 1 } else { 10 }),
    is_known: false,
};

/// How long the body of somebody who is known may take.
const TIME: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 30 });
/// What each body may have without asking: a heartbeat is never refused for others' bodies.
const SMALL: usize = 16 << 10;
/// Bytes of all larger bodies at once, of those who are known.
const KNOWN: usize = 256 << 20;
/// The same, of strangers.
const STRANGERS: usize = 32 << 20;

/// Room for bodies.
#[derive(Debug, Clone)]
pub(crate) struct Bodies {
    known: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

impl Default for Bodies {
    fn default() -> Self {
        Self {
            known: Arc::new(Semaphore::new(KNOWN)),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
        }
    }
}

impl Bodies {
    /// The request with its body in memory, or why it is not taken.
    pub(crate) async fn arrive(&self, most: Most, request: Request) -> Result<Request, Problem> {
        if request.body().is_end_stream() {
            return Ok(request);
        }
        let (mut parts, body) = request.into_parts();
        if body.size_hint().lower() > most.bytes as u64 {
            return Err(too_long(most));
        }
        let gathered = tokio::time::timeout(most.time, self.gather(most, body)).await;
        let (bytes, room) = gathered.map_err(|_| too_slow(most))??;
        if let Some(room) = room {
            // Free again when the request is gone.
            parts.extensions.insert(Arc::new(room));
        }
        Ok(Request::from_parts(parts, Body::from(bytes)))
    }

    async fn gather(
        &self,
        most: Most,
        body: Body,
    ) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Problem> {
        let mut body = body.into_data_stream();
        let (mut bytes, mut room) = (BytesMut::new(), None);
        while let Some(part) = body.next().await {
            let part = part.map_err(|error| cut_off(&error))?;
            let length = bytes.len() + part.len();
            if length > most.bytes {
                return Err(too_long(most));
            }
            if length > SMALL {
                self.extend(most, &mut room, part.len())?;
            }
            bytes.extend_from_slice(&part);
        }
        Ok((bytes.freeze(), room))
    }

    /// More room for a body.
    fn extend(
        &self,
        most: Most,
        room: &mut Option<OwnedSemaphorePermit>,
        bytes: usize,
    ) -> Result<(), Problem> {
        let all = if most.is_known {
            &self.known
        } else {
            &self.strangers
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let more = Arc::clone(all).try_acquire_many_owned(bytes);
        let more = more.map_err(|_| no_room())?;
        match room {
            Some(room) => room.merge(more),
            None => *room = Some(more),
        }
        Ok(())
    }
}

fn too_long(most: Most) -> Problem {
    let what = format!("the body has more than {} bytes", most.bytes);
    Problem::new(Code::BodyTooLong, what, "send less")
}

fn too_slow(most: Most) -> Problem {
    let what = format!("the body did not arrive within {:?}", most.time);
    Problem::new(Code::BodyTooSlow, what, "look at the network; call again")
}

fn no_room() -> Problem {
    let what = "too many large bodies arrive at once";
    Problem::new(Code::TooManyRequests, what, "call again in a few seconds")
}

fn cut_off(error: &axum::Error) -> Problem {
    let what = format!("the body cannot be read: {error}");
    Problem::new(Code::RequestInvalid, what, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(parts: Vec<usize>) -> Request {
        let parts = parts.into_iter();
        let parts = parts.map(|length| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; length])));
        Request::new(Body::from_stream(futures_util::stream::iter(parts)))
    }

    #[tokio::test]
    async fn a_body_is_taken_up_to_its_length_and_given_room_until_it_is_gone() {
        let bodies = Bodies::default();
        let fits = bodies.arrive(CALL, stream(vec![1 << 19, 1 << 19])).await;
        let fits = fits.unwrap();
        assert_eq!(bodies.known.available_permits(), KNOWN - (1 << 20));
        assert_eq!(fits.body().size_hint().exact(), Some(1 << 20));
        drop(fits);
        assert_eq!(bodies.known.available_permits(), KNOWN);
        let long = bodies.arrive(CALL, stream(vec![1 << 20, 1])).await;
        assert_eq!(long.unwrap_err().code, Code::BodyTooLong);
        let declared = Request::new(Body::from(vec![0; STRANGER.bytes + 1]));
        let declared = bodies.arrive(STRANGER, declared).await;
        assert_eq!(declared.unwrap_err().code, Code::BodyTooLong);
        assert_eq!(bodies.known.available_permits(), KNOWN);
    }

    #[tokio::test]
    async fn without_room_large_bodies_are_turned_away_and_small_ones_are_not() {
        let bodies = Bodies::default();
        let many = KNOWN / super::super::POLL_BODY;
        let mut held = Vec::new();
        for _ in 0..many {
            let poll = stream(vec![super::super::POLL_BODY]);
            held.push(bodies.arrive(POLL, poll).await.unwrap());
        }
        let more = bodies.arrive(CALL, stream(vec![SMALL + 1])).await;
        assert_eq!(more.unwrap_err().code, Code::TooManyRequests);
        bodies.arrive(POLL, stream(vec![SMALL])).await.unwrap();
        bodies
            .arrive(STRANGER, stream(vec![SMALL + 1]))
            .await
            .unwrap();
        held.pop();
        bodies.arrive(CALL, stream(vec![SMALL + 1])).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn drops_are_not_waited_for() {
        let bodies = Bodies::default();
        let drops = futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b" ")), ()))
        });
        let request = Request::new(Body::from_stream(drops));
        let started = tokio::time::Instant::now();
        let slow = bodies.arrive(CALL, request).await;
        assert_eq!(slow.unwrap_err().code, Code::BodyTooSlow);
        assert_eq!(started.elapsed(), TIME);
    }
}

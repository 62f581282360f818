//! The target's group: takes frames in the order they were proposed, applies them later, fails at times.

use std::collections::VecDeque;

use bytes::Bytes;
use meridian_types::Lsn;
use meridian_types::frame::Frame;

use crate::SinkError;
use crate::receiver::Ticket;

struct Proposed {
    due: u64,
    /// Which receiver waits; an old one's answer goes nowhere, but its frame counts.
    receiver: u64,
    ticket: Ticket,
    frame: Bytes,
}

#[derive(Default)]
pub(super) struct Group {
    pub(super) watermark: Lsn,
    pub(super) applied: Vec<(Lsn, Bytes)>,
    queue: VecDeque<Proposed>,
}

impl Group {
    pub(super) fn propose(&mut self, due: u64, receiver: u64, ticket: Ticket, frame: Bytes) {
        let due = due.max(self.queue.back().map_or(0, |last| last.due));
        self.queue.push_back(Proposed { due, receiver, ticket, frame });
    }

    /// Applies what is due; answers (receiver, ticket, result). `fails` decides whether and how one fails.
    pub(super) fn run(
        &mut self,
        now: u64,
        mut fails: impl FnMut() -> Option<bool>,
    ) -> Vec<(u64, Ticket, Result<Lsn, SinkError>)> {
        let mut answers = Vec::new();
        while let Some(next) = self.queue.pop_front_if(|next| next.due <= now) {
            let answer = match fails() {
                None => self.apply(&next.frame),
                Some(after) => {
                    if after {
                        let _ = self.apply(&next.frame);
                    }
                    Err(SinkError::Unavailable("as drawn".to_owned()))
                }
            };
            answers.push((next.receiver, next.ticket, answer));
        }
        answers
    }

    fn apply(&mut self, frame: &Bytes) -> Result<Lsn, SinkError> {
        let frame = Frame::decode(frame).unwrap();
        if frame.header.last <= self.watermark {
            return Ok(self.watermark);
        }
        if frame.header.previous != self.watermark {
            return Err(SinkError::Rewind { watermark: self.watermark });
        }
        self.watermark = frame.header.last;
        self.applied.extend(frame.entries);
        Ok(self.watermark)
    }

    /// The node dies: what was proposed may or may not have reached the disk, but never out of order.
    pub(super) fn crash(&mut self, survivors: usize) {
        let survivors = survivors.min(self.queue.len());
        for proposed in self.queue.drain(..).take(survivors).collect::<Vec<_>>() {
            let _ = self.apply(&proposed.frame);
        }
    }
}

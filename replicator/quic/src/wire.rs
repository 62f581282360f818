//! Messages in and out of a QUIC stream. Lengths are checked before anything is allocated (RES-1).

use std::collections::VecDeque;
use std::future::{pending, poll_fn};

use bytes::{Buf, Bytes, BytesMut};
use meridian_replicator_core::message::{MessageError, length_allowed};
use s2n_quic::stream::{ReceiveStream, SendStream};

/// Why a stream is over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// The peer ended it.
    #[error("the peer closed the stream")]
    Closed,
    /// The stream or its connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] s2n_quic::stream::Error),
    /// The peer sent what is no message.
    #[error("the peer sent a malformed message: {0}")]
    Malformed(#[from] MessageError),
}

/// The messages of a stream, as they come.
pub(crate) struct Inbox {
    stream: ReceiveStream,
    buffer: BytesMut,
    takes_frames: bool,
}

impl Inbox {
    /// `takes_frames`: whether messages as long as a frame may come; else only short ones.
    pub(crate) fn new(stream: ReceiveStream, takes_frames: bool) -> Inbox {
        Inbox { stream, buffer: BytesMut::new(), takes_frames }
    }

    /// The length of the next message without its prefix. Cancel safe.
    pub(crate) async fn length(&mut self) -> Result<usize, WireError> {
        while self.buffer.len() < 4 {
            self.fill().await?;
        }
        let length = (&self.buffer[..4]).get_u32_le();
        Ok(length_allowed(length, self.takes_frames)?)
    }

    /// The next message without its prefix. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Bytes, WireError> {
        let length = self.length().await?;
        self.buffer.reserve((4 + length).saturating_sub(self.buffer.len()));
        while self.buffer.len() < 4 + length {
            self.fill().await?;
        }
        self.buffer.advance(4);
        Ok(self.buffer.split_to(length).freeze())
    }

    async fn fill(&mut self) -> Result<(), WireError> {
        let chunk = self.stream.receive().await?.ok_or(WireError::Closed)?;
        self.buffer.extend_from_slice(&chunk);
        Ok(())
    }
}

/// What waits to be written to a stream. Bounded by whoever fills it: the lane's window.
pub(crate) struct Outlet {
    stream: SendStream,
    waiting: VecDeque<Bytes>,
}

impl Outlet {
    pub(crate) fn new(stream: SendStream) -> Outlet {
        Outlet { stream, waiting: VecDeque::new() }
    }

    pub(crate) fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.waiting.push_back(bytes);
        }
    }

    /// How many pieces wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Writes for as long as it is polled; ends only with an error. Cancel safe.
    pub(crate) async fn drive(&mut self) -> WireError {
        match self.drain().await {
            Ok(()) => pending().await,
            Err(error) => error,
        }
    }

    /// Writes all that waits. Cancel safe: a chunk leaves the queue when the stream has taken it.
    pub(crate) async fn drain(&mut self) -> Result<(), WireError> {
        while !self.waiting.is_empty() {
            poll_fn(|cx| self.stream.poll_send_ready(cx)).await?;
            if let Some(bytes) = self.waiting.pop_front() {
                self.stream.send_data(bytes)?;
            }
        }
        Ok(())
    }

    /// Writes all that waits, says that nothing follows, and waits until the peer has it.
    pub(crate) async fn finish(&mut self) -> Result<(), WireError> {
        self.drain().await?;
        Ok(self.stream.close().await?)
    }
}

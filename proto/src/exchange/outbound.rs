//! The sending half: a stream of batches that the transport drains when it can send.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;

use super::pending::Shared;
use crate::v1;

pub(super) struct Outbound {
    shared: Arc<Shared>,
    stream: u64,
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>) -> Outbound {
        let stream = shared.begin_stream();
        Outbound { shared, stream }
    }
}

impl Stream for Outbound {
    type Item = v1::RequestBatch;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<v1::RequestBatch>> {
        match self.shared.take(self.stream, context.waker()) {
            Some(batch) => Poll::Ready(batch),
            None => Poll::Pending,
        }
    }
}

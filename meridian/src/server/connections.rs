//! How many connections are open at a time (RES-1): each costs buffers, a TLS session and a file descriptor, whether it says
//! anything or not. One beyond the bound is closed at once, so that whoever opened it tries another node.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::Stream;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::{Connected, TcpConnectInfo, TcpIncoming};
use tracing::warn;

/// Between two warnings about refused connections: a flood of them must not become a flood of lines.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// File descriptors for everything that is no connection: the log's segments, the store's tables, sockets of our own.
const DESCRIPTORS_KEPT: usize = 512;

/// Connections as they come in, up to so many at a time.
pub(crate) struct Connections {
    incoming: TcpIncoming,
    free: Arc<Semaphore>,
    most: usize,
    refused: u64,
    warned: Option<Instant>,
}

/// A connection that counts until it is closed.
pub(crate) struct Connection {
    stream: TcpStream,
    _counted: OwnedSemaphorePermit,
}

impl Connections {
    /// At most `most` of them, and no more than the process may have file descriptors for.
    pub(crate) fn new(incoming: TcpIncoming, most: usize) -> Connections {
        let most = most.min(descriptors().saturating_sub(DESCRIPTORS_KEPT)).max(1);
        Connections { incoming, free: Arc::new(Semaphore::new(most)), most, refused: 0, warned: None }
    }

    fn refuse(&mut self, stream: &TcpStream) {
        self.refused += 1;
        if self.warned.is_none_or(|then| then.elapsed() >= WARN_EVERY) {
            self.warned = Some(Instant::now());
            let from = stream.peer_addr().map_or_else(|_| "nobody".to_owned(), |address| address.to_string());
            warn!(most = self.most, refused = self.refused, %from, "connections beyond `limits.connections_max` are closed");
        }
    }
}

/// How many file descriptors this process may have, after asking for as many as the system lets it.
fn descriptors() -> usize {
    let limits = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, maximum: limits.maximum });
    let most = if raised.is_ok() { limits.maximum } else { limits.current };
    most.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX))
}

impl Stream for Connections {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Connection>>> {
        loop {
            let stream = match ready!(Pin::new(&mut self.incoming).poll_next(cx)) {
                Some(Ok(stream)) => stream,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            };
            match Arc::clone(&self.free).try_acquire_owned() {
                Ok(counted) => return Poll::Ready(Some(Ok(Connection { stream, _counted: counted }))),
                Err(_) => self.refuse(&stream),
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_beyond_the_bound_is_closed_and_counts_no_longer_once_another_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut connections = Connections::new(TcpIncoming::from(listener), 1);
        let _first = TcpStream::connect(address).await.unwrap();
        let held = connections.next().await.unwrap().unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        let mut byte = [0_u8];
        tokio::select! {
            _ = connections.next() => panic!("a second connection was let in"),
            read = second.read(&mut byte) => assert!(read.map_or(true, |count| count == 0), "it was not closed"),
        }
        drop(held);
        let _third = TcpStream::connect(address).await.unwrap();
        connections.next().await.unwrap().unwrap();
    }
}

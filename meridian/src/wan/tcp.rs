//! The TCP half of a route: what rpc (gRPC) travels through.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::delay::{DelayQueue, sleep_until};
use super::wire::Wire;

/// What one read takes from a socket. On a limited wire less, so that the pieces leave evenly.
const PIECE_BYTES: usize = 64 << 10;
const PIECE_BYTES_LIMITED: usize = 16 << 10;

/// A node has a few connections to each peer; an SDK a few more.
const CONNECTIONS_MAX: usize = 256;

/// Threads here hold one buffer on the heap and little else.
const STACK_BYTES: usize = 256 << 10;

/// A running TCP proxy.
#[derive(Debug)]
pub(super) struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    there: Arc<Wire>,
    back: Arc<Wire>,
    stop: AtomicBool,
    connections: Mutex<Connections>,
}

/// Both ends of what is open, so that stopping can shut them down.
#[derive(Debug, Default)]
struct Connections {
    next: u64,
    open: HashMap<u64, (TcpStream, TcpStream)>,
}

impl Proxy {
    pub(super) fn start(
        listen: SocketAddr,
        target: SocketAddr,
        there: Arc<Wire>,
        back: Arc<Wire>,
    ) -> io::Result<Proxy> {
        let listener = TcpListener::bind(listen).map_err(|error| bind_error(listen, "TCP", &error))?;
        let address = listener.local_addr()?;
        let stop = AtomicBool::new(false);
        let shared = Arc::new(Shared { target, there, back, stop, connections: Mutex::default() });
        let accepting = shared.clone();
        let acceptor = spawn("wan-tcp-accept", move || accepting.accept(&listener))?;
        Ok(Proxy { shared, address, acceptor: Some(acceptor) })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // `accept` has no timeout: one connection of our own wakes it.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for (near, far) in self.shared.lock().open.values() {
            let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for near in listener.incoming() {
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let Ok(near) = near else { continue };
            let shared = self.clone();
            // Ends with its connection, which stopping shuts down. Without a thread the connection just closes.
            let _ = spawn("wan-tcp-connection", move || shared.serve(near));
        }
    }

    /// Carries one connection until both directions have ended.
    fn serve(&self, near: TcpStream) {
        if !self.there.wait_until_whole() {
            return;
        }
        // The dialler sees a closed connection, as it would if nobody listened.
        let Ok(far) = TcpStream::connect(self.target) else { return };
        let Some(id) = self.register(&near, &far) else { return };
        let there = Pump::new(&near, &far, &self.there);
        let back = Pump::new(&far, &near, &self.back);
        if let (Ok(there), Ok(back)) = (there, back) {
            std::thread::scope(|scope| {
                scope.spawn(|| there.read());
                scope.spawn(|| there.write());
                scope.spawn(|| back.read());
                back.write();
            });
        }
        self.lock().open.remove(&id);
    }

    fn register(&self, near: &TcpStream, far: &TcpStream) -> Option<u64> {
        near.set_nodelay(true).and(far.set_nodelay(true)).ok()?;
        let ends = (near.try_clone().ok()?, far.try_clone().ok()?);
        let mut connections = self.lock();
        if connections.open.len() >= CONNECTIONS_MAX || self.stop.load(Ordering::Acquire) {
            return None;
        }
        connections.next += 1;
        let id = connections.next;
        connections.open.insert(id, ends);
        Some(id)
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One direction of one connection: a reader that stamps pieces, a writer that lets them go when due.
struct Pump<'a> {
    source: TcpStream,
    sink: TcpStream,
    wire: &'a Wire,
    /// `None` is the end of the stream.
    queue: DelayQueue<Option<Vec<u8>>>,
}

impl<'a> Pump<'a> {
    fn new(source: &TcpStream, sink: &TcpStream, wire: &'a Wire) -> io::Result<Pump<'a>> {
        let queue = DelayQueue::new(wire.flight_bytes_max());
        Ok(Pump { source: source.try_clone()?, sink: sink.try_clone()?, wire, queue })
    }

    fn read(&self) {
        let limited = self.wire.conditions().bits_per_second.is_some();
        let mut buffer = vec![0; if limited { PIECE_BYTES_LIMITED } else { PIECE_BYTES }];
        loop {
            sleep_until(Instant::now() + self.wire.pressure(Instant::now()));
            let length = match (&self.source).read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let due = self.wire.admit_piece(Instant::now(), length);
            if !self.queue.push_or_wait(due, length, Some(buffer[..length].to_vec())) {
                return;
            }
        }
        self.queue.push_or_wait(self.wire.admit_piece(Instant::now(), 0), 0, None);
    }

    fn write(&self) {
        let mut due = Vec::new();
        while self.queue.take_due(&mut due) {
            for piece in due.drain(..) {
                if !self.wire.wait_until_whole() {
                    return self.abort();
                }
                let Some(piece) = piece else {
                    let _ = self.sink.shutdown(Shutdown::Write);
                    return self.queue.close();
                };
                if (&self.sink).write_all(&piece).is_err() {
                    return self.abort();
                }
            }
        }
    }

    /// Breaks both ends, so that neither side waits for the other for ever.
    fn abort(&self) {
        self.queue.close();
        let _ = (self.source.shutdown(Shutdown::Both), self.sink.shutdown(Shutdown::Both));
    }
}

/// Starts a named thread.
pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(run)
}

/// The error of a failed bind with the address in it.
pub(super) fn bind_error(address: SocketAddr, what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot listen on {what} {address}: {error}"))
}

//! The UDP half of a route: what replication (QUIC) travels through.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::delay::DelayQueue;
use super::tcp::{bind_error, spawn};
use super::wire::Wire;

/// The largest datagram there is.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// How many senders one proxy tells apart; a node has one socket, and a new one after each restart.
const SESSIONS_MAX: usize = 64;

/// How often an idle receiver looks whether it should end.
const STOP_POLL: Duration = Duration::from_millis(500);

/// What the kernel may hold while a thread sleeps; capped by `net.core.rmem_max`.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

type There = DelayQueue<(Arc<UdpSocket>, Vec<u8>)>;
type Back = DelayQueue<(SocketAddr, Vec<u8>)>;

/// A running UDP proxy.
#[derive(Debug)]
pub(super) struct Proxy {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    listen: UdpSocket,
    target: SocketAddr,
    there_wire: Arc<Wire>,
    back_wire: Arc<Wire>,
    there: There,
    back: Back,
    stop: AtomicBool,
    sessions: Mutex<HashMap<SocketAddr, Session>>,
}

/// One sender behind the proxy, with the socket that stands for it before the target.
#[derive(Debug)]
struct Session {
    socket: Arc<UdpSocket>,
    ended: Arc<AtomicBool>,
    used: Instant,
}

impl Proxy {
    pub(super) fn start(
        listen: SocketAddr,
        target: SocketAddr,
        there_wire: Arc<Wire>,
        back_wire: Arc<Wire>,
    ) -> io::Result<Proxy> {
        let shared = Arc::new(Shared {
            listen: open(listen)?,
            target,
            there: DelayQueue::new(there_wire.flight_bytes_max()),
            back: DelayQueue::new(back_wire.flight_bytes_max()),
            there_wire,
            back_wire,
            stop: AtomicBool::new(false),
            sessions: Mutex::new(HashMap::new()),
        });
        let mut proxy = Proxy { shared: shared.clone(), threads: Vec::new() };
        let (receiver, there, back) = (shared.clone(), shared.clone(), shared);
        proxy.threads.push(spawn("wan-udp-receive", move || receiver.receive_there())?);
        proxy.threads.push(spawn("wan-udp-there", move || there.deliver_there())?);
        proxy.threads.push(spawn("wan-udp-back", move || back.deliver_back())?);
        Ok(proxy)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.there.close();
        self.shared.back.close();
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to tell.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn receive_there(self: &Arc<Self>) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        while !self.stopped() {
            // Errors here are the echo of an earlier send to a port where nobody listens (yet).
            let Ok((length, source)) = self.listen.recv_from(&mut buffer) else { continue };
            let now = Instant::now();
            let Some(due) = self.there_wire.admit_datagram(now, length, rand::random()) else { continue };
            let Some(socket) = self.session(source, now) else { continue };
            self.there.push_or_drop(due, length, (socket, buffer[..length].to_vec()));
        }
    }

    fn deliver_there(&self) {
        let mut due = Vec::new();
        while self.there.take_due(&mut due) {
            for (socket, datagram) in due.drain(..) {
                // A lost datagram is what UDP is allowed to do.
                let _ = socket.send(&datagram);
            }
        }
    }

    fn deliver_back(&self) {
        let mut due = Vec::new();
        while self.back.take_due(&mut due) {
            for (source, datagram) in due.drain(..) {
                let _ = self.listen.send_to(&datagram, source);
            }
        }
    }

    fn receive_back(&self, socket: &UdpSocket, source: SocketAddr, ended: &AtomicBool) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        while !self.stopped() && !ended.load(Ordering::Acquire) {
            let Ok(length) = socket.recv(&mut buffer) else { continue };
            if let Some(due) = self.back_wire.admit_datagram(Instant::now(), length, rand::random()) {
                self.back.push_or_drop(due, length, (source, buffer[..length].to_vec()));
            }
        }
    }

    /// The socket that stands for `source`; opened on its first datagram.
    fn session(self: &Arc<Self>, source: SocketAddr, now: Instant) -> Option<Arc<UdpSocket>> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = sessions.get_mut(&source) {
            session.used = now;
            return Some(session.socket.clone());
        }
        if sessions.len() >= SESSIONS_MAX {
            end_oldest(&mut sessions);
        }
        let socket = Arc::new(open(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).ok()?);
        socket.connect(self.target).ok()?;
        let ended = Arc::new(AtomicBool::new(false));
        let (shared, receiving, over) = (self.clone(), socket.clone(), ended.clone());
        // Ends by itself within one STOP_POLL of the session or the proxy.
        spawn("wan-udp-session", move || shared.receive_back(&receiving, source, &over)).ok()?;
        sessions.insert(source, Session { socket: socket.clone(), ended, used: now });
        Some(socket)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

fn end_oldest(sessions: &mut HashMap<SocketAddr, Session>) {
    let oldest = sessions.iter().min_by_key(|(_, session)| session.used).map(|(source, _)| *source);
    if let Some(session) = oldest.and_then(|source| sessions.remove(&source)) {
        session.ended.store(true, Ordering::Release);
    }
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address).map_err(|error| bind_error(address, "UDP", &error))?;
    let options = socket2::SockRef::from(&socket);
    options.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    options.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_read_timeout(Some(STOP_POLL))?;
    Ok(socket)
}

//! A stretch of Internet in user space: a UDP forwarder with delay, loss, a bottleneck and an off switch.
//! One thread per direction keeps time; the kernel is not asked for anything.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the stretch is like, in both directions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    pub(crate) one_way: Duration,
    /// Bytes per second.
    pub(crate) rate: f64,
    /// Bytes that the bottleneck queues before it drops.
    pub(crate) queue: f64,
    /// Of every packet.
    pub(crate) loss: f64,
}

/// A running forwarder.
pub(crate) struct Wan {
    pub(crate) address: SocketAddr,
    pub(crate) severed: Arc<AtomicBool>,
    pub(crate) forwarded: Arc<AtomicU64>,
    pub(crate) dropped: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

struct Direction {
    from: UdpSocket,
    to: UdpSocket,
    /// Where the dialler is; learnt from its packets.
    dialler: Arc<Mutex<Option<SocketAddr>>>,
    towards_dialler: bool,
    path: Path,
    severed: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    forwarded: Arc<AtomicU64>,
    dropped: Arc<AtomicU64>,
}

impl Wan {
    /// Forwards what comes to `address` on to `server`, and back.
    pub(crate) fn to(server: SocketAddr, path: Path) -> Wan {
        let front = socket();
        let back = socket();
        back.connect(server).unwrap();
        front.set_nonblocking(true).unwrap();
        back.set_nonblocking(true).unwrap();
        let address = front.local_addr().unwrap();
        let (severed, over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (forwarded, dropped) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let dialler = Arc::new(Mutex::new(None));
        let direction = |from: &UdpSocket, to: &UdpSocket, towards_dialler| Direction {
            from: from.try_clone().unwrap(),
            to: to.try_clone().unwrap(),
            dialler: Arc::clone(&dialler),
            towards_dialler,
            path,
            severed: Arc::clone(&severed),
            over: Arc::clone(&over),
            forwarded: Arc::clone(&forwarded),
            dropped: Arc::clone(&dropped),
        };
        let there = direction(&front, &back, false);
        let home = direction(&back, &front, true);
        let threads = vec![std::thread::spawn(move || there.run()), std::thread::spawn(move || home.run())];
        Wan { address, severed, forwarded, dropped, over, threads }
    }
}

/// Its buffer holds 80 ms of 400 Mbit/s: what it dropped would be no part of the emulated path.
fn socket() -> UdpSocket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    socket.set_recv_buffer_size(4 << 20).unwrap();
    socket.set_send_buffer_size(4 << 20).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.into()
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Direction {
    fn run(self) {
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut chance = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 11) as f64 / (1u64 << 53) as f64
        };
        let mut flying: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        let mut spare: Vec<Vec<u8>> = Vec::new();
        let mut free_at = Instant::now();
        let mut buffer = [0u8; 65_536];
        while !self.over.load(Ordering::Relaxed) {
            let mut idle = true;
            for _ in 0..64 {
                let Some(length) = self.receive(&mut buffer) else { break };
                idle = false;
                let now = Instant::now();
                let queued = free_at.saturating_duration_since(now).as_secs_f64() * self.path.rate;
                if chance() < self.path.loss || queued > self.path.queue || self.severed.load(Ordering::Relaxed) {
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                free_at = free_at.max(now) + Duration::from_secs_f64(length as f64 / self.path.rate);
                let mut packet = spare.pop().unwrap_or_default();
                packet.clear();
                packet.extend_from_slice(&buffer[..length]);
                flying.push_back((free_at + self.path.one_way, packet));
            }
            let now = Instant::now();
            while flying.front().is_some_and(|(due, _)| *due <= now) {
                let Some((_, packet)) = flying.pop_front() else { break };
                idle = false;
                self.send(&packet);
                spare.push(packet);
            }
            if idle {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> Option<usize> {
        match self.from.recv_from(buffer) {
            Ok((length, sender)) => {
                if !self.towards_dialler {
                    *self.dialler.lock().unwrap() = Some(sender);
                }
                Some(length)
            }
            Err(why) if why.kind() == ErrorKind::WouldBlock => None,
            // A peer whose port is closed answers with ICMP; the next packet may fare better.
            Err(_) => None,
        }
    }

    fn send(&self, packet: &[u8]) {
        let dialler = *self.dialler.lock().unwrap();
        let sent = match (self.towards_dialler, dialler) {
            (true, Some(dialler)) => self.to.send_to(packet, dialler),
            (true, None) => return,
            (false, _) => self.to.send(packet),
        };
        match sent {
            Ok(_) => self.forwarded.fetch_add(1, Ordering::Relaxed),
            Err(_) => self.dropped.fetch_add(1, Ordering::Relaxed),
        };
    }
}

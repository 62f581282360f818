//! The one forwarder: reads packets from a TUN device per region, and writes each to the region it is for when its
//! [`Link`] says that it arrives.
//!
//! ```text
//!   ns us-east ── tun ──> reader ─┐  Link us-east→eu-west   ┌─> DueQueue ──> writer ── tun ──> ns eu-west
//!   ns ap-south ─ tun ──> reader ─┼─ Link ap-south→eu-west ─┘
//! ```
//!
//! Two threads per region, not tokio: its timer wheel ticks in milliseconds. Timer slack, by which Linux lets ordinary
//! sleeps run late so that they can be bundled, is set to its least for these threads.

use std::io;
use std::net::Ipv4Addr;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tun_rs::SyncDevice;

use super::link::{Conditions, Counters, Link};
use super::packet;
use super::queue::DueQueue;

/// How often a reader with nothing to read looks whether it should end.
const LOOK_UP: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Larger than any packet of a device whose MTU is below 2048.
const PACKET_BYTES_MAX: usize = 2048;

/// One region's end: the device in its namespace, and the address behind it.
pub struct Port {
    /// The only address behind this port.
    pub address: Ipv4Addr,
    /// Its device.
    pub device: SyncDevice,
}

/// A running forwarder. Dropping it ends its threads and removes the devices.
pub struct Forwarder {
    handle: Handle,
    threads: Vec<JoinHandle<()>>,
}

/// Changes links while packets flow. Ports are named by their index. Cheap to clone.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

struct Shared {
    addresses: Vec<Ipv4Addr>,
    /// From port `a` to port `b` at `a * ports + b`.
    links: Vec<Mutex<Link>>,
    queues: Vec<DueQueue>,
    stop: AtomicBool,
    /// Packets for nobody here: router solicitations and the like.
    unroutable: AtomicU64,
}

impl Forwarder {
    /// Starts forwarding over perfect links; `seed` decides what they lose once they are told to.
    ///
    /// # Errors
    /// When a device can't be made non-blocking, or a thread can't be started.
    pub fn start(ports: Vec<Port>, seed: u64) -> anyhow::Result<Forwarder> {
        let (addresses, devices): (Vec<_>, Vec<_>) =
            ports.into_iter().map(|port| (port.address, Arc::new(port.device))).unzip();
        let now = Instant::now();
        let count = addresses.len();
        let handle = Handle(Arc::new(Shared {
            links: (0..count * count).map(|at| Mutex::new(Link::new(now, seed ^ ((at as u64) << 32)))).collect(),
            queues: (0..count).map(|_| DueQueue::default()).collect(),
            addresses,
            stop: AtomicBool::new(false),
            unroutable: AtomicU64::new(0),
        }));
        let mut forwarder = Forwarder { handle: handle.clone(), threads: Vec::new() };
        for (at, device) in devices.into_iter().enumerate() {
            device.set_nonblocking(true)?;
            let (shared, reads) = (Arc::clone(&handle.0), Arc::clone(&device));
            forwarder.spawn(format!("wan-read-{at}"), move || shared.read_all(at, &reads))?;
            let shared = Arc::clone(&handle.0);
            forwarder.spawn(format!("wan-write-{at}"), move || shared.write_all(at, &device))?;
        }
        Ok(forwarder)
    }

    /// Changes links while packets flow.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    fn spawn(&mut self, name: String, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            // Without it packets are only some 50 µs later.
            let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
            work();
        });
        self.threads.push(thread.context("starting a thread of the forwarder")?);
        Ok(())
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.handle.0.stop.store(true, Ordering::Relaxed);
        self.handle.0.queues.iter().for_each(DueQueue::close);
        for thread in self.threads.drain(..) {
            // A panic in it was printed when it happened.
            let _ = thread.join();
        }
    }
}

impl Handle {
    /// Changes what holds from one port to another.
    pub fn update(&self, from: usize, to: usize, change: impl FnOnce(&mut Conditions)) {
        let mut link = self.0.link(from, to);
        let mut conditions = link.conditions();
        change(&mut conditions);
        link.set(conditions);
    }

    /// Changes both directions between two ports.
    pub fn update_both(&self, a: usize, b: usize, change: impl Fn(&mut Conditions)) {
        self.update(a, b, &change);
        self.update(b, a, &change);
    }

    /// What holds from one port to another.
    pub fn conditions(&self, from: usize, to: usize) -> Conditions {
        self.0.link(from, to).conditions()
    }

    /// What became of packets from one port to another.
    pub fn counters(&self, from: usize, to: usize) -> Counters {
        self.0.link(from, to).counters()
    }

    /// Packets for nobody here.
    pub fn unroutable(&self) -> u64 {
        self.0.unroutable.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn link(&self, from: usize, to: usize) -> MutexGuard<'_, Link> {
        self.links[from * self.addresses.len() + to].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_all(&self, from: usize, device: &SyncDevice) {
        let mut buffer = [0; PACKET_BYTES_MAX];
        while !self.stop.load(Ordering::Relaxed) {
            match device.recv(&mut buffer) {
                Ok(bytes) => self.forward(from, &buffer[..bytes]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut device = [PollFd::new(device, PollFlags::IN)];
                    // Interrupted or timed out: the loop looks again either way.
                    let _ = poll(&mut device, Some(&LOOK_UP));
                }
                // A device that is down for a moment says so on every read.
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn forward(&self, from: usize, packet: &[u8]) {
        let to =
            packet::destination(packet).and_then(|address| self.addresses.iter().position(|known| *known == address));
        let Some(to) = to else {
            self.unroutable.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let fate = self.link(from, to).admit(Instant::now(), packet.len(), packet::flow(packet));
        let Some(due) = fate.due else { return };
        let mut packet = packet.to_vec();
        if let Some(chosen) = fate.flip {
            packet::flip(&mut packet, chosen);
        }
        // A full queue drops, as networks do.
        if let Some(again) = fate.again {
            let _ = self.queues[to].push(again, packet.clone());
        }
        let _ = self.queues[to].push(due, packet);
    }

    fn write_all(&self, to: usize, device: &SyncDevice) {
        let mut packets = Vec::new();
        while self.queues[to].take_due(&mut packets) {
            for packet in packets.drain(..) {
                // A receiver that takes nothing (its device is down) loses packets, as networks do.
                let _ = device.send(&packet);
            }
        }
    }
}

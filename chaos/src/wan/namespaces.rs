//! Network namespaces with a TUN device each: where the processes of a region live.
//!
//! A [`Namespace`] belongs to one run and is named after its process; it is removed when dropped, and those of runs
//! that died are removed at the start of the next. A thread that enters one has that region's network, and so have
//! the sockets it opens and the processes it starts: [`Namespace::within`].

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tun_rs::{DeviceBuilder, SyncDevice};

use super::shell::run;

/// Every namespace of every run begins so; then come the process id of the run, a number, and the region.
pub(crate) const PREFIX: &str = "meridian-wan-";

/// Namespaces of this process so far: a process may emulate several planets.
static CREATED: AtomicU64 = AtomicU64::new(0);

/// Where iproute2 keeps namespaces.
const DIR: &str = "/run/netns";

/// The device inside each namespace. Names are per namespace, so one is enough.
const DEVICE: &str = "wan0";

/// As on most of the internet.
const MTU: u16 = 1500;

/// Why there can be no emulated WAN here, in a sentence; `None` when there can.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        return Some(format!("/dev/net/tun can't be opened: {error}"));
    }
    // Root in a container may not have the right: only trying it tells.
    Namespace::create("probe").err().map(|error| format!("`ip netns` doesn't work: {error:#}"))
}

/// One region's network.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates it, with loopback up and nothing else.
    ///
    /// # Errors
    /// What `ip` said.
    pub fn create(region: &str) -> anyhow::Result<Namespace> {
        let number = CREATED.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{region}", std::process::id());
        ip(&["netns", "add", &name])?;
        let namespace = Namespace { name };
        ip(&["-n", &namespace.name, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Its name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does something inside, in a thread of its own. Processes started there live on in the namespace.
    ///
    /// # Errors
    /// What `work` returned, or why it wasn't done.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(&self.name)?;
                    work()
                })
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a thread in {} panicked", self.name)))
        })
    }

    /// Opens a TUN device inside, with this address; everything else of `address`'s /24 is behind it.
    ///
    /// # Errors
    /// When the kernel or `ip` refuses.
    pub fn device(&self, address: Ipv4Addr) -> anyhow::Result<SyncDevice> {
        let device = self.within(|| {
            DeviceBuilder::new()
                .name(DEVICE)
                .inherit_enable_state()
                .build_sync()
                .with_context(|| format!("opening a TUN device in {}", self.name))
        })?;
        ip(&["-n", &self.name, "addr", "add", &format!("{address}/24"), "dev", DEVICE])?;
        ip(&["-n", &self.name, "link", "set", DEVICE, "mtu", &MTU.to_string(), "txqueuelen", "10000", "up"])?;
        Ok(device)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // What is left is removed by the next run.
        let _ = ip(&["netns", "del", &self.name]);
    }
}

/// Makes this thread live in the namespace of that name, for good.
///
/// # Errors
/// When there is none, or nobody is root.
pub fn enter(name: &str) -> anyhow::Result<()> {
    let path = Path::new(DIR).join(name);
    let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("entering {name}"))
}

/// Removes the namespaces of runs whose process is gone, and kills what still lives in them.
///
/// # Errors
/// What `ip` said.
pub fn remove_stale() -> anyhow::Result<()> {
    for line in ip(&["netns", "list"])?.lines() {
        let Some(name) = line.split_whitespace().next() else { continue };
        let Some(process) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        if Path::new("/proc").join(process).exists() {
            continue;
        }
        // Another run may be at it, too.
        for pid in ip(&["netns", "pids", name]).unwrap_or_default().split_whitespace() {
            if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
                // It may have ended meanwhile.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let removed = ip(&["netns", "del", name]);
        if Path::new(DIR).join(name).exists() {
            removed?;
        }
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> anyhow::Result<String> {
    run("ip", arguments)
}

//! The ground a planet stands on: a namespace per region, one for the observer, and the forwarder between them.
//!
//! The observer (the runner itself) is a port like the others, at no distance and never cut off, so that what it sees
//! of nodes does not depend on what it does to the regions.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::forwarder::{Forwarder, Handle, Port};
use super::namespaces::{Namespace, remove_stale};

/// Regions and the observer, joined. Dropping it removes all of it.
pub struct Ground {
    // First, so that it lets go of the devices before their namespaces go.
    forwarder: Forwarder,
    regions: Vec<Namespace>,
    observer: Namespace,
}

/// The address of the node and the clients of a region.
pub fn address(region: usize) -> Ipv4Addr {
    // Inside namespaces every address is free; regions are few.
    Ipv4Addr::new(10, 99, 0, u8::try_from(region + 1).unwrap_or(u8::MAX))
}

impl Ground {
    /// Creates namespaces for these regions, at no distance yet.
    ///
    /// # Errors
    /// What the kernel or `ip` refused; [`super::namespaces::missing`] tells beforehand what is likely to.
    pub fn create(regions: &[&str], seed: u64) -> anyhow::Result<Ground> {
        remove_stale()?;
        let observer = Namespace::create("observer")?;
        let regions = regions.iter().map(|region| Namespace::create(region)).collect::<Result<Vec<_>, _>>()?;
        let mut ports = Vec::new();
        for (at, namespace) in regions.iter().chain([&observer]).enumerate() {
            ports.push(Port { address: address(at), device: namespace.device(address(at))? });
        }
        Ok(Ground { forwarder: Forwarder::start(ports, seed)?, regions, observer })
    }

    /// The namespace of a region.
    pub fn region(&self, region: usize) -> &Namespace {
        &self.regions[region]
    }

    /// The namespace of whoever watches.
    pub fn observer(&self) -> &Namespace {
        &self.observer
    }

    /// Links between regions, to be changed live. Regions are ports by their index, the observer comes last.
    pub fn links(&self) -> Handle {
        self.forwarder.handle()
    }

    /// Sets the distance between two regions.
    pub fn set_round_trip(&self, a: usize, b: usize, round_trip: Duration) {
        self.links().update_both(a, b, |conditions| {
            conditions.delay = round_trip / 2;
        });
    }
}

//! What faults are made with: links, disks, clocks. What this machine lacks is said in sentences, and the kinds of
//! faults that need it are left out.

use std::path::Path;

use super::clock::{self, WallClocks};
use super::disk::{self, Disk};
use super::fault::Kind;
use super::ground::{Ground, address};
use super::namespaces;
use super::weather::Distances;
use crate::real::{Launch, Place, REGIONS};

/// Room for the log's preallocated segments, the store, and many rounds of data.
const DISK_BYTES: u64 = 2 << 30;

/// Below this much free disk a node refuses writes: more than it writes between two looks at the disk.
const RESERVE_BYTES: u64 = 96 << 20;

/// What a disk below its reserve has left.
const LOW_BYTES: u64 = 64 << 20;

/// Ports of every node; its address is its own.
const RPC_PORT: u16 = 7100;
const REPLICATION_PORT: u16 = 7101;
const ADMIN_PORT: u16 = 7102;

/// Those of the next node at the same address.
const PORTS_PER_NODE: u16 = 10;

/// The ground, the disks and the clocks of a planet.
pub struct Tools {
    // Nodes end before their disks and networks: whoever owns both drops the planet first.
    disks: Vec<Disk>,
    clocks: Option<WallClocks>,
    ground: Ground,
    distances: Distances,
    missing: Vec<(Vec<Kind>, String)>,
}

impl Tools {
    /// Makes what can be made here, below `dir`.
    ///
    /// # Errors
    /// When there is no ground to stand on; everything else can be missing.
    pub fn gather(dir: &Path, distances: Distances, faketime: Option<&Path>, seed: u64) -> anyhow::Result<Tools> {
        disk::remove_stale(namespaces::PREFIX)?;
        let ground = Ground::create(&REGIONS, seed)?;
        let mut missing = Vec::new();
        let disks: anyhow::Result<Vec<Disk>> =
            REGIONS.iter().map(|region| Disk::create(dir, &format!("{region}-1"), DISK_BYTES)).collect();
        let disks = disks.unwrap_or_else(|error| {
            let kinds = vec![Kind::DiskLow, Kind::DiskFull, Kind::DiskStall, Kind::DiskSlow];
            missing.push((kinds, format!("disks can't be made: {error:#}")));
            Vec::new()
        });
        if let Some(reason) = disk::slowing_missing().filter(|_| !disks.is_empty()) {
            missing.push((vec![Kind::DiskSlow], reason));
        }
        let clocks = WallClocks::find(faketime, dir);
        if let Err(error) = &clocks {
            missing.push((vec![Kind::ClockStep], format!("{error:#}")));
        }
        if let Some(reason) = clock::jumping_missing() {
            missing.push((vec![Kind::ClockJump], reason));
        }
        let tools = Tools { disks, clocks: clocks.ok(), ground, distances, missing };
        tools.weather([]);
        Ok(tools)
    }

    /// The namespaces and links.
    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    /// The kinds of faults that can be made here.
    pub fn kinds(&self) -> Vec<Kind> {
        let is_missing = |kind: &Kind| self.missing.iter().any(|(kinds, _)| kinds.contains(kind));
        Kind::ALL.iter().copied().filter(|kind| !is_missing(kind)).collect()
    }

    /// What can't be made, and why.
    pub fn missing(&self) -> impl Iterator<Item = String> {
        self.missing.iter().map(|(kinds, reason)| {
            let kinds: Vec<String> = kinds.iter().map(Kind::to_string).collect();
            format!("left out: {} ({reason})", kinds.join(", "))
        })
    }

    /// Where so many nodes of each region live, region by region: those of one share its address, and its disk.
    pub fn places(&self, nodes: [usize; REGIONS.len()]) -> Vec<Place> {
        let of = |(region, nodes)| (0..).take(nodes).map(move |nth| self.place(region, nth));
        nodes.into_iter().enumerate().flat_map(of).collect()
    }

    fn place(&self, region: usize, nth: u16) -> Place {
        let at = |port| (address(region), port + nth * PORTS_PER_NODE).into();
        let through = ["ip", "netns", "exec", self.ground.region(region).name()];
        Place {
            rpc: at(RPC_PORT),
            replication: at(REPLICATION_PORT),
            admin: at(ADMIN_PORT),
            data_dir: self.disks.get(region).map(|disk| disk.data_dir(nth)),
            disk_reserve_bytes: self.disks.get(region).map(|_| RESERVE_BYTES),
            through: through.map(str::to_owned).to_vec(),
        }
    }

    /// How a region's node is started, with a monotonic clock that reads so much more.
    ///
    /// # Errors
    /// When its wall clock can't be set.
    pub fn launch(&self, region: usize, monotonic_ahead_s: u32) -> anyhow::Result<Launch> {
        let environment = self.clocks.as_ref().map(|clocks| clocks.environment(region)).transpose()?;
        let through = if monotonic_ahead_s > 0 { clock::jumped(monotonic_ahead_s) } else { Vec::new() };
        Ok(Launch { through, environment: environment.unwrap_or_default() })
    }

    /// Lets these faults be at work on the links, and no others.
    pub fn weather<'a>(&self, faults: impl IntoIterator<Item = &'a super::fault::Fault> + Clone) {
        let links = self.ground.links();
        for (from, to) in self.distances.directions() {
            let conditions = self.distances.conditions((from, to), faults.clone());
            links.update(from, to, |old| *old = conditions);
        }
    }

    /// Leaves less than the reserve, or nothing at all.
    ///
    /// # Errors
    /// When the disk can't be filled.
    pub fn fill(&self, node: usize, to_the_brim: bool) -> anyhow::Result<()> {
        self.disks.get(node).map_or(Ok(()), |disk| disk.fill(if to_the_brim { 0 } else { LOW_BYTES }))
    }

    /// A node's disk, to be stalled, slowed, freed.
    pub fn disk(&self, node: usize) -> Option<&Disk> {
        self.disks.get(node)
    }

    /// Wall clocks, where there are any.
    pub fn clocks(&self) -> Option<&WallClocks> {
        self.clocks.as_ref()
    }
}

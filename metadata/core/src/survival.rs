//! What can die right now: which nodes, zones and regions the cluster can lose for good without losing acknowledged writes
//! (DUR-2), and without stopping them.
//!
//! ```text
//!   Evidence (who is live, who votes, where shards are, how far copies are behind)
//!      │  every node, every zone, every region, and every two of a kind
//!      ▼
//!   Ground (what is left) ──► per bucket: Option<Loss>, Option<Stop> ──► Tally: 2 of 3, and why not the third
//! ```
//! Whoever dies is taken to never come back, with what it had on disk. A region counts as a copy while each of its groups
//! keeps a majority: an acknowledged write is on some majority, so what is left of a group without one may lack it. What
//! isn't live already counts as dead, too.
//!
//! Deliberately not here: asking anybody (`meridian status`, `metadata/node`), and what a failover does (`plan`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_types::{Bucket, BucketId, NodeId, PlanId, RegionId, Topology};

mod fate;
#[cfg(test)]
mod laws;

use fate::Ground;

/// The most units of a kind that are looked at in pairs: 2016 pairs, a few milliseconds.
pub const PAIRED_MAX: usize = 64;

/// How many failures that a bucket would not survive are told of each kind.
pub const CASES_MAX: usize = 8;

/// What is known of the cluster at one moment.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Placement and buckets.
    pub topology: Arc<Topology>,
    /// The voters of the metadata group.
    pub voters: BTreeSet<NodeId>,
    /// The nodes that are up and heard.
    pub live: BTreeSet<NodeId>,
    /// What a region (the third) has not yet of what another (the second) took for a bucket. Absent: not known.
    pub lags: BTreeMap<(BucketId, RegionId, RegionId), Exposure>,
    /// Copies that nobody can rest on: diverged, astray, behind the log, or being repaired.
    pub unsound: BTreeSet<(BucketId, RegionId)>,
}

/// Writes that are in one region only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Exposure {
    /// How many.
    pub operations: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The age of the oldest, in milliseconds.
    pub oldest_ms: u64,
    /// How old this figure is, in milliseconds.
    pub age_ms: u64,
}

/// Something that dies as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// One node.
    Node(NodeId),
    /// A failure domain of a region.
    Zone(RegionId, String),
    /// A region.
    Region(RegionId),
}

/// What dies together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Any one node.
    Node,
    /// Any one zone.
    Zone,
    /// Any one region.
    Region,
    /// Any two nodes.
    TwoNodes,
    /// Any two zones.
    TwoZones,
    /// Any two regions.
    TwoRegions,
}

impl Kind {
    /// All of them, the likelier first.
    pub const ALL: [Kind; 6] = [Kind::Node, Kind::Zone, Kind::Region, Kind::TwoNodes, Kind::TwoZones, Kind::TwoRegions];
}

/// Why acknowledged writes would be lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// They may be in these regions only: nothing waits for a second one before it acknowledges.
    Exposed {
        /// Where they were taken.
        origins: Vec<RegionId>,
        /// How much that is, as far as it is known: at most, whichever of the regions left takes over.
        known: Option<Exposure>,
    },
    /// Too few regions are left to be sure that one of them has every acknowledged write.
    Unproven {
        /// How many are left.
        left: usize,
        /// How many it takes: all regions less what acknowledges, and one.
        needed: usize,
    },
    /// No region with a copy is left.
    NoCopy,
}

/// Why nobody would take writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// An operation has stopped them, until it ends.
    Moving(PlanId),
    /// Without a majority of the metadata voters primaries stop when their lease runs out.
    NoMetadataMajority {
        /// Voters left.
        left: usize,
        /// Voters it takes.
        needed: usize,
    },
    /// The primary is gone, and an operator has to decide.
    PrimaryLost {
        /// The primary.
        region: RegionId,
        /// Whether nothing would be lost by moving it.
        proven: bool,
    },
    /// Too few regions are left to acknowledge.
    TooFewRegions {
        /// How many are left.
        left: usize,
        /// How many it takes.
        needed: usize,
    },
    /// No region that holds the bucket is left.
    NoRegion,
}

/// What of a kind can die.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally<W> {
    /// What is counted.
    pub kind: Kind,
    /// How many there are; those that are dead already are not counted.
    pub of: usize,
    /// How many of them can die.
    pub fine: usize,
    /// Some of those that can't, and why: at most [`CASES_MAX`].
    pub cases: Vec<Case<W>>,
}

/// A failure that is not survived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case<W> {
    /// What dies.
    pub dead: Vec<Unit>,
    /// Why not.
    pub why: W,
}

/// What a bucket survives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketSurvival {
    /// Which.
    pub bucket: BucketId,
    /// Why something is lost already, should what is down not come back.
    pub loss_now: Option<Loss>,
    /// Why writes are stopped already.
    pub stop_now: Option<Stop>,
    /// Without losing acknowledged writes; one entry per kind that was looked at.
    pub keeping: Vec<Tally<Loss>>,
    /// Without stopping writes.
    pub serving: Vec<Tally<Stop>>,
}

/// What the whole cluster survives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survival {
    /// Each bucket, by its id.
    pub buckets: Vec<BucketSurvival>,
    /// Without losing an acknowledged write of any bucket.
    pub keeping: Vec<Tally<(BucketId, Loss)>>,
    /// Without stopping any bucket.
    pub serving: Vec<Tally<(BucketId, Stop)>>,
    /// Without losing the majority of the metadata voters.
    pub deciding: Vec<Tally<Stop>>,
    /// Why there is no such majority already.
    pub undecided_now: Option<Stop>,
}

impl<W> Tally<W> {
    fn new(kind: Kind) -> Tally<W> {
        Tally { kind, of: 0, fine: 0, cases: Vec::new() }
    }

    fn count(&mut self, dead: &[Unit], why: Option<W>) {
        self.of += 1;
        match why {
            None => self.fine += 1,
            Some(why) if self.cases.len() < CASES_MAX => self.cases.push(Case { dead: dead.to_vec(), why }),
            Some(_) => {}
        }
    }
}

/// One failure: what dies, and which nodes those are.
struct Failure {
    units: Vec<Unit>,
    nodes: BTreeSet<NodeId>,
}

impl Evidence {
    /// What can die right now. Exhaustive over every node, zone and region, and over every two of a kind that has at most
    /// [`PAIRED_MAX`] units.
    pub fn survey(&self) -> Survival {
        self.survey_of(&Kind::ALL)
    }

    /// The same for some kinds.
    pub fn survey_of(&self, kinds: &[Kind]) -> Survival {
        let now = Ground::after(self, &BTreeSet::new());
        let mut survival = Survival {
            buckets: self.topology.buckets.values().map(|bucket| self.untouched(&now, bucket)).collect(),
            keeping: Vec::new(),
            serving: Vec::new(),
            deciding: Vec::new(),
            undecided_now: now.undecided(),
        };
        for kind in kinds {
            if let Some(failures) = self.failures(*kind) {
                self.add(&mut survival, *kind, &now, &failures);
            }
        }
        survival
    }

    fn untouched(&self, now: &Ground, bucket: &Bucket) -> BucketSurvival {
        BucketSurvival {
            bucket: bucket.id,
            loss_now: self.loss(None, now, bucket),
            stop_now: self.stop(now, bucket),
            keeping: Vec::new(),
            serving: Vec::new(),
        }
    }

    fn add(&self, survival: &mut Survival, kind: Kind, now: &Ground, failures: &[Failure]) {
        let grounds: Vec<_> = failures.iter().map(|it| (it, Ground::after(self, &it.nodes))).collect();
        let mut deciding = Tally::new(kind);
        grounds.iter().for_each(|(it, ground)| deciding.count(&it.units, ground.undecided()));
        survival.deciding.push(deciding);
        let mut first = vec![(None, None); failures.len()];
        for (row, bucket) in survival.buckets.iter_mut().zip(self.topology.buckets.values()) {
            let (mut keeping, mut serving) = (Tally::new(kind), Tally::new(kind));
            for ((it, ground), first) in grounds.iter().zip(&mut first) {
                let (loss, stop) = (self.loss(Some(now), ground, bucket), self.stop(ground, bucket));
                first.0 = first.0.take().or_else(|| loss.clone().map(|why| (bucket.id, why)));
                first.1 = first.1.take().or_else(|| stop.clone().map(|why| (bucket.id, why)));
                keeping.count(&it.units, loss);
                serving.count(&it.units, stop);
            }
            row.keeping.push(keeping);
            row.serving.push(serving);
        }
        let (mut keeping, mut serving) = (Tally::new(kind), Tally::new(kind));
        for (it, (loss, stop)) in failures.iter().zip(first) {
            keeping.count(&it.units, loss);
            serving.count(&it.units, stop);
        }
        survival.keeping.push(keeping);
        survival.serving.push(serving);
    }

    /// Every failure of a kind that could still happen; `None` when there are too many.
    fn failures(&self, kind: Kind) -> Option<Vec<Failure>> {
        let single = |units: BTreeMap<Unit, BTreeSet<NodeId>>| {
            units.into_iter().map(|(unit, nodes)| Failure { units: vec![unit], nodes }).collect::<Vec<_>>()
        };
        match kind {
            Kind::Node => Some(single(self.units(|node| Unit::Node(node.id)))),
            Kind::Zone => Some(single(self.units(|node| Unit::Zone(node.region, node.zone.clone())))),
            Kind::Region => Some(single(self.units(|node| Unit::Region(node.region)))),
            Kind::TwoNodes => pairs(&self.failures(Kind::Node)?),
            Kind::TwoZones => pairs(&self.failures(Kind::Zone)?),
            Kind::TwoRegions => pairs(&self.failures(Kind::Region)?),
        }
    }

    /// The units with a live node in them, and all their nodes.
    fn units(&self, unit: impl Fn(&meridian_types::Node) -> Unit) -> BTreeMap<Unit, BTreeSet<NodeId>> {
        let mut units: BTreeMap<Unit, BTreeSet<NodeId>> = BTreeMap::new();
        for node in self.topology.nodes.values() {
            units.entry(unit(node)).or_default().insert(node.id);
        }
        units.retain(|_, nodes| !nodes.is_disjoint(&self.live));
        units
    }
}

fn pairs(of: &[Failure]) -> Option<Vec<Failure>> {
    if of.len() > PAIRED_MAX {
        return None;
    }
    let pair = |a: &Failure, b: &Failure| Failure {
        units: a.units.iter().chain(&b.units).cloned().collect(),
        nodes: &a.nodes | &b.nodes,
    };
    let behind = |at: usize| of.iter().skip(at + 1);
    Some(of.iter().enumerate().flat_map(|(at, a)| behind(at).map(move |b| pair(a, b))).collect())
}

//! What there is at one moment.

/// Regions, numbered from 0. Region 0 is the first primary.
pub(super) const REGIONS: usize = 3;

/// One write in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// The epoch it was ordered under.
    pub epoch: u8,
    /// The region that ordered it.
    pub origin: u8,
    /// Which write: numbered in the order of ordering.
    pub write: u8,
}

/// What the metadata plane has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// This region is the primary.
    Steady(usize),
    /// The epoch was raised; nobody is. This region was.
    Fencing(usize),
}

/// A copy of the metadata: rising in index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Metadata {
    /// Commits so far.
    pub index: u8,
    /// The bucket's epoch.
    pub epoch: u8,
    /// Its phase.
    pub phase: Phase,
}

impl Metadata {
    /// The primary, if there is one.
    pub fn primary(self) -> Option<usize> {
        match self.phase {
            Phase::Steady(region) => Some(region),
            Phase::Fencing(_) => None,
        }
    }
}

/// A request for a lease, and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Renewal {
    /// For how many more ticks the holder would believe: counted from when it sent the request.
    pub left: u8,
    /// The index it was granted at, once it was.
    pub granted: Option<u8>,
}

/// One region: its group is one node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// Its copy of the bucket's history.
    pub log: Vec<Entry>,
    /// How much of it is on disk.
    pub synced: u8,
    /// What it has applied of the metadata.
    pub known: Metadata,
    /// For how many more ticks it believes in its lease.
    pub lease: u8,
    /// A renewal on its way.
    pub renewal: Option<Renewal>,
    /// It refuses frames and writes of lower epochs.
    pub fence: u8,
    /// The epoch whose history its log is known to be a prefix of.
    pub aligned: u8,
}

/// A strong read on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Read {
    /// Who answers.
    pub region: usize,
    /// How much of the log was read.
    pub length: u8,
    /// The epoch it was read under.
    pub epoch: u8,
    /// Writes that had been acknowledged, or read, before it began.
    pub owed: u8,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// What is committed.
    pub metadata: Metadata,
    /// For how many more ticks the metadata leader remembers that a region may believe in a lease.
    pub remembers: [u8; REGIONS],
    /// While fencing: ticks until nobody believes in a lease that was granted before the epoch was raised.
    pub wait: u8,
    /// While fencing: how much each fenced region has on disk.
    pub reports: [Option<u8>; REGIONS],
    /// The regions.
    pub regions: [Region; REGIONS],
    /// A strong read.
    pub read: Option<Read>,
    /// Writes ordered so far.
    pub ordered: u8,
    /// Crashes so far.
    pub crashes: u8,
    /// Elections so far.
    pub elections: u8,
    /// What clients were told; nothing in the protocol looks at it.
    pub told: Told,
}

/// What clients know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Told {
    /// Writes that were acknowledged, as bits.
    pub acknowledged: u8,
    /// Writes that a strong read returned, as bits.
    pub seen: u8,
    /// A strong read lacked what was owed to it.
    pub stale: bool,
    /// A region acknowledged while another one had the right to.
    pub usurped: bool,
    /// A region took an entry of an epoch below its fence, without its successor's word for it.
    pub unfenced: bool,
}

/// The bit of a write.
pub(super) fn bit(write: u8) -> u8 {
    1 << write
}

/// The bits of the writes in a part of a log.
pub(super) fn bits(entries: &[Entry]) -> u8 {
    entries.iter().map(|entry| bit(entry.write)).fold(0, |all, one| all | one)
}

impl State {
    /// Everything is up, and region 0 is the primary.
    pub(super) fn first() -> State {
        let metadata = Metadata { index: 1, epoch: 1, phase: Phase::Steady(0) };
        let region =
            || Region { log: Vec::new(), synced: 0, known: metadata, lease: 0, renewal: None, fence: 1, aligned: 1 };
        State {
            metadata,
            remembers: [0; REGIONS],
            wait: 0,
            reports: [None; REGIONS],
            regions: std::array::from_fn(|_| region()),
            read: None,
            ordered: 0,
            crashes: 0,
            elections: 0,
            told: Told::default(),
        }
    }

    /// How much of a region's log another one holds, on disk or at least in memory.
    pub(super) fn held_by(&self, region: usize, other: usize, on_disk: bool) -> usize {
        let other = &self.regions[other];
        let theirs = if on_disk { other.disk() } else { &other.log };
        self.regions[region].log.iter().zip(theirs).take_while(|(ours, theirs)| ours == theirs).count()
    }

    /// Whether a region may act as the primary now, for all it knows.
    pub fn is_primary(&self, region: usize) -> bool {
        let it = &self.regions[region];
        it.lease > 0 && it.known.primary() == Some(region) && it.fence <= it.known.epoch
    }
}

impl Region {
    /// What is on disk.
    pub fn disk(&self) -> &[Entry] {
        &self.log[..usize::from(self.synced)]
    }
}

//! Where the history of a lost primary ends, and what it held beyond: what a failover undid.
//!
//! ```text
//! the lost primary's log   … cut │ undone, written to its salvage │ end      (later: what it orders under a later epoch)
//! its successor's                └── history goes on
//! ```
//! Where nobody who was left had begun any epoch of the lost primary's, its successor may lack the end of an earlier primary's log, too:
//! what the lost one began with. That is undone just as well. Where every region writes and the others go on without one that is lost, it is the same:
//! of its log counts what they had of it, and the rest is undone.
//!
//! What clients saw of an undone stretch is no part of a bucket's one history any more: where nothing was promised (`async`,
//! DEGRADED), somebody agreed to that, and SWI-2 says what becomes of it ([`super::salvaged`]). Checkers of the history are given it
//! without those answers: a read of that stretch is left out, a write that only it has is *unknown*.

use std::collections::{BTreeMap, HashMap, HashSet};

use meridian_types::entry::Kind;
use meridian_types::{BucketId, Epoch, Loss, Lsn, PlanId, Positions, RegionId, RequestId, ShardId, Version};

use crate::trace::{Entry, Fact, Fork, Record, Replacing, Replica, Verdict};

/// A primary that was given up for lost; or a region, where every region writes.
#[derive(Clone, Debug)]
pub struct Failover {
    /// The bucket.
    pub bucket: BucketId,
    /// The region that was its primary, or is out.
    pub from: RegionId,
    /// Whether every region wrote: then there is no next primary.
    pub active: bool,
    /// When its epoch was over, as the first node heard.
    pub begun_us: u64,
    /// What was agreed to lose.
    pub agreed: Option<Loss>,
    /// Whether the cluster did it by itself.
    pub automatic: bool,
    /// When it was over, and how; `None` while it is under way. Without a fork the primary is as before.
    pub end: Option<(u64, Option<Fork>)>,
}

/// An entry that a failover undid.
#[derive(Clone, Copy, Debug)]
pub struct Undone {
    /// Which of [`Forks::failovers`] undid it.
    pub failover: usize,
    /// The shard.
    pub shard: ShardId,
    /// When its region applied it.
    pub at_us: u64,
    /// The entry.
    pub entry: Entry,
    /// Whether a later failover took it up again.
    pub again: bool,
}

impl Undone {
    /// The version that it gave.
    pub fn version(&self) -> Version {
        Version { hlc: self.entry.hlc, region: self.entry.origin }
    }
}

/// Positions of a region's log that are undone: behind the first, up to the second.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    region: RegionId,
    cut: Lsn,
    end: Lsn,
}

/// All that failovers undid in a run.
#[derive(Clone, Debug, Default)]
pub struct Forks {
    /// The failovers, by the time they began.
    pub failovers: Vec<Failover>,
    /// Entries that are undone: of each region in the order in which it applied them.
    pub undone: Vec<Undone>,
    stretches: HashMap<(BucketId, ShardId), Vec<Stretch>>,
    versions: HashSet<(BucketId, Version)>,
    positions: HashSet<(BucketId, RegionId, ShardId, Lsn)>,
    /// Seals among them: no writes, but entries that nobody else will ever have.
    seals: HashSet<(BucketId, RegionId, ShardId, Lsn)>,
    taken: Vec<Taken>,
}

/// A repair: whose entries a region has from then on, and up to where.
#[derive(Clone, Debug)]
struct Taken {
    at_us: u64,
    region: RegionId,
    place: (BucketId, ShardId),
    positions: Vec<(RegionId, Lsn)>,
}

impl Forks {
    /// From what was seen.
    pub fn of(records: &[Record]) -> Forks {
        let mut forks = Forks { failovers: failovers(records), ..Forks::default() };
        if forks.failovers.iter().any(|it| it.fork().is_some()) {
            forks.taken = taken(records);
            forks.undo(records);
            let of_primaries = (0..forks.failovers.len()).filter(|place| !forks.failovers[*place].active);
            of_primaries.collect::<Vec<_>>().into_iter().for_each(|place| forks.undo_elsewhere(records, place));
        }
        forks
    }

    fn undo(&mut self, records: &[Record]) {
        let mut ends: BTreeMap<(usize, ShardId), (Lsn, Lsn)> = BTreeMap::new();
        for record in records {
            let Fact::Applied { replica, shard, entry } = &record.fact else { continue };
            let own = replica.region == entry.origin && counts(entry);
            if !own || !matches!(entry.kind, Kind::Write | Kind::Expire | Kind::Seal) {
                continue;
            }
            let Some((place, fork)) = self.fork_of(entry) else { continue };
            let cut = fork.cut.iter().find(|(of, cut)| of == shard && entry.source_lsn > *cut);
            let Some((_, cut)) = cut.copied() else { continue };
            let (_, end) = ends.entry((place, *shard)).or_insert((cut, cut));
            *end = (*end).max(entry.source_lsn);
            // A seal is no write, but a session can have seen its position, which nobody will ever have (seed 714838).
            if entry.kind == Kind::Seal {
                self.seals.insert((entry.bucket, entry.origin, *shard, entry.source_lsn));
                continue;
            }
            // A restart applies it again.
            if self.positions.insert((entry.bucket, entry.origin, *shard, entry.source_lsn)) {
                let again = self.is_again(place, *shard, entry);
                let undone = Undone { failover: place, shard: *shard, at_us: record.at_us, entry: *entry, again };
                self.versions.insert((entry.bucket, undone.version()));
                self.undone.push(undone);
            }
        }
        for ((place, shard), (cut, end)) in ends {
            let Failover { bucket, from, .. } = self.failovers[place];
            self.stretches.entry((bucket, shard)).or_default().push(Stretch { region: from, cut, end });
        }
    }

    /// What a failover undid of the logs of earlier primaries: what its successor had not applied by then and no other had undone.
    fn undo_elsewhere(&mut self, records: &[Record], place: usize) {
        let Failover { bucket, from, end: Some((ended_us, Some(fork))), .. } = self.failovers[place].clone() else {
            return;
        };
        let held = held(records, bucket, fork.to, ended_us);
        let mut ends: BTreeMap<(ShardId, RegionId), (Lsn, Lsn)> = BTreeMap::new();
        for record in records {
            let Fact::Applied { replica, shard, entry } = &record.fact else { continue };
            let earlier =
                entry.bucket == bucket && entry.epoch < fork.epoch && ![from, fork.to].contains(&entry.origin);
            let own = replica.region == entry.origin && counts(entry);
            let cut = held.get(&(*shard, entry.origin)).copied().unwrap_or_default();
            if !earlier || !own || entry.source_lsn <= cut {
                continue;
            }
            if entry.kind == Kind::Seal {
                self.seals.insert((bucket, entry.origin, *shard, entry.source_lsn));
            }
            if !matches!(entry.kind, Kind::Write | Kind::Expire) {
                continue;
            }
            if self.positions.insert((bucket, entry.origin, *shard, entry.source_lsn)) {
                let (_, end) = ends.entry((*shard, entry.origin)).or_insert((cut, cut));
                *end = (*end).max(entry.source_lsn);
                let again = self.is_again(place, *shard, entry);
                let undone = Undone { failover: place, shard: *shard, at_us: record.at_us, entry: *entry, again };
                self.versions.insert((bucket, undone.version()));
                self.undone.push(undone);
            }
        }
        for ((shard, region), (cut, end)) in ends {
            self.stretches.entry((bucket, shard)).or_default().push(Stretch { region, cut, end });
        }
    }

    /// Whether a region was given up for lost when an epoch began in which every region of its bucket writes.
    pub fn is_out_as_of(&self, bucket: BucketId, epoch: Epoch, region: RegionId) -> bool {
        let mut lost = self.failovers.iter().filter(|it| it.active && (it.bucket, it.from) == (bucket, region));
        lost.any(|it| it.fork().is_some_and(|fork| fork.epoch == epoch))
    }

    /// The first failover that the epoch of a region's own entry did not outlive: it decided about the entry.
    fn fork_of(&self, entry: &Entry) -> Option<(usize, &Fork)> {
        let forks = self.failovers.iter().enumerate().filter_map(|(place, it)| Some((place, it, it.fork()?)));
        let mut deciding = forks
            .filter(|(_, it, fork)| (it.bucket, it.from) == (entry.bucket, entry.origin) && entry.epoch < fork.epoch);
        deciding.next().map(|(place, _, fork)| (place, fork))
    }

    /// Whether the successor of a later failover had the entry when it became the primary: by a repair, or as its own.
    fn is_again(&self, undone_by: usize, shard: ShardId, entry: &Entry) -> bool {
        let ended = |it: &Failover| it.end.as_ref().map_or(u64::MAX, |(at_us, _)| *at_us);
        let since_us = ended(&self.failovers[undone_by]);
        let later = self.failovers.iter().skip(undone_by + 1).filter(|it| it.bucket == entry.bucket);
        later.filter_map(|it| Some((ended(it), it.fork()?.to))).any(|(until_us, to)| {
            let place = (entry.bucket, shard);
            let last = self
                .taken
                .iter()
                .rfind(|it| (it.region, it.place) == (to, place) && (since_us..=until_us).contains(&it.at_us));
            last.map_or(to == entry.origin, |it| {
                it.positions.iter().any(|(of, lsn)| *of == entry.origin && *lsn >= entry.source_lsn)
            })
        })
    }

    /// Whether a state with these positions has something that is undone.
    pub fn has_undone(&self, bucket: BucketId, shard: ShardId, positions: &Positions) -> bool {
        let stretches = self.stretches.get(&(bucket, shard)).map_or(&[][..], Vec::as_slice);
        stretches.iter().any(|it| (Lsn(it.cut.0 + 1)..=it.end).contains(&positions.of(it.region)))
    }

    /// Whether a version is of an undone entry.
    pub fn is_undone(&self, bucket: BucketId, version: Version) -> bool {
        self.versions.contains(&(bucket, version))
    }

    /// Whether a version is of an undone entry that nobody took up again.
    pub fn stays_undone(&self, bucket: BucketId, version: Version) -> bool {
        let mut of = self.undone.iter().filter(|it| it.entry.bucket == bucket && it.version() == version);
        of.any(|it| !it.again)
    }

    /// Whether an entry is undone, wherever it was applied.
    pub fn has_lost(&self, shard: ShardId, entry: &Entry) -> bool {
        let place = (entry.bucket, entry.origin, shard, entry.source_lsn);
        self.positions.contains(&place) || self.seals.contains(&place)
    }

    /// Whether an entry of a region's log is undone by a failover that had begun by some time.
    pub fn had_lost(&self, bucket: BucketId, (origin, shard, lsn): (RegionId, ShardId, Lsn), by_us: u64) -> bool {
        let place = (bucket, origin, shard, lsn);
        let undone = self.positions.contains(&place) || self.seals.contains(&place);
        undone && self.failovers.iter().any(|it| it.bucket == bucket && it.begun_us <= by_us)
    }

    /// What a request came to in the stretch that failover undid.
    pub fn undone_by(&self, bucket: BucketId, request: RequestId) -> Option<&Undone> {
        self.undone.iter().find(|it| it.entry.bucket == bucket && it.entry.request == request)
    }
}

impl Failover {
    /// Where the history forked, if another primary came of it.
    pub fn fork(&self) -> Option<&Fork> {
        self.end.as_ref().and_then(|(_, fork)| fork.as_ref())
    }
}

fn counts(entry: &Entry) -> bool {
    !matches!(entry.verdict, Verdict::Void | Verdict::Parked)
}

/// Up to where a region had applied the logs of a bucket's regions by some time.
fn held(records: &[Record], bucket: BucketId, region: RegionId, until_us: u64) -> HashMap<(ShardId, RegionId), Lsn> {
    let mut held: HashMap<ShardId, Held> = HashMap::new();
    for record in records.iter().take_while(|record| record.at_us <= until_us) {
        match &record.fact {
            Fact::Applied { replica, shard, entry }
                if (replica.region, entry.bucket) == (region, bucket) && counts(entry) =>
            {
                let held = held.entry(*shard).or_default();
                if held.comes(*replica, entry.lsn) {
                    held.positions.insert(entry.origin, entry.source_lsn);
                }
            }
            Fact::Repaired { replica, shard, bucket: of, lsn, positions, .. }
                if (replica.region, *of) == (region, bucket) =>
            {
                let held = held.entry(*shard).or_default();
                if held.comes(*replica, *lsn) {
                    held.positions = positions.iter().copied().collect();
                }
            }
            _ => {}
        }
    }
    let all = held
        .into_iter()
        .flat_map(|(shard, held)| held.positions.into_iter().map(move |(origin, lsn)| ((shard, origin), lsn)));
    all.collect()
}

/// What a region had of a bucket in a shard: of its nodes the one that is furthest counts, the others come behind it.
#[derive(Default)]
struct Held {
    positions: HashMap<RegionId, Lsn>,
    furthest: Option<(Replica, Lsn)>,
}

impl Held {
    /// Whether something at that position of the region's own log is news: another node may have told it. One that has told most tells
    /// again what it applies again after a restart.
    fn comes(&mut self, replica: Replica, lsn: Lsn) -> bool {
        let is_news = self.furthest.is_none_or(|(who, at)| who == replica || lsn > at);
        if is_news {
            self.furthest = Some((replica, lsn));
        }
        is_news
    }
}

fn taken(records: &[Record]) -> Vec<Taken> {
    // Other nodes of the region tell of it later.
    let mut told: HashMap<(RegionId, BucketId, ShardId, Lsn), Replica> = HashMap::new();
    let of = |record: &Record| match &record.fact {
        Fact::Repaired { replica, shard, bucket, lsn, positions, .. } => {
            let first = *told.entry((replica.region, *bucket, *shard, *lsn)).or_insert(*replica);
            (first == *replica).then(|| Taken {
                at_us: record.at_us,
                region: replica.region,
                place: (*bucket, *shard),
                positions: positions.clone(),
            })
        }
        _ => None,
    };
    records.iter().filter_map(of).collect()
}

/// What a region was given up for lost by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    /// A failover.
    Plan(PlanId),
    /// The crossing, begun at that metadata index, of a bucket that every region writes.
    Crossing(u64),
}

/// As the first node heard of each step.
fn failovers(records: &[Record]) -> Vec<Failover> {
    let mut places: BTreeMap<(Cause, BucketId), usize> = BTreeMap::new();
    let mut failovers: Vec<Failover> = Vec::new();
    for record in records {
        let (cause, bucket, from, step) = match &record.fact {
            Fact::ReplacementKnown { plan, bucket, from, step, .. } => (Cause::Plan(*plan), bucket, from, step),
            Fact::LosingKnown { index, bucket, from, step, .. } => (Cause::Crossing(*index), bucket, from, step),
            _ => continue,
        };
        let place = *places.entry((cause, *bucket)).or_insert_with(|| {
            failovers.push(Failover {
                bucket: *bucket,
                from: *from,
                active: matches!(cause, Cause::Crossing(_)),
                begun_us: record.at_us,
                agreed: None,
                automatic: false,
                end: None,
            });
            failovers.len() - 1
        });
        let failover = &mut failovers[place];
        match step {
            Replacing::Begun { agreed, automatic } => {
                (failover.agreed, failover.automatic) = (*agreed, *automatic);
            }
            Replacing::Done(fork) if failover.end.is_none() => {
                failover.end = Some((record.at_us, Some(fork.clone())));
            }
            Replacing::GivenUp if failover.end.is_none() => failover.end = Some((record.at_us, None)),
            Replacing::Done(_) | Replacing::GivenUp => {}
        }
    }
    failovers
}

//! The facts.

use meridian_types::entry::Kind;
use meridian_types::{
    BucketDigest, BucketId, Epoch, Hlc, Lane, Loss, Lsn, NodeId, PlanId, Policy, RegionId, RequestId, ShardId,
};
use xxhash_rust::xxh3::Xxh3;

/// One copy of a region's data: a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Replica {
    /// Its region.
    pub region: RegionId,
    /// The node.
    pub node: NodeId,
}

/// What an entry did where it was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It took its place in the bucket's history, decided its request, and changed what it was to change.
    Took,
    /// It took its place in the bucket's history and changed nothing: its condition failed, its key holds another type,
    /// or its client had said that it would not come any more.
    Refused,
    /// It took its place in the bucket's history, but its request had been decided before: nothing changed (ONE-1).
    Repeated,
    /// It came before the seal of the epoch before its own: durable, and part of nothing yet.
    Parked,
    /// It has no place in the bucket's history: fenced, its bucket dropped, or its timestamp not above its predecessor's.
    Void,
}

/// An entry applied by a replica, from its own log or out of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The position in the replica's own log of the entry, or of the frame it came in.
    pub lsn: Lsn,
    /// Whose leader ordered it.
    pub origin: RegionId,
    /// The position in the origin's log.
    pub source_lsn: Lsn,
    /// The bucket.
    pub bucket: BucketId,
    /// The epoch it was ordered under.
    pub epoch: Epoch,
    /// Its timestamp.
    pub hlc: Hlc,
    /// What it is.
    pub kind: Kind,
    /// The request it carries out.
    pub request: RequestId,
    /// What it did.
    pub verdict: Verdict,
}

/// Where a (bucket, shard) of a replica stands: equal positions must mean that everything else is equal too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Standing {
    /// A hash of the positions, per origin region.
    pub positions: u64,
    /// The digest there.
    pub hash: u128,
    /// Live keys.
    pub keys: u64,
    /// Writes ever applied.
    pub operations: u64,
}

impl Standing {
    /// Of a digest.
    pub fn of(digest: &BucketDigest) -> Standing {
        let mut positions = Xxh3::new();
        for (region, lsn) in digest.positions.0.iter().filter(|(_, lsn)| lsn.0 > 0) {
            positions.update(&region.0.to_le_bytes());
            positions.update(&lsn.0.to_le_bytes());
        }
        Standing {
            positions: positions.digest(),
            hash: digest.hash.0,
            keys: digest.keys,
            operations: digest.operations,
        }
    }
}

/// How the copies of a `sync` bucket are on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Copies {
    /// SYNC.
    Sync,
    /// DEGRADED.
    Degraded,
    /// RECOVERING.
    Recovering,
}

/// Where the replacement of a primary is, as it is on record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Replacing {
    /// The lost primary's epoch is over.
    Begun {
        /// What was agreed to lose.
        agreed: Option<Loss>,
        /// Whether the cluster did it by itself.
        automatic: bool,
    },
    /// Another primary accepts writes.
    Done(Fork),
    /// The primary is as before.
    GivenUp,
}

/// Where the history of a lost primary ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fork {
    /// The new primary.
    pub to: RegionId,
    /// The epoch it accepts writes under.
    pub epoch: Epoch,
    /// Whether it is proven that nothing acknowledged is missing.
    pub proven: bool,
    /// What is missing, as far as is known.
    pub lost: Loss,
    /// Up to where the lost primary's log counts, shard by shard.
    pub cut: Vec<(ShardId, Lsn)>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Fact {
    /// A replica applied an entry.
    Applied {
        /// Who.
        replica: Replica,
        /// The shard.
        shard: ShardId,
        /// The entry.
        entry: Entry,
    },
    /// A replica applied a frame, all of it: its entries were recorded just before.
    FrameApplied {
        /// Who.
        replica: Replica,
        /// The shard.
        shard: ShardId,
        /// The region the frame came from.
        source: RegionId,
        /// Its lane.
        lane: Lane,
        /// The watermark it continued at, as the frame says.
        previous: Lsn,
        /// The watermark now.
        last: Lsn,
        /// The position of the frame in the replica's own log.
        lsn: Lsn,
    },
    /// Where a (bucket, shard) of a replica stands after an entry or a frame.
    Stands {
        /// Who.
        replica: Replica,
        /// The shard.
        shard: ShardId,
        /// The bucket.
        bucket: BucketId,
        /// Where.
        standing: Standing,
    },
    /// A bucket in a replica's shard was made equal to another region's, or took in what waited for that: it has all up to
    /// these positions, however it came.
    Repaired {
        /// Who.
        replica: Replica,
        /// The shard.
        shard: ShardId,
        /// The bucket.
        bucket: BucketId,
        /// The step's position in the replica's own log.
        lsn: Lsn,
        /// Per origin region.
        positions: Vec<(RegionId, Lsn)>,
        /// Whether it kept what it had and took in what the other one had besides.
        merged: bool,
    },
    /// A write was acknowledged, to a client or to the region that forwarded it.
    Acknowledged {
        /// Who said so.
        replica: Replica,
        /// Whose log orders the write.
        origin: RegionId,
        /// The bucket.
        bucket: BucketId,
        /// The shard.
        shard: ShardId,
        /// The epoch that was told.
        epoch: Epoch,
        /// The position in the origin's log.
        lsn: Lsn,
        /// The request.
        request: RequestId,
        /// How many regions were said to have it.
        regions: u16,
    },
    /// A node believes from now until `until_us`, in true time, that it may act as the bucket's primary under `epoch`.
    MayAct {
        /// Who.
        replica: Replica,
        /// The bucket.
        bucket: BucketId,
        /// The epoch.
        epoch: Epoch,
        /// Until when, by the observer's clock.
        until_us: u64,
    },
    /// A node believes that its lease holds until then, in true time.
    LeaseBelieved {
        /// Who.
        replica: Replica,
        /// Until when, by the observer's clock.
        until_us: u64,
    },
    /// A metadata leader remembers that a node's lease may hold until then, in true time. Recorded at each grant, and for
    /// every node when a leader is elected.
    LeaseRemembered {
        /// The leader.
        leader: NodeId,
        /// Its term.
        term: u64,
        /// Whose lease.
        node: NodeId,
        /// Until when, by the observer's clock.
        until_us: u64,
    },
    /// A node's copy of the metadata says this of a bucket.
    BucketKnown {
        /// Who.
        replica: Replica,
        /// The metadata index.
        index: u64,
        /// The bucket.
        bucket: BucketId,
        /// Its epoch.
        epoch: Epoch,
        /// Its primary.
        primary: Option<RegionId>,
    },
    /// A node's copy of the metadata says this of what a bucket promises.
    PolicyKnown {
        /// Who.
        replica: Replica,
        /// The metadata index.
        index: u64,
        /// The bucket.
        bucket: BucketId,
        /// Its epoch.
        epoch: Epoch,
        /// Its policy.
        policy: Policy,
        /// How its copies are, if it is `sync`.
        copies: Copies,
    },
    /// A node's copy of the metadata says this of which regions hold a bucket.
    RegionsKnown {
        /// Who.
        replica: Replica,
        /// The metadata index.
        index: u64,
        /// The bucket.
        bucket: BucketId,
        /// Its epoch.
        epoch: Epoch,
        /// The regions whose copies count.
        regions: Vec<RegionId>,
        /// The region that is being filled, and counts for nothing.
        joining: Option<RegionId>,
    },
    /// A node's copy of the metadata says this of a primary that is lost.
    ReplacementKnown {
        /// Who.
        replica: Replica,
        /// The operation.
        plan: PlanId,
        /// The bucket.
        bucket: BucketId,
        /// The region that is lost.
        from: RegionId,
        /// How far its replacement is.
        step: Replacing,
    },
    /// A node's copy of the metadata says this of a region that is given up for lost where every region writes.
    LosingKnown {
        /// Who.
        replica: Replica,
        /// The metadata index at which it began.
        index: u64,
        /// The bucket.
        bucket: BucketId,
        /// The region that is lost.
        from: RegionId,
        /// How far the others are; whom a fork leads to is one of them.
        step: Replacing,
    },
    /// A node ended without warning.
    Crashed {
        /// Who.
        replica: Replica,
        /// Bytes written but not synced that did not survive.
        lost_bytes: u64,
        /// Whether it lost its whole disk.
        disk_lost: bool,
    },
    /// A replica's shard starts again from its state as of `applied` in its own log; what it applied beyond is applied
    /// again from the log.
    Restarted {
        /// Who.
        replica: Replica,
        /// The shard.
        shard: ShardId,
        /// The position of its state.
        applied: Lsn,
    },
    /// A replica's shard took over another's state, as of `applied` in that log: a snapshot.
    Installed {
        /// Who.
        replica: Replica,
        /// The shard.
        shard: ShardId,
        /// From whom.
        from: Replica,
        /// The position of the state.
        applied: Lsn,
    },
    /// Somebody broke something.
    Fault {
        /// What, for a person.
        what: String,
        /// Whether more than one node that is gone, or nothing, is the matter.
        disturbs: bool,
    },
    /// What somebody broke is whole again.
    Mended {
        /// What, as it was said when it broke.
        what: String,
    },
    /// Nothing is broken from here on.
    Healed,
    /// A queue, a table or a buffer holds that much.
    Holds {
        /// Who.
        replica: Replica,
        /// What.
        what: &'static str,
        /// How much.
        amount: u64,
        /// The most it may hold.
        most: u64,
    },
    /// A disk gave back something else than what was written.
    Rotted {
        /// Whose.
        replica: Replica,
        /// What.
        what: &'static str,
    },
    /// A node refuses to serve because it found damage.
    RefusesDamaged {
        /// Who.
        replica: Replica,
        /// Why, for a person.
        why: String,
    },
}

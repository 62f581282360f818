//! Which entries a lane carries. Keeps the half of ORD-1 that says "no echo".

use meridian_types::entry::Header;
use meridian_types::topology::BucketStatus;
use meridian_types::{Lane, RegionId, Topology};

/// What becomes of an entry in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It travels here.
    Ship,
    /// It is none of this lane's business.
    Skip,
    /// Its bucket is newer than this copy of the topology: nothing after it may be judged either.
    Wait,
}

/// Judges an entry of the log of region `source` for the lane to `target`.
pub fn verdict(topology: &Topology, source: RegionId, target: RegionId, lane: Lane, header: &Header) -> Verdict {
    if !header.kind.is_shipped() || header.origin != source {
        return Verdict::Skip;
    }
    match topology.bucket(header.bucket) {
        BucketStatus::Known(bucket) if bucket.is_in(target) && bucket.policy.lane() == lane => Verdict::Ship,
        BucketStatus::Known(_) | BucketStatus::Deleted => Verdict::Skip,
        BucketStatus::NotYetKnown => Verdict::Wait,
    }
}

/// Whether region `target` needs to know how fresh this lane is: some bucket is written in `source`, read in
/// `target`, and travels in it. Else no probe is sent, and the idle lane costs nothing.
pub fn is_probed(topology: &Topology, source: RegionId, target: RegionId, lane: Lane) -> bool {
    topology.buckets.values().any(|bucket| {
        bucket.policy.lane() == lane && bucket.is_in(target) && bucket.accepts_writes_in(source) && source != target
    })
}

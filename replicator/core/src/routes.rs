//! Which entries a lane carries. Keeps the half of ORD-1 that says "no echo".

use meridian_types::entry::Header;
use meridian_types::topology::BucketStatus;
use meridian_types::{Bucket, Lane, RegionId, Topology};

/// What becomes of an entry in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It travels here.
    Ship,
    /// It is none of this lane's business.
    Skip,
    /// Its bucket, or the epoch it belongs to, is newer than this copy of the topology: nothing after it may be judged either.
    Wait,
}

/// Judges an entry of the log of region `source` for the lane to `target`. Whether it travels there, and its lane, follow from its
/// epoch, a seal's from the epoch it ends, so that every entry travels in exactly one (docs/adr/2026-11-27-online-policy-change.md,
/// docs/adr/2026-11-28-region-sets.md). Of an epoch that
/// this copy has not heard of nobody can tell.
pub fn verdict(topology: &Topology, source: RegionId, target: RegionId, lane: Lane, header: &Header) -> Verdict {
    if !header.kind.is_shipped() || header.origin != source {
        return Verdict::Skip;
    }
    match topology.bucket(header.bucket) {
        // Before anything else: in that epoch a region may have joined, or another lane have begun.
        BucketStatus::Known(bucket) if is_to_come(bucket, header) => Verdict::Wait,
        BucketStatus::Known(bucket) if !bucket.carries(target, header.epoch) => Verdict::Skip,
        BucketStatus::Known(bucket) if bucket.lane_of(header.epoch) == lane => Verdict::Ship,
        BucketStatus::Known(_) | BucketStatus::Deleted => Verdict::Skip,
        BucketStatus::NotYetKnown => Verdict::Wait,
    }
}

/// While a bucket opens, its epoch is one that nobody writes in: what is of it was written when it was open, or after it was given
/// up, and this copy has heard of neither.
fn is_to_come(bucket: &Bucket, header: &Header) -> bool {
    header.epoch > bucket.epoch || (bucket.is_opening() && header.epoch == bucket.epoch)
}

/// Whether region `target` needs to know how fresh this lane is: some bucket is written in `source`, read in
/// `target`, and travels in it. Else no probe is sent, and the idle lane costs nothing.
pub fn is_probed(topology: &Topology, source: RegionId, target: RegionId, lane: Lane) -> bool {
    topology.buckets.values().any(|bucket| {
        bucket.travels_in(lane) && bucket.reaches(target) && bucket.accepts_writes_in(source) && source != target
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use meridian_types::entry::Kind;
    use meridian_types::{Acks, BucketId, BucketName, Epoch, Hlc, Joining, Phase, Policy, RequestId};
    use proptest::prelude::*;

    use super::*;

    const US: RegionId = RegionId(1);
    const EU: RegionId = RegionId(2);

    fn bucket() -> Bucket {
        Bucket {
            id: BucketId(1),
            name: BucketName::new("b").unwrap(),
            policy: Policy::ASYNC,
            epoch: Epoch(1),
            phase: Phase::Steady,
            primary: Some(US),
            regions: vec![US, EU],
            labels: BTreeMap::new(),
            created: Hlc(0),
            standing: Default::default(),
            auto: Default::default(),
            turns: Default::default(),
            joins: Default::default(),
            crossing: None,
        }
    }

    fn topology(bucket: &Bucket) -> Topology {
        let buckets = [(bucket.id, Arc::new(bucket.clone()))].into();
        Topology { buckets, last_bucket: bucket.id, ..Topology::default() }
    }

    fn header(kind: Kind, epoch: u64) -> Header {
        Header {
            kind,
            origin: US,
            bucket: BucketId(1),
            epoch: Epoch(epoch),
            hlc: Hlc(1),
            id: RequestId::default(),
            lowest_outstanding: 0,
        }
    }

    fn turned(bucket: &mut Bucket) {
        let from = bucket.policy.lane();
        bucket.epoch = Epoch(bucket.epoch.0 + 1);
        bucket.policy = if from == Lane::Async { Policy::sync(Acks::All) } else { Policy::ASYNC };
        bucket.turns.turn(bucket.epoch, from);
    }

    #[test]
    fn a_seal_travels_in_the_lane_of_the_epoch_it_ends_and_what_comes_behind_it_in_the_new_one() {
        let mut bucket = bucket();
        turned(&mut bucket);
        let topology = topology(&bucket);
        let of = |lane, kind, epoch| verdict(&topology, US, EU, lane, &header(kind, epoch));
        assert_eq!(of(Lane::Async, Kind::Seal, 1), Verdict::Ship);
        assert_eq!(of(Lane::Sync, Kind::Seal, 1), Verdict::Skip);
        assert_eq!(of(Lane::Async, Kind::Write, 2), Verdict::Skip);
        assert_eq!(of(Lane::Sync, Kind::Write, 2), Verdict::Ship);
        assert!(is_probed(&topology, US, EU, Lane::Async) && is_probed(&topology, US, EU, Lane::Sync));
    }

    #[test]
    fn a_region_that_joins_gets_what_is_of_its_epoch_and_later_whatever_a_copy_of_the_topology_has_heard_of() {
        let ap = RegionId(3);
        let mut bucket = bucket();
        let of = |bucket: &Bucket, epoch| verdict(&topology(bucket), US, ap, Lane::Async, &header(Kind::Write, epoch));
        assert_eq!(of(&bucket, 1), Verdict::Skip);
        assert_eq!(of(&bucket, 2), Verdict::Wait, "it may have joined in that epoch");
        bucket.epoch = Epoch(2);
        bucket.joins.since.insert(ap, Epoch(2));
        bucket.joins.now =
            Some(Joining { region: ap, at: Hlc(0), under: Epoch(2), filled: Default::default(), pause_ms_max: 0 });
        assert_eq!((of(&bucket, 1), of(&bucket, 2)), (Verdict::Skip, Verdict::Ship));
        assert!(is_probed(&topology(&bucket), US, ap, Lane::Async));
        bucket.epoch = Epoch(3);
        bucket.joins.leave(ap, Epoch(3));
        assert_eq!(
            (of(&bucket, 2), of(&bucket, 3)),
            (Verdict::Ship, Verdict::Skip),
            "each epoch goes there whole or not at all"
        );
    }

    #[test]
    fn an_entry_of_an_epoch_that_is_not_known_yet_waits_in_both_lanes() {
        let topology = topology(&bucket());
        for lane in Lane::ALL {
            assert_eq!(verdict(&topology, US, EU, lane, &header(Kind::Write, 2)), Verdict::Wait);
        }
    }

    #[test]
    fn what_is_written_when_a_bucket_is_open_waits_for_a_copy_that_knows_it_and_then_travels_once() {
        let mut bucket = Bucket { policy: Policy::sync(Acks::All), ..bucket() };
        let of = |bucket: &Bucket, source, kind, epoch| {
            let header = Header { origin: source, ..header(kind, epoch) };
            Lane::ALL.map(|lane| verdict(&topology(bucket), source, if source == US { EU } else { US }, lane, &header))
        };
        bucket.epoch = Epoch(2);
        let (index, at, pause_ms_max, way) = (7, Hlc(0), 1000, meridian_types::Way::Opening);
        bucket.crossing = Some(meridian_types::Crossing { index, at, pause_ms_max, way, arrived: BTreeMap::new() });
        let ships = |verdicts: [Verdict; 2]| verdicts.iter().filter(|it| **it == Verdict::Ship).count();
        assert_eq!(ships(of(&bucket, US, Kind::Seal, 1)), 1, "it is what everybody waits for");
        assert_eq!(of(&bucket, US, Kind::Write, 2), [Verdict::Wait; 2]);
        let open = Bucket { policy: Policy::ActiveActive, primary: None, crossing: None, ..bucket };
        for source in [US, EU] {
            assert_eq!(ships(of(&open, source, Kind::Write, 2)), 1);
            assert_eq!(of(&open, source, Kind::Write, 3), [Verdict::Wait; 2], "it has a primary again by then");
        }
    }

    #[test]
    fn where_all_write_a_region_that_joins_gets_the_epochs_it_is_there_in_from_each_of_them() {
        let ap = RegionId(3);
        let mut bucket = Bucket { policy: Policy::ActiveActive, primary: None, epoch: Epoch(3), ..bucket() };
        let of = |bucket: &Bucket, source, target, epoch| {
            let header = Header { origin: source, ..header(Kind::Write, epoch) };
            verdict(&topology(bucket), source, target, Lane::Async, &header)
        };
        for source in [US, EU] {
            assert_eq!((of(&bucket, source, ap, 3), of(&bucket, source, ap, 4)), (Verdict::Skip, Verdict::Wait));
        }
        bucket.epoch = Epoch(4);
        bucket.joins.since.insert(ap, Epoch(4));
        let (under, filled) = (Epoch(4), Default::default());
        bucket.joins.now = Some(Joining { region: ap, at: Hlc(0), under, filled, pause_ms_max: 1000 });
        for source in [US, EU] {
            assert_eq!((of(&bucket, source, ap, 3), of(&bucket, source, ap, 4)), (Verdict::Skip, Verdict::Ship));
            assert_eq!(of(&bucket, source, ap, 5), Verdict::Wait, "it may write then, and its lane count");
        }
        bucket.joins.leave(ap, Epoch(4));
        assert_eq!(of(&bucket, US, ap, 4), Verdict::Skip, "it was never there");
    }

    proptest! {
        /// Whatever a copy of the topology has heard of: an entry is shipped in one lane and skipped in the other, or waits in
        /// both, and a copy that has heard of more never finds another lane for it (ORD-1).
        #[test]
        fn every_entry_travels_in_exactly_one_lane(turns in prop::collection::vec(any::<bool>(), 0..8), epoch in 1u64..10) {
            let mut bucket = bucket();
            let mut lane_found = None;
            for turns in turns {
                match turns {
                    true => turned(&mut bucket),
                    false => bucket.epoch = Epoch(bucket.epoch.0 + 1),
                }
                let topology = topology(&bucket);
                let verdicts = Lane::ALL.map(|lane| (lane, verdict(&topology, US, EU, lane, &header(Kind::Write, epoch))));
                let ships: Vec<Lane> =
                    verdicts.iter().filter(|(_, it)| *it == Verdict::Ship).map(|(lane, _)| *lane).collect();
                if epoch > bucket.epoch.0 {
                    prop_assert!(verdicts.iter().all(|(_, it)| *it == Verdict::Wait));
                    continue;
                }
                prop_assert_eq!(ships.len(), 1);
                let lane = *lane_found.get_or_insert(ships[0]);
                prop_assert_eq!(lane, ships[0]);
            }
        }
    }
}

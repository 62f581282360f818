//! DUR-1 and ORD-1 inside a region: its nodes apply one log, so in the end each of them has all that the others have, to the last byte that
//! a digest tells of. What clients read at the last look comes from any of them.

use meridian_types::ShardDigest;

use super::{Evidence, Stats, Violation, broken};
use crate::trace::Replica;

/// What a node has in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Who.
    pub replica: Replica,
    /// Of every bucket and shard, in their order.
    pub digests: Vec<ShardDigest>,
}

/// Whether the nodes of each region have the same.
pub fn are_equal(held: &[Held]) -> bool {
    difference(held).is_none()
}

/// All nodes of a region are equal in the end.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    if let Some((one, other)) = difference(&evidence.held) {
        let sentence = format!(
            "nodes {} and {} of region {} did not become equal after the heal",
            one.replica.node, other.replica.node, one.replica.region
        );
        let differ = one.digests.iter().filter(|it| !other.digests.contains(it));
        let differ = differ.chain(other.digests.iter().filter(|it| !one.digests.contains(it)));
        return Err(differ.fold(broken("nodes", sentence), |it, digest| it.showing(format!("{digest:?}"))));
    }
    Ok(Stats { checked: evidence.held.len() as u64, undecided: 0 })
}

fn difference(held: &[Held]) -> Option<(&Held, &Held)> {
    held.iter().enumerate().find_map(|(at, one)| {
        let beside = held[at + 1..].iter().find(|other| other.replica.region == one.replica.region)?;
        (beside.digests != one.digests).then_some((one, beside))
    })
}

#[cfg(test)]
mod tests {
    use meridian_types::{BucketId, NodeId, RegionId, ShardId};

    use super::*;

    fn held(region: u16, node: u64, keys: u64) -> Held {
        let digest = meridian_types::BucketDigest { keys, ..Default::default() };
        let digests = vec![ShardDigest { bucket: BucketId(1), shard: ShardId(0), digest, diverged: false }];
        Held { replica: Replica { region: RegionId(region), node: NodeId(node) }, digests }
    }

    #[test]
    fn nodes_of_one_region_are_held_to_each_other_and_regions_are_not() {
        assert!(are_equal(&[held(1, 1, 5), held(2, 2, 6), held(1, 3, 5), held(1, 4, 5)]));
        let odd = [held(1, 1, 5), held(2, 2, 5), held(1, 3, 5), held(1, 4, 6)];
        assert_eq!(difference(&odd), Some((&odd[2], &odd[3])));
    }
}

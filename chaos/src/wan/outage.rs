//! How long nobody was answered, from what clients recorded.

use std::time::Duration;

use meridian_types::{BucketName, RegionId};

use crate::history::{Operation, Told};

/// The longest time, between `from_us` and `until_us`, in which no operation on a bucket was answered: of clients in
/// one region, or of all clients.
pub fn longest(
    operations: &[Operation],
    bucket: &BucketName,
    region: Option<RegionId>,
    (from_us, until_us): (u64, u64),
) -> Duration {
    let is_meant = |it: &&Operation| {
        it.request.bucket() == bucket
            && region.is_none_or(|region| it.region == region)
            && matches!(it.told, Told::Done(_))
    };
    let mut answered: Vec<u64> = operations.iter().filter(is_meant).map(|it| it.ended_us).collect();
    answered.retain(|at| (from_us..until_us).contains(at));
    answered.push(until_us);
    answered.sort_unstable();
    let mut last = from_us;
    let mut longest = 0;
    for at in answered {
        longest = longest.max(at.saturating_sub(last));
        last = at;
    }
    Duration::from_micros(longest)
}

#[cfg(test)]
mod tests {
    use meridian_types::{
        Epoch, Freshness, Key, Outcome, Read, ReadLevel, Request, Response, SessionToken, StalePolicy,
    };

    use super::*;

    fn answered(region: u16, ended_us: u64) -> Operation {
        let bucket = BucketName::new("sync").unwrap();
        let read = Read::Get { key: Key::new("k").unwrap() };
        let (level, stale, session) = (ReadLevel::Strong, StalePolicy::Wait, SessionToken::default());
        let request = Request::Read { bucket, read, level, stale, session, deadline_ms: 0 };
        let told = Told::Done(Response {
            region: RegionId(region),
            epoch: Epoch(1),
            outcome: Outcome::Value(None),
            freshness: Freshness::default(),
            durability: None,
            session: SessionToken::default(),
        });
        Operation { client: 1, region: RegionId(region), request, begun_us: 0, ended_us, told }
    }

    #[test]
    fn the_longest_silence_counts_from_the_start_to_the_end_and_per_region() {
        let operations = [answered(1, 100), answered(2, 250), answered(1, 600), answered(1, 2_000)];
        let bucket = BucketName::new("sync").unwrap();
        let longest = |region, span| longest(&operations, &bucket, region, span).as_micros();
        assert_eq!(longest(None, (0, 700)), 350);
        assert_eq!(longest(Some(RegionId(1)), (0, 700)), 500);
        assert_eq!(longest(Some(RegionId(2)), (0, 700)), 450);
        assert_eq!(longest(Some(RegionId(3)), (0, 700)), 700);
    }
}

//! What the winner removed, as far as its lanes have brought it here already: a lost primary that returns parks the history
//! of its successors before it takes part in it, and what every region has acknowledged may be gone from their logs.

use std::ops::ControlFlow;

use bytes::Bytes;
use meridian_types::entry::Header;
use meridian_types::{Bucket, Epoch, Lane, Lsn, Positions, RegionId, ShardId};

use super::{Touch, is_of_tail, keys_of};
use crate::error::{Damage, ReadError};
use crate::keys;
use crate::meta;
use crate::view::StateView;

/// A bucket in a region that is astray.
#[derive(Clone, Copy, Debug)]
pub struct Stray<'a> {
    /// The shard.
    pub shard: ShardId,
    /// What is known of the bucket here.
    pub bucket: &'a Bucket,
    /// The region.
    pub region: RegionId,
    /// The epoch that is in force there.
    pub epoch: Epoch,
    /// The epoch in force where it is made equal to.
    pub goal: Epoch,
}

impl Stray<'_> {
    /// The keys that entries waiting here remove, of those `origin` ordered behind `after` and up to `now`; and up to where in
    /// its log everything of the bucket is here. `after` when that can't be told: then nothing is. It stops behind `most` keys.
    ///
    /// # Errors
    /// [`ReadError`] when the state can't be read or is damaged.
    pub fn removals(
        &self,
        view: &dyn StateView,
        origin: RegionId,
        after: &Positions,
        now: &Positions,
        most: usize,
    ) -> Result<(Vec<Bytes>, Lsn), ReadError> {
        let (after, now) = (after.of(origin), now.of(origin));
        // Before the entries are: what comes meanwhile is not claimed to be among them.
        let reached = self.reached(view, origin)?;
        if reached <= after {
            return Ok((Vec::new(), after));
        }
        let (from, to) = keys::parked_of_bucket(self.shard, self.bucket.id);
        let (mut removed, mut damage) = (Vec::new(), None);
        view.scan(&from, &to, &mut |key, entry| {
            let waits =
                keys::parse_parked(key).is_some_and(|(_, _, from, lsn)| from == origin && after < lsn && lsn <= now);
            if waits {
                match self.removed_by(entry) {
                    Ok(keys) => removed.extend(keys),
                    Err(why) => damage = Some(why),
                }
            }
            if damage.is_some() || removed.len() > most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        damage.map_or(Ok((removed, reached)), |damage| Err(damage.into()))
    }

    fn removed_by(&self, entry: &[u8]) -> Result<impl Iterator<Item = Bytes> + use<>, Damage> {
        let header = Header::decode(entry).map_err(|_| Damage { what: "entry that waits for a seal" })?;
        let keys = if is_of_tail(&header, self.bucket.id) { keys_of(&header, entry)? } else { Vec::new() };
        Ok(keys.into_iter().filter(|(_, touch)| *touch == Touch::Removed).map(|(key, _)| key))
    }

    /// Up to where every lane that the bucket may travel in has brought everything.
    fn reached(&self, view: &dyn StateView, origin: RegionId) -> Result<Lsn, ReadError> {
        // An epoch that is not known here yet may travel in another lane, and one from before this region joined in none.
        let told = self.bucket.epoch >= self.goal && self.bucket.carries_from(self.region, self.epoch);
        let mut reached: Option<Lsn> = None;
        for lane in Lane::ALL.into_iter().filter(|lane| self.bucket.travels_in(*lane)) {
            let row = view.get(&keys::watermark(self.shard, origin, lane))?;
            let watermark = row.map_or(Ok(Lsn(0)), |row| meta::decode(&row, "watermark"))?;
            reached = Some(reached.map_or(watermark, |least| least.min(watermark)));
        }
        Ok(reached.filter(|_| told).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use meridian_types::entry::{Body, Kind, WriteBody};
    use meridian_types::{BucketId, BucketName, Hlc, Key, Phase, Policy, RequestId, Value, Write};

    use super::*;
    use crate::view::{MemoryState, Mutations};

    const US: RegionId = RegionId(1);
    const EU: RegionId = RegionId(2);
    const AP: RegionId = RegionId(3);
    const SHARD: ShardId = ShardId(0);

    fn bucket() -> Bucket {
        Bucket {
            id: BucketId(1),
            name: BucketName::new("b").unwrap(),
            policy: Policy::ASYNC,
            epoch: Epoch(2),
            phase: Phase::Steady,
            primary: Some(EU),
            regions: vec![US, EU, AP],
            labels: BTreeMap::new(),
            created: Hlc(0),
            standing: Default::default(),
            auto: Default::default(),
            turns: Default::default(),
            joins: Default::default(),
            crossing: None,
        }
    }

    fn entry(write: Write) -> Bytes {
        let header = Header {
            kind: Kind::Write,
            origin: EU,
            bucket: BucketId(1),
            epoch: Epoch(2),
            hlc: Hlc(5),
            id: RequestId::default(),
            lowest_outstanding: 0,
        };
        header.encode(&Body::Write(WriteBody::Plain(write)))
    }

    /// Of EU 3 puts `a`, 5 deletes `a`, 7 deletes `b`; of AP 6 deletes `c`; EU's lane has brought everything up to 8.
    fn state() -> MemoryState {
        let (mut state, mut out) = (MemoryState::default(), Mutations::default());
        let key = |name: &'static str| Key::new(Bytes::from_static(name.as_bytes())).unwrap();
        let put = Write::Put { key: key("a"), value: Value::new(Bytes::new()).unwrap(), ttl_ms: None };
        let delete = |name| Write::Delete { key: key(name) };
        let waits = [(EU, 3, put), (EU, 5, delete("a")), (EU, 7, delete("b")), (AP, 6, delete("c"))];
        for (origin, lsn, write) in waits {
            out.put(keys::parked(SHARD, BucketId(1), Epoch(2), false, origin, Lsn(lsn)), entry(write));
        }
        out.put(keys::watermark(SHARD, EU, Lane::Async), meta::encode(&Lsn(8)));
        state.commit(out);
        state
    }

    fn told(bucket: &Bucket, goal: u64, after: u64, now: u64) -> (Vec<Bytes>, Lsn) {
        let stray = Stray { shard: SHARD, bucket, region: US, epoch: Epoch(1), goal: Epoch(goal) };
        let at = |lsn| Positions([(EU, Lsn(lsn))].into());
        stray.removals(&state(), EU, &at(after), &at(now), 10).unwrap()
    }

    #[test]
    fn what_waits_is_told_from_the_fork_to_where_its_lane_has_come() {
        let name = |name: &'static str| Bytes::from_static(name.as_bytes());
        assert_eq!(told(&bucket(), 2, 2, 9), (vec![name("a"), name("b")], Lsn(8)));
        assert_eq!(told(&bucket(), 2, 5, 9), (vec![name("b")], Lsn(8)));
        assert_eq!(told(&bucket(), 2, 2, 6), (vec![name("a")], Lsn(8)), "7 is part of no history yet");
        assert_eq!(told(&bucket(), 2, 9, 12), (vec![], Lsn(9)), "it has brought nothing since");
    }

    #[test]
    fn nothing_is_told_where_some_of_it_may_have_come_another_way_or_not_at_all() {
        let nothing = (vec![], Lsn(2));
        assert_eq!(told(&bucket(), 3, 2, 9), nothing, "an epoch that is not known here may travel in another lane");
        let mut joined = bucket();
        joined.joins.since.insert(US, Epoch(2));
        assert_eq!(told(&joined, 2, 2, 9), nothing, "what came before it joined was never sent");
        let mut turned = bucket();
        turned.turns.turn(Epoch(2), Lane::Sync);
        assert_eq!(told(&turned, 2, 2, 9), nothing, "its other lane has brought nothing");
    }
}

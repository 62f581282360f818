//! Kept results: what makes a request take effect at most once (ONE-1).
//!
//! The result of every write that carries a client's identity is kept in the state until the client says that
//! it will not retry it. Here is the index over them; the results themselves are read only for a retry.
//!
//! Every decision here must fall alike in every region that applies the same entries, although a region
//! sees only the buckets it holds. So everything is scoped to (bucket, origin) and decided by that history alone:
//! - a session is *expired* once an entry is more than [`SESSION_TTL_MS`] younger than its last one,
//!   whether or not [`Sessions::expire`] has cleared it away yet;
//! - beyond [`SESSION_RESULTS_MAX`] results of one client, its oldest are forgotten;
//! - beyond [`ORIGIN_RESULTS_MAX`] results of one (bucket, origin), the clients silent for longest are (RES-1).
//!
//! A result lives in one of its session's slots, and a new result takes the lowest free one: a client that
//! waits for each answer overwrites one state key for ever and leaves no garbage behind. Slots below the
//! session's floor are free; their stale bytes are recognised by the floor that each result repeats.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BufMut, Bytes};
use meridian_types::{BucketId, ClientId, Hlc, RegionId, RequestId, ShardId};

use crate::error::{Damage, ReadError};
use crate::keys;
use crate::view::{Mutations, StateView, ViewError};

/// How long a silent client's results count, in milliseconds: far beyond any deadline a client retries within.
pub const SESSION_TTL_MS: u64 = 3_600_000;

/// The most results kept for one client in one (bucket, shard): its requests in flight there, many times over.
pub const SESSION_RESULTS_MAX: usize = 1024;

/// The most results kept for one (bucket, shard, origin region), all clients together; about 150 bytes of memory each.
pub const ORIGIN_RESULTS_MAX: usize = 32_768;

const RESULT_RECORD_FORMAT: u8 = 1;
pub(crate) const RESULT_RECORD_HEAD: usize = 25;

/// Whose results an entry is checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Of all regions: a bucket with a primary has one history, whoever wrote it.
    Bucket,
    /// Of the entry's own region: active-active histories interleave differently in every region.
    Origin,
}

/// What is known of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Nothing: it is new.
    New,
    /// It was decided; its result is kept here.
    Decided { origin: RegionId, slot: u16 },
    /// It is below what is remembered: whether it took effect can't be told any more.
    Forgotten,
}

/// An identified request as its entry carries it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) bucket: BucketId,
    pub(crate) origin: RegionId,
    pub(crate) id: RequestId,
    pub(crate) lowest_outstanding: u64,
    pub(crate) hlc: Hlc,
}

/// The index of the results kept for one shard.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Sessions {
    sessions: BTreeMap<(BucketId, ClientId, RegionId), Session>,
    /// Results kept per (bucket, origin).
    kept: BTreeMap<(BucketId, RegionId), usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct Session {
    /// Results below are forgotten.
    floor: u64,
    /// The last entry of this client.
    last_seen: Hlc,
    /// Sequence and slot, in rising sequence.
    kept: VecDeque<(u64, u16)>,
    /// One bit per slot in use.
    used: Vec<u64>,
    /// Slots ever written: what there is to delete.
    slots: u16,
}

impl Session {
    fn is_expired(&self, now: Hlc) -> bool {
        now.millis() > self.last_seen.millis().saturating_add(SESSION_TTL_MS)
    }

    fn slot_of(&self, sequence: u64) -> Option<u16> {
        let at = self.kept.binary_search_by_key(&sequence, |(sequence, _)| *sequence).ok()?;
        self.kept.get(at).map(|(_, slot)| *slot)
    }

    /// Whether there is no room for `sequence`, because as many as are kept are all younger.
    fn is_full_before(&self, sequence: u64, lowest: u64) -> bool {
        if self.kept.len() < SESSION_RESULTS_MAX {
            return false;
        }
        let mut above = self.kept.iter().skip_while(|(kept, _)| *kept < lowest);
        let oldest = above.next().map(|(kept, _)| *kept);
        oldest.is_some_and(|oldest| sequence < oldest) && above.count() + 1 >= SESSION_RESULTS_MAX
    }

    fn take_slot(&mut self) -> u16 {
        let word = self.used.iter().position(|word| *word != u64::MAX).unwrap_or(self.used.len());
        if word == self.used.len() {
            self.used.push(0);
        }
        let bit = self.used[word].trailing_ones();
        self.used[word] |= 1 << bit;
        // Bounded by SESSION_RESULTS_MAX + 1 results at a time.
        let slot = u16::try_from(word * 64).unwrap_or(u16::MAX - 64) + bit as u16;
        self.slots = self.slots.max(slot + 1);
        slot
    }

    fn forget_oldest(&mut self) {
        if let Some((sequence, slot)) = self.kept.pop_front() {
            self.used[usize::from(slot / 64)] &= !(1 << (slot % 64));
            self.floor = self.floor.max(sequence + 1);
        }
    }

    fn raise_floor(&mut self, floor: u64) {
        while self.kept.front().is_some_and(|(sequence, _)| *sequence < floor) {
            self.forget_oldest();
        }
        self.floor = self.floor.max(floor);
    }

    fn insert(&mut self, sequence: u64, slot: u16) {
        let at = self.kept.partition_point(|(kept, _)| *kept < sequence);
        self.kept.insert(at, (sequence, slot));
    }
}

impl Sessions {
    /// Reads the index from the state.
    pub(crate) fn load(view: &dyn StateView, shard: ShardId) -> Result<Sessions, ReadError> {
        Sessions::in_range(view, keys::results_of_shard(shard))
    }

    /// Reads the index of one bucket anew, whose results were exchanged.
    pub(crate) fn reload(&mut self, view: &dyn StateView, shard: ShardId, bucket: BucketId) -> Result<(), ReadError> {
        self.drop_bucket(bucket);
        let read = Sessions::in_range(view, keys::results_of_bucket(shard, bucket))?;
        self.sessions.extend(read.sessions);
        self.kept.extend(read.kept);
        Ok(())
    }

    fn in_range(view: &dyn StateView, (from, to): (Vec<u8>, Vec<u8>)) -> Result<Sessions, ReadError> {
        let mut sessions = Sessions::default();
        let mut damage = None;
        view.scan(&from, &to, &mut |key, record| match (keys::parse_result(key), ResultRecord::decode(record)) {
            (Some((bucket, origin, client, slot)), Ok(record)) => {
                let session = sessions.sessions.entry((bucket, client, origin)).or_default();
                session.floor = session.floor.max(record.floor);
                session.last_seen = session.last_seen.max(record.hlc);
                session.slots = session.slots.max(slot.saturating_add(1));
                session.insert(record.sequence, slot);
                std::ops::ControlFlow::Continue(())
            }
            _ => {
                damage = Some(Damage { what: "result of a request" });
                std::ops::ControlFlow::Break(())
            }
        })?;
        if let Some(damage) = damage {
            return Err(damage.into());
        }
        for ((bucket, _, origin), session) in &mut sessions.sessions {
            session.kept.retain(|(sequence, _)| *sequence >= session.floor);
            session.used = vec![0; usize::from(session.slots).div_ceil(64)];
            session.kept.iter().for_each(|(_, slot)| session.used[usize::from(slot / 64)] |= 1 << (slot % 64));
            *sessions.kept.entry((*bucket, *origin)).or_default() += session.kept.len();
        }
        Ok(sessions)
    }

    /// What is known of a request, for an entry about to be applied.
    pub(crate) fn look_up(&self, asked: &Asked, scope: Scope) -> Known {
        if asked.id.client == ClientId(0) {
            return Known::New;
        }
        let (bucket, client, sequence) = (asked.bucket, asked.id.client, asked.id.sequence);
        if sequence < asked.lowest_outstanding {
            return Known::Forgotten;
        }
        let mut known = Known::New;
        let all = self.sessions.range((bucket, client, RegionId(0))..=(bucket, client, RegionId(u16::MAX)));
        for ((_, _, origin), session) in all {
            let counts = scope == Scope::Bucket || *origin == asked.origin;
            if !counts || session.is_expired(asked.hlc) {
                continue;
            }
            if let Some(slot) = session.slot_of(sequence) {
                return Known::Decided { origin: *origin, slot };
            }
            let full = *origin == asked.origin && session.is_full_before(sequence, asked.lowest_outstanding);
            if sequence < session.floor || full {
                known = Known::Forgotten;
            }
        }
        known
    }

    /// Where the result of a request is kept, whichever region decided it.
    pub(crate) fn find(&self, bucket: BucketId, id: RequestId) -> Option<(RegionId, u16)> {
        let all = self.sessions.range((bucket, id.client, RegionId(0))..=(bucket, id.client, RegionId(u16::MAX)));
        all.filter_map(|((_, _, origin), session)| Some((*origin, session.slot_of(id.sequence)?))).next()
    }

    /// Keeps the result of a request that [`Sessions::look_up`] found to be new.
    pub(crate) fn keep(&mut self, shard: ShardId, asked: &Asked, result: &Bytes, out: &mut Mutations) {
        if asked.id.client == ClientId(0) {
            return;
        }
        let scope = (asked.bucket, asked.id.client, asked.origin);
        if self.sessions.get(&scope).is_some_and(|session| session.is_expired(asked.hlc)) {
            self.forget(shard, scope, out);
        }
        let session = self.sessions.entry(scope).or_default();
        let before = session.kept.len();
        session.raise_floor(asked.lowest_outstanding);
        let slot = session.take_slot();
        session.insert(asked.id.sequence, slot);
        if session.kept.len() > SESSION_RESULTS_MAX {
            session.forget_oldest();
        }
        session.last_seen = session.last_seen.max(asked.hlc);
        let record = ResultRecord { floor: session.floor, sequence: asked.id.sequence, hlc: asked.hlc };
        out.put(keys::result(shard, asked.bucket, asked.origin, asked.id.client, slot), record.encode(result));

        let kept = self.kept.entry((asked.bucket, asked.origin)).or_default();
        *kept = *kept + session.kept.len() - before;
        if *kept > ORIGIN_RESULTS_MAX {
            self.forget_silent(shard, asked, out);
        }
    }

    /// Makes room in one (bucket, origin): what is expired goes, then the clients silent for longest, an eighth of the
    /// bound at once, so that the search for them is paid seldom. The client at hand stays. Expired ones go first and
    /// don't count, because here and elsewhere they may have been cleared away at different times.
    fn forget_silent(&mut self, shard: ShardId, asked: &Asked, out: &mut Mutations) {
        let in_bucket =
            (asked.bucket, ClientId(0), RegionId(0))..=(asked.bucket, ClientId(u128::MAX), RegionId(u16::MAX));
        let of_origin = self
            .sessions
            .range(in_bucket)
            .filter(|((_, client, origin), _)| *origin == asked.origin && *client != asked.id.client);
        let mut silent: Vec<_> =
            of_origin.map(|(scope, session)| (session.last_seen, *scope, session.is_expired(asked.hlc))).collect();
        silent.sort_unstable();
        let expired = silent.iter().take_while(|(_, _, expired)| *expired).count();
        silent.drain(..expired).for_each(|(_, scope, _)| self.forget(shard, scope, out));
        if self.kept_of(asked) <= ORIGIN_RESULTS_MAX {
            return;
        }
        for (_, scope, _) in silent {
            if self.kept_of(asked) <= ORIGIN_RESULTS_MAX - ORIGIN_RESULTS_MAX / 8 {
                break;
            }
            self.forget(shard, scope, out);
        }
    }

    /// The most that are kept for one client, and for one (bucket, origin).
    pub(crate) fn most_kept(&self) -> (usize, usize) {
        let of_client = self.sessions.values().map(|session| session.kept.len()).max();
        (of_client.unwrap_or_default(), self.kept.values().copied().max().unwrap_or_default())
    }

    fn kept_of(&self, asked: &Asked) -> usize {
        self.kept.get(&(asked.bucket, asked.origin)).copied().unwrap_or_default()
    }

    /// Clears sessions that were silent since before `before` and are expired for every entry yet to come, given the
    /// last timestamp of each (bucket, origin). Stops after deleting about `keys_max` state keys; tells how many
    /// sessions went and whether there are more.
    pub(crate) fn expire(
        &mut self,
        shard: ShardId,
        before: Hlc,
        last: &dyn Fn(BucketId, RegionId) -> Hlc,
        keys_max: usize,
        out: &mut Mutations,
    ) -> (u64, bool) {
        let is_over = |scope: &(BucketId, ClientId, RegionId), session: &Session| {
            session.last_seen < before && session.is_expired(last(scope.0, scope.2))
        };
        let over = self.sessions.iter().filter(|(scope, session)| is_over(scope, session));
        let mut keys_left = keys_max;
        let mut gone = Vec::new();
        let mut more = false;
        for (scope, session) in over {
            if keys_left == 0 {
                more = true;
                break;
            }
            keys_left = keys_left.saturating_sub(usize::from(session.slots));
            gone.push(*scope);
        }
        gone.iter().for_each(|scope| self.forget(shard, *scope, out));
        (gone.len() as u64, more)
    }

    /// Drops a bucket's sessions from the index; their state keys are the caller's business.
    pub(crate) fn drop_bucket(&mut self, bucket: BucketId) {
        self.sessions.retain(|(of, _, _), _| *of != bucket);
        self.kept.retain(|(of, _), _| *of != bucket);
    }

    fn forget(&mut self, shard: ShardId, scope: (BucketId, ClientId, RegionId), out: &mut Mutations) {
        let Some(session) = self.sessions.remove(&scope) else { return };
        let (bucket, client, origin) = scope;
        (0..session.slots).for_each(|slot| out.delete(keys::result(shard, bucket, origin, client, slot)));
        if let Some(kept) = self.kept.get_mut(&(bucket, origin)) {
            *kept = kept.saturating_sub(session.kept.len());
        }
    }

    /// See [`crate::Shard::validate`].
    pub(crate) fn validate(&self) {
        let mut kept: BTreeMap<(BucketId, RegionId), usize> = BTreeMap::new();
        for ((bucket, client, origin), session) in &self.sessions {
            assert!(*client != ClientId(0), "a client without identity has no session");
            assert!(session.kept.len() <= SESSION_RESULTS_MAX, "a session keeps a bounded number of results");
            let rising = session.kept.iter().zip(session.kept.iter().skip(1)).all(|(a, b)| a.0 < b.0);
            assert!(rising, "a session's results are in rising sequence");
            let above = session.kept.front().is_none_or(|(sequence, _)| *sequence >= session.floor);
            assert!(above, "nothing is kept below a session's floor");
            let used: u32 = session.used.iter().map(|word| word.count_ones()).sum();
            assert!(used as usize == session.kept.len(), "every result has a slot of its own");
            *kept.entry((*bucket, *origin)).or_default() += session.kept.len();
        }
        for (scope, kept) in kept {
            assert!(kept <= ORIGIN_RESULTS_MAX, "an origin's results are bounded");
            assert!(self.kept.get(&scope) == Some(&kept), "the count of results is exact");
        }
    }
}

/// What precedes a result in the state.
pub(crate) struct ResultRecord {
    pub(crate) floor: u64,
    pub(crate) sequence: u64,
    pub(crate) hlc: Hlc,
}

impl ResultRecord {
    pub(crate) fn encode(&self, result: &[u8]) -> Bytes {
        let mut bytes = Vec::with_capacity(RESULT_RECORD_HEAD + result.len());
        bytes.put_u8(RESULT_RECORD_FORMAT);
        bytes.put_u64_le(self.floor);
        bytes.put_u64_le(self.sequence);
        bytes.put_u64_le(self.hlc.0);
        bytes.extend_from_slice(result);
        bytes.into()
    }

    pub(crate) fn decode(mut bytes: &[u8]) -> Result<ResultRecord, Damage> {
        if bytes.len() < RESULT_RECORD_HEAD || bytes.get_u8() != RESULT_RECORD_FORMAT {
            return Err(Damage { what: "result of a request" });
        }
        Ok(ResultRecord { floor: bytes.get_u64_le(), sequence: bytes.get_u64_le(), hlc: Hlc(bytes.get_u64_le()) })
    }
}

/// Reads a kept result.
pub(crate) fn read(
    get: impl Fn(&[u8]) -> Result<Option<Bytes>, ViewError>,
    shard: ShardId,
    bucket: BucketId,
    id: RequestId,
    (origin, slot): (RegionId, u16),
) -> Result<Bytes, ReadError> {
    let damage = Damage { what: "result of a request" };
    let record = get(&keys::result(shard, bucket, origin, id.client, slot))?.ok_or(damage.clone())?;
    if ResultRecord::decode(&record)?.sequence != id.sequence {
        return Err(damage.into());
    }
    Ok(record.slice(RESULT_RECORD_HEAD..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::MemoryState;

    const SHARD: ShardId = ShardId(0);

    fn asked(client: u128, sequence: u64, lowest: u64, millis: u64) -> Asked {
        Asked {
            bucket: BucketId(1),
            origin: RegionId(1),
            id: RequestId { client: ClientId(client), sequence },
            lowest_outstanding: lowest,
            hlc: Hlc::from_millis(millis),
        }
    }

    struct World {
        state: MemoryState,
        sessions: Sessions,
    }

    impl World {
        fn new() -> World {
            World { state: MemoryState::default(), sessions: Sessions::default() }
        }

        fn keep(&mut self, asked: Asked) {
            assert_eq!(self.sessions.look_up(&asked, Scope::Bucket), Known::New, "{asked:?}");
            let mut out = Mutations::new();
            self.sessions.keep(SHARD, &asked, &Bytes::from(asked.id.sequence.to_string()), &mut out);
            self.state.commit(out);
            self.sessions.validate();
        }

        fn reloaded(&self) -> Sessions {
            Sessions::load(&self.state, SHARD).unwrap()
        }
    }

    #[test]
    fn a_client_that_waits_for_each_answer_uses_one_state_key() {
        let mut world = World::new();
        for sequence in 1..100 {
            world.keep(asked(7, sequence, sequence, sequence));
        }
        assert_eq!(world.state.iter().count(), 1);
        assert_eq!(world.reloaded(), world.sessions);
        assert_eq!(world.sessions.look_up(&asked(7, 98, 98, 200), Scope::Bucket), Known::Forgotten);
        let retry = asked(7, 99, 99, 200);
        let Known::Decided { origin, slot } = world.sessions.look_up(&retry, Scope::Bucket) else { panic!() };
        let get = |key: &[u8]| world.state.get(key);
        assert_eq!(read(get, SHARD, BucketId(1), retry.id, (origin, slot)).unwrap(), "99");
    }

    #[test]
    fn requests_in_flight_are_remembered_in_any_order_and_after_a_restart() {
        let mut world = World::new();
        for sequence in [5, 3, 9, 4] {
            world.keep(asked(7, sequence, 2, sequence));
        }
        world.keep(asked(7, 10, 5, 11));
        let reloaded = world.reloaded();
        reloaded.validate();
        for sessions in [&world.sessions, &reloaded] {
            let known = |sequence| sessions.look_up(&asked(7, sequence, 1, 20), Scope::Bucket);
            assert_eq!([known(3), known(4), known(6)], [Known::Forgotten, Known::Forgotten, Known::New]);
            assert!(matches!(known(5), Known::Decided { .. }));
        }
    }

    #[test]
    fn a_client_with_too_many_results_loses_its_oldest_and_is_told() {
        let mut world = World::new();
        for sequence in 10..10 + SESSION_RESULTS_MAX as u64 {
            world.keep(asked(7, sequence, 0, sequence));
        }
        assert_eq!(world.sessions.look_up(&asked(7, 9, 0, 2000), Scope::Bucket), Known::Forgotten);
        assert_eq!(
            world.sessions.look_up(&asked(7, 10, 0, 2000), Scope::Bucket),
            Known::Decided { origin: RegionId(1), slot: 0 }
        );
        world.keep(asked(7, 5000, 0, 2000));
        assert_eq!(world.sessions.look_up(&asked(7, 10, 0, 2001), Scope::Bucket), Known::Forgotten);
        assert_eq!(world.reloaded().look_up(&asked(7, 10, 0, 2001), Scope::Bucket), Known::Forgotten);
    }

    #[test]
    fn results_are_bounded_and_the_longest_silent_go_first() {
        let mut world = World::new();
        for client in 1..=ORIGIN_RESULTS_MAX as u128 + 1 {
            let mut out = Mutations::new();
            world.sessions.keep(SHARD, &asked(client, 1, 0, client as u64), &Bytes::new(), &mut out);
            world.state.commit(out);
        }
        world.sessions.validate();
        assert!(world.sessions.sessions.len() <= ORIGIN_RESULTS_MAX - ORIGIN_RESULTS_MAX / 8);
        assert_eq!(world.state.iter().count(), world.sessions.sessions.len());
        assert_eq!(world.sessions.look_up(&asked(1, 1, 0, 40_000), Scope::Bucket), Known::New);
        let last = asked(ORIGIN_RESULTS_MAX as u128, 1, 0, 40_000);
        assert!(matches!(world.sessions.look_up(&last, Scope::Bucket), Known::Decided { .. }));
    }

    #[test]
    fn what_is_forgotten_does_not_depend_on_when_expired_sessions_were_cleared_away() {
        let mut lazy = Sessions::default();
        let mut out = Mutations::new();
        let keep = |sessions: &mut Sessions, asked: &Asked| {
            sessions.keep(SHARD, asked, &Bytes::new(), &mut Mutations::new());
        };
        let old = |client: u128| asked(client, 1, 0, client as u64);
        let new = |client: u128| asked(100_000 + client, 1, 0, 2 * SESSION_TTL_MS + client as u64);
        (1..=2_000).for_each(|client| keep(&mut lazy, &old(client)));
        let mut eager = lazy.clone();
        let far = Hlc::from_millis(2 * SESSION_TTL_MS);
        assert_eq!(eager.expire(SHARD, far, &|_, _| far, usize::MAX, &mut out), (2_000, false));
        for client in 1..=31_000 {
            keep(&mut lazy, &new(client));
            keep(&mut eager, &new(client));
        }
        let later = |client| Asked { hlc: Hlc::from_millis(2 * SESSION_TTL_MS + 40_000), ..new(client) };
        for client in 1..=31_000 {
            let known = |sessions: &Sessions| sessions.look_up(&later(client), Scope::Bucket) == Known::New;
            assert_eq!(known(&lazy), known(&eager), "{client}");
        }
        lazy.validate();
        eager.validate();
    }

    #[test]
    fn expiry_is_decided_by_the_history_not_by_when_it_is_cleared_away() {
        let mut world = World::new();
        world.keep(asked(7, 1, 0, 1_000));
        let late = asked(7, 1, 0, 1_001 + SESSION_TTL_MS);
        let mut cleared = world.sessions.clone();
        let (mut out, far) = (Mutations::new(), Hlc(u64::MAX));
        assert_eq!(
            cleared.expire(SHARD, far, &|_, _| Hlc::from_millis(1_000 + SESSION_TTL_MS), 9, &mut out),
            (0, false)
        );
        assert_eq!(
            cleared.expire(SHARD, far, &|_, _| Hlc::from_millis(1_001 + SESSION_TTL_MS), 9, &mut out),
            (1, false)
        );
        assert_eq!(cleared.look_up(&late, Scope::Bucket), Known::New);
        assert_eq!(world.sessions.look_up(&late, Scope::Bucket), Known::New);
        world.keep(late);
        assert_eq!(world.state.iter().count(), 1);
    }

    #[test]
    fn a_bucket_with_a_primary_remembers_what_another_region_decided() {
        let mut world = World::new();
        world.keep(asked(7, 1, 0, 1_000));
        let elsewhere = Asked { origin: RegionId(2), ..asked(7, 1, 0, 1_001) };
        assert!(matches!(world.sessions.look_up(&elsewhere, Scope::Bucket), Known::Decided { .. }));
        assert_eq!(world.sessions.look_up(&elsewhere, Scope::Origin), Known::New);
        assert_eq!(world.sessions.find(BucketId(1), elsewhere.id), Some((RegionId(1), 0)));
    }
}

//! Any moment of a chain comes back as it was, by the very log that made it so; one that no link tells is refused, with the reason.

use std::collections::BTreeMap;
use std::sync::Arc;

use meridian_region_core::backup::log::{Look, look};
use meridian_region_core::backup::{Opening, open, page, records, replay};
use meridian_region_core::{MemoryState, Mutations, Shard};
use meridian_types::entry::{Body, Header, WriteBody};
use meridian_types::{BucketId, ClientId, Key, RequestId, Value, Write};

use super::chains::{named, whole};
use super::*;
use crate::backup::moment::{Gap, Pick, pick};

const BUCKET: BucketId = BucketId(4);
const SHARD: ShardId = ShardId(0);
const HERE: RegionId = RegionId(1);

/// A shard with its log, and its rows behind each entry, by the entry's time.
struct World {
    shard: Shard,
    state: MemoryState,
    log: Vec<(Lsn, Bytes)>,
    moments: BTreeMap<u64, BTreeMap<Bytes, Bytes>>,
    now_ms: u64,
}

/// What happens: some time passes, a key is written by a request that may be a retry, or removed.
type Act = (u64, u8, u64, Option<u8>);

fn acts() -> impl Strategy<Value = Vec<Act>> {
    prop::collection::vec((1u64..5, 0u8..5, 1u64..9, prop::option::of(any::<u8>())), 0..8)
}

impl World {
    fn new() -> World {
        let state = MemoryState::default();
        let shard = Shard::load(&state, HERE, SHARD).unwrap().with_shards(1);
        World { shard, state, log: Vec::new(), moments: BTreeMap::from([(0, BTreeMap::new())]), now_ms: 10 }
    }

    fn act(&mut self, (passes, key, sequence, value): Act) {
        self.now_ms += passes;
        let key = Key::new(vec![key]).unwrap();
        let write = match value {
            Some(value) => Write::Put { key, value: Value::new(vec![value]).unwrap(), ttl_ms: None },
            None => Write::Delete { key },
        };
        let header = Header {
            kind: meridian_types::entry::Kind::Write,
            origin: HERE,
            bucket: BUCKET,
            epoch: Epoch(1),
            hlc: Hlc::from_millis(self.now_ms),
            id: RequestId { client: ClientId(7), sequence },
            lowest_outstanding: 0,
        };
        let (entry, lsn, mut out) =
            (header.encode(&Body::Write(WriteBody::Plain(write))), self.log.len() as u64 + 1, Mutations::new());
        self.shard.apply(&self.state, Lsn(lsn), &entry, &mut out).unwrap();
        self.shard.checkpoint(&mut out);
        self.state.commit(out);
        self.log.push((Lsn(lsn), entry));
        self.moments.insert(self.now_ms, rows_of_state(&self.state));
    }

    fn cut(&self) -> BackupCut {
        let Opening::Open(cut) = open(&self.state, SHARD, BUCKET, HERE).unwrap() else { panic!("it is fit") };
        BackupCut { at_ms: self.now_ms, ..cut }
    }

    /// A link as `create` keeps it: all rows, or what the log since tells.
    async fn back_up(&self, place: &Place, id: &BackupId, base: Option<(&Manifest, Way)>) -> Manifest {
        let (cut, context) = (self.cut(), replay::context(&self.state, (SHARD, BUCKET), &[], usize::MAX).unwrap());
        let (mut kept, mut log) = (page(&self.state, SHARD, BUCKET, &[], usize::MAX).unwrap(), Vec::new());
        let way = base.map_or(Way::Whole, |(_, way)| way);
        if let Some((base, Way::Log)) = base {
            let since = Lsn(base.shards[0].mark.as_ref().unwrap().applied);
            let mut names = std::collections::BTreeSet::new();
            for (lsn, entry) in self.log.iter().filter(|(lsn, _)| *lsn > since) {
                let effective = |lsn, header: &_| self.shard.is_effective(lsn, header);
                let Look::Kept(entry, keys) = look((*lsn, entry), BUCKET, &effective).unwrap() else { continue };
                names.extend(keys);
                log.push(BackupRow { key: lsn.0.to_be_bytes().to_vec().into(), record: entry });
            }
            kept = records(&self.state, (SHARD, BUCKET), names).unwrap();
        }
        let parts = pack(place, id, (Kind::Rows, SHARD), &kept).await;
        let entry = ShardEntry::new(&cut, way, (kept.len() as u64, 0), parts);
        let log = pack(place, id, (Kind::Log, SHARD), &log).await;
        let context = pack(place, id, (Kind::Context, SHARD), &context).await;
        let base = base.map(|(base, _)| Base { id: base.id.clone(), seal: base.seal() });
        finish(place, id, base, vec![ShardEntry { log, context, ..entry }]).await
    }

    /// What there was then.
    fn then(&self, at_ms: u64) -> BTreeMap<Bytes, Bytes> {
        self.moments.range(..=at_ms).next_back().map(|(_, rows)| rows.clone()).unwrap()
    }
}

fn rows_of_state(state: &MemoryState) -> BTreeMap<Bytes, Bytes> {
    let rows = page(state, SHARD, BUCKET, &[], usize::MAX).unwrap();
    rows.into_iter().map(|row| (row.key, row.record)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_moment_that_a_chain_of_logs_tells_comes_back_as_it_was(
        first in acts(), links in prop::collection::vec(acts(), 1..4), at in any::<u64>(),
    ) {
        run(async {
            let (place, mut world) = (place(&Arc::new(InMemory::new())), World::new());
            first.into_iter().for_each(|act| world.act(act));
            let begun_ms = world.now_ms;
            let mut last = world.back_up(&place, &named(0), None).await;
            for (nth, acts) in links.into_iter().enumerate() {
                acts.into_iter().for_each(|act| world.act(act));
                last = world.back_up(&place, &named(nth + 1), Some((&last, Way::Log))).await;
            }
            assert_eq!(faults(&place, last.clone()).await, []);
            let chain = whole(&place, &last).await;
            let at_ms = begun_ms + at % (world.now_ms - begun_ms + 1);
            assert_eq!(rows_at(&place, &chain, at_ms).await, world.then(at_ms));
            assert_eq!(chain.picks(world.now_ms + 1), Err((0, Gap::After)));
        });
    }
}

/// Two links, of which the second one keeps the log.
async fn example(place: &Place) -> World {
    let mut world = World::new();
    world.act((1, 1, 1, Some(1)));
    let base = world.back_up(place, &named(0), None).await;
    for act in [(1, 1, 2, Some(2)), (1, 2, 3, Some(3)), (1, 1, 4, None)] {
        world.act(act);
    }
    world.back_up(place, &named(1), Some((&base, Way::Log))).await;
    world
}

/// Written by the first release that had such: it stays readable for good, with its moments.
#[tokio::test]
async fn a_backup_of_version_2_is_read() {
    let place = Place::open(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/backup-2"), false).unwrap();
    let State::Whole(manifest) = place.state(&named(1)).await.unwrap() else { panic!("its manifest is read") };
    assert_eq!(faults(&place, manifest.as_ref().clone()).await, []);
    let (chain, world) = (whole(&place, &manifest).await, example(&self::place(&Arc::new(InMemory::new()))).await);
    for at_ms in 11..=14 {
        assert_eq!(rows_at(&place, &chain, at_ms).await, world.then(at_ms), "at {at_ms}");
    }
}

/// What comes of a chain of one shard.
async fn rows_at(place: &Place, chain: &Chain, at_ms: u64) -> BTreeMap<Bytes, Bytes> {
    let picks = chain.picks(at_ms).unwrap();
    let mut merge = chain.rows_at(place, (0, picks[0], at_ms), &|_| ()).await.unwrap();
    let mut rows = BTreeMap::new();
    while let Some(row) = merge.next().await.unwrap() {
        rows.insert(row.key, row.record);
    }
    rows
}

#[tokio::test]
async fn a_log_that_does_not_come_to_its_digest_is_found() {
    let (place, mut world) = (place(&Arc::new(InMemory::new())), World::new());
    world.act((1, 1, 1, Some(1)));
    let base = world.back_up(&place, &named(0), None).await;
    world.act((1, 1, 2, Some(2)));
    world.act((1, 2, 3, Some(3)));
    let mut last = world.back_up(&place, &named(1), Some((&base, Way::Log))).await;
    assert_eq!(faults(&place, last.clone()).await, []);
    // As by a program that lost an entry: every checksum is right.
    let entry = BackupRow { key: 2u64.to_be_bytes().to_vec().into(), record: world.log[1].1.clone() };
    last.shards[0].log = pack(&place, &named(1), (Kind::Log, SHARD), &[entry]).await;
    place.finish(&last).await.unwrap();
    world.act((1, 2, 4, None));
    let next = world.back_up(&place, &named(2), Some((&last, Way::Log))).await;
    let found = faults(&place, next).await;
    assert_eq!(found.len(), 1, "what follows on it is right again: {found:?}");
    assert!(found[0].backup == named(1) && found[0].what.contains("told again"), "{found:?}");
}

#[test]
fn a_moment_is_at_a_cut_within_a_log_or_told_by_nobody() {
    let entry = |stamp_ms: u64, at_ms: u64, way: Way| {
        let stamp = Hlc::from_millis(stamp_ms);
        let cut = BackupCut { stamp, at_ms, ..BackupCut::default() };
        let log =
            if way == Way::Log { vec![PartEntry { number: 0, length: 1, crc32c: 1, rows: 1 }] } else { Vec::new() };
        ShardEntry { log, ..ShardEntry::new(&cut, way, (0, 0), Vec::new()) }
    };
    let all = [
        entry(100, 150, Way::Whole),
        entry(200, 250, Way::Log),
        entry(300, 350, Way::Difference),
        ShardEntry { log: Vec::new(), ..entry(300, 450, Way::Log) },
    ];
    let links: Vec<&ShardEntry> = all.iter().collect();
    for (at_ms, expected) in [
        (99, Err(Gap::Before)),
        (100, Ok(Pick::Within(1))),
        (199, Ok(Pick::Within(1))),
        (200, Ok(Pick::Cut(1))),
        (250, Ok(Pick::Cut(1))),
        (251, Err(Gap::Between)),
        (299, Err(Gap::Between)),
        (300, Ok(Pick::Cut(3))),
        (450, Ok(Pick::Cut(3))),
        (451, Err(Gap::After)),
    ] {
        assert_eq!(pick(&links, at_ms), expected, "at {at_ms}");
    }
    assert_eq!(pick(&links[..1], 150), Ok(Pick::Cut(0)));
    let old = ShardEntry { mark: None, ..all[0].clone() };
    assert_eq!(pick(&[&old], 150), Err(Gap::Before), "nobody knows when that was");
}

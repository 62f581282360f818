//! Backups in a store in memory: whole, and damaged in every way that a disk or a hand can damage them.

use bytes::Bytes;
use meridian_region_core::Contents;
use meridian_types::{BackupCut, BackupRow, Epoch, Hlc, Lsn, Policy, Positions, RegionId, ShardId};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use proptest::prelude::*;

mod chains;
mod deletes;
mod moments;

use super::BackupId;
use super::chain::Chain;
use super::manifest::{Base, BucketEntry, Damage, Kind, Manifest, PartEntry, ShardEntry, Way};
use super::part::{Packed, Packer};
use super::place::{Place, State, part_name};
use super::verify::{Fault, rows_of, verify};

const SHARDS: u16 = 3;

fn id() -> BackupId {
    "orders-20261128T234501Z-3fa2".parse().unwrap()
}

/// A record of a bucket with a primary (`region/core`'s `record`).
fn record(value: &[u8]) -> Bytes {
    [&[1, 1, 0][..], &7u64.to_le_bytes(), &1u16.to_le_bytes(), &9u64.to_le_bytes(), value].concat().into()
}

fn rows(shard: u16, count: usize, value_bytes: usize) -> Vec<BackupRow> {
    let value = |n: usize| (0..value_bytes).map(|at| (at * (n + 1) % 251) as u8).collect::<Vec<u8>>();
    let row = |n: usize| BackupRow { key: format!("{shard}/{n:04}").into(), record: record(&value(n)) };
    (0..count).map(row).collect()
}

/// Keeps some rows in every shard, as `create` does.
async fn keep(place: &Place, count: usize, value_bytes: usize) -> Manifest {
    let mut shards = Vec::new();
    for shard in (0..SHARDS).map(ShardId) {
        let (rows, mut contents) = (rows(shard.0, count, value_bytes), Contents::default());
        for row in &rows {
            contents.add(&row.key, &row.record).unwrap();
        }
        shards.push(keep_shard(place, (&id(), shard), (Way::Whole, &rows), contents).await);
    }
    finish(place, &id(), None, shards).await
}

/// Keeps rows of one kind.
async fn pack(place: &Place, id: &BackupId, (kind, shard): (Kind, ShardId), rows: &[BackupRow]) -> Vec<PartEntry> {
    let (mut packer, mut packed): (Packer, Vec<Packed>) = (Packer::new(shard), Vec::new());
    packed.extend(rows.iter().filter_map(|row| packer.push(row)));
    packed.extend(packer.close());
    let mut parts = Vec::new();
    for Packed { number, rows, bytes } in packed {
        parts.push(PartEntry { number, rows, length: bytes.len() as u64, crc32c: crc32c::crc32c(&bytes) });
        place.keep_part(id, (kind, shard, number), bytes).await.unwrap();
    }
    parts
}

/// Keeps rows of a shard, which with what they rest on add up to this.
async fn keep_shard(
    place: &Place,
    (id, shard): (&BackupId, ShardId),
    (way, rows): (Way, &[BackupRow]),
    contents: Contents,
) -> ShardEntry {
    let parts = pack(place, id, (Kind::Rows, shard), rows).await;
    let cut = BackupCut {
        shard,
        region: RegionId(1),
        epoch: Epoch(2),
        positions: Positions([(RegionId(1), Lsn(9))].into()),
        hlc: Hlc(7),
        hash: contents.hash,
        keys: contents.keys,
        bytes: contents.bytes,
        staleness_ms: Some(0),
        ..BackupCut::default()
    };
    ShardEntry::new(&cut, way, (rows.len() as u64, 0), parts)
}

async fn finish(place: &Place, id: &BackupId, base: Option<Base>, shards: Vec<ShardEntry>) -> Manifest {
    let (region, name) = ("us-east".parse().unwrap(), "orders".parse().unwrap());
    let regions = vec!["us-east".parse().unwrap(), "eu-west".parse().unwrap()];
    let bucket = BucketEntry {
        name,
        policy: Policy::ASYNC,
        regions,
        primary: Some("us-east".parse().unwrap()),
        labels: Default::default(),
    };
    let manifest = Manifest {
        id: id.clone(),
        cluster: "c".to_owned(),
        tool: "0.1.0".to_owned(),
        begun_ms: 1_795_909_501_000,
        ended_ms: 1_795_909_502_000,
        region,
        bucket,
        base,
        shards,
    };
    place.finish(&manifest).await.unwrap();
    manifest
}

fn place(store: &std::sync::Arc<InMemory>) -> Place {
    Place::of(Box::new(std::sync::Arc::clone(store)), Path::from("below"), "memory")
}

/// Every object there is, with its bytes.
async fn objects(store: &InMemory) -> Vec<(Path, Bytes)> {
    let listed = store.list_with_delimiter(Some(&Path::from("below").join(id().to_string()))).await.unwrap();
    let mut all = Vec::new();
    for object in listed.objects {
        let bytes = store.get(&object.location).await.unwrap().bytes().await.unwrap();
        all.push((object.location, bytes));
    }
    all
}

/// What is said of a place: nothing when the only backup there is good.
async fn complaints(place: &Place) -> Vec<String> {
    match place.state(&id()).await.unwrap() {
        State::Whole(manifest) => faults(place, *manifest).await.iter().map(Fault::to_string).collect(),
        State::Unfinished => vec!["no manifest".to_owned()],
        State::Damaged(why) => vec![why.to_string()],
    }
}

async fn faults(place: &Place, manifest: Manifest) -> Vec<Fault> {
    verify(place, &Chain::of(place, manifest).await.unwrap(), &|_| ()).await
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(test)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn one_flipped_byte_anywhere_one_object_cut_short_or_missing_is_found(
        at in any::<usize>(), flip in 1u8.., count in 1usize..20,
    ) {
        run(async {
            let store = std::sync::Arc::new(InMemory::new());
            let place = place(&store);
            keep(&place, count, 40).await;
            assert_eq!(complaints(&place).await, Vec::<String>::new());
            let all = objects(&store).await;
            assert_eq!(all.len(), usize::from(SHARDS) + 1);
            for (path, bytes) in all {
                let mut flipped = bytes.to_vec();
                flipped[at % bytes.len()] ^= flip;
                let short = bytes.slice(..at % bytes.len());
                for damaged in [Some(Bytes::from(flipped)), Some(short), None] {
                    match damaged {
                        Some(damaged) => drop(store.put(&path, damaged.into()).await.unwrap()),
                        None => store.delete(&path).await.unwrap(),
                    }
                    let found = complaints(&place).await;
                    assert_eq!(found.len(), 1, "{found:?}");
                    let name = path.filename().unwrap();
                    assert!(name == "manifest" || found[0].contains(name), "{found:?} does not name {name}");
                    store.put(&path, bytes.clone().into()).await.unwrap();
                }
            }
        });
    }
}

#[tokio::test]
async fn rows_come_back_as_they_were_kept_part_by_part() {
    let store = std::sync::Arc::new(InMemory::new());
    let place = place(&store);
    let manifest = keep(&place, 12, 1 << 19).await;
    assert!(manifest.shards.iter().all(|shard| shard.parts.len() == 2), "more than a part holds");
    assert_eq!((manifest.keys(), manifest.staleness_ms()), (36, Some(0)));
    let mut back = Vec::new();
    for (shard, kind, part) in manifest.parts() {
        back.extend(rows_of(&place, &manifest, shard, (kind, part)).await.unwrap());
    }
    assert_eq!(back, (0..SHARDS).flat_map(|shard| rows(shard, 12, 1 << 19)).collect::<Vec<_>>());
    assert_eq!(place.ids().await.unwrap(), [id()]);
    assert_eq!(place.state(&id()).await.unwrap(), State::Whole(Box::new(manifest)));
}

#[tokio::test]
async fn what_has_the_right_checksums_must_still_add_up() {
    let store = std::sync::Arc::new(InMemory::new());
    let place = place(&store);
    let mut manifest = keep(&place, 5, 40).await;
    // As from a replica that differed from its digest, or a program that lost a row.
    manifest.shards[1].keys += 1;
    let faults = faults(&place, manifest.clone()).await;
    assert_eq!(faults.iter().map(|fault| (fault.shard, fault.part.clone())).collect::<Vec<_>>(), [(1, None)]);
    manifest.shards[1].keys -= 1;
    manifest.shards[2].digest = "0".repeat(32);
    assert_eq!(self::faults(&place, manifest).await.len(), 1);
}

#[tokio::test]
async fn without_its_manifest_it_is_none() {
    let store = std::sync::Arc::new(InMemory::new());
    let place = place(&store);
    place.keep_part(&id(), (Kind::Rows, ShardId(0), 0), Bytes::from_static(b"part")).await.unwrap();
    assert_eq!(place.ids().await.unwrap(), [id()]);
    assert_eq!(place.state(&id()).await.unwrap(), State::Unfinished);
}

#[tokio::test]
async fn under_another_name_it_says_its_own() {
    let store = std::sync::Arc::new(InMemory::new());
    let place = place(&store);
    let manifest = keep(&place, 1, 40).await;
    let other: BackupId = "other".parse().unwrap();
    store.put(&Path::from("below/other/manifest"), manifest.encode().into()).await.unwrap();
    assert_eq!(place.state(&other).await.unwrap(), State::Damaged(Damage::Another(id())));
}

#[test]
fn a_manifest_of_a_newer_version_is_refused_by_its_number() {
    let newer = b"meridian-backup 3 00000000 0\n";
    assert_eq!(Manifest::decode(newer), Err(Damage::Newer(3)));
    assert_eq!(Manifest::decode(b"something else\n"), Err(Damage::Unknown));
    assert_eq!(Manifest::decode(b""), Err(Damage::Unknown));
}

/// Written by the first release: it stays readable for good.
#[tokio::test]
async fn a_backup_of_version_1_is_read() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/backup-1");
    let place = Place::open(dir, false).unwrap();
    let State::Whole(manifest) = place.state(&id()).await.unwrap() else { panic!("its manifest is read") };
    assert_eq!(faults(&place, manifest.as_ref().clone()).await, []);
    assert_eq!((manifest.keys(), manifest.bucket.policy, manifest.shards[2].epoch), (12, Policy::ASYNC, 2));
    let mut back = Vec::new();
    for (shard, kind, part) in manifest.parts() {
        back.extend(rows_of(&place, &manifest, shard, (kind, part)).await.unwrap());
    }
    assert_eq!(back, (0..SHARDS).flat_map(|shard| rows(shard, 4, 40)).collect::<Vec<_>>());
}

#[test]
fn an_id_is_a_name_and_no_path() {
    for bad in ["", ".", "..", "../x", "a/b", ".hidden", "a b", &"x".repeat(101)] {
        assert!(bad.parse::<BackupId>().is_err(), "{bad}");
    }
}

#[test]
fn a_place_that_is_none_says_what_is() {
    assert!(Place::open("/nowhere/at/all", false).is_err());
    let why = Place::open("ftp://host/x", false).unwrap_err().to_string();
    assert!(why.contains("s3://"), "{why}");
}

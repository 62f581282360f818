//! What a backup keeps of a stretch of the log is enough: told again from the backup before it, every moment on the way is what it
//! was, retries that straddle the two and frames of another region included; and the rows it names turn what was into what is.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use meridian_region_core::backup::log::{Look, look, touched};
use meridian_region_core::backup::replay::{Replay, context};
use meridian_region_core::backup::{Opening, open, page};
use meridian_region_core::{Contents, MemoryState, Shard, StateView, keys};
use meridian_types::{BackupRow, BucketId, Epoch, Lane, Lsn, RegionId, Write};
use proptest::prelude::*;

use crate::world::{MERGED, PLAIN, Replica, SHARD, id, key, put, value};

#[derive(Clone, Debug)]
enum Act {
    /// Of a client, by a sequence that it may have used before.
    Write(u128, u64, Write),
    Merge(u128, u64, Write),
    /// The other region writes, and this one hears of some of it.
    Elsewhere(Write),
    Hear(usize),
    /// Time passes, and what is due is removed.
    Expire(u64),
}

fn write() -> impl Strategy<Value = Write> {
    let name = prop::sample::select(vec!["a", "b", "c", "d", "n"]);
    let ttl = prop::option::of(1u64..40);
    prop_oneof![
        (name.clone(), "[a-z]{0,4}", ttl).prop_map(|(k, v, ttl_ms)| Write::Put {
            key: key(k),
            value: value(&v),
            ttl_ms
        }),
        name.clone().prop_map(|k| Write::Delete { key: key(k) }),
        (-9i64..9).prop_map(|by| Write::Increment { key: key("n"), by }),
        (name, "[a-z]{0,4}").prop_map(|(k, v)| put(k, &v)),
    ]
}

fn plain() -> impl Strategy<Value = Write> {
    let several = prop::collection::vec((prop::sample::select(vec!["a", "b", "e"]), "[a-z]{0,3}"), 1..3);
    let several = several.prop_map(|items| items.into_iter().map(|(k, v)| (key(k), value(&v))).collect());
    prop_oneof![
        4 => write(),
        1 => several.prop_map(|items| Write::MultiPut { items }),
        1 => "[a-z]{0,3}".prop_map(|v| Write::Append { key: key("a"), suffix: value(&v) }),
        1 => "[a-z]{0,3}".prop_map(|v| Write::PutIfAbsent { key: key("b"), value: value(&v), ttl_ms: None }),
    ]
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (1u128..3, 1u64..12, plain()).prop_map(|(client, sequence, write)| Act::Write(client, sequence, write)),
        4 => (1u128..3, 1u64..12, write()).prop_map(|(client, sequence, write)| Act::Merge(client, sequence, write)),
        3 => write().prop_map(Act::Elsewhere),
        2 => (1usize..4).prop_map(Act::Hear),
        2 => (1u64..30).prop_map(Act::Expire),
    ];
    prop::collection::vec(act, 1..50)
}

/// What a region was behind each entry of its log.
struct History {
    here: Replica,
    moments: BTreeMap<Lsn, MemoryState>,
}

fn history(acts: Vec<Act>) -> History {
    let (mut here, mut there) = (Replica::new(1), Replica::new(2));
    let mut moments = BTreeMap::from([(Lsn(0), here.state.clone())]);
    for act in acts {
        match act {
            Act::Write(client, sequence, write) => drop(here.write(id(client, sequence), write)),
            Act::Merge(client, sequence, write) => drop(here.merge(id(client, sequence), &write)),
            Act::Elsewhere(write) => drop(there.merge(Default::default(), &write)),
            Act::Hear(most) => {
                let after = here.shard.watermark(RegionId(2), Lane::Async);
                if let Some(frame) = there.frame_after(after, Lane::Async, most) {
                    here.receive(&frame);
                }
            }
            Act::Expire(ms) => {
                here.wall_ms += ms;
                here.expire();
            }
        }
        moments.insert(here.shard.applied(), here.state.clone());
    }
    History { here, moments }
}

fn rows(state: &MemoryState, bucket: BucketId) -> BTreeMap<Bytes, Bytes> {
    page(state, SHARD, bucket, &[], usize::MAX).unwrap().into_iter().map(|row| (row.key, row.record)).collect()
}

/// Everything, in pages of any size.
fn context_of(state: &MemoryState, bucket: BucketId, bytes_max: usize) -> Vec<BackupRow> {
    let (mut all, mut after) = (Vec::new(), Bytes::new());
    loop {
        let page = context(state, (SHARD, bucket), &after, bytes_max).unwrap();
        let Some(last) = page.last() else { return all };
        after = last.key.clone();
        all.extend(page);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_moment_of_a_stretch_comes_back_and_its_keys_are_all_that_changed(
        acts in acts(), from in any::<usize>(), to in any::<usize>(), bytes_max in 1usize..400,
    ) {
        let History { here, moments } = history(acts);
        let places: Vec<Lsn> = moments.keys().copied().collect();
        let (from, to) = (places[from % places.len()], places[to % places.len()]);
        let (from, to) = (from.min(to), from.max(to));
        for bucket in [PLAIN, MERGED] {
            let effective = |lsn, header: &_| here.shard.is_effective(lsn, header);
            let (mut kept, mut names) = (Vec::new(), BTreeSet::new());
            for (lsn, entry, _) in here.log.iter().filter(|(lsn, ..)| from < *lsn && *lsn <= to) {
                match look((*lsn, entry), bucket, &effective).unwrap() {
                    Look::Other => {}
                    Look::Kept(entry, keys) => {
                        prop_assert_eq!(touched(&entry).unwrap(), keys.iter().cloned().collect());
                        names.extend(keys);
                        kept.push((*lsn, entry));
                    }
                    Look::Unfit(why) => panic!("{why}"),
                }
            }
            // The rows it names turn what was into what is.
            let (before, after) = (rows(&moments[&from], bucket), rows(&moments[&to], bucket));
            let mut turned = before.clone();
            for name in &names {
                match moments[&to].get(&keys::data(SHARD, bucket, name)).unwrap() {
                    Some(record) => drop(turned.insert(name.clone(), record)),
                    None => drop(turned.remove(name)),
                }
            }
            prop_assert_eq!(&turned, &after);
            // Every moment on the way is what it was.
            let touched_rows: Vec<BackupRow> = before.iter().filter(|(key, _)| names.contains(*key))
                .map(|(key, record)| BackupRow { key: key.clone(), record: record.clone() }).collect();
            let known = context_of(&moments[&from], bucket, bytes_max);
            let mut replay = Replay::new((RegionId(1), SHARD, None), bucket, &known, &touched_rows).unwrap();
            for (lsn, entry) in &kept {
                replay.apply(*lsn, entry).unwrap();
                // An act may come to several entries.
                let Some(state) = moments.get(lsn) else { continue };
                let then = Shard::load(state, RegionId(1), SHARD).unwrap();
                prop_assert_eq!(replay.contents(), then.digest(bucket).map(Contents::of).unwrap_or_default());
                for name in &names {
                    let was = state.get(&keys::data(SHARD, bucket, name)).unwrap();
                    prop_assert_eq!(replay.record(name).unwrap(), was);
                }
            }
            let then = Shard::load(&moments[&to], RegionId(1), SHARD).unwrap();
            prop_assert_eq!(replay.contents(), then.digest(bucket).map(Contents::of).unwrap_or_default());
        }
    }
}

#[test]
fn a_stretch_in_which_the_epoch_changes_is_not_kept() {
    let mut here = Replica::new(1);
    here.write(id(1, 1), put("k", "v"));
    here.fence(PLAIN, 2);
    here.seal(MERGED, 2);
    let effective = |lsn, header: &_| here.shard.is_effective(lsn, header);
    let looks = |bucket| -> Vec<_> {
        here.log.iter().map(|(lsn, entry, _)| look((*lsn, entry), bucket, &effective).unwrap()).collect()
    };
    assert!(matches!(looks(PLAIN)[..], [Look::Kept(..), Look::Unfit(_), Look::Other]));
    assert!(matches!(looks(MERGED)[..], [Look::Other, Look::Other, Look::Unfit(_)]));
    assert!(touched(&here.log[1].1).is_err(), "and no backup has one");
}

#[test]
fn what_a_replica_never_took_is_not_kept() {
    let mut here = Replica::new(1);
    here.write(id(1, 1), put("k", "v"));
    here.seal(PLAIN, 2);
    here.epoch = Epoch(1);
    here.write(id(1, 2), put("k", "late"));
    let effective = |lsn, header: &_| here.shard.is_effective(lsn, header);
    let (lsn, entry, _) = &here.log[2];
    assert_eq!(look((*lsn, entry), PLAIN, &effective).unwrap(), Look::Other);
    assert_eq!(look((*lsn, entry), PLAIN, &|_, _| true).map(|look| matches!(look, Look::Kept(..))), Ok(true));
}

#[test]
fn of_a_frame_nothing_of_another_bucket_is_kept() {
    let (mut here, mut there) = (Replica::new(1), Replica::new(2));
    there.merge(id(1, 1), &put("merged", "v")).unwrap();
    there.write(id(1, 1), put("plain", "v"));
    let frame = there.frame_of(Lsn(0), Lane::Async, 9, &|_| true).unwrap();
    here.receive(&frame);
    let (lsn, entry, _) = &here.log[0];
    for (bucket, name) in [(PLAIN, "plain"), (MERGED, "merged")] {
        let look = look((*lsn, entry), bucket, &|_, _| true).unwrap();
        let Look::Kept(kept, keys) = look else { panic!("{look:?}") };
        assert_eq!(keys, [name]);
        let keys: Vec<Bytes> = touched(&kept).unwrap().into_iter().collect();
        assert_eq!(keys, [name], "nor is it in what is kept");
    }
    let Look::Kept(empty, keys) = look((*lsn, entry), BucketId(9), &|_, _| true).unwrap() else {
        panic!("it moves a lane")
    };
    assert!(keys.is_empty() && empty.len() < entry.len());
}

#[test]
fn a_context_of_something_else_is_none() {
    let stray = BackupRow { key: keys::data(SHARD, PLAIN, b"k").into(), record: Bytes::from_static(b"v") };
    assert!(Replay::new((RegionId(1), SHARD, None), PLAIN, &[stray], &[]).is_err());
    let mut here = Replica::new(1);
    here.write(id(1, 1), put("k", "v"));
    let Opening::Open(cut) = open(&here.state, SHARD, PLAIN, RegionId(1)).unwrap() else { panic!("it is fit") };
    assert_eq!((cut.bucket, cut.applied), (PLAIN, Lsn(1)));
    assert_eq!(cut.stamp, here.shard.last_hlc());
}

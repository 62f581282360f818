use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const SHARD: ShardId = ShardId(3);

fn open(dir: &Path) -> Store {
    Store::open(dir, &StoreOptions { cache_bytes: 1 << 20, worker_threads: 1, ..StoreOptions::default() }).unwrap()
}

fn mark(lsn: u64) -> Mark {
    Mark { lsn: Lsn(lsn), bytes: Bytes::from(format!("mark {lsn}")) }
}

fn key(shard: ShardId, name: &str) -> Vec<u8> {
    [shard.0.to_be_bytes().as_slice(), name.as_bytes()].concat()
}

fn put(store: &Store, shard: ShardId, pairs: &[(&str, &[u8])], lsn: u64) {
    let mut changes = Mutations::new();
    for (name, value) in pairs {
        changes.put(key(shard, name), value.to_vec());
    }
    store.commit(shard, changes, &mark(lsn)).unwrap();
}

fn contents(store: &Store, shard: ShardId) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let (from, to) = keys::shard_range(shard);
    let mut pairs = BTreeMap::new();
    store
        .scan(&from, &to, &mut |key, value| {
            pairs.insert(key.to_vec(), value.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
    pairs
}

fn pieces(store: &Store, shard: ShardId) -> Vec<Bytes> {
    let mut source = store.snapshot(shard).unwrap();
    std::iter::from_fn(|| source.next_piece().unwrap()).collect()
}

fn restore(store: &Store, shard: ShardId, pieces: &[Bytes], lsn: u64) -> Result<(), StateError> {
    store.restore(shard, &mut pieces.iter().cloned().map(Ok), &mark(lsn))
}

#[test]
fn state_and_mark_move_together_and_survive_a_persist() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert_eq!(store.mark(SHARD).unwrap(), None);
    put(&store, SHARD, &[("a", b"1")], 7);
    store.persist().unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.mark(SHARD).unwrap(), Some(mark(7)));
    assert_eq!(StateView::get(&store, &key(SHARD, "a")).unwrap().unwrap(), "1");
    assert_eq!(store.mark(ShardId(4)).unwrap(), None, "a shard knows only its own mark");
}

/// DUR-1's half that is the store's: what was not persisted may be gone, but then its mark is gone too.
#[test]
fn a_batch_that_was_not_persisted_is_there_with_its_mark_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put(&store, SHARD, &[("a", b"1")], 1);
    store.persist().unwrap();
    for lsn in 2..50 {
        put(&store, SHARD, &[("a", lsn.to_string().as_bytes())], lsn);
    }
    // What a crash leaves: the files as they are now, without the engine's orderly end.
    copy_dir(dir.path(), copy.path());
    let crashed = open(copy.path());
    let found = crashed.mark(SHARD).unwrap().unwrap();
    assert_eq!(StateView::get(&crashed, &key(SHARD, "a")).unwrap().unwrap(), found.lsn.to_string());
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy_dir(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_snapshot_is_of_its_moment_and_makes_another_store_equal_to_it() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, other) = (open(dir.path()), open(other_dir.path()));
    // Larger than a piece, so that a record is cut in the middle.
    let large = vec![7; 1 << 20];
    put(&store, SHARD, &[("a", b"1"), ("b", &large), ("c", &large), ("d", b"")], 5);
    put(&store, ShardId(4), &[("neighbour", b"x")], 9);
    put(&other, SHARD, &[("stale", b"y")], 2);
    put(&other, ShardId(4), &[("stays", b"z")], 3);
    let expected = contents(&store, SHARD);
    let mut source = store.snapshot(SHARD).unwrap();
    put(&store, SHARD, &[("a", b"later"), ("e", b"later")], 6);
    assert_eq!(source.mark(), mark(5));
    let pieces: Vec<Bytes> = std::iter::from_fn(|| source.next_piece().unwrap()).collect();
    assert!(pieces.len() > 2 && pieces.iter().all(|piece| piece.len() <= meridian_consensus::PIECE_BYTES_MAX));
    restore(&other, SHARD, &pieces, 5).unwrap();
    assert_eq!(contents(&other, SHARD), expected);
    assert_eq!(other.mark(SHARD).unwrap(), Some(mark(5)));
    assert_eq!(contents(&other, ShardId(4)).len(), 1, "another shard is left alone");
}

#[test]
fn a_damaged_or_cut_snapshot_is_refused_and_leaves_an_empty_shard_that_can_be_filled_again() {
    let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(dir.path());
    let large = vec![7; 1 << 20];
    put(&store, SHARD, &[("a", b"1"), ("b", &large), ("c", &large)], 5);
    let whole = pieces(&store, SHARD);
    let mut flipped = whole.clone();
    let mut bytes = flipped[1].to_vec();
    bytes[100] ^= 1;
    flipped[1] = Bytes::from(bytes);
    let mut twice = whole.clone();
    twice.push(whole[0].clone());
    for broken in [flipped, whole[..whole.len() - 1].to_vec(), twice, vec![Bytes::from_static(b"x")], Vec::new()] {
        let other = open(other_dir.path());
        put(&other, SHARD, &[("old", b"1")], 2);
        assert!(restore(&other, SHARD, &broken, 5).is_err());
        drop(other);
        // As after a crash in the middle: the shard begins anew, it never looks complete.
        let other = open(other_dir.path());
        assert_eq!(other.mark(SHARD).unwrap(), None);
        assert!(contents(&other, SHARD).is_empty());
        restore(&other, SHARD, &whole, 5).unwrap();
        assert_eq!(contents(&other, SHARD), contents(&store, SHARD));
    }
    assert!(restore(&store, ShardId(9), &whole, 5).is_err(), "a snapshot of another shard");
}

#[test]
fn a_wipe_of_many_keys_takes_several_batches_and_leaves_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut changes = Mutations::new();
    (0..WIPE_KEYS * 2 + 5).for_each(|number| changes.put(key(SHARD, &number.to_string()), vec![1]));
    store.commit(SHARD, changes, &mark(1)).unwrap();
    store.wipe(SHARD).unwrap();
    assert!(contents(&store, SHARD).is_empty());
    assert_eq!(store.mark(SHARD).unwrap(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_bytes_are_a_snapshot_or_a_clear_error(
        body in prop::collection::vec(any::<u8>(), 0..200), honest in any::<bool>()
    ) {
        let mut piece = crc32c::crc32c(&body).to_le_bytes().to_vec();
        piece.extend_from_slice(&body);
        if !honest {
            piece[0] ^= 1;
        }
        let mut batches = 0;
        let taken = transfer::fill(SHARD, &mut std::iter::once(Ok(Bytes::from(piece))), &mut |_| {
            batches += 1;
            Ok(())
        });
        prop_assert!(taken.is_err() || honest);
    }
}

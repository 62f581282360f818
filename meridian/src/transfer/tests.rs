//! Files through a store in memory and back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A bucket in memory that knows how many writes it had at once.
#[derive(Default)]
struct Memory {
    items: Mutex<BTreeMap<Bytes, Bytes>>,
    busy: AtomicUsize,
    busiest: AtomicUsize,
}

impl Store for Memory {
    async fn put(&self, key: Bytes, value: Bytes) -> anyhow::Result<()> {
        let busy = self.busy.fetch_add(1, Ordering::SeqCst) + 1;
        self.busiest.fetch_max(busy, Ordering::SeqCst);
        tokio::task::yield_now().await;
        assert!(value.len() <= manifest::PART_BYTES);
        self.items.lock().unwrap().insert(key, value);
        self.busy.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    async fn get(&self, key: Bytes) -> anyhow::Result<Option<Bytes>> {
        Ok(self.items.lock().unwrap().get(&key).cloned())
    }

    async fn keys(&self, after: Bytes) -> anyhow::Result<Vec<Bytes>> {
        Ok(self.items.lock().unwrap().keys().filter(|key| **key > after).take(2).cloned().collect())
    }
}

fn content(seed: u32, size: usize) -> Vec<u8> {
    (0..size).map(|i| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

fn tree(dir: &Path) {
    std::fs::create_dir_all(dir.join("deep/er")).unwrap();
    std::fs::write(dir.join("empty"), "").unwrap();
    std::fs::write(dir.join("small.txt"), "hello").unwrap();
    std::fs::write(dir.join("exact"), content(1, 1 << 20)).unwrap();
    std::fs::write(dir.join("deep/er/big"), content(2, (3 << 20) + 17)).unwrap();
    // A small file that begins like a manifest must not be taken for one.
    std::fs::write(dir.join("sly"), Manifest::new(Fingerprint::of(b"x"), 9).encode()).unwrap();
}

#[tokio::test]
async fn files_of_every_size_come_back_as_they_went() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    tree(from.path());
    let listing = Listing::of(from.path()).unwrap();
    let store = Memory::default();
    let imported = Importer::new(4, 4 << 20).run(&store, &listing.files, |_, _| ()).await.unwrap();
    assert_eq!(imported.len(), 5);
    assert!(store.busiest.load(Ordering::SeqCst) <= 5, "4 keys at a time, and a manifest");
    assert_eq!(imported.iter().map(|file| file.keys).sum::<u32>(), 1 + 1 + 1 + 5 + 2);

    let exported = export(&store, to.path(), |_| ()).await.unwrap();
    assert_eq!((exported.files, exported.bytes), (5, listing.bytes));
    assert!(exported.skipped.is_empty());
    let back = Listing::of(to.path()).unwrap();
    assert_eq!(back.files.len(), listing.files.len(), "no part became a file");
    for (before, after) in listing.files.iter().zip(&back.files) {
        assert_eq!(before.key, after.key);
        assert!(std::fs::read(&before.path).unwrap() == std::fs::read(&after.path).unwrap(), "{:?}", before.key);
    }
}

#[tokio::test]
async fn a_missing_or_foreign_part_is_found() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path());
    let store = Memory::default();
    Importer::new(8, 8 << 20).run(&store, &Listing::of(dir.path()).unwrap().files, |_, _| ()).await.unwrap();
    let key = Bytes::from_static(b"deep/er/big");
    let part = manifest::part_key(&key, 1);

    let original = store.items.lock().unwrap().insert(part.clone(), content(3, 1 << 20).into()).unwrap();
    let error = fetch(&store, &key, |_| Ok(())).await.unwrap_err();
    assert!(error.to_string().contains("the manifest says"), "{error}");
    store.items.lock().unwrap().remove(&part);
    let error = fetch(&store, &key, |_| Ok(())).await.unwrap_err();
    assert!(error.to_string().contains("part 1 of 4 is missing"), "{error}");
    store.items.lock().unwrap().insert(part, original);
    assert!(fetch(&store, &key, |_| Ok(())).await.unwrap().is_some());
    assert_eq!(fetch(&store, &Bytes::from_static(b"absent"), |_| Ok(())).await.unwrap(), None);
}

#[tokio::test]
async fn little_room_slows_an_import_down_and_never_stops_it() {
    let dir = tempfile::tempdir().unwrap();
    for file in 0..6u32 {
        std::fs::write(dir.path().join(file.to_string()), content(file, (2 << 20) + 5)).unwrap();
    }
    let store = Memory::default();
    let (importer, listing) = (Importer::new(8, 1), Listing::of(dir.path()).unwrap());
    let importing = importer.run(&store, &listing.files, |_, _| ());
    // Room for one part only, six files that want three each.
    tokio::time::timeout(std::time::Duration::from_secs(60), importing).await.unwrap().unwrap();
}

//! What others rest on is not removed, though they be made meanwhile; and what is removed leaves nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use object_store::throttle::{ThrottleConfig, ThrottledStore};

use super::chains::{Model, back_up, named, whole};
use super::*;
use crate::backup::create;
use crate::backup::delete::{Obstacle, obstacle, remove};

fn model(value: u8) -> Model {
    vec![BTreeMap::from([(Bytes::from_static(b"k"), record(&[value]))]); usize::from(SHARDS)]
}

#[tokio::test]
async fn what_others_rest_on_stays_and_what_they_do_not_goes() {
    let store = Arc::new(InMemory::new());
    let place = place(&store);
    let base = back_up(&place, &named(0), None, &model(1)).await;
    back_up(&place, &named(1), Some(&whole(&place, &base).await), &model(2)).await;
    assert_eq!(remove(&place, &named(0)).await.unwrap(), Some(Obstacle::Needed(vec![named(1)])));
    assert_eq!(place.manifests().await.unwrap().len(), 2, "both are what they were");
    assert_eq!(obstacle(&place, &named(1)).await.unwrap(), None);
    assert_eq!(remove(&place, &named(1)).await.unwrap(), None);

    let later: BackupId = "later".parse().unwrap();
    store
        .put(&Path::from("below/later/manifest"), Bytes::from_static(b"meridian-backup 3 00000000 0\n").into())
        .await
        .unwrap();
    assert_eq!(
        remove(&place, &named(0)).await.unwrap(),
        Some(Obstacle::Newer(later.clone())),
        "nobody knows on what it rests"
    );
    assert_eq!(remove(&place, &later).await.unwrap(), None);
    assert_eq!(remove(&place, &named(0)).await.unwrap(), None);
    assert_eq!(remove(&place, &named(0)).await.unwrap(), Some(Obstacle::Missing));
    assert_eq!(place.ids().await.unwrap(), []);
}

#[tokio::test]
async fn what_comes_to_be_needed_while_it_is_removed_stays() {
    let store = Arc::new(InMemory::new());
    let place = place(&store);
    let base = back_up(&place, &named(0), None, &model(1)).await;
    let chain = whole(&place, &base).await;
    // It waits for the store once it has seen that nothing rests on it.
    let config = ThrottleConfig { wait_delete_per_call: Duration::from_millis(1), ..ThrottleConfig::default() };
    let slow = ThrottledStore::new(Arc::clone(&store), config);
    let slow = Place::of(Box::new(slow), Path::from("below"), "slow");
    let (below, above, changed) = (named(0), named(1), model(2));
    let (removed, link) = tokio::join!(remove(&slow, &below), back_up(&place, &above, Some(&chain), &changed));
    assert_eq!(removed.unwrap(), Some(Obstacle::Needed(vec![named(1)])));
    assert_eq!(faults(&place, link).await, []);
}

#[tokio::test]
async fn what_loses_its_base_while_it_is_made_is_not_kept() {
    let place = place(&Arc::new(InMemory::new()));
    let base = back_up(&place, &named(0), None, &model(1)).await;
    let link = back_up(&place, &named(1), Some(&whole(&place, &base).await), &model(2)).await;
    create::finish(&place, &link).await.unwrap();
    place.unfinish(&named(0)).await.unwrap();
    let why = create::finish(&place, &link).await.unwrap_err().to_string();
    assert!(why.contains("orders-0, which is not there"), "{why}");
    assert_eq!(place.state(&named(1)).await.unwrap(), State::Unfinished);
    assert_eq!(place.part(&named(1), (Kind::Rows, ShardId(0), 0)).await.unwrap(), None, "nor its parts");
}

#[tokio::test]
async fn of_a_directory_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::open(&dir.path().display().to_string(), false).unwrap();
    back_up(&place, &named(0), None, &model(1)).await;
    let of_it = dir.path().join(named(0).to_string());
    // As of a write that was cut short: it is no object.
    std::fs::write(of_it.join("s00000-p00001.part#1"), b"half").unwrap();
    assert_eq!(remove(&place, &named(0)).await.unwrap(), None);
    assert!(!of_it.exists());
    assert_eq!(place.ids().await.unwrap(), []);
}

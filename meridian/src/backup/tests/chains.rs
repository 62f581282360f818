//! Chains of backups in a store in memory, of random histories: what comes of each link is what there was then, and what is
//! damaged is said of the link whose it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::backup::chain::{Broken, ends, newest, resting_on};
use crate::backup::merge::Difference;

/// Per shard, what there is.
pub(super) type Model = Vec<BTreeMap<Bytes, Bytes>>;

/// A link: whether it rests on the one before, and what changed: keys with a value, or gone.
type Step = (bool, Vec<(u8, Option<u8>)>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = (0u8..16, prop::option::of(any::<u8>()));
    prop::collection::vec((prop::bool::weighted(0.8), prop::collection::vec(change, 0..12)), 1..7)
}

pub(super) fn named(nth: usize) -> BackupId {
    format!("orders-{nth}").parse().unwrap()
}

/// Keeps what a model has, as `create` does: what differs from the base, or all of it.
pub(super) async fn back_up(place: &Place, id: &BackupId, base: Option<&Chain>, model: &Model) -> Manifest {
    let mut shards = Vec::new();
    for (shard, rows) in model.iter().enumerate() {
        let (shard, mut contents, mut kept) = (ShardId(shard as u16), Contents::default(), Vec::new());
        let mut difference = base.map(|base| Difference::new(base.merge(place, shard.0, &|_| ())));
        for (key, record) in rows {
            contents.add(key, record).unwrap();
            let row = BackupRow { key: key.clone(), record: record.clone() };
            match &mut difference {
                Some(difference) => kept.extend(difference.next(Some(&row)).await.unwrap()),
                None => kept.push(row),
            }
        }
        if let Some(difference) = &mut difference {
            kept.extend(difference.next(None).await.unwrap());
        }
        let way = if base.is_some() { Way::Difference } else { Way::Whole };
        shards.push(keep_shard(place, (id, shard), (way, &kept), contents).await);
    }
    let base = base.map(|base| Base { id: base.last().id.clone(), seal: base.last().seal() });
    finish(place, id, base, shards).await
}

/// Every link of a history, with what there was then.
async fn history(place: &Place, steps: &[Step]) -> Vec<(Manifest, Model)> {
    let mut model: Model = vec![BTreeMap::new(); usize::from(SHARDS)];
    let mut links: Vec<(Manifest, Model)> = Vec::new();
    for (nth, (rests, changes)) in steps.iter().enumerate() {
        for (key, value) in changes {
            let rows = &mut model[usize::from(*key) % usize::from(SHARDS)];
            match value {
                Some(value) => drop(rows.insert(vec![*key].into(), record(&[*value]))),
                None => drop(rows.remove(&[*key][..])),
            }
        }
        let base = match links.last() {
            Some((base, _)) if *rests => Some(whole(place, base).await),
            _ => None,
        };
        links.push((back_up(place, &named(nth), base.as_ref(), &model).await, model.clone()));
    }
    links
}

pub(super) async fn whole(place: &Place, manifest: &Manifest) -> Chain {
    Chain::of(place, manifest.clone()).await.unwrap().whole().unwrap()
}

async fn rows_of_chain(place: &Place, chain: &Chain) -> Result<Model, Fault> {
    let mut model = Model::new();
    for shard in 0..SHARDS {
        let (mut merge, mut rows) = (chain.merge(place, shard, &|_| ()), BTreeMap::new());
        while let Some(row) = merge.next().await? {
            assert!(rows.insert(row.key, row.record).is_none(), "a key comes once");
        }
        model.push(rows);
    }
    Ok(model)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_link_of_any_history_comes_back_as_it_was(steps in steps()) {
        run(async {
            let place = place(&Arc::new(InMemory::new()));
            for (manifest, model) in history(&place, &steps).await {
                assert_eq!(Manifest::decode(&manifest.encode()).as_ref(), Ok(&manifest));
                let chain = whole(&place, &manifest).await;
                assert_eq!(rows_of_chain(&place, &chain).await, Ok(model));
                assert_eq!(faults(&place, manifest).await, []);
            }
        });
    }

    #[test]
    fn what_is_damaged_is_said_of_its_link_and_what_rests_on_it_is_not_good(
        steps in steps(), which in any::<usize>(), at in any::<usize>(), flip in prop::option::of(1u8..),
    ) {
        run(async {
            let store = Arc::new(InMemory::new());
            let place = place(&store);
            let links = history(&place, &steps).await;
            let parts = links.iter().flat_map(|(link, _)| link.parts().map(move |(shard, _, part)| (link, shard, part)));
            let parts: Vec<_> = parts.collect();
            if parts.is_empty() {
                return;
            }
            let (hurt, shard, part) = parts[which % parts.len()];
            let name = part_name((Kind::Rows, shard.id(), part.number));
            let path = Path::from("below").join(hurt.id.to_string()).join(name.as_str());
            let mut bytes = store.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
            let at = at % bytes.len();
            match flip {
                Some(flip) => bytes[at] ^= flip,
                None => bytes.truncate(at),
            }
            store.put(&path, bytes.into()).await.unwrap();
            for (manifest, model) in &links {
                let chain = whole(&place, manifest).await;
                let rests = chain.links().iter().any(|link| link.id == hurt.id);
                let faults = faults(&place, manifest.clone()).await;
                assert_eq!(faults.iter().any(|fault| fault.part.as_deref() == Some(&name) && fault.backup == hurt.id), rests);
                assert_eq!(faults.iter().any(|fault| fault.backup == manifest.id), rests, "{faults:?}");
                match rows_of_chain(&place, &chain).await {
                    Ok(rows) => assert!(!rests && rows == *model),
                    Err(fault) => assert!(rests && fault.backup == hurt.id),
                }
            }
        });
    }
}

#[tokio::test]
async fn what_rests_on_a_backup_that_is_missing_or_another_says_so() {
    let store = Arc::new(InMemory::new());
    let place = place(&store);
    let step = |rests| (rests, vec![(1, Some(1)), (2, Some(2))]);
    let links = history(&place, &[step(false), step(true), (true, vec![(1, None)])]).await;
    let all: Vec<Manifest> = links.into_iter().map(|(link, _)| link).collect();
    assert_eq!(resting_on(&all, &named(0)), [&named(1)]);
    assert_eq!(ends(&all).iter().map(|end| &end.id).collect::<Vec<_>>(), [&named(2)]);
    assert_eq!(newest(&all, "c", &all[0].bucket.name).map(|it| &it.id), Some(&named(2)));
    assert_eq!(newest(&all, "another", &all[0].bucket.name), None);

    let broken = async || Chain::of(&place, all[2].clone()).await.unwrap().whole().err();
    assert_eq!(broken().await, None);
    back_up(&place, &named(0), None, &vec![BTreeMap::new(); usize::from(SHARDS)]).await;
    assert_eq!(broken().await, Some(Broken::Another(named(0))));
    let now = place.manifests().await.unwrap();
    assert_eq!(
        ends(&now).iter().map(|end| &end.id).collect::<Vec<_>>(),
        [&named(0), &named(2)],
        "it is looked at, too"
    );
    place.remove(&named(1)).await.unwrap();
    assert_eq!(broken().await, Some(Broken::Missing(named(1))));
    assert_eq!(place.manifests().await.unwrap().len(), 2);
    assert_eq!(objects_of(&store, &named(1)).await, 0, "nothing of it is left");
}

async fn objects_of(store: &InMemory, id: &BackupId) -> usize {
    store.list_with_delimiter(Some(&Path::from("below").join(id.to_string()))).await.unwrap().objects.len()
}

#[test]
fn only_what_rests_on_another_is_of_a_version_that_earlier_programs_do_not_read() {
    run(async {
        let place = place(&Arc::new(InMemory::new()));
        let links = history(&place, &[(false, vec![(1, Some(1))]), (true, Vec::new())]).await;
        let version = |manifest: &Manifest| {
            manifest.encode().iter().position(|byte| *byte == b' ').map(|at| manifest.encode()[at + 1])
        };
        assert_eq!([version(&links[0].0), version(&links[1].0)], [Some(b'1'), Some(b'2')]);
        let mut lost = links[1].0.clone();
        lost.base = None;
        assert!(Manifest::decode(&lost.encode()).is_err(), "what rests on another one names it");
    });
}

//! The last look: everything is whole again. Does it work, do all regions agree, and what do they hold?

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use meridian_types::request::Found;
use meridian_types::{Bucket, Key, Outcome, Read, ReadLevel, RefusalKind, RegionId, SessionToken, StalePolicy, Write};
use tokio::time::sleep;

use super::client::{Client, value};
use super::{Kind, Options, Plan, Workload, keys};
use crate::check::Final;
use crate::history::{History, Told};
use crate::target::Target;

/// Keys asked for at a time.
const BATCH: usize = 16;

/// Between two comparisons of all regions.
const PAUSE: Duration = Duration::from_millis(250);

/// Waits for agreement, then reads everything everywhere.
pub(super) async fn look<T: Target>(plan: &Plan, target: &T, history: &History, patience: Duration) -> Vec<Final> {
    let mut buckets: Vec<&Workload> = Vec::new();
    for workload in &plan.workloads {
        if buckets.iter().all(|known| known.bucket.id != workload.bucket.id) {
            buckets.push(workload);
        }
    }
    let mut looks = Vec::new();
    let mut number = plan.clients();
    for workload in buckets {
        let regions: Vec<RegionId> =
            plan.regions.iter().copied().filter(|region| workload.bucket.is_in(*region)).collect();
        let mut eyes = Vec::new();
        for region in regions {
            let options = Options { duration: patience, gives_up_percent: 0, ..workload.options };
            let workload = Workload { kind: Kind::Register, bucket: workload.bucket.clone(), options };
            let mut client = Client::new(plan, &workload, target.clone(), history.clone(), number);
            client.region = region;
            eyes.push(client);
            number += 1;
        }
        looks.push(bucket(plan, &workload.bucket, eyes));
    }
    join_all(looks).await.into_iter().flatten().collect()
}

/// One client per region looks at a bucket.
async fn bucket<T: Target>(plan: &Plan, bucket: &Bucket, mut eyes: Vec<Client<T>>) -> Vec<Final> {
    let mut keys = plan.keys(bucket);
    keys.extend(eyes.iter().filter_map(|eye| probe(eye.region)));
    let knocked = join_all(eyes.iter_mut().map(knock)).await;
    let mut held;
    loop {
        held = join_all(eyes.iter_mut().map(|eye| contents(eye, &keys))).await;
        let equal = held.iter().all(|it| it.is_some() && *it == held[0]);
        // A node that follows another one may not have heard yet of what its region wrote.
        let own = |(eye, it): (&Client<T>, &Option<BTreeMap<Key, Found>>)| {
            probe(eye.region).is_none_or(|key| it.as_ref().is_some_and(|it| it.contains_key(&key)))
        };
        let equal = equal && eyes.iter().zip(&held).zip(&knocked).all(|(it, knocked)| !knocked || own(it));
        if equal || !eyes.iter().all(Client::has_time) {
            break;
        }
        sleep(PAUSE).await;
    }
    // A token that has seen what every region has, to be honoured in every region.
    let mut seen = SessionToken::default();
    eyes.iter().filter_map(|eye| eye.session.as_ref()).for_each(|session| seen.merge(session));
    join_all(eyes.iter_mut().map(|eye| levels(eye, &keys, &seen))).await;
    let finals = eyes.iter().zip(held).filter_map(|(eye, held)| {
        Some(Final { region: eye.region, bucket: bucket.id, contents: held?, digests: Vec::new() })
    });
    finals.collect()
}

/// Writes through a region until that works; whether it did.
async fn knock<T: Target>(eye: &mut Client<T>) -> bool {
    let Some(key) = probe(eye.region) else { return false };
    eye.session.get_or_insert_default();
    loop {
        let value = value(eye.unique());
        let told = eye.write(Write::Put { key: key.clone(), value, ttl_ms: None }).await;
        let is_done = matches!(told, Told::Done(_));
        if is_done || !eye.has_time() {
            return is_done;
        }
        sleep(PAUSE).await;
    }
}

fn probe(region: RegionId) -> Option<Key> {
    keys::key(&format!("probe/{region}"))
}

/// What a region holds; `None` when it doesn't say.
async fn contents<T: Target>(eye: &mut Client<T>, keys: &[Key]) -> Option<BTreeMap<Key, Found>> {
    let mut held = BTreeMap::new();
    for batch in keys.chunks(BATCH) {
        let read = Read::MultiGet { keys: batch.to_vec() };
        let Told::Done(answer) = eye.read(read, ReadLevel::Eventual, StalePolicy::Wait).await else { return None };
        let Outcome::Values(values) = answer.outcome else { return None };
        held.extend(batch.iter().cloned().zip(values).filter_map(|(key, found)| Some((key, found?))));
    }
    Some(held)
}

/// Reads every key at every level that promises something, and again where it is told to try again: others may still be at it.
async fn levels<T: Target>(eye: &mut Client<T>, keys: &[Key], seen: &SessionToken) {
    let mut levels = vec![ReadLevel::Session, ReadLevel::Bounded { staleness_ms_max: 5_000 }];
    if eye.has_primary() {
        levels.push(ReadLevel::Strong);
    }
    if let Some(session) = &mut eye.session {
        session.merge(seen);
    }
    for level in levels {
        for batch in keys.chunks(BATCH) {
            let read = Read::MultiGet { keys: batch.to_vec() };
            while is_to_try_again(&eye.read(read.clone(), level.clone(), StalePolicy::Wait).await) && eye.has_time() {
                sleep(PAUSE).await;
            }
        }
    }
}

fn is_to_try_again(told: &Told) -> bool {
    match told {
        Told::Refused(refusal) => refusal.kind == RefusalKind::Retry,
        Told::Nothing => true,
        Told::Done(_) => false,
    }
}

//! CON-2: what a session has written or read, its later `session` reads find again or find newer, in any region, and its
//! later writes are ordered behind. A client is a session if it ever sent a token or read at that level: it then merges
//! what every answer tells it to have seen, and sends that along ([`crate::workload`] does).

use std::collections::{BTreeMap, BTreeSet};

use meridian_types::{
    Bucket, BucketId, Hlc, Key, ReadLevel, RefusalKind, Request, SessionToken, ShardId, Version, Write,
};

use super::crossed::needs_order;
use super::floor::Floor;
use super::{Evidence, Stats, Violation, broken, show};
use crate::history::{Operation, Told};

/// Sessions never go back.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    let members: BTreeSet<u32> =
        evidence.operations.iter().filter(|it| is_in_session(it)).map(|it| it.client).collect();
    let mut floors: BTreeMap<(BucketId, &Key), Floor<'_>> = BTreeMap::new();
    for (bucket, key, operations) in evidence.keys() {
        if operations.iter().any(|it| members.contains(&it.client)) {
            floors.insert((bucket.id, key), Floor::of(evidence, bucket, key, &operations));
        }
    }
    let mut sessions: BTreeMap<u32, Session<'_>> = BTreeMap::new();
    for operation in evidence.operations.iter().filter(|it| members.contains(&it.client)) {
        let Some(bucket) = evidence.bucket_of(operation) else { continue };
        let session = sessions.entry(operation.client).or_default();
        stats.checked += 1;
        if is_sent_away(operation) {
            let rightly = asks_for_too_many(evidence, bucket, operation)
                || asks_for_an_order(evidence, bucket, operation)
                || saw_what_was_given_up(evidence, bucket, operation);
            if evidence.records.is_some() && !rightly {
                let sentence = "a session was sent away for having seen what was given up, and it had not".to_owned();
                return Err(broken("sessions", sentence).showing(operation));
            }
            // The client begins anew.
            *session = Session::default();
            continue;
        }
        match &operation.request {
            Request::Read { level, .. } => {
                for (key, found) in operation.found() {
                    let place = (bucket.id, key);
                    if *level == ReadLevel::Session
                        && let (Some(seen), Some(floor)) = (session.keys.get(&place), floors.get(&place))
                        && !floor.allows_version(seen.version, seen.is_value, found, operation.ended_us)
                    {
                        let sentence =
                            format!("a session read of {} went back behind what it had seen", show::key(key));
                        return Err(broken("sessions", sentence).showing(seen.by).showing(operation));
                    }
                    if let Some(found) = found {
                        session.saw(place, found.version, true, operation);
                        session.advance(bucket.id, evidence.shard_of(bucket, key), found.version.hlc, operation);
                    }
                }
            }
            Request::Write { write, .. } => {
                let Some(version) = operation.written() else { continue };
                for key in write.keys() {
                    let shard = evidence.shard_of(bucket, key);
                    if let Some((hlc, by)) = session.shards.get(&(bucket.id, shard))
                        && version.hlc <= *hlc
                    {
                        let sentence =
                            format!("a session's write of {} was ordered before what it had seen", show::key(key));
                        return Err(broken("sessions", sentence).showing(by).showing(operation));
                    }
                }
                for key in write.keys() {
                    session.saw((bucket.id, key), version, !matches!(write, Write::Delete { .. }), operation);
                    session.advance(bucket.id, evidence.shard_of(bucket, key), version.hlc, operation);
                }
            }
        }
    }
    Ok(stats)
}

/// What one session has seen.
#[derive(Default)]
struct Session<'a> {
    keys: BTreeMap<(BucketId, &'a Key), Seen<'a>>,
    shards: BTreeMap<(BucketId, ShardId), (Hlc, &'a Operation)>,
}

struct Seen<'a> {
    version: Version,
    is_value: bool,
    by: &'a Operation,
}

impl<'a> Session<'a> {
    fn saw(&mut self, place: (BucketId, &'a Key), version: Version, is_value: bool, by: &'a Operation) {
        if self.keys.get(&place).is_none_or(|seen| seen.version < version) {
            self.keys.insert(place, Seen { version, is_value, by });
        }
    }

    fn advance(&mut self, bucket: BucketId, shard: ShardId, hlc: Hlc, by: &'a Operation) {
        let seen = self.shards.entry((bucket, shard)).or_insert((hlc, by));
        if seen.0 < hlc {
            *seen = (hlc, by);
        }
    }
}

/// Refused for good, for the sake of its token, whatever an earlier attempt may have come to.
fn is_sent_away(operation: &Operation) -> bool {
    let Told::Refused(refusal) = &operation.told else { return false };
    refusal.kind == RefusalKind::Invalid && is_in_session(operation)
}

/// Refused for asking for more regions than held the bucket at some time.
fn asks_for_too_many(evidence: &Evidence, bucket: &Bucket, operation: &Operation) -> bool {
    let Request::Write { ack, .. } = &operation.request else { return false };
    let fewest = evidence.members.fewest(bucket.id);
    ack.required_regions(1, fewest) > fewest
}

/// Refused for what takes one order among all regions, which there is none of where all of them write.
fn asks_for_an_order(evidence: &Evidence, bucket: &Bucket, operation: &Operation) -> bool {
    evidence.kinds.was_active(bucket.id) && needs_order(operation)
}

fn saw_what_was_given_up(evidence: &Evidence, bucket: &Bucket, operation: &Operation) -> bool {
    let (Request::Read { session, .. } | Request::Write { session, .. }) = &operation.request;
    operation.keys().into_iter().any(|key| {
        let shard = evidence.shard_of(bucket, key);
        session.seen(bucket.id, shard).is_some_and(|seen| evidence.forks.has_undone(bucket.id, shard, seen))
    })
}

fn is_in_session(operation: &Operation) -> bool {
    let token = |token: &SessionToken| !token.is_empty();
    match &operation.request {
        Request::Read { level, session, .. } => *level == ReadLevel::Session || token(session),
        Request::Write { session, .. } => token(session),
    }
}

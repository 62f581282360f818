//! ORD-1 for several keys at once: a multi-put is seen whole or not at all, in every region and at every level.
//!
//! Whoever finds one key as a multi-put left it must find every other key of that multi-put at least as new.

use std::collections::HashMap;

use meridian_types::request::Found;
use meridian_types::{BucketId, Key, Read, Request, Version, Write};

use super::{Evidence, Stats, Violation, broken, show};
use crate::history::Operation;
use crate::workload::{ACCOUNTS, TOTAL};

/// Every answer to a multi-get shows every multi-put whole.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    let groups = Groups::of(evidence);
    for operation in &evidence.operations {
        let Request::Read { read: Read::MultiGet { .. }, .. } = &operation.request else { continue };
        let Some(bucket) = evidence.bucket_of(operation) else { continue };
        let found = operation.found();
        stats.checked += 1;
        if let Some(sum) = money(&found).filter(|sum| *sum != TOTAL) {
            let sentence = format!("the accounts of a bank hold {sum} together; they must hold {TOTAL}");
            return Err(broken("torn", sentence).showing(operation));
        }
        for (key, it) in &found {
            let Some(it) = it else { continue };
            let Some(writer) = groups.by_value.get(&(bucket.id, *key, it.value.as_ref())) else { continue };
            let Request::Write { write: Write::MultiPut { items }, .. } = &writer.request else { continue };
            for (other, seen) in found.iter().filter(|(other, _)| items.iter().any(|(key, _)| key == *other)) {
                if seen.is_none_or(|seen| seen.version < it.version)
                    && !groups.was_removed(bucket.id, other, it.version)
                {
                    let sentence =
                        format!("a reader saw a multi-put in {} but not yet in {}", show::key(key), show::key(other));
                    return Err(broken("torn", sentence).showing(writer).showing(operation));
                }
            }
        }
    }
    Ok(stats)
}

/// What the accounts of one bank hold together, if that is what was read, all of it.
fn money(found: &[(&Key, Option<&Found>)]) -> Option<u64> {
    let bank = |key: &Key| Some(key.as_bytes().strip_prefix(b"bank/")?.split(|byte| *byte == b'/').next()?.to_vec());
    let first = bank(found.first()?.0)?;
    let balance = |(key, found): &(&Key, Option<&Found>)| {
        let text = std::str::from_utf8(&found.as_ref()?.value).ok()?;
        let amount: u64 = text.split(' ').next()?.parse().ok()?;
        (bank(key)? == first).then_some(amount)
    };
    let sum: Option<u64> = found.iter().map(balance).sum();
    sum.filter(|_| found.len() == ACCOUNTS)
}

/// Multi-puts by what they wrote, and removals that may hide them.
struct Groups<'a> {
    by_value: HashMap<(BucketId, &'a Key, &'a [u8]), &'a Operation>,
    removals: HashMap<(BucketId, &'a Key), Vec<Option<Version>>>,
}

impl<'a> Groups<'a> {
    fn of(evidence: &'a Evidence) -> Groups<'a> {
        let mut groups = Groups { by_value: HashMap::new(), removals: HashMap::new() };
        for known in evidence.all_writes() {
            let Some(bucket) = evidence.bucket_of(known.operation) else { continue };
            match known.write {
                Write::MultiPut { items } => {
                    for (key, value) in items {
                        groups.by_value.insert((bucket.id, key, value.as_bytes().as_ref()), known.operation);
                    }
                }
                Write::Delete { key } => groups.removals.entry((bucket.id, key)).or_default().push(known.version),
                _ => {}
            }
        }
        groups
    }

    fn was_removed(&self, bucket: BucketId, key: &Key, after: Version) -> bool {
        let removals = self.removals.get(&(bucket, key));
        removals.is_some_and(|all| all.iter().any(|version| version.is_none_or(|version| version > after)))
    }
}

//! DUR-3: damaged data is never served. Every value that any read returned was written by somebody, before the read ended:
//! values are unique, so one that nobody wrote is damage, whatever its cause.

use std::collections::HashMap;

use meridian_types::{Key, Write};

use super::{Evidence, Stats, Violation, broken, show};
use crate::history::Operation;

/// Every value was written before it was read.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    for (bucket, key, operations) in evidence.keys() {
        let Some(written) =
            Written::of(evidence.writes(bucket.id, key).map(|known| (known.operation, known.write)), key)
        else {
            continue;
        };
        for operation in operations {
            for (_, found) in operation.found().into_iter().filter(|(it, _)| *it == key) {
                let Some(found) = found else { continue };
                stats.checked += 1;
                match written.values.get(found.value.as_ref()) {
                    Some(begun_us) if *begun_us <= operation.ended_us => {}
                    Some(_) => {
                        let sentence = format!("a read of {} returned a value before it was written", show::key(key));
                        return Err(broken("served", sentence).showing(operation));
                    }
                    None => {
                        let sentence = format!("a read of {} returned a value that nobody wrote", show::key(key));
                        return Err(broken("served", sentence).showing(operation));
                    }
                }
            }
        }
    }
    Ok(stats)
}

struct Written<'a> {
    /// Values with the time their write began.
    values: HashMap<&'a [u8], u64>,
}

impl<'a> Written<'a> {
    /// `None` for keys whose values come about by appending or counting: other checkers know those.
    fn of(writes: impl Iterator<Item = (&'a Operation, &'a Write)>, key: &Key) -> Option<Written<'a>> {
        let mut values = HashMap::new();
        for (operation, write) in writes {
            let value = match write {
                Write::Append { .. } | Write::Increment { .. } => return None,
                Write::Delete { .. } => continue,
                Write::Put { value, .. } | Write::CompareAndSet { value, .. } | Write::PutIfAbsent { value, .. } => {
                    value.as_bytes()
                }
                Write::MultiPut { items } => match items.iter().find(|(it, _)| it == key) {
                    Some((_, value)) => value.as_bytes(),
                    None => continue,
                },
            };
            values.entry(value.as_ref()).or_insert(operation.begun_us);
        }
        Some(Written { values })
    }
}

//! Which ordinary writes a row of a backup comes to. Pure.

use meridian_region_core::backup::{Saved, SavedValue};
use meridian_types::{Key, Refusal, Value, Write};

/// How a restore writes, by what its target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// A bucket with a primary: what is there already stays, so doing it twice is doing it once.
    IfAbsent,
    /// A bucket with a primary: over what is there.
    Over,
    /// A bucket that every region writes: counters are counted, so doing it twice is not doing it once.
    Everywhere,
}

/// What becomes of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is written, by these in their order.
    Written(Vec<Write>),
    /// It has expired since.
    Expired,
    /// It was a tombstone.
    Removed,
}

/// What becomes of a row now, given by its key and what its record holds.
///
/// # Errors
/// Invalid when a key or value is beyond what a bucket takes.
pub fn fate(key: Key, saved: Saved, manner: Manner, now_ms: u64) -> Result<Fate, Refusal> {
    if saved.is_empty() {
        return Ok(Fate::Removed);
    }
    let left = saved.at(now_ms);
    if left.is_empty() {
        return Ok(Fate::Expired);
    }
    let one = |it: SavedValue| -> Result<Write, Refusal> {
        let (value, ttl_ms) = (Value::new(it.value)?, it.expires_at_ms.map(|at| at.saturating_sub(now_ms)));
        let key = key.clone();
        Ok(match manner {
            Manner::IfAbsent => Write::PutIfAbsent { key, value, ttl_ms },
            Manner::Over | Manner::Everywhere => Write::Put { key, value, ttl_ms },
        })
    };
    let mut writes = Vec::new();
    match manner {
        Manner::Everywhere => {
            // The counter first: while a value hides it, nobody can count.
            writes.extend(left.counter.into_iter().flat_map(steps).map(|by| Write::Increment { key: key.clone(), by }));
            writes.extend(left.value.map(one).transpose()?);
        }
        Manner::IfAbsent | Manner::Over => {
            // A key that one region orders is one value: what its readers saw.
            let number = |sum: i64| SavedValue { value: sum.to_string().into(), expires_at_ms: None };
            writes.extend(left.value.or(left.counter.map(number)).map(one).transpose()?);
        }
    }
    Ok(Fate::Written(writes))
}

/// The increments that make a counter: one by its sum; a counter that has come to nothing is still a key, and to count nothing
/// makes none.
fn steps(sum: i64) -> Vec<i64> {
    if sum == 0 { vec![1, -1] } else { vec![sum] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const NOW: u64 = 1000;

    fn key() -> Key {
        Key::new("k").unwrap()
    }

    fn value(text: &'static str) -> Value {
        Value::new(text).unwrap()
    }

    fn saved(counter: Option<i64>, value: Option<(&'static str, Option<u64>)>) -> Saved {
        let value = value.map(|(text, expires_at_ms)| SavedValue { value: Bytes::from(text), expires_at_ms });
        Saved { counter, value }
    }

    fn written(saved: Saved, manner: Manner) -> Vec<Write> {
        match fate(key(), saved, manner, NOW).unwrap() {
            Fate::Written(writes) => writes,
            Fate::Expired | Fate::Removed => Vec::new(),
        }
    }

    fn increment(by: i64) -> Write {
        Write::Increment { key: key(), by }
    }

    #[test]
    fn a_value_keeps_what_is_left_of_its_time() {
        let five = saved(None, Some(("v", Some(NOW + 5))));
        assert_eq!(
            written(five.clone(), Manner::IfAbsent),
            [Write::PutIfAbsent { key: key(), value: value("v"), ttl_ms: Some(5) }]
        );
        for manner in [Manner::Over, Manner::Everywhere] {
            assert_eq!(written(five.clone(), manner), [Write::Put { key: key(), value: value("v"), ttl_ms: Some(5) }]);
        }
        assert_eq!(fate(key(), saved(None, Some(("v", Some(NOW)))), Manner::Over, NOW), Ok(Fate::Expired));
        assert_eq!(fate(key(), saved(None, None), Manner::Over, NOW), Ok(Fate::Removed));
    }

    #[test]
    fn a_counter_is_counted_where_every_region_counts_and_a_number_elsewhere() {
        assert_eq!(written(saved(Some(7), None), Manner::Everywhere), [increment(7)]);
        assert_eq!(written(saved(Some(0), None), Manner::Everywhere), [increment(1), increment(-1)]);
        assert_eq!(
            written(saved(Some(-7), None), Manner::Over),
            [Write::Put { key: key(), value: value("-7"), ttl_ms: None }]
        );
    }

    #[test]
    fn a_counter_that_a_value_hides_comes_back_behind_it() {
        let hidden = saved(Some(7), Some(("v", Some(NOW + 5))));
        let put = Write::Put { key: key(), value: value("v"), ttl_ms: Some(5) };
        assert_eq!(written(hidden.clone(), Manner::Everywhere), [increment(7), put.clone()]);
        assert_eq!(written(hidden.clone(), Manner::Over), [put]);
        assert_eq!(written(hidden.at(NOW + 5), Manner::Everywhere), [increment(7)]);
    }
}

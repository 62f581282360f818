//! SWI-3: no step of a failover needs the dead region. While that region is down and nothing else is broken, a failover of its
//! bucket ends: another region is its primary, or it is given up because nobody agreed to a loss.
//!
//! What a calm world may take: an election of a metadata leader, a lease that has to run out, a few round trips.

use std::collections::{BTreeMap, BTreeSet};

use meridian_types::{NodeId, RegionId};

use super::{Evidence, Failover, Stats, Violation, broken, show};
use crate::trace::{Fact, Record};

/// The longest that a failover may last in a world where only the lost region is broken, in microseconds: an election (2 s),
/// a lease of 5 s counted from it, regions that were up for less and speak within 10 s beside that, and pulls.
const LASTS_US_MAX: u64 = 15_000_000;

/// Every failover ends without its lost region.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    let Some(records) = evidence.records.as_deref() else { return Ok(stats) };
    // Of two regions one is no majority of the metadata plane: nothing can be put on record.
    if evidence.forks.failovers.is_empty() || evidence.setup.regions.len() < 3 {
        return Ok(stats);
    }
    let over_us = records.last().map_or(0, |record| record.at_us);
    for failover in &evidence.forks.failovers {
        let ended_us = failover.end.as_ref().map_or(over_us, |(at, _)| *at);
        let mut asked_nobody = false;
        for (since_us, until_us) in alone(records, failover.from) {
            let (since_us, until_us) = (since_us.max(failover.begun_us), until_us.min(ended_us));
            asked_nobody |= since_us < until_us;
            if until_us.saturating_sub(since_us) > LASTS_US_MAX {
                let sentence = format!(
                    "the failover of bucket {} waits for region {}, which has been down from {} to {} while nothing else was broken",
                    failover.bucket,
                    failover.from,
                    show::seconds(since_us),
                    show::seconds(until_us)
                );
                return Err(broken("unasked", sentence).showing(described(failover)));
            }
        }
        stats.checked += u64::from(asked_nobody);
    }
    Ok(stats)
}

fn described(failover: &Failover) -> String {
    let end = failover.end.as_ref();
    let end = end.map_or_else(|| "is not over".to_owned(), |(at, _)| format!("was over at {}", show::seconds(*at)));
    format!("it began at {} and {end}", show::seconds(failover.begun_us))
}

/// Every node that was ever heard of.
fn nodes(records: &[Record]) -> BTreeSet<(RegionId, NodeId)> {
    let of = |record: &Record| match &record.fact {
        Fact::LeaseBelieved { replica, .. } => Some((replica.region, replica.node)),
        _ => None,
    };
    records.iter().filter_map(of).collect()
}

/// When a region was down and nothing else was broken.
fn alone(records: &[Record], region: RegionId) -> Vec<(u64, u64)> {
    let mut broken: BTreeMap<&str, usize> = BTreeMap::new();
    let mut down: BTreeSet<(RegionId, NodeId)> = BTreeSet::new();
    let all = nodes(records);
    let (mut stretches, mut since_us): (Vec<(u64, u64)>, Option<u64>) = (Vec::new(), None);
    for record in records {
        match &record.fact {
            Fact::Fault { what, disturbs: true } => *broken.entry(what).or_default() += 1,
            Fact::Mended { what } => {
                if let Some(count) = broken.get_mut(what.as_str()) {
                    *count = count.saturating_sub(1);
                }
            }
            Fact::Healed => broken.clear(),
            Fact::Crashed { replica, .. } => drop(down.insert((replica.region, replica.node))),
            Fact::Restarted { replica, .. } => drop(down.remove(&(replica.region, replica.node))),
            _ => continue,
        }
        // A region of several nodes is down when all of them are.
        let is_down = all.iter().all(|it| it.0 != region || down.contains(it)) && down.iter().any(|it| it.0 == region);
        let is_alone = is_down && down.iter().all(|(it, _)| *it == region) && broken.values().all(|it| *it == 0);
        match (since_us, is_alone) {
            (None, true) => since_us = Some(record.at_us),
            (Some(since), false) => {
                stretches.push((since, record.at_us));
                since_us = None;
            }
            (Some(_), true) | (None, false) => {}
        }
    }
    stretches.extend(since_us.map(|since| (since, records.last().map_or(since, |last| last.at_us))));
    stretches
}

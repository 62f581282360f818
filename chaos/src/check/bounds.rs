//! RES-1: nothing that a client, a peer or a backlog can grow is ever larger than its bound.

use super::{Evidence, Stats, Violation, broken, show};
use crate::trace::Fact;

/// Everything that holds something holds at most what it may.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    for record in evidence.records.iter().flatten() {
        let Fact::Holds { replica, what, amount, most } = &record.fact else { continue };
        stats.checked += 1;
        if amount > most {
            let sentence = format!(
                "node {} of region {} held {amount} in {what} at {}; the most is {most}",
                replica.node,
                replica.region,
                show::seconds(record.at_us)
            );
            return Err(broken("bounds", sentence));
        }
    }
    Ok(stats)
}

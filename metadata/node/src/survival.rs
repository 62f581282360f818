//! What can die right now, as the metadata leader counts it for metrics: by its leases and the placement, whenever one of
//! them has changed. Lags it doesn't know; `meridian status` asks the nodes for those.

use std::collections::BTreeSet;

use meridian_metadata_core::survival::{Evidence, Kind, Tally};
use meridian_types::NodeId;

use crate::copy::LocalCopy;
use crate::leader::Leader;
use crate::metrics::{Metrics, Without};

/// What is looked at: pairs would cost the leader more than a metric is worth.
const KINDS: [Kind; 3] = [Kind::Node, Kind::Zone, Kind::Region];

/// The last survey's ground, so that the same is not surveyed twice.
#[derive(Debug, Default)]
pub(crate) struct Surveyor {
    seen: Option<(u64, BTreeSet<NodeId>, Vec<NodeId>)>,
}

impl Surveyor {
    /// Counts anew if anything has changed.
    pub(crate) fn survey(&mut self, leader: &Leader, copy: &LocalCopy, metrics: &Metrics) {
        let topology = copy.topology();
        if topology.cluster.is_none() {
            return;
        }
        let (live, voters) = (leader.believing(topology.nodes.keys().copied()), leader.voters());
        let ground = (topology.index, live, voters);
        if self.seen.as_ref() == Some(&ground) {
            return;
        }
        let (_, live, voters) = ground.clone();
        let voters = voters.into_iter().collect();
        let survival = Evidence { topology, voters, live, ..Evidence::default() }.survey_of(&KINDS);
        record(metrics, Without::LosingWrites, &survival.keeping);
        record(metrics, Without::StoppingWrites, &survival.serving);
        record(metrics, Without::LosingMajority, &survival.deciding);
        self.seen = Some(ground);
    }

    /// Another node leads: it counts.
    pub(crate) fn rest(&mut self) {
        self.seen = None;
    }
}

fn record<W>(metrics: &Metrics, without: Without, tallies: &[Tally<W>]) {
    for tally in tallies {
        metrics.fatal(tally.kind, without, tally.of - tally.fine);
    }
}

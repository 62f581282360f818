//! What the metadata plane counts. Names of metrics live here and nowhere else.

use meridian_metadata_core::survival::Kind;
use opentelemetry::metrics::{Counter, Gauge, Histogram};
use opentelemetry::{KeyValue, global};

/// The instruments. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    commands: Counter<u64>,
    renewals: Counter<u64>,
    renewal_ms: Histogram<f64>,
    leases_lost: Counter<u64>,
    leader_changes: Counter<u64>,
    leads: Gauge<u64>,
    leases_live: Gauge<u64>,
    index: Gauge<u64>,
    fatal: Gauge<u64>,
}

/// What a failure must not bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Without {
    LosingWrites,
    StoppingWrites,
    LosingMajority,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let meter = global::meter("meridian.metadata");
        Metrics {
            commands: meter
                .u64_counter("meridian_metadata_commands")
                .with_description("Metadata commands asked for on this node, by verb and outcome")
                .build(),
            renewals: meter
                .u64_counter("meridian_metadata_lease_renewals")
                .with_description("Attempts to renew this node's lease, by outcome")
                .build(),
            renewal_ms: meter
                .f64_histogram("meridian_metadata_lease_renewal_ms")
                .with_description("Time from sending a renewal to its grant, in milliseconds")
                .build(),
            leases_lost: meter
                .u64_counter("meridian_metadata_leases_lost")
                .with_description("Times this node's lease ran out")
                .build(),
            leader_changes: meter
                .u64_counter("meridian_metadata_leader_changes")
                .with_description("Changes of the metadata leader seen by this node")
                .build(),
            leads: meter
                .u64_gauge("meridian_metadata_leads")
                .with_description("1 while this node leads the metadata group")
                .build(),
            leases_live: meter
                .u64_gauge("meridian_metadata_leases_live")
                .with_description("Leases granted by this node, as leader, that have not run out")
                .build(),
            index: meter
                .u64_gauge("meridian_metadata_index")
                .with_description("The metadata index this node has applied")
                .build(),
            fatal: meter
                .u64_gauge("meridian_metadata_fatal_failures")
                .with_description(
                    "How many nodes, zones or regions (kind) can't die right now without losing acknowledged writes, stopping writes of some bucket, or losing the metadata majority (without); told by the metadata leader",
                )
                .build(),
        }
    }

    pub(crate) fn command(&self, verb: &'static str, outcome: String) {
        self.commands.add(1, &[KeyValue::new("verb", verb), KeyValue::new("outcome", outcome)]);
    }

    pub(crate) fn renewal(&self, outcome: &'static str, elapsed_ms: f64) {
        self.renewals.add(1, &[KeyValue::new("outcome", outcome)]);
        if outcome == "done" {
            self.renewal_ms.record(elapsed_ms, &[]);
        }
    }

    pub(crate) fn lease_lost(&self) {
        self.leases_lost.add(1, &[]);
    }

    pub(crate) fn leader_changed(&self, leads: bool) {
        self.leader_changes.add(1, &[]);
        self.leads.record(u64::from(leads), &[]);
    }

    pub(crate) fn leases_live(&self, count: usize) {
        self.leases_live.record(count as u64, &[]);
    }

    pub(crate) fn fatal(&self, kind: Kind, without: Without, count: usize) {
        let kind = match kind {
            Kind::Node => "node",
            Kind::Zone => "zone",
            Kind::Region => "region",
            Kind::TwoNodes => "two-nodes",
            Kind::TwoZones => "two-zones",
            Kind::TwoRegions => "two-regions",
        };
        let without = match without {
            Without::LosingWrites => "losing-writes",
            Without::StoppingWrites => "stopping-writes",
            Without::LosingMajority => "losing-majority",
        };
        self.fatal.record(count as u64, &[KeyValue::new("kind", kind), KeyValue::new("without", without)]);
    }

    pub(crate) fn index(&self, index: u64) {
        self.index.record(index, &[]);
    }
}

//! What this room reports to OpenTelemetry. Names live here and nowhere else.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use meridian_region_core::exposure::Exposed;
use meridian_types::{Bucket, BucketName, Policy, Read, Refusal, RefusalKind, Request, Response, Standing, Write};
use opentelemetry::metrics::{AsyncInstrument, Histogram, Meter, MeterProvider, NoopMeterProvider};
use opentelemetry::{KeyValue, global};

use crate::node::Node;
use crate::repair::Figures;

/// Buckets of the latency histogram, in seconds: from a read out of memory to a deadline.
const LATENCY_BOUNDS: [f64; 14] =
    [0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0];

/// The most label sets that are kept ready; beyond it (hundreds of buckets) operations are counted without their bucket.
const LABELS_MAX: usize = 10_000;

/// The instruments of one node.
pub(crate) struct Metrics {
    operations: Histogram<f64>,
    labels: RwLock<HashMap<Label, Arc<[KeyValue]>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Label {
    operation: &'static str,
    bucket: BucketName,
    outcome: Option<RefusalKind>,
}

/// A request while it is under way.
pub(crate) struct Call {
    operation: &'static str,
    bucket: BucketName,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        Metrics::of(&meter())
    }

    /// Instruments that nobody reads.
    pub(crate) fn unseen() -> Metrics {
        Metrics::of(&NoopMeterProvider::new().meter("unseen"))
    }

    fn of(meter: &Meter) -> Metrics {
        let operations = meter
            .f64_histogram("meridian.region.operation.duration")
            .with_unit("s")
            .with_description("How long operations took on this node, by kind, bucket and outcome")
            .with_boundaries(LATENCY_BOUNDS.to_vec())
            .build();
        Metrics { operations, labels: RwLock::default() }
    }

    pub(crate) fn call(&self, request: &Request) -> Call {
        Call { operation: operation(request), bucket: request.bucket().clone() }
    }

    pub(crate) fn record(&self, call: &Call, took: Duration, answer: &Result<Response, Refusal>) {
        let outcome = answer.as_ref().err().map(|refusal| refusal.kind);
        // A name that no bucket has is chosen by a client: it must not become a label.
        let bucket = match outcome {
            Some(RefusalKind::NotFound) => None,
            _ => Some(&call.bucket),
        };
        match bucket.and_then(|_| self.labels(call, outcome)) {
            Some(labels) => self.operations.record(took.as_secs_f64(), &labels),
            None => self.operations.record(
                took.as_secs_f64(),
                &[KeyValue::new("operation", call.operation), KeyValue::new("outcome", outcome_label(outcome))],
            ),
        }
    }

    fn labels(&self, call: &Call, outcome: Option<RefusalKind>) -> Option<Arc<[KeyValue]>> {
        let label = Label { operation: call.operation, bucket: call.bucket.clone(), outcome };
        if let Some(known) = self.labels.read().unwrap_or_else(PoisonError::into_inner).get(&label) {
            return Some(Arc::clone(known));
        }
        let mut all = self.labels.write().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= LABELS_MAX {
            return None;
        }
        let labels: Arc<[KeyValue]> = Arc::from([
            KeyValue::new("operation", call.operation),
            KeyValue::new("bucket", call.bucket.to_string()),
            KeyValue::new("outcome", outcome_label(outcome)),
        ]);
        all.insert(label, Arc::clone(&labels));
        Some(labels)
    }
}

/// Figures that are read when somebody asks. They end with the node.
pub(crate) fn observe(node: &Arc<Node>) {
    let gauge = |name: &'static str, unit: &'static str, about: &'static str, read: fn(&Node) -> u64| {
        let node: Weak<Node> = Arc::downgrade(node);
        meter()
            .u64_observable_gauge(name)
            .with_unit(unit)
            .with_description(about)
            .with_callback(move |observer| {
                if let Some(node) = node.upgrade() {
                    observer.observe(read(&node), &[]);
                }
            })
            .build();
    };
    gauge("meridian.region.requests.in_flight", "{request}", "Requests under way", |node| {
        node.admission.in_flight().0 as u64
    });
    gauge("meridian.region.requests.in_flight_bytes", "By", "Bytes of writes under way", |node| {
        node.admission.in_flight().1 as u64
    });
    gauge("meridian.region.shards.led", "{shard}", "Shards this node leads", |node| {
        node.shards.iter().filter(|shard| shard.board.leads()).count() as u64
    });
    gauge("meridian.region.disk.free", "By", "Free bytes of the data disk", |node| node.disk.space().free_bytes);
    sync_running(node);
    per_shard(node, "meridian.region.applied", "{entry}", "Last applied position", |node, shard| {
        Some(node.shards.get(shard)?.board.applied().0)
    });
    per_shard(node, "meridian.region.log.retained", "By", "Log kept for other regions", |node, shard| {
        Some(node.shards.get(shard)?.board.retained().bytes())
    });
    staleness(node);
    standings(node);
    exposures(node);
    repairs(node);
}

/// What shows a disk that hangs.
fn sync_running(node: &Arc<Node>) {
    let node = Arc::downgrade(node);
    meter()
        .f64_observable_gauge("meridian.region.sync.running")
        .with_unit("s")
        .with_description(
            "For how long the sync under way has been running, of the log and of the state; 0 while there is none",
        )
        .with_callback(move |observer| {
            let Some(node) = node.upgrade() else { return };
            for (of, age) in [("log", node.log.sync_running()), ("state", node.writing_back.elapsed())] {
                observer.observe(age.unwrap_or_default().as_secs_f64(), &[KeyValue::new("of", of)]);
            }
        })
        .build();
}

/// Replicas that are being made equal to their source, in the shards this node leads.
fn repairs(node: &Arc<Node>) {
    let figures =
        |node: &Weak<Node>| node.upgrade().map(|node| node.repairs.table.figures(tokio::time::Instant::now()));
    let shards = Arc::downgrade(node);
    meter()
        .u64_observable_gauge("meridian.region.repair.shards")
        .with_unit("{shard}")
        .with_description("Buckets, shard by shard, that are being repaired, or wait for it")
        .with_callback(move |observer| {
            if let Some(figures) = figures(&shards) {
                observer.observe(figures.running, &[KeyValue::new("state", "running")]);
                observer.observe(figures.waiting, &[KeyValue::new("state", "waiting")]);
            }
        })
        .build();
    type Figure = fn(&Figures) -> u64;
    let observe = |node: &Arc<Node>, read: Figure| {
        let node = Arc::downgrade(node);
        move |observer: &dyn AsyncInstrument<u64>| {
            if let Some(figures) = figures(&node) {
                observer.observe(read(&figures), &[]);
            }
        }
    };
    meter()
        .u64_observable_gauge("meridian.region.repair.rows.left")
        .with_unit("{row}")
        .with_description("Rows that running repairs have yet to compare")
        .with_callback(observe(node, |figures| figures.rows_left))
        .build();
    meter()
        .u64_observable_gauge("meridian.region.repair.eta")
        .with_unit("ms")
        .with_description("How long the slowest running repair still takes, about; 0 while that is not known")
        .with_callback(observe(node, |figures| figures.eta_ms))
        .build();
    meter()
        .u64_observable_counter("meridian.region.repair.ended")
        .with_unit("{repair}")
        .with_description("Repairs that are over")
        .with_callback(observe(node, |figures| figures.ended_total))
        .build();
    meter()
        .u64_observable_counter("meridian.region.repair.bytes")
        .with_unit("By")
        .with_description("Bytes received for repairs")
        .with_callback(observe(node, |figures| figures.bytes_total))
        .build();
}

/// Per sync bucket whose primary is here.
fn standings(node: &Arc<Node>) {
    let node = Arc::downgrade(node);
    meter()
        .u64_observable_gauge("meridian.region.bucket.standing")
        .with_description("How copies of a sync bucket stand, at its primary: 0 SYNC, 1 RECOVERING, 2 DEGRADED")
        .with_callback(move |observer| {
            let Some(node) = node.upgrade() else { return };
            let topology = node.authority.topology();
            let here = |bucket: &&Arc<Bucket>| {
                bucket.primary == Some(node.region()) && matches!(bucket.policy, Policy::Sync { .. })
            };
            for bucket in topology.buckets.values().filter(here) {
                let value = match bucket.standing {
                    Standing::Sync { .. } => 0,
                    Standing::Recovering { .. } => 1,
                    Standing::Degraded { .. } => 2,
                };
                observer.observe(value, &[KeyValue::new("bucket", bucket.name.to_string())]);
            }
        })
        .build();
}

/// Per bucket with a ceiling whose primary is here: what no other region has of this node's shards.
fn exposures(node: &Arc<Node>) {
    type Figure = fn(&Exposed) -> u64;
    let figures: [(&'static str, &'static str, Figure); 3] = [
        ("meridian.region.exposed.operations", "{operation}", |exposed| exposed.operations),
        ("meridian.region.exposed.bytes", "By", |exposed| exposed.bytes),
        ("meridian.region.exposed.age", "ms", |exposed| exposed.ms),
    ];
    for (name, unit, figure) in figures {
        let node = Arc::downgrade(node);
        meter()
            .u64_observable_gauge(name)
            .with_unit(unit)
            .with_description("What no other region has yet of a bucket with max-lag, in the shards this node leads")
            .with_callback(move |observer| {
                let Some(node) = node.upgrade() else { return };
                let topology = node.authority.topology();
                for (id, exposed) in node.exposures().iter() {
                    if let Some(bucket) = topology.buckets.get(id) {
                        observer.observe(figure(exposed), &[KeyValue::new("bucket", bucket.name.to_string())]);
                    }
                }
            })
            .build();
    }
}

fn per_shard(
    node: &Arc<Node>,
    name: &'static str,
    unit: &'static str,
    about: &'static str,
    read: fn(&Node, usize) -> Option<u64>,
) {
    let node = Arc::downgrade(node);
    meter()
        .u64_observable_gauge(name)
        .with_unit(unit)
        .with_description(about)
        .with_callback(move |observer| {
            let Some(node) = node.upgrade() else { return };
            for shard in 0..node.shards.len() {
                if let Some(value) = read(&node, shard) {
                    observer.observe(value, &[KeyValue::new("shard", shard as i64)]);
                }
            }
        })
        .build();
}

/// Per bucket that is replicated to here: how stale its stalest shard may be.
fn staleness(node: &Arc<Node>) {
    let node = Arc::downgrade(node);
    meter()
        .u64_observable_gauge("meridian.region.staleness")
        .with_unit("ms")
        .with_description("Upper bound on how far a bucket is behind in this region; absent while unknown")
        .with_callback(move |observer| {
            let Some(node) = node.upgrade() else { return };
            let (region, now_ms) = (node.region(), node.clock.monotonic_ms());
            for bucket in node.authority.topology().buckets.values() {
                if bucket.primary == Some(region) || !bucket.is_in(region) {
                    continue;
                }
                let worst = node.shards.iter().try_fold(0, |worst: u64, shard| {
                    shard.lanes.staleness_ms(bucket, region, now_ms).map(|this| this.max(worst))
                });
                if let Some(worst) = worst {
                    observer.observe(worst, &[KeyValue::new("bucket", bucket.name.to_string())]);
                }
            }
        })
        .build();
}

fn meter() -> Meter {
    global::meter("meridian.region")
}

fn operation(request: &Request) -> &'static str {
    match request {
        Request::Read { read, .. } => match read {
            Read::Get { .. } => "get",
            Read::MultiGet { .. } => "multi-get",
            Read::Scan { .. } => "scan",
        },
        Request::Write { write, .. } => match write {
            Write::Put { .. } => "put",
            Write::Delete { .. } => "delete",
            Write::Append { .. } => "append",
            Write::Increment { .. } => "increment",
            Write::CompareAndSet { .. } => "compare-and-set",
            Write::PutIfAbsent { .. } => "put-if-absent",
            Write::MultiPut { .. } => "multi-put",
        },
    }
}

fn outcome_label(outcome: Option<RefusalKind>) -> String {
    outcome.map_or_else(|| "ok".to_owned(), |kind| kind.to_string())
}

//! Every figure of the replicator that leaves the node, and its name.

use opentelemetry::metrics::{Counter, Meter};
use opentelemetry::{KeyValue, global};

use crate::Handle;

/// What comes in, counted as it comes.
#[derive(Clone)]
pub(crate) struct Received {
    frames: Counter<u64>,
    bytes: Counter<u64>,
}

impl Received {
    pub(crate) fn new() -> Received {
        let meter = meter();
        Received {
            frames: meter
                .u64_counter("meridian.replicator.received.frames")
                .with_description("Frames and heartbeats received from other regions")
                .build(),
            bytes: meter
                .u64_counter("meridian.replicator.received.bytes")
                .with_unit("By")
                .with_description("Their bytes, compressed")
                .build(),
        }
    }

    pub(crate) fn note(&self, bytes: usize) {
        self.frames.add(1, &[]);
        self.bytes.add(bytes as u64, &[]);
    }
}

fn meter() -> Meter {
    global::meter("meridian.replicator")
}

/// Registers what is read off the lanes whenever somebody looks: it costs the lanes nothing.
pub(crate) fn observe(handle: &Handle) {
    type Figure = fn(&meridian_types::LaneStatus) -> u64;
    let shipped: [(&str, &str, Figure); 4] = [
        ("meridian.replicator.shipped.frames", "Frames and heartbeats shipped", |lane| lane.frames),
        ("meridian.replicator.shipped.entries", "Entries shipped", |lane| lane.entries),
        ("meridian.replicator.shipped.raw_bytes", "Bytes of entries shipped, before compression", |lane| {
            lane.raw_bytes
        }),
        ("meridian.replicator.shipped.wire_bytes", "Bytes of frames shipped, after compression", |lane| {
            lane.wire_bytes
        }),
    ];
    for (name, description, figure) in shipped {
        let handle = handle.downgrade();
        meter()
            .u64_observable_counter(name)
            .with_description(description)
            .with_callback(move |observer| {
                let Some(handle) = handle.upgrade() else { return };
                for lane in handle.lanes() {
                    let labels = [
                        KeyValue::new("source", handle.region().to_string()),
                        KeyValue::new("target", handle.region_label(lane.target)),
                        KeyValue::new("shard", i64::from(lane.shard.0)),
                        KeyValue::new("lane", lane.lane.to_string()),
                    ];
                    observer.observe(figure(&lane), &labels);
                }
            })
            .build();
    }
    type Lag = fn(&meridian_types::BucketLag) -> u64;
    let lags: [(&str, &str, Lag); 3] = [
        ("meridian.replicator.lag.ms", "Age of the oldest write a region has not acknowledged", |lag| lag.lag_ms),
        ("meridian.replicator.lag.operations", "Writes a region has not acknowledged", |lag| {
            lag.unshipped_operations + lag.unapplied_operations
        }),
        ("meridian.replicator.lag.bytes", "Their bytes", |lag| lag.unshipped_bytes + lag.unapplied_bytes),
    ];
    for (name, description, figure) in lags {
        let handle = handle.downgrade();
        meter()
            .u64_observable_gauge(name)
            .with_description(description)
            .with_callback(move |observer| {
                let Some(handle) = handle.upgrade() else { return };
                for lag in handle.lags() {
                    let labels = [
                        KeyValue::new("source", handle.region().to_string()),
                        KeyValue::new("target", handle.region_label(lag.target)),
                        KeyValue::new("bucket", handle.bucket_label(lag.bucket)),
                    ];
                    observer.observe(figure(&lag), &labels);
                }
            })
            .build();
    }
}

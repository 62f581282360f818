//! What the gateway counts, by name. Names live nowhere else.

use std::time::Duration;

use meridian_types::{Read, Refusal, RefusalKind, Request, Response, Write};
use opentelemetry::metrics::{Counter, Histogram, UpDownCounter};
use opentelemetry::{KeyValue, global};

/// The kinds of requests, as metrics name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Get,
    MultiGet,
    Scan,
    Put,
    Delete,
    Append,
    Increment,
    CompareAndSet,
    PutIfAbsent,
    MultiPut,
}

impl Operation {
    pub(crate) fn of(request: &Request) -> Operation {
        match request {
            Request::Read { read: Read::Get { .. }, .. } => Operation::Get,
            Request::Read { read: Read::MultiGet { .. }, .. } => Operation::MultiGet,
            Request::Read { read: Read::Scan { .. }, .. } => Operation::Scan,
            Request::Write { write, .. } => match write {
                Write::Put { .. } => Operation::Put,
                Write::Delete { .. } => Operation::Delete,
                Write::Append { .. } => Operation::Append,
                Write::Increment { .. } => Operation::Increment,
                Write::CompareAndSet { .. } => Operation::CompareAndSet,
                Write::PutIfAbsent { .. } => Operation::PutIfAbsent,
                Write::MultiPut { .. } => Operation::MultiPut,
            },
        }
    }

    pub(crate) fn is_write(self) -> bool {
        !matches!(self, Operation::Get | Operation::MultiGet | Operation::Scan)
    }

    fn name(self) -> &'static str {
        match self {
            Operation::Get => "get",
            Operation::MultiGet => "multi-get",
            Operation::Scan => "scan",
            Operation::Put => "put",
            Operation::Delete => "delete",
            Operation::Append => "append",
            Operation::Increment => "increment",
            Operation::CompareAndSet => "compare-and-set",
            Operation::PutIfAbsent => "put-if-absent",
            Operation::MultiPut => "multi-put",
        }
    }
}

pub(crate) struct Metrics {
    seconds: Histogram<f64>,
    refusals: Counter<u64>,
    streams: UpDownCounter<i64>,
}

/// From 50 µs, a cached local read, to the longest deadline.
const SECONDS: [f64; 18] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
    60.0,
];

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let meter = global::meter("meridian.gateway");
        Metrics {
            seconds: meter
                .f64_histogram("meridian.gateway.request.duration")
                .with_unit("s")
                .with_description("From a request's arrival to its answer")
                .with_boundaries(SECONDS.to_vec())
                .build(),
            refusals: meter
                .u64_counter("meridian.gateway.refusals")
                .with_description("Requests refused before they were executed: no room, senseless, shutting down")
                .build(),
            streams: meter.i64_up_down_counter("meridian.gateway.streams").with_description("Open streams").build(),
        }
    }

    pub(crate) fn answered(&self, operation: Operation, answer: &Result<Response, Refusal>, took: Duration) {
        let outcome = answer.as_ref().map_or_else(|refusal| name(refusal.kind), |_| "ok");
        let labels = [KeyValue::new("operation", operation.name()), KeyValue::new("outcome", outcome)];
        self.seconds.record(took.as_secs_f64(), &labels);
    }

    pub(crate) fn refused_at_the_door(&self, kind: RefusalKind) {
        self.refusals.add(1, &[KeyValue::new("outcome", name(kind))]);
    }

    pub(crate) fn stream_opened(&self) {
        self.streams.add(1, &[]);
    }

    pub(crate) fn stream_closed(&self) {
        self.streams.add(-1, &[]);
    }
}

/// As `RefusalKind` displays itself, without allocating.
fn name(kind: RefusalKind) -> &'static str {
    match kind {
        RefusalKind::Retry => "retry",
        RefusalKind::Redirect => "redirect",
        RefusalKind::Fenced => "fenced",
        RefusalKind::Conflict => "conflict",
        RefusalKind::Invalid => "invalid",
        RefusalKind::NotFound => "not-found",
        RefusalKind::Exists => "exists",
        RefusalKind::Stale => "stale",
        RefusalKind::Unavailable => "unavailable",
        RefusalKind::Corrupt => "corrupt",
        RefusalKind::Denied => "denied",
        RefusalKind::Internal => "internal",
        RefusalKind::Consent => "consent",
    }
}

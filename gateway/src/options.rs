//! The gateway's bounds (RES-1), with their defaults.

use meridian_proto::exchange::DEADLINE_MS_DEFAULT;
use meridian_proto::limits::{IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX};
use serde::{Deserialize, Serialize};

/// Bounds of a node's gateway. Beyond each of them callers get a refusal to try again, not a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Streams open at a time, of clients and peers together. An idle stream costs some 100 KiB of buffers.
    pub streams_max: usize,
    /// Requests in progress on one stream.
    pub stream_requests_max: usize,
    /// Their bytes.
    pub stream_bytes_max: usize,
    /// Requests in progress on all streams.
    pub requests_max: usize,
    /// Their bytes.
    pub bytes_max: usize,
    /// The deadline of a request that names none, in milliseconds.
    pub deadline_ms_default: u32,
    /// The longest deadline granted, in milliseconds; a longer one is cut to it.
    pub deadline_ms_max: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            streams_max: 1024,
            stream_requests_max: IN_FLIGHT_MAX,
            stream_bytes_max: IN_FLIGHT_BYTES_MAX,
            requests_max: 16_384,
            bytes_max: 64 << 20,
            deadline_ms_default: DEADLINE_MS_DEFAULT,
            deadline_ms_max: 60_000,
        }
    }
}

//! How large messages on the wire may get (RES-1). Both ends keep to the same figures, so that whatever
//! one side sends the other side can take.

/// The largest message either side decodes: the largest request (a multi-get of 1,024 keys of 4 KiB, with a full
/// session token) or answer, behind a batch that was just short of [`BATCH_BYTES`].
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// The largest single answer: a page of a scan is cut to it, a multi-get beyond it is refused. Four of the largest values.
pub const RESPONSE_BYTES_MAX: usize = 4 << 20;

/// A batch is closed once it has this many bytes: enough to amortise a message, small enough not to delay its first answer.
pub const BATCH_BYTES: usize = 256 << 10;

/// A batch is closed once it has this many requests or answers.
pub const BATCH_ITEMS: usize = 512;

/// The most requests that wait for an answer on one stream.
pub const IN_FLIGHT_MAX: usize = 4096;

/// The most bytes of requests that wait for an answer on one stream.
pub const IN_FLIGHT_BYTES_MAX: usize = 32 << 20;

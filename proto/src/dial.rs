//! How connections between Meridian processes are set up: one place for the settings of both ends.
//!
//! Keep-alives find a dead peer within ten seconds instead of TCP's minutes; windows are wide enough for a full
//! batch over an 120 ms round trip; Nagle is off because batches are already formed.

use std::time::Duration;

use meridian_types::NodeId;
use tonic::transport::{Channel, Endpoint, Server};

use crate::tls::{TlsError, TlsMaterial};

/// How to reach a node. Implemented by the composition root: addresses from the topology, translated where distances are emulated.
pub trait Dial: Send + Sync + 'static {
    /// A channel to the node, connecting when first used and reconnecting by itself; the same one on every call.
    /// `None` when nobody knows an address for it (yet).
    fn channel(&self, node: NodeId) -> Option<Channel>;

    /// Somebody said where a node is; for who finds out only by asking others.
    fn learn(&self, _node: NodeId, _address: &str) {}
}

/// Time to establish TCP and TLS before an attempt fails: three retransmitted SYNs.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A silent peer is asked for a sign of life this often …
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);

/// … and counts as dead after this long without one.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Flow-control window of one stream: 400 Mbit/s over 80 ms is 4 MB in flight.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// Flow-control window of a connection: several such streams.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Streams one connection may open: an `Exchange` needs one, operators' calls a few.
const STREAMS_PER_CONNECTION_MAX: u32 = 128;

/// An endpoint for `https://host:port` with this side's certificate; `connect_lazy()` makes the channel.
///
/// # Errors
/// [`TlsError::Address`] when the address is no `https://host:port`, [`TlsError::Unusable`] when TLS can't be set up.
pub fn endpoint(address: &str, tls: &TlsMaterial) -> Result<Endpoint, TlsError> {
    let address_error = || TlsError::Address(address.to_owned());
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|_| address_error())?;
    if endpoint.uri().scheme_str() != Some("https") || endpoint.uri().port_u16().is_none() {
        return Err(address_error());
    }
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .tls_config(tls.client_config())
        .map_err(|why| TlsError::Unusable(why.to_string()))
}

/// A lazily connecting channel to `https://host:port`.
///
/// # Errors
/// As [`endpoint`].
pub fn channel(address: &str, tls: &TlsMaterial) -> Result<Channel, TlsError> {
    Ok(endpoint(address, tls)?.connect_lazy())
}

/// A gRPC server with the same settings, which takes only peers with a certificate of the cluster's CA (SEC-1).
///
/// # Errors
/// [`TlsError::Unusable`] when TLS can't be set up.
pub fn server(tls: &TlsMaterial) -> Result<Server, TlsError> {
    Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .tls_config(tls.server_config())
        .map_err(|why| TlsError::Unusable(why.to_string()))
}

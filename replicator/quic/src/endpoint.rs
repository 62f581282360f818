//! The QUIC endpoints of a node: one that listens, one that dials, both tuned alike.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use s2n_quic::provider::congestion_controller::{Bbr, Cubic};
use s2n_quic::provider::io::tokio::Provider as Io;
use s2n_quic::provider::limits::Limits;
use s2n_quic::provider::tls::rustls as quic_tls;
use s2n_quic::{Client, Server};

use crate::tls::{Peers, Tls};
use crate::{Congestion, StartError, Transport};

/// The most streams of one connection: both lanes of every shard of the largest cluster that is tested, twice.
const STREAMS_MAX: u64 = 1024;

/// The kernel's buffers: at 400 Mbit/s a thread that is not scheduled for 80 ms misses 4 MiB.
const SOCKET_BYTES: usize = 4 << 20;

fn limits(transport: &Transport) -> Result<Limits, StartError> {
    let window = transport.window_bytes as u64;
    let idle = Duration::from_millis(transport.idle_timeout_ms.max(100));
    let send_buffer = u32::try_from(transport.window_bytes).unwrap_or(u32::MAX);
    // A lane that its sink does not drain fills its own window, and leaves as much to the others.
    Limits::new()
        .with_data_window(window.saturating_mul(2).min(u32::MAX.into()))
        .and_then(|limits| limits.with_bidirectional_local_data_window(window))
        .and_then(|limits| limits.with_bidirectional_remote_data_window(window))
        .and_then(|limits| limits.with_max_send_buffer_size(send_buffer))
        .and_then(|limits| limits.with_max_open_local_bidirectional_streams(STREAMS_MAX))
        .and_then(|limits| limits.with_max_open_remote_bidirectional_streams(STREAMS_MAX))
        .and_then(|limits| limits.with_max_idle_timeout(idle))
        .and_then(|limits| limits.with_max_keep_alive_period(idle / 4))
        .and_then(|limits| limits.with_max_handshake_duration(idle))
        .map_err(|why| StartError::Options(format!("transport: {why}")))
}

fn io(address: SocketAddr) -> Result<Io, StartError> {
    let io = || {
        Io::builder()
            .with_receive_address(address)?
            .with_send_buffer_size(SOCKET_BYTES)?
            .with_recv_buffer_size(SOCKET_BYTES)?
            .with_internal_recv_buffer_size(SOCKET_BYTES)?
            .with_internal_send_buffer_size(SOCKET_BYTES / 4)?
            .build()
    };
    io().map_err(|why| StartError::Bind { address, reason: why.to_string() })
}

/// The endpoint that listens on `address`.
pub(crate) fn listen(address: SocketAddr, tls: &Tls, transport: &Transport) -> Result<Server, StartError> {
    let failed = |why: &dyn std::fmt::Display| StartError::Bind { address, reason: why.to_string() };
    let builder = Server::builder()
        .with_tls(quic_tls::Server::from(tls.server.clone()))
        .map_err(|why| failed(&why))?
        .with_limits(limits(transport)?)
        .map_err(|why| failed(&why))?
        .with_event(Peers)
        .map_err(|why| failed(&why))?
        .with_io(io(address)?)
        .map_err(|why| failed(&why))?;
    match transport.congestion {
        Congestion::Bbr => builder.with_congestion_controller(Bbr::default()).map_err(|why| failed(&why))?.start(),
        Congestion::Cubic => builder.with_congestion_controller(Cubic::default()).map_err(|why| failed(&why))?.start(),
    }
    .map_err(|why| failed(&why))
}

/// The endpoint that dials, from any port of the same address family as `listen`.
pub(crate) fn dialler(listen: SocketAddr, tls: &Tls, transport: &Transport) -> Result<Client, StartError> {
    let address: SocketAddr = match listen {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let failed = |why: &dyn std::fmt::Display| StartError::Bind { address, reason: why.to_string() };
    let builder = Client::builder()
        .with_tls(quic_tls::Client::from(tls.client.clone()))
        .map_err(|why| failed(&why))?
        .with_limits(limits(transport)?)
        .map_err(|why| failed(&why))?
        .with_event(Peers)
        .map_err(|why| failed(&why))?
        .with_io(io(address)?)
        .map_err(|why| failed(&why))?;
    match transport.congestion {
        Congestion::Bbr => builder.with_congestion_controller(Bbr::default()).map_err(|why| failed(&why))?.start(),
        Congestion::Cubic => builder.with_congestion_controller(Cubic::default()).map_err(|why| failed(&why))?.start(),
    }
    .map_err(|why| failed(&why))
}

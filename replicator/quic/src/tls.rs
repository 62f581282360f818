//! Mutual TLS 1.3 for QUIC, and whom the peer's certificate names. Keeps SEC-1: without a certificate of the
//! cluster's authority no connection is made, and what a peer claims later is held against its certificate.

use std::sync::Arc;
use std::time::Instant;

use meridian_proto::identity::Identity;
use meridian_replicator_core::message::ToTarget;
use meridian_types::{Lack, NodeName, RegionName};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use s2n_quic::connection::Handle;
use s2n_quic::provider::event::{ConnectionInfo, ConnectionMeta, Subscriber, events};

use crate::StartError;

/// What both ends may offer, the newest first: the newest that both do is spoken.
const PROTOCOLS: [&[u8]; 3] = [NAMING, EXPOSING, b"meridian-replication/1"];

/// Since this one, a source says what is lacking at the target.
const EXPOSING: &[u8] = b"meridian-replication/2";

/// Since this one, it names keys with that.
const NAMING: &[u8] = b"meridian-replication/3";

/// The node's certificate and key, and the authority that signs every node's. PEM.
#[derive(Clone)]
pub struct TlsPem {
    /// The certificate authority.
    pub ca: Vec<u8>,
    /// This node's certificate chain.
    pub cert: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
}

/// Both ends' configurations, and whom our own certificate names.
pub(crate) struct Tls {
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) region: RegionName,
    pub(crate) node: NodeName,
}

impl Tls {
    pub(crate) fn new(pem: &TlsPem) -> Result<Tls, StartError> {
        let unusable = |what: &str, why: &dyn std::fmt::Display| StartError::Tls(format!("{what}: {why}"));
        let mut roots = RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(&pem.ca) {
            let authority = authority.map_err(|why| unusable("the authority is not PEM", &why))?;
            roots.add(authority).map_err(|why| unusable("the authority can't be trusted", &why))?;
        }
        let roots = Arc::new(roots);
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem.cert)
            .collect::<Result<_, _>>()
            .map_err(|why| unusable("the certificate is not PEM", &why))?;
        let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|why| unusable("the key is not PEM", &why))?;
        let leaf = chain.first().ok_or_else(|| unusable("the certificate file", &"it is empty"))?;
        let (region, node) = match Identity::of_certificate(leaf) {
            Ok(Identity::Node { region, name }) => (region, name),
            Ok(Identity::Client { name }) => return Err(unusable("it is a client's, not a node's", &name)),
            Err(why) => return Err(unusable("it names nobody", &why)),
        };

        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|why| unusable("the authority can't verify peers", &why))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|why| unusable("TLS 1.3 is not available", &why))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|why| unusable("the certificate and key don't fit together", &why))?;
        server.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|why| unusable("TLS 1.3 is not available", &why))?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(|why| unusable("the certificate and key don't fit together", &why))?;
        client.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(Tls { server: Arc::new(server), client: Arc::new(client), region, node })
    }
}

/// Remembers of each connection who the peer is, for s2n-quic shows its certificate only while the handshake completes, and when it was
/// last heard.
pub(crate) struct Peers;

/// The other end of a connection.
#[derive(Default)]
pub(crate) struct Peer {
    /// Its leaf certificate, DER.
    certificate: Option<Vec<u8>>,
    heard: Option<Instant>,
}

impl Subscriber for Peers {
    type ConnectionContext = Peer;

    fn create_connection_context(&mut self, _: &ConnectionMeta, _: &ConnectionInfo<'_>) -> Peer {
        Peer::default()
    }

    /// Of a packet that could be decrypted: whoever sent it holds the connection's keys.
    fn on_packet_received(&mut self, peer: &mut Peer, _: &ConnectionMeta, _: &events::PacketReceived) {
        peer.heard = Some(Instant::now());
    }

    fn on_tls_exporter_ready(&mut self, peer: &mut Peer, _: &ConnectionMeta, event: &events::TlsExporterReady<'_>) {
        peer.certificate = event.session.peer_cert_chain_der().ok().and_then(|chain| chain.into_iter().next());
    }
}

/// What a peer understands of what is said to be lacking there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exposing {
    /// Figures.
    Figures,
    /// Figures and keys.
    Keys,
}

impl Exposing {
    /// `None` when the peer understands nothing of it.
    pub(crate) fn over(connection: &Handle) -> Option<Exposing> {
        connection.application_protocol().ok().and_then(|protocol| Exposing::of(&protocol))
    }

    fn of(protocol: &[u8]) -> Option<Exposing> {
        match protocol {
            EXPOSING => Some(Exposing::Figures),
            NAMING => Some(Exposing::Keys),
            _ => None,
        }
    }

    /// As much of what is lacking as the peer understands.
    pub(crate) fn message(self, mut lacks: Vec<Lack>) -> ToTarget {
        match self {
            Exposing::Figures => lacks.iter_mut().for_each(|lack| lack.oldest_key = None),
            Exposing::Keys => {}
        }
        ToTarget::Exposed(lacks)
    }
}

/// How long ago anything came from the peer, in milliseconds; `None` of a connection that is over.
pub(crate) fn heard_ms(connection: &Handle) -> Option<u64> {
    let heard = connection.query_event_context(|peer: &Peer| peer.heard).ok().flatten()?;
    Some(u64::try_from(heard.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// The node that the peer's certificate names.
///
/// # Errors
/// A sentence for the peer and the log.
pub(crate) fn peer_of(connection: &Handle) -> Result<(RegionName, NodeName), String> {
    let der = connection.query_event_context(|peer: &Peer| peer.certificate.clone()).ok().flatten();
    let der = der.ok_or("the connection has no peer certificate")?;
    match Identity::of_certificate(&der) {
        Ok(Identity::Node { region, name }) => Ok((region, name)),
        Ok(Identity::Client { name }) => Err(format!("the certificate is of the client `{name}`, not of a node")),
        Err(why) => Err(why.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{BucketId, Exposure, KeyStart};

    use super::*;

    #[test]
    fn a_peer_of_an_older_release_is_told_nothing_that_it_does_not_understand() {
        let lack = Lack { bucket: BucketId(1), exposure: Exposure::default(), oldest_key: KeyStart::of(b"k") };
        let version =
            |protocol| Exposing::of(protocol).map(|it: Exposing| it.message(vec![lack.clone()]).encode().0[4]);
        assert_eq!(PROTOCOLS.map(version), [Some(3), Some(2), None]);
    }
}

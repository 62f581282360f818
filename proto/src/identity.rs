//! Who is at the other end: the name in a certificate (SEC-1).
//!
//! A certificate of the cluster's CA carries exactly one URI `meridian://node/<region>/<node>` or
//! `meridian://client/<name>` among its subject alternative names. TLS proves that the peer holds the
//! certificate; this file only reads whose it is.

use std::fmt;
use std::str::FromStr;

use meridian_types::{NodeId, NodeName, Refusal, RefusalKind, RegionName};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The name that every server certificate carries and every client asks for: addresses change, this doesn't.
pub const TLS_SERVER_NAME: &str = "meridian";

const SCHEME: &str = "meridian://";

/// The longest client name, in bytes: it is recorded with what the client did.
pub const CLIENT_NAME_BYTES_MAX: usize = 128;

/// Whom a certificate names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A node: it may speak for its region and for itself, for no other.
    Node {
        /// Its region.
        region: RegionName,
        /// Its name.
        name: NodeName,
    },
    /// A client or an operator.
    Client {
        /// Its name: 1 to [`CLIENT_NAME_BYTES_MAX`] printable characters without `/`.
        name: String,
    },
}

/// Why a certificate names nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not DER, or not X.509.
    #[error("the certificate is damaged: issue a new one with `meridian cert`")]
    Damaged,
    /// No URI of ours.
    #[error(
        "the certificate has no `meridian://` URI among its alternative names: issue it with `meridian cert node` or `meridian cert client`"
    )]
    Missing,
    /// Several URIs of ours.
    #[error("the certificate has more than one `meridian://` URI: it must name exactly one node or client")]
    Ambiguous,
    /// A URI of ours that names neither a node nor a client.
    #[error(
        "the certificate's name `{0}` is not valid: use meridian://node/<region>/<node> or meridian://client/<name>"
    )]
    Malformed(String),
}

impl Identity {
    /// A client's identity.
    ///
    /// # Errors
    /// [`IdentityError::Malformed`] when the name is empty, too long, or has a `/` or a control character.
    pub fn client(name: &str) -> Result<Identity, IdentityError> {
        let printable = name.chars().all(|c| c != '/' && !c.is_control());
        if name.is_empty() || name.len() > CLIENT_NAME_BYTES_MAX || !printable {
            let shown: String = name.chars().filter(|c| !c.is_control()).take(CLIENT_NAME_BYTES_MAX).collect();
            return Err(IdentityError::Malformed(format!("{SCHEME}client/{shown}")));
        }
        Ok(Identity::Client { name: name.to_owned() })
    }

    /// The node's id, or `None` for a client.
    pub fn node_id(&self) -> Option<NodeId> {
        match self {
            Identity::Node { name, .. } => Some(NodeId::of(name)),
            Identity::Client { .. } => None,
        }
    }

    /// The URI that a certificate carries for it.
    pub fn uri(&self) -> String {
        match self {
            Identity::Node { region, name } => format!("{SCHEME}node/{region}/{name}"),
            Identity::Client { name } => format!("{SCHEME}client/{name}"),
        }
    }

    /// Whom this certificate names.
    ///
    /// # Errors
    /// [`IdentityError`] when it names nobody, or more than one.
    pub fn of_certificate(der: &[u8]) -> Result<Identity, IdentityError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Damaged)?;
        let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Damaged)?;
        let mut ours = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
            _ => None,
        });
        let uri = ours.next().ok_or(IdentityError::Missing)?;
        if ours.next().is_some() {
            return Err(IdentityError::Ambiguous);
        }
        uri.parse()
    }

    /// Whom the peer of a gRPC request is, from its TLS certificate.
    ///
    /// # Errors
    /// [`RefusalKind::Denied`] without a certificate, or with one that names nobody.
    pub fn of_request<T>(request: &tonic::Request<T>) -> Result<Identity, Refusal> {
        let certificates = request.peer_certs();
        let leaf = certificates.as_ref().and_then(|chain| chain.first()).ok_or_else(|| {
            Refusal::new(
                RefusalKind::Denied,
                "the connection has no client certificate: connect with one issued by the cluster's CA",
            )
        })?;
        Identity::of_certificate(leaf).map_err(|why| Refusal::new(RefusalKind::Denied, why.to_string()))
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Identity, IdentityError> {
        let malformed = || IdentityError::Malformed(uri.chars().filter(|c| !c.is_control()).take(256).collect());
        let path = uri.strip_prefix(SCHEME).ok_or_else(malformed)?;
        match path.split('/').collect::<Vec<_>>().as_slice() {
            ["node", region, name] => Ok(Identity::Node {
                region: RegionName::new(region).map_err(|_| malformed())?,
                name: NodeName::new(name).map_err(|_| malformed())?,
            }),
            ["client", name] => Identity::client(name).map_err(|_| malformed()),
            _ => Err(malformed()),
        }
    }
}

/// The URI: what is recorded as `who`.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.uri())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(uris: &[&str]) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(vec!["meridian".to_owned()])?;
        for uri in uris {
            params.subject_alt_names.push(rcgen::SanType::URI((*uri).try_into()?));
        }
        Ok(params.self_signed(&key)?.der().to_vec())
    }

    #[test]
    fn a_certificate_names_its_node_or_client() -> Result<(), Box<dyn std::error::Error>> {
        let node = Identity::of_certificate(&certificate(&["meridian://node/eu-west/eu-west-1"])?)?;
        assert_eq!(node.uri(), "meridian://node/eu-west/eu-west-1");
        assert_eq!(node.node_id(), Some(NodeId::of(&NodeName::new("eu-west-1")?)));
        let client = Identity::of_certificate(&certificate(&["https://else.where", "meridian://client/alice"])?)?;
        assert_eq!(client, Identity::client("alice")?);
        assert_eq!(client.node_id(), None);
        Ok(())
    }

    #[test]
    fn a_certificate_that_names_nobody_or_two_is_refused() -> Result<(), Box<dyn std::error::Error>> {
        assert_eq!(Identity::of_certificate(b"not der"), Err(IdentityError::Damaged));
        assert_eq!(Identity::of_certificate(&certificate(&[])?), Err(IdentityError::Missing));
        let two = certificate(&["meridian://client/a", "meridian://client/b"])?;
        assert_eq!(Identity::of_certificate(&two), Err(IdentityError::Ambiguous));
        for bad in ["meridian://node/eu-west", "meridian://node/EU/x", "meridian://client/", "meridian://king/x"] {
            let refused = Identity::of_certificate(&certificate(&[bad])?);
            assert!(matches!(refused, Err(IdentityError::Malformed(_))), "{bad}: {refused:?}");
        }
        Ok(())
    }

    #[test]
    fn a_request_without_a_certificate_is_denied() {
        let refused = Identity::of_request(&tonic::Request::new(())).expect_err("no certificate");
        assert_eq!(refused.kind, RefusalKind::Denied);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_an_identity_or_a_clear_error(uri in "(meridian://)?[a-z/]{0,20}.{0,5}") {
            if let Ok(identity) = uri.parse::<Identity>() {
                proptest::prop_assert_eq!(identity.uri(), uri);
            }
        }
    }
}

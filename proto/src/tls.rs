//! Certificates and keys: loaded once, checked at the door, so that a bad file is reported by name at the
//! start instead of as a failed handshake later (SEC-1).

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use tonic::transport::{Certificate, ClientTlsConfig, ServerTlsConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{Identity, IdentityError, TLS_SERVER_NAME};

/// The largest certificate or key file read, in bytes.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// A peer that has not finished its handshake by then is dropped: three round trips of 120 ms with room for losses.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the three PEM files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The cluster's CA certificate (or several, while it is being rotated).
    pub ca: PathBuf,
    /// This side's certificate, followed by intermediates if there are any.
    pub cert: PathBuf,
    /// Its private key, unencrypted.
    pub key: PathBuf,
}

/// The three PEMs, checked against each other.
#[derive(Clone)]
pub struct TlsMaterial {
    ca_pem: Arc<[u8]>,
    cert_pem: Arc<[u8]>,
    key_pem: Arc<[u8]>,
    identity: Identity,
    not_after_unix_s: i64,
}

/// Why TLS can't be set up. Every message names the file and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("cannot read {what} `{path}`: check the path and its permissions, or create it with `meridian cert`")]
    Unreadable {
        /// Which of the three.
        what: Part,
        /// Its path.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Nothing of the kind in the file.
    #[error("{what} `{path}` is not PEM: it holds no `{expected}` section")]
    NotPem {
        /// Which of the three.
        what: Part,
        /// Its path.
        path: String,
        /// The section looked for.
        expected: &'static str,
    },
    /// PEM, but not X.509 inside.
    #[error("{what} `{path}` is damaged: its PEM holds no X.509 certificate")]
    Damaged {
        /// Which of the three.
        what: Part,
        /// Its path.
        path: String,
    },
    /// Out of date.
    #[error("{what} `{path}` expired {expired}: issue a new one with `meridian cert`")]
    Expired {
        /// Which of the three.
        what: Part,
        /// Its path.
        path: String,
        /// When.
        expired: String,
    },
    /// Not valid yet: mostly a wrong clock.
    #[error("{what} `{path}` is not valid before {from}: check this machine's clock")]
    NotYetValid {
        /// Which of the three.
        what: Part,
        /// Its path.
        path: String,
        /// From when.
        from: String,
    },
    /// The key is another certificate's.
    #[error(
        "the key `{key}` does not belong to the certificate `{cert}`: pass the pair that `meridian cert` wrote together"
    )]
    KeyMismatch {
        /// The certificate's path.
        cert: String,
        /// The key's path.
        key: String,
    },
    /// A kind of key that can't be used.
    #[error("the key `{key}` cannot be used: it must be an unencrypted RSA, ECDSA or Ed25519 key in PKCS#8")]
    UnusableKey {
        /// The key's path.
        key: String,
    },
    /// Another CA signed it, or it doesn't allow being used as a peer.
    #[error(
        "the certificate `{cert}` is not accepted by the CA `{ca}` ({why}): use a certificate of this cluster's CA"
    )]
    NotSignedByCa {
        /// The certificate's path.
        cert: String,
        /// The CA's path.
        ca: String,
        /// What the check said.
        why: String,
    },
    /// It names nobody of ours.
    #[error("the certificate `{cert}` does not say whose it is")]
    NoIdentity {
        /// The certificate's path.
        cert: String,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// No address.
    #[error("`{0}` is not an address: use https://host:port")]
    Address(String),
    /// The TLS library refused it.
    #[error("TLS cannot be set up: {0}")]
    Unusable(String),
}

/// One of the three PEMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The CA's certificate.
    Ca,
    /// This side's certificate.
    Certificate,
    /// Its key.
    Key,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Ca => "the CA certificate",
            Part::Certificate => "the certificate",
            Part::Key => "the key",
        })
    }
}

impl TlsFiles {
    /// Names the three files.
    pub fn new(ca: impl Into<PathBuf>, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> TlsFiles {
        TlsFiles { ca: ca.into(), cert: cert.into(), key: key.into() }
    }

    /// Reads and checks them.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what is wrong with it.
    pub fn load(&self) -> Result<TlsMaterial, TlsError> {
        let pems = [read(Part::Ca, &self.ca)?, read(Part::Certificate, &self.cert)?, read(Part::Key, &self.key)?];
        let shown = |path: &Path| path.display().to_string();
        TlsMaterial::check(pems, [shown(&self.ca), shown(&self.cert), shown(&self.key)])
    }
}

impl TlsMaterial {
    /// Takes PEMs that are in memory already; checked as [`TlsFiles::load`] does.
    ///
    /// # Errors
    /// [`TlsError`] says what is wrong with which part.
    pub fn from_pem(ca: &[u8], cert: &[u8], key: &[u8]) -> Result<TlsMaterial, TlsError> {
        let given = || "(given in memory)".to_owned();
        TlsMaterial::check([ca.to_vec(), cert.to_vec(), key.to_vec()], [given(), given(), given()])
    }

    /// The CA's PEM.
    pub fn ca_pem(&self) -> &[u8] {
        &self.ca_pem
    }

    /// The certificate's PEM, with intermediates.
    pub fn cert_pem(&self) -> &[u8] {
        &self.cert_pem
    }

    /// The key's PEM. Secret.
    pub fn key_pem(&self) -> &[u8] {
        &self.key_pem
    }

    /// Whom the certificate names.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When the certificate expires, in seconds since 1970: for the warning before it does.
    pub fn not_after_unix_s(&self) -> i64 {
        self.not_after_unix_s
    }

    /// TLS for a side that connects: shows its certificate, accepts servers of the same CA only.
    pub fn client_config(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .domain_name(TLS_SERVER_NAME)
            .timeout(HANDSHAKE_TIMEOUT)
            .ca_certificate(Certificate::from_pem(&self.ca_pem))
            .identity(tonic::transport::Identity::from_pem(&self.cert_pem, &self.key_pem))
    }

    /// TLS for a side that listens: a certificate of the same CA is required of every peer.
    pub fn server_config(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(tonic::transport::Identity::from_pem(&self.cert_pem, &self.key_pem))
            .client_ca_root(Certificate::from_pem(&self.ca_pem))
            .client_auth_optional(false)
            .timeout(HANDSHAKE_TIMEOUT)
    }

    fn check(pems: [Vec<u8>; 3], paths: [String; 3]) -> Result<TlsMaterial, TlsError> {
        let [ca_pem, cert_pem, key_pem] = pems;
        let [ca_path, cert_path, key_path] = paths;
        let authorities = certificates(Part::Ca, &ca_pem, &ca_path)?;
        let chain = certificates(Part::Certificate, &cert_pem, &cert_path)?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| TlsError::NotPem {
            what: Part::Key,
            path: key_path.clone(),
            expected: "PRIVATE KEY",
        })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        for authority in &authorities {
            check_dates(Part::Ca, &ca_path, authority, now_s)?;
        }
        // `certificates` never returns an empty chain.
        let (leaf, intermediates) = chain
            .split_first()
            .ok_or_else(|| TlsError::Damaged { what: Part::Certificate, path: cert_path.clone() })?;
        let not_after_unix_s = check_dates(Part::Certificate, &cert_path, leaf, now_s)?;
        check_key(&chain, key, &cert_path, &key_path)?;
        check_chain(authorities, leaf, intermediates).map_err(|why| TlsError::NotSignedByCa {
            cert: cert_path.clone(),
            ca: ca_path,
            why,
        })?;
        let identity =
            Identity::of_certificate(leaf).map_err(|source| TlsError::NoIdentity { cert: cert_path, source })?;
        Ok(TlsMaterial {
            ca_pem: ca_pem.into(),
            cert_pem: cert_pem.into(),
            key_pem: key_pem.into(),
            identity,
            not_after_unix_s,
        })
    }
}

/// Never shows the key.
impl fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsMaterial").field("identity", &self.identity.uri()).finish_non_exhaustive()
    }
}

fn read(what: Part, path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { what, path: path.display().to_string(), source };
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > PEM_BYTES_MAX {
        return Err(unreadable(std::io::Error::other(format!("it has {length} bytes, more than any PEM needs"))));
    }
    std::fs::read(path).map_err(unreadable)
}

fn certificates(what: Part, pem: &[u8], path: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let not_pem = || TlsError::NotPem { what, path: path.to_owned(), expected: "CERTIFICATE" };
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| not_pem())?;
    if found.is_empty() { Err(not_pem()) } else { Ok(found) }
}

/// Returns when it expires, in seconds since 1970.
fn check_dates(what: Part, path: &str, der: &[u8], now_s: i64) -> Result<i64, TlsError> {
    let damaged = |_| TlsError::Damaged { what, path: path.to_owned() };
    let (_, certificate) = X509Certificate::from_der(der).map_err(damaged)?;
    let validity = certificate.validity();
    if now_s < validity.not_before.timestamp() {
        return Err(TlsError::NotYetValid { what, path: path.to_owned(), from: validity.not_before.to_string() });
    }
    if now_s > validity.not_after.timestamp() {
        return Err(TlsError::Expired { what, path: path.to_owned(), expired: validity.not_after.to_string() });
    }
    Ok(validity.not_after.timestamp())
}

fn check_key(
    chain: &[CertificateDer<'static>],
    key: PrivateKeyDer<'static>,
    cert_path: &str,
    key_path: &str,
) -> Result<(), TlsError> {
    match CertifiedKey::from_der(chain.to_vec(), key, &provider()) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(TlsError::KeyMismatch { cert: cert_path.to_owned(), key: key_path.to_owned() })
        }
        Err(_) => Err(TlsError::UnusableKey { key: key_path.to_owned() }),
    }
}

/// What every server of the cluster will do with this certificate, done now. `Err` is the library's reason.
fn check_chain(
    authorities: Vec<CertificateDer<'static>>,
    leaf: &CertificateDer<'static>,
    intermediates: &[CertificateDer<'static>],
) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority).map_err(|why| why.to_string())?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(provider()))
        .build()
        .map_err(|why| why.to_string())?;
    verifier.verify_client_cert(leaf, intermediates, UnixTime::now()).map_err(|why| why.to_string())?;
    Ok(())
}

fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

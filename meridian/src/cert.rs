//! Certificates: the cluster's CA, and who its nodes and clients are (SEC-1).
//!
//! ECDSA P-256. A certificate names its holder in one URI, `meridian://node/<region>/<name>` or
//! `meridian://client/<name>`, which the other side checks; node certificates also carry the DNS name
//! `meridian`, which every client asks for, so that addresses may change without new certificates.
//! Keys are written with mode 0600, and nothing is ever overwritten.
//!
//! Not here: revocation and rotation under load; a CA file may hold two CAs while one replaces the other.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use meridian_proto::identity::{Identity, TLS_SERVER_NAME};
use meridian_proto::tls::TlsFiles;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};

/// How long a CA is valid unless told otherwise: ten years.
pub const CA_VALIDITY: Duration = Duration::from_secs(3650 * DAY_S);

/// How long a node's or client's certificate is valid unless told otherwise: 825 days, what TLS stacks commonly accept at most.
pub const VALIDITY: Duration = Duration::from_secs(825 * DAY_S);

const DAY_S: u64 = 86_400;

/// Certificates begin this long in the past, for machines whose clocks are behind.
const BACKDATED: Duration = Duration::from_secs(3600);

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// There is one already.
    #[error("`{0}` exists already and is never overwritten: move it away first, or choose another --dir")]
    Exists(PathBuf),
    /// A file can't be read or written.
    #[error("cannot {what} `{path}`: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No CA to sign with.
    #[error("`{0}` holds no CA (ca.pem and ca-key.pem): run `meridian cert init` there first")]
    NoAuthority(PathBuf),
    /// A name that can't stand in a certificate, or a damaged CA.
    #[error("the certificate cannot be made: {0}")]
    Refused(#[from] rcgen::Error),
}

/// A CA that can sign.
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Creates a CA in `dir`: `ca.pem` and `ca-key.pem`.
    ///
    /// # Errors
    /// [`CertError::Exists`] when there is one already.
    pub fn create(dir: &Path, cluster: &str, validity: Duration) -> Result<Authority, CertError> {
        std::fs::create_dir_all(dir).map_err(|source| io("create", dir, source))?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(&format!("Meridian CA of {cluster}"), validity);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        write_pair(&dir.join("ca.pem"), &certificate.pem(), &dir.join("ca-key.pem"), &key.serialize_pem())?;
        Ok(Authority { dir: dir.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// Opens the CA in `dir`.
    ///
    /// # Errors
    /// [`CertError::NoAuthority`] when there is none.
    pub fn open(dir: &Path) -> Result<Authority, CertError> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).map_err(|source| match source.kind() {
                std::io::ErrorKind::NotFound => CertError::NoAuthority(dir.to_owned()),
                _ => io("read", &path, source),
            })
        };
        let key = KeyPair::from_pem(&read("ca-key.pem")?)?;
        let issuer = Issuer::from_ca_cert_pem(&read("ca.pem")?, key)?;
        Ok(Authority { dir: dir.to_owned(), issuer })
    }

    /// Issues a certificate for a node or a client: `<stem>.pem` and `<stem>-key.pem` beside the CA.
    /// `hosts` are further DNS names or IP addresses, for tools that insist on the address they dialled.
    ///
    /// # Errors
    /// [`CertError::Exists`] when either file is there already.
    pub fn issue(
        &self,
        identity: &Identity,
        hosts: &[String],
        validity: Duration,
        stem: &str,
    ) -> Result<TlsFiles, CertError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(&identity.uri(), validity);
        params.subject_alt_names = alternative_names(identity, hosts)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if identity.node_id().is_some() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let certificate = params.signed_by(&key, &self.issuer)?;
        let files = TlsFiles::new(
            self.dir.join("ca.pem"),
            self.dir.join(format!("{stem}.pem")),
            self.dir.join(format!("{stem}-key.pem")),
        );
        write_pair(&files.cert, &certificate.pem(), &files.key, &key.serialize_pem())?;
        Ok(files)
    }
}

fn params(common_name: &str, validity: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + validity).into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    // X.520 bounds a common name to 64 characters; nobody reads it but people.
    params.distinguished_name.push(DnType::CommonName, common_name.chars().take(64).collect::<String>());
    params
}

fn alternative_names(identity: &Identity, hosts: &[String]) -> Result<Vec<SanType>, rcgen::Error> {
    let mut names = vec![SanType::URI(identity.uri().try_into()?)];
    if identity.node_id().is_some() {
        names.push(SanType::DnsName(TLS_SERVER_NAME.try_into()?));
    }
    for host in hosts {
        names.push(match host.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(host.as_str().try_into()?),
        });
    }
    Ok(names)
}

/// Writes both or says why not; looks at both before it writes either.
fn write_pair(cert: &Path, cert_pem: &str, key: &Path, key_pem: &str) -> Result<(), CertError> {
    for path in [cert, key] {
        if path.exists() {
            return Err(CertError::Exists(path.to_owned()));
        }
    }
    write_new(key, key_pem, 0o600)?;
    write_new(cert, cert_pem, 0o644)
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), CertError> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(
        |source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => CertError::Exists(path.to_owned()),
            _ => io("create", path, source),
        },
    )?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|source| io("write", path, source))
}

fn io(what: &'static str, path: &Path, source: std::io::Error) -> CertError {
    CertError::Io { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use meridian_types::{NodeName, RegionName};

    use super::*;

    fn node() -> Identity {
        Identity::Node { region: RegionName::new("eu-west").unwrap(), name: NodeName::new("eu-west-1").unwrap() }
    }

    #[test]
    fn what_is_issued_loads_and_names_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), "test", CA_VALIDITY).unwrap();
        let hosts = ["10.0.0.1".to_owned(), "db.example".to_owned()];
        let files = authority.issue(&node(), &hosts, VALIDITY, "eu-west-1").unwrap();
        // Loading checks the chain, the dates and that key and certificate belong together.
        assert_eq!(*files.load().unwrap().identity(), node());
        let reopened = Authority::open(dir.path()).unwrap();
        let client = Identity::client("alice").unwrap();
        let files = reopened.issue(&client, &[], VALIDITY, "alice").unwrap();
        assert_eq!(*files.load().unwrap().identity(), client);
    }

    #[test]
    fn keys_are_private_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), "test", CA_VALIDITY).unwrap();
        let files = authority.issue(&node(), &[], VALIDITY, "n").unwrap();
        for key in [dir.path().join("ca-key.pem"), files.key.clone()] {
            assert_eq!(std::fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let before = std::fs::read(&files.cert).unwrap();
        assert!(matches!(authority.issue(&node(), &[], VALIDITY, "n"), Err(CertError::Exists(_))));
        assert!(matches!(Authority::create(dir.path(), "test", CA_VALIDITY), Err(CertError::Exists(_))));
        assert_eq!(std::fs::read(&files.cert).unwrap(), before);
    }

    #[test]
    fn without_a_ca_the_message_says_how_to_make_one() {
        let dir = tempfile::tempdir().unwrap();
        let Err(error) = Authority::open(dir.path()) else { panic!("there is no CA here") };
        assert!(error.to_string().contains("meridian cert init"), "{error}");
    }

    #[test]
    fn an_expired_certificate_is_refused_by_name_when_it_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), "test", CA_VALIDITY).unwrap();
        let files = authority.issue(&node(), &[], Duration::ZERO, "old").unwrap();
        std::thread::sleep(Duration::from_millis(1100));
        let error = files.load().expect_err("it has expired");
        assert!(error.to_string().contains("old.pem"), "{error}");
    }
}

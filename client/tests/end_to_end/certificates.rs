//! A CA of the test's own, and whatever it signs.

use meridian_client::TlsMaterial;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

pub(crate) struct Authority {
    pub(crate) pem: String,
    params: CertificateParams,
    key: KeyPair,
}

/// The PEMs of a certificate and its key.
pub(crate) struct Issued {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> anyhow::Result<Authority> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Authority { pem: params.self_signed(&key)?.pem(), params, key })
    }

    pub(crate) fn issue(&self, uri: &str, change: impl FnOnce(&mut CertificateParams)) -> anyhow::Result<Issued> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec!["meridian".to_owned()])?;
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        change(&mut params);
        let cert = params.signed_by(&key, &Issuer::from_params(&self.params, &self.key))?.pem();
        Ok(Issued { cert, key: key.serialize_pem() })
    }

    pub(crate) fn material(&self, uri: &str) -> anyhow::Result<TlsMaterial> {
        let issued = self.issue(uri, |_| {})?;
        Ok(TlsMaterial::from_pem(self.pem.as_bytes(), issued.cert.as_bytes(), issued.key.as_bytes())?)
    }

    pub(crate) fn node(&self) -> anyhow::Result<TlsMaterial> {
        self.material("meridian://node/us-east/us-east-1")
    }

    pub(crate) fn client(&self) -> anyhow::Result<TlsMaterial> {
        self.material("meridian://client/alice")
    }
}

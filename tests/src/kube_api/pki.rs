//! The server's CA and certificate, and what it signs.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

/// All of it.
#[derive(Debug)]
pub(super) struct Pki {
    key: KeyPair,
    pub(super) ca_pem: String,
    pub(super) admin_token: String,
    /// With the server's certificate; client certificates of the CA are taken.
    pub(super) tls: Arc<rustls::ServerConfig>,
}

impl Pki {
    pub(super) fn new(addresses: &[IpAddr]) -> Result<Self> {
        let key = KeyPair::generate()?;
        let ca = ca_params()?.self_signed(&key)?;
        let names: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let tls = Arc::new(server(&key, ca.der(), names)?);
        Ok(Self {
            key,
            ca_pem: ca.pem(),
            admin_token: format!("admin-{}", uuid::Uuid::new_v4().simple()),
            tls,
        })
    }

    /// Signs a kubelet's request: its subject stays.
    pub(super) fn sign(&self, request: &str) -> Result<String> {
        let mut asked = CertificateSigningRequestParams::from_pem(request)?;
        asked.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let issuer = Issuer::new(ca_params()?, &self.key);
        Ok(asked.signed_by(&issuer)?.pem())
    }
}

fn ca_params() -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params
        .distinguished_name
        .push(DnType::CommonName, "kubernetes");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    Ok(params)
}

fn server(
    ca_key: &KeyPair,
    ca: &CertificateDer<'static>,
    names: Vec<String>,
) -> Result<rustls::ServerConfig> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let leaf = params.signed_by(&key, &Issuer::new(ca_params()?, ca_key))?;
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = verifier.allow_unauthenticated().build()?;
    let der = PrivateKeyDer::try_from(key.serialize_der());
    let der = der
        .map_err(anyhow::Error::msg)
        .context("reading back a key")?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![leaf.der().clone()], der)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

//! Keys and certificates of a control plane, as files of PEM.

use anyhow::Result;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Of the API server.
pub(super) const PORT: u16 = 6443;

/// All of it.
#[derive(Debug)]
pub(super) struct Pki {
    pub(super) ca: String,
    pub(super) ca_key: String,
    pub(super) server: Leaf,
    pub(super) admin: Leaf,
    pub(super) controllers: Leaf,
    /// Of the tokens of service accounts.
    pub(super) accounts_key: String,
    pub(super) accounts_public: String,
}

/// A certificate of the CA, and its key.
#[derive(Debug)]
pub(super) struct Leaf {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Leaf {
    pub(super) fn pem(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }
}

impl Pki {
    pub(super) fn new(server: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let ca = authority()?.self_signed(&key)?;
        let issuer = Issuer::new(authority()?, &key);
        let leaf = |names: &[&str], name: &str, group: Option<&str>| -> Result<Leaf> {
            let key = KeyPair::generate()?;
            let names: Vec<_> = names.iter().copied().map(str::to_owned).collect();
            let mut params = CertificateParams::new(names)?;
            let subject = &mut params.distinguished_name;
            subject.push(DnType::CommonName, name);
            if let Some(group) = group {
                subject.push(DnType::OrganizationName, group);
            }
            params.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ClientAuth,
                ExtendedKeyUsagePurpose::ServerAuth,
            ];
            Ok(Leaf {
                certificate: params.signed_by(&key, &issuer)?.pem(),
                key: key.serialize_pem(),
            })
        };
        let names = [server, "127.0.0.1", "10.96.0.1", "kubernetes.default.svc"];
        let accounts = KeyPair::generate()?;
        Ok(Self {
            server: leaf(&names, "kube-apiserver", None)?,
            admin: leaf(&[], "kubernetes-admin", Some("system:masters"))?,
            controllers: leaf(&[], "system:kube-controller-manager", None)?,
            accounts_key: accounts.serialize_pem(),
            accounts_public: accounts.public_key_pem(),
            ca: ca.pem(),
            ca_key: key.serialize_pem(),
        })
    }

    /// A kubeconfig with everything in it.
    pub(super) fn kubeconfig(&self, url: &str, user: &Leaf) -> String {
        let [ca, certificate, key] =
            [&self.ca, &user.certificate, &user.key].map(|pem| BASE64_STANDARD.encode(pem));
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\nclusters:\n- name: lab\n  \
             cluster:\n    server: {url}\n    certificate-authority-data: {ca}\ncontexts:\n- \
             name: lab\n  context:\n    cluster: lab\n    user: user\nusers:\n- name: user\n  \
             user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n"
        )
    }
}

fn authority() -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    let subject = &mut params.distinguished_name;
    subject.push(DnType::CommonName, "kubernetes");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    Ok(params)
}

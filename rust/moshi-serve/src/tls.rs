//! TLS by rustls: the operator's certificate, or one made at the start.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::config::Tls;
use crate::error::ServeError;

/// What accepts connections, and a line for the operator about it.
pub(crate) struct Accepting {
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) note: String,
}

/// Prepares TLS; `None` when it is off.
pub(crate) fn accepting(tls: &Tls, host: IpAddr) -> Result<Option<Accepting>, ServeError> {
    let (chain, key, note) = match tls {
        Tls::Off => return Ok(None),
        Tls::SelfSigned => self_signed(host)?,
        Tls::Files { certificate, key } => {
            let chain = read(certificate, |pem| {
                CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()
            })?;
            if chain.is_empty() {
                return Err(bad_file(certificate, "holds no certificate in PEM".into()));
            }
            (chain, read(key, PrivateKeyDer::from_pem_slice)?, String::new())
        }
    };
    let wrong = |error: rustls::Error| {
        ServeError::Config(format!("certificate and key cannot be used: {error}"))
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(wrong)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(wrong)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(Accepting { acceptor: TlsAcceptor::from(Arc::new(config)), note }))
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, String);

fn self_signed(host: IpAddr) -> Result<Identity, ServeError> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !host.is_unspecified() && !host.is_loopback() {
        names.push(host.to_string());
    }
    if let Ok(name) = std::fs::read_to_string("/etc/hostname") {
        let name = name.trim();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
        if !name.is_empty() && name.bytes().all(plain) {
            names.push(name.to_owned());
        }
    }
    let made = rcgen::generate_simple_self_signed(names)
        .map_err(|error| ServeError::Config(format!("no self-signed certificate: {error}")))?;
    let certificate = made.cert.der().clone();
    let hash = Sha256::digest(&certificate);
    let pairs: Vec<String> = hash.iter().map(|byte| format!("{byte:02X}")).collect();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())
        .map_err(|reason| ServeError::Config(format!("no self-signed certificate: {reason}")))?;
    let note = format!(
        "self-signed certificate, new at every start; browsers warn once. SHA-256 {}",
        pairs.join(":")
    );
    Ok((vec![certificate], key, note))
}

fn read<T, E: std::fmt::Display>(
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, E>,
) -> Result<T, ServeError> {
    let bytes = std::fs::read(path).map_err(|error| bad_file(path, error.to_string()))?;
    parse(&bytes).map_err(|error| bad_file(path, format!("not usable: {error}")))
}

fn bad_file(path: &Path, reason: String) -> ServeError {
    ServeError::File { path: path.into(), reason }
}

/// For clients: the public roots, and with `extra` one more certificate in PEM.
pub(crate) fn connecting(extra: Option<&Path>) -> Result<TlsConnector, ServeError> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = extra {
        let certificate = read(path, CertificateDer::from_pem_slice)?;
        roots.add(certificate).map_err(|error| bad_file(path, error.to_string()))?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| ServeError::Config(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

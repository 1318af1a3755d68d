//! TLS for requests, with its own crypto provider. A provider for the whole process is the host program's choice, and
//! the clients of its other libraries would get it, too.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore, crypto};
use rustls_platform_verifier::Verifier;

/// The authorities that are trusted to certify a server.
pub(crate) enum Trust {
    /// None, for requests without TLS. A machine needs no certificate authorities for those.
    Nobody,
    /// The system's authorities and these.
    SystemAnd(Vec<CertificateDer<'static>>),
}

/// Returns the configuration of a client with this trust.
///
/// # Errors
///
/// When the system has no certificate authorities, or one of the certificates is malformed.
pub(crate) fn tls(trust: Trust) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match trust {
        Trust::Nobody => builder.with_root_certificates(RootCertStore::empty()),
        Trust::SystemAnd(roots) => {
            let verifier = Verifier::new_with_extra_roots(roots, provider)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let mut config = builder.with_no_client_auth();
    // Use HTTP/2 if the other side can: all stores then share one connection.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

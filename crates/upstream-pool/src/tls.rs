//! The one TLS provider of the process and the root certificates of upstream connections.

use std::io;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};

/// Makes ring the TLS provider of the whole process.
///
/// Call it first thing in `main`: other libraries panic when two providers are linked and none is
/// the default. A provider that is installed already stays.
pub fn install_crypto_provider() {
    // The only error is that one is installed already, which is what is wanted.
    if let Err(_installed) = ring::default_provider().install_default() {}
}

/// Reads the root certificates of the machine and builds a client configuration.
///
/// Blocking: it reads files. It takes memory that a relay without `https` upstreams never needs,
/// so it is called when the first such upstream is used.
pub(crate) fn load_client_config() -> io::Result<Arc<ClientConfig>> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // A machine often has some that are odd; one that can be used is enough to go on.
    let (valid, _odd) = roots.add_parsable_certificates(found.certs);
    if valid == 0 {
        let errors = found.errors;
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("there are no usable root certificates (errors: {errors:?})"),
        ));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

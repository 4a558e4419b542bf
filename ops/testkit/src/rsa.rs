//! RSA keys that were never published: an account outside the simulator refuses the keys of the test vectors.

use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, RsaKeySize, SerialNumber};

/// A key pair of 2048 bits.
pub struct RsaPair(KeyPair);

impl RsaPair {
    /// Generates a new one.
    ///
    /// # Panics
    /// When the library cannot create one.
    pub fn generate() -> RsaPair {
        RsaPair(KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key"))
    }

    /// The private key: PKCS#8 in PEM.
    pub fn private_pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// The public key: SPKI in PEM.
    pub fn public_pem(&self) -> String {
        self.0.public_key_pem()
    }

    /// A self-signed certificate of this key with these bytes as serial number.
    ///
    /// # Panics
    /// When the library cannot create one.
    pub fn certificate_pem(&self, serial: &[u8]) -> String {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(serial));
        params.self_signed(&self.0).expect("a certificate").pem()
    }
}

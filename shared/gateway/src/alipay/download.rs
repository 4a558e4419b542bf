//! Fetches the certificate that Alipay signs with now.
//!
//! Source: Alipay OpenAPI, `alipay.open.app.alipaycert.download`; the official Java SDK (`AbstractAlipayClient`,
//! certificate mode), read 2025-11-20.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use runtime::error_chain::chain;
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;
use tracing::{info, warn};

use crate::adapter::Gateway as _;
use crate::alipay::client::{Call, Failure, unsigned_error};
use crate::alipay::trust::is_sn;
use crate::alipay::{Alipay, answer, chain};
use crate::error::GatewayError;
use crate::keys::KeyNews;
use crate::words;

const METHOD: &str = "alipay.open.app.alipaycert.download";

/// The parts of the answer that we read. We need not know its signer yet, because the certificate's own chain is
/// checked.
#[derive(Deserialize)]
struct Whole {
    #[serde(rename = "alipay_open_app_alipaycert_download_response", alias = "error_response")]
    node: Node,
    alipay_cert_sn: Option<String>,
}

#[derive(Deserialize)]
struct Node {
    #[serde(flatten)]
    failure: Failure,
    alipay_cert_content: Option<String>,
}

impl Alipay {
    /// Requests a certificate that is known. The answer names the certificate that signs now; if that one is new,
    /// downloads it.
    pub(super) async fn refresh(&self, now: OffsetDateTime) -> Result<KeyNews, GatewayError> {
        let Some(certificates) = self.account.certificates() else { return Ok(KeyNews::Fixed) };
        let answer = self.request(&certificates.given.sn, now).await?;
        let Whole { node, alipay_cert_sn } = answer;
        match alipay_cert_sn {
            Some(sn) if self.issued(&sn, now).is_none() => {
                self.download(&sn, now).await?;
                Ok(KeyNews::Fetched { new: 1 })
            }
            None if node.failure.code != answer::SUCCESS => Err(unsigned_error(node.failure)),
            _ => Ok(KeyNews::Fetched { new: 0 }),
        }
    }

    /// Whether the certificate with this number is loaded afterwards. We learn from Alipay which certificate signs now
    /// and never request `sn` itself, because a stranger may have invented it.
    pub(super) async fn look_for(&self, sn: &str, now: OffsetDateTime) -> bool {
        if self.account.certificates().is_none() || !is_sn(sn) {
            return false;
        }
        let fetch = async {
            if let Err(error) = self.refresh(now).await {
                let account = self.account();
                warn!(%account, serial = sn, error = chain(&error), "The certificate that a message for alipay/{account} names could not be fetched");
            }
        };
        self.fetched.gate.look(now, || self.issued(sn, now).is_some(), fetch).await
    }

    /// Fetches one certificate, and stores it if it leads to a root and was issued to Alipay.
    async fn download(&self, sn: &str, now: OffsetDateTime) -> Result<(), GatewayError> {
        let Some(certificates) = self.account.certificates() else { return Ok(()) };
        let refused = |why: String| GatewayError::Protocol(format!("certificate {sn}: {why}"));
        let Node { failure, alipay_cert_content } = self.request(sn, now).await?.node;
        if failure.code != answer::SUCCESS {
            return Err(unsigned_error(failure));
        }
        let content = alipay_cert_content.and_then(|content| STANDARD.decode(content).ok());
        let pem = content.and_then(|bytes| String::from_utf8(bytes).ok());
        let pem = pem.ok_or_else(|| refused("no text in base64".to_owned()))?;
        let issued = chain::check(&pem, &certificates.roots, now).map_err(|error| refused(error.to_string()))?;
        if issued.sn != sn {
            return Err(refused(format!("another one came, {}", issued.sn)));
        }
        let ours = &certificates.given.organization;
        if ours.is_none() || issued.organization != *ours {
            return Err(refused("issued to somebody else than the one in alipay_cert".to_owned()));
        }
        let account = self.account();
        info!(%account, serial = sn, "Alipay signs for {account} with a new certificate, {sn}");
        self.fetched.store(issued, now);
        Ok(())
    }

    async fn request(&self, sn: &str, now: OffsetDateTime) -> Result<Whole, GatewayError> {
        let biz_content = json!({ "alipay_cert_sn": sn }).to_string();
        let call = Call { method: METHOD, notify_url: None, return_url: None, biz_content: &biz_content };
        let answer = self.exchange(&call, now).await?;
        words::read(&answer.body)
            .map_err(|_| GatewayError::Unknown(format!("no answer to {METHOD} (status {})", answer.status)))
    }
}

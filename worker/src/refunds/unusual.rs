//! The steps of refunds that have failed or could not be delivered.

use domain::{RefundReport, RefundState};
use gateway::{Gateway, GatewayError, RefundTarget};
use store::tables::orders::Order;
use store::tables::refunds::Refund;
use time::OffsetDateTime;

use crate::refunds::pacing::SETTLE_IN;
use crate::refunds::step::Step;
use crate::refunds::worker::RefundWorker;

impl RefundWorker {
    /// Queries a failed refund once more: an earlier request may have taken effect after all.
    pub(super) async fn look_back(
        &self,
        gateway: &dyn Gateway,
        refund: &Refund,
        order: &Order,
        now: OffsetDateTime,
    ) -> Step {
        match gateway.query_refund(&self.request(refund, order), now).await {
            Ok(report) if matches!(report.state, RefundState::Absent | RefundState::Closed) => Step::Done,
            Err(GatewayError::Refused { code, message }) => self.unknown(refund, now, &format!("{code}: {message}")),
            answer => self.judge(answer, refund, now),
        }
    }

    /// Redirects an undeliverable refund to the merchant's own account, as two people have decided.
    pub(super) async fn redirect(
        &self,
        gateway: &dyn Gateway,
        refund: &Refund,
        order: &Order,
        now: OffsetDateTime,
    ) -> Step {
        let request = self.request(refund, order);
        let known = match &refund.gateway_refund_no {
            Some(number) => {
                let gateway_refund_no = Some(number.clone());
                Ok(RefundReport { gateway_refund_no, ..RefundReport::of(RefundState::Abnormal) })
            }
            None => gateway.query_refund(&request, now).await,
        };
        let answer = match known {
            Ok(RefundReport { state: RefundState::Abnormal, gateway_refund_no: Some(number), .. }) => {
                gateway.redirect_refund(&request, &number, &RefundTarget::MerchantAccount, now).await
            }
            known => known,
        };
        match answer {
            // An earlier attempt may have succeeded and caused this refusal: the worker queries soon.
            Err(GatewayError::Refused { code, message }) => {
                let reason = format!("not sent another way: {code}: {message}");
                Step::Unknown { pause: SETTLE_IN, error: reason }
            }
            Err(error) => Step::NotYet { reason: format!("not sent another way yet: {error}") },
            answer => self.judge(answer, refund, now),
        }
    }
}

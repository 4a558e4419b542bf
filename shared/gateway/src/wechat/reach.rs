//! Checks that WeChat Pay is reachable and accepts our signature.
//!
//! Source: WeChat Pay APIv3, "商户订单号查询订单": WeChat Pay answers 404 `ORDER_NOT_EXIST` after it has checked the signature,
//! and 401 `SIGN_ERROR` if the signature is bad. Neither answer is signed. Read 2025-11-20.

use time::OffsetDateTime;

use crate::error::GatewayError;
use crate::reach::{Reach, number_of_no_order};
use crate::wechat::Wechat;
use crate::wechat::client::Outcome;
use crate::wechat::sign::Target;

impl Wechat {
    pub(super) async fn reach_inner(&self, now: OffsetDateTime) -> Result<Reach, GatewayError> {
        let path = format!("/v3/pay/transactions/out-trade-no/{}?mchid={}", number_of_no_order()?, self.account.mchid);
        let target = Target { method: "GET", path_and_query: &path, body: "" };
        let answer = self.exchange(&target, self.ring().public_key_id(), now).await?;
        let taken = match self.judge(&answer, now) {
            Ok(Outcome::Failed(failure)) if failure.code == "ORDER_NOT_EXIST" => Ok(()),
            Ok(Outcome::Failed(failure)) => Err(failure.refused()),
            Ok(Outcome::Signed(_)) => Err(GatewayError::Protocol("an order that cannot exist".to_owned())),
            Err(error) => Err(error),
        };
        Ok(Reach { date: Reach::date_of(&answer.headers), taken })
    }
}

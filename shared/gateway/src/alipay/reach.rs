//! Checks that Alipay is reachable, accepts our signature, and signs with the key that we know.
//!
//! Source: Alipay OpenAPI, `alipay.trade.query` (02ekfq): `ACQ.TRADE_NOT_EXIST` comes signed; for a bad signature of
//! ours the answer is `isv.invalid-signature`, unsigned. Read 2025-11-20.

use serde_json::json;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::alipay::Alipay;
use crate::alipay::client::{Answered, Call, signed_error};
use crate::error::GatewayError;
use crate::reach::{Reach, number_of_no_order};

impl Alipay {
    pub(super) async fn reach_inner(&self, now: OffsetDateTime) -> Result<Reach, GatewayError> {
        let biz_content = json!({ "out_trade_no": number_of_no_order()? }).to_string();
        let call = Call { method: "alipay.trade.query", notify_url: None, return_url: None, biz_content: &biz_content };
        let answer = self.exchange(&call, now).await?;
        let signed = self.judge(&call, &answer, now).await.and_then(|outcome| outcome.answered::<Box<RawValue>>());
        let taken = match signed {
            Ok(Answered::Failure(failure)) if failure.short_sub_code() == "TRADE_NOT_EXIST" => Ok(()),
            Ok(Answered::Failure(failure)) => Err(signed_error(failure)),
            Ok(Answered::Success(_)) => Err(GatewayError::Protocol("an order that cannot exist".to_owned())),
            Err(error) => Err(error),
        };
        Ok(Reach { date: Reach::date_of(&answer.headers), taken })
    }
}

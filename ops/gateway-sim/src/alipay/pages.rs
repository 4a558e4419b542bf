//! The page that a browser sees when `gateway.do` refuses it. The real page is in GBK; this one is in UTF-8.

use axum::response::{IntoResponse, Response};

use super::answer::Problem;
use crate::pages::{escape, page};

pub(crate) fn refusal(problem: &Problem) -> Response {
    let body = format!(
        "<h1>抱歉，无法付款 <small>Payment refused</small></h1>\
         <dl><dt>错误代码 Code</dt><dd class=code>{}</dd><dt>错误原因 Reason</dt><dd class=code>{}</dd></dl>",
        escape(&problem.sub_code),
        escape(&problem.sub_msg)
    );
    page("alipay", "支付宝 Alipay", &body).into_response()
}

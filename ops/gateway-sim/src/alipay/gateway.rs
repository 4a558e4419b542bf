//! `gateway.do`: server calls by POST, the cashier for browsers, and the app's order string.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use serde_json::{Value, json};

use super::answer::{Outcome, Problem};
use super::params::{Call, Freshness, Params};
use super::trade::Answer;
use super::{certificate, fields, pages, refund, trade};
use crate::calls::{At, CallKind};
use crate::clock;
use crate::json::{owned, text};
use crate::ledger::{Gateway, Product, Trade};
use crate::links::cashier_path;
use crate::odd::Charset;
use crate::state::{Shared, Sim};

/// `POST /gateway.do`: a server's call, or the form that a browser sends for a page.
pub(crate) async fn call(State(sim): State<Shared>, RawQuery(query): RawQuery, body: Bytes) -> Response {
    let params = Params::read(query.as_deref().unwrap_or_default(), &body);
    if let Some(product) = page_product(params.method()) {
        return show_cashier(&sim, &params, product).await;
    }
    let checked = params.check(&sim.keys, Freshness::Call, clock::now());
    let call = match checked {
        Ok(call) => call,
        Err(problem) => {
            let (method, charset) = (params.method(), Charset::Utf8);
            return Outcome { method, merchant: None, certified: false, charset, result: Err(problem) }.into_response();
        }
    };
    let number = number(&sim, &call.biz_content);
    let at = At { gateway: Gateway::Alipay, account: &call.merchant.account, out_trade_no: number.as_deref() };
    let kind = kind(params.method());
    sim.calls.count(at, kind);
    if sim.faults.api(number.as_deref()).await.is_some() {
        return bad_gateway();
    }
    let odd = sim.faults.odd(at);
    let result = match odd.refusal(kind) {
        Some(refuse) => {
            sim.faults.count("refuse");
            Some(Err(Problem::chosen(refuse)))
        }
        None => answer(&sim, &call, params.method()).await,
    };
    let Some(mut result) = result else { return bad_gateway() };
    if let Ok(members) = &mut result {
        odd.change_members(members);
    }
    let (merchant, certified) = (Some(call.merchant.as_ref()), call.certified);
    Outcome { method: params.method(), merchant, certified, charset: odd.charset, result }.into_response()
}

/// The gateway's answer to a call. `None`: the gateway is unavailable, before or after it executed the call.
async fn answer(sim: &Shared, call: &Call, method: &str) -> Option<Answer> {
    Some(match method {
        "alipay.trade.precreate" => trade::precreate(sim, call),
        "alipay.trade.query" => trade::query(sim, call),
        "alipay.trade.close" => trade::close(sim, call),
        "alipay.trade.refund" => refund::refund(sim, call).await?,
        "alipay.trade.fastpay.refund.query" => refund::query(sim, call)?,
        "alipay.open.app.alipaycert.download" => certificate::download(call),
        method if fields::is_known(method) => Err(Problem::invalid("isv.invalid-method", "该方法不能由服务端调用")),
        _ => Err(Problem::invalid("isv.invalid-method", "不存在的方法名")),
    })
}

fn kind(method: &str) -> CallKind {
    match method {
        "alipay.trade.precreate" => CallKind::Prepay,
        "alipay.trade.query" => CallKind::Query,
        "alipay.trade.close" => CallKind::Close,
        "alipay.trade.refund" => CallKind::Refund,
        "alipay.trade.fastpay.refund.query" => CallKind::RefundQuery,
        "alipay.open.app.alipaycert.download" => CallKind::Certificates,
        _ => CallKind::Other,
    }
}

/// The number of the trade that a call names; it selects the faults.
fn number(sim: &Sim, biz_content: &Value) -> Option<String> {
    let by_trade_no = |trade_no| sim.ledger.by_trade_no(trade_no, clock::now());
    let named = text(biz_content, "trade_no").and_then(by_trade_no).map(|trade| trade.out_trade_no);
    named.or_else(|| owned(biz_content, "out_trade_no"))
}

/// `GET /gateway.do`: a signed URL has sent the browser here.
pub(crate) async fn browse(State(sim): State<Shared>, RawQuery(query): RawQuery) -> Response {
    let params = Params::read(query.as_deref().unwrap_or_default(), b"");
    match page_product(params.method()) {
        Some(product) => show_cashier(&sim, &params, product).await,
        None => pages::refusal(&Problem::invalid("isv.invalid-method", "不存在的方法名 / Not a page method")),
    }
}

/// `POST /alipay/app`: what the Alipay app does with an order string. It answers with the path of the cashier.
pub(crate) async fn app(State(sim): State<Shared>, body: Bytes) -> Response {
    let text = String::from_utf8_lossy(&body);
    let params = Params::read(text.trim(), b"");
    let result = match params.method() {
        "alipay.trade.app.pay" => offer(&sim, &params, Product::AlipayApp),
        _ => Err(Problem::invalid("isv.invalid-method", "not an order string of alipay.trade.app.pay")),
    };
    match result {
        Ok(trade) => {
            Json(json!({ "out_trade_no": trade.out_trade_no, "cashier": cashier_path(&trade) })).into_response()
        }
        Err(problem) => {
            let error = json!({ "code": problem.code, "sub_code": problem.sub_code, "sub_msg": problem.sub_msg });
            (StatusCode::BAD_REQUEST, Json(error)).into_response()
        }
    }
}

async fn show_cashier(sim: &Sim, params: &Params, product: Product) -> Response {
    match offer(sim, params, product) {
        Ok(trade) => match sim.faults.api(Some(&trade.out_trade_no)).await {
            Some(_) => bad_gateway(),
            None => Redirect::to(&cashier_path(&trade)).into_response(),
        },
        Err(problem) => pages::refusal(&problem),
    }
}

fn offer(sim: &Sim, params: &Params, product: Product) -> Result<Trade, Problem> {
    let call = params.check(&sim.keys, Freshness::Page, clock::now())?;
    trade::offer(sim, &call, product)
}

fn page_product(method: &str) -> Option<Product> {
    match method {
        "alipay.trade.page.pay" => Some(Product::Page),
        "alipay.trade.wap.pay" => Some(Product::Wap),
        _ => None,
    }
}

/// The answer of a load balancer whose gateway is down.
fn bad_gateway() -> Response {
    (StatusCode::BAD_GATEWAY, axum::response::Html("<html><head><title>502 Bad Gateway</title></head></html>"))
        .into_response()
}

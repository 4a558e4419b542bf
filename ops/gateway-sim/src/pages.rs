//! The cashier of both gateways, and the list of trades: plain HTML with every value escaped.

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use serde::Deserialize;

use crate::alipay::fields::yuan;
use crate::clock;
use crate::ledger::{Event, Gateway, Refusal, Trade, TradeState};
use crate::links::{cashier_path, is_web, percent, slug};
use crate::state::{Shared, Sim};
use crate::wechat::fields::h5_url;

const LISTED: usize = 200;

pub(crate) fn router() -> Router<Shared> {
    Router::new()
        .route("/", get(list))
        .route("/pay", get(resolve))
        .route("/cgi-bin/mmpayweb-bin/checkmweb", get(checkmweb))
        .route("/cashier/{gateway}/{out_trade_no}", get(cashier))
        .route("/cashier/{gateway}/{out_trade_no}/pay", post(pay))
        .route("/cashier/{gateway}/{out_trade_no}/cancel", post(cancel))
}

/// The account of a number, and the address for afterwards.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Which {
    pub(crate) account: Option<String>,
    /// Which later payment of the number is meant.
    pub(crate) nth: Option<u32>,
    /// The refund whose notice is meant.
    pub(crate) refund: Option<String>,
    /// The event whose notice is meant.
    pub(crate) event: Option<Event>,
    redirect_url: Option<String>,
}

/// `GET /`: the newest trades.
async fn list(State(sim): State<Shared>) -> Response {
    let mut rows = String::new();
    for trade in sim.ledger.newest(LISTED, |_| true) {
        rows.push_str(&format!(
            "<tr><td>{}<td>{}<td><a href=\"{}\">{}</a><td>{}<td class=money>¥{}<td>{}</tr>",
            name(trade.gateway()),
            escape(&trade.account),
            escape(&cashier_path(&trade)),
            escape(&trade.out_trade_no),
            escape(&trade.subject),
            yuan(trade.amount_fen),
            state_words(&trade),
        ));
    }
    let body = format!(
        "<h1>网关模拟器 <small>Gateway simulator</small></h1>\
         <form action=/pay><input name=code size=40 placeholder=\"code_url / qr_code / h5_url / prepay_id\"> \
         <button>打开 Open</button></form>\
         <table><tr><th>网关<th>账户<th>单号 No.<th>商品 Subject<th>金额<th>状态</tr>{rows}</table>\
         <p><a href=/sim/ledger>ledger</a> · <a href=/sim/faults>faults</a></p>"
    );
    page("plain wide", "Gateway simulator", &body).into_response()
}

#[derive(Debug, Deserialize)]
struct Code {
    code: String,
}

/// `GET /pay?code=`: what a phone does with a scanned code, an `h5_url` or a `prepay_id`.
async fn resolve(State(sim): State<Shared>, Query(Code { code }): Query<Code>) -> Response {
    let (bare, redirect) = match code.split_once("&redirect_url=") {
        Some((bare, redirect)) => (
            bare,
            url::form_urlencoded::parse(format!("u={redirect}").as_bytes()).next().map(|(_, url)| url.into_owned()),
        ),
        None => (code.as_str(), None),
    };
    open_code(&sim, bare, redirect)
}

#[derive(Debug, Deserialize)]
struct H5 {
    prepay_id: String,
    #[serde(default)]
    package: String,
    redirect_url: Option<String>,
}

/// The path of a real `h5_url`, for clients that replace its host with this one.
async fn checkmweb(State(sim): State<Shared>, Query(h5): Query<H5>) -> Response {
    open_code(&sim, &h5_url(&h5.prepay_id, &h5.package), h5.redirect_url)
}

fn open_code(sim: &Sim, code: &str, redirect: Option<String>) -> Response {
    match sim.ledger.by_code(code.trim(), clock::now()) {
        Some(trade) => {
            let redirect = redirect.filter(|url| is_web(url)).map(|url| format!("&redirect_url={}", percent(&url)));
            Redirect::to(&format!("{}{}", cashier_path(&trade), redirect.unwrap_or_default())).into_response()
        }
        None => {
            message(StatusCode::NOT_FOUND, "二维码已失效", "This code is unknown, expired or replaced by a newer one")
        }
    }
}

/// `GET /cashier/{gateway}/{out_trade_no}`: opening it is the buyer's first action.
async fn cashier(
    State(sim): State<Shared>,
    Path((gateway, out_trade_no)): Path<(Gateway, String)>,
    Query(which): Query<Which>,
) -> Response {
    let found = sim.one_trade(gateway, &out_trade_no, which.account.as_deref());
    let Ok(trade) = found.and_then(|key| sim.ledger.open(&key, clock::now())) else {
        return message(StatusCode::NOT_FOUND, "没有这笔交易", "No such trade");
    };
    page(slug(gateway), name(gateway), &cashier_body(&sim, &trade, which.redirect_url.as_deref())).into_response()
}

/// The button "pay".
async fn pay(
    State(sim): State<Shared>,
    Path((gateway, out_trade_no)): Path<(Gateway, String)>,
    Query(which): Query<Which>,
) -> Response {
    let found = sim.one_trade(gateway, &out_trade_no, which.account.as_deref());
    match found.and_then(|key| sim.pay(&key)) {
        Ok(trade) => match sim.return_url(&trade).or(which.redirect_url.filter(|url| is_web(url))) {
            Some(url) => redirect(&url),
            None => Redirect::to(&cashier_path(&trade)).into_response(),
        },
        Err(refusal) => refused(refusal),
    }
}

/// The button "give up": the trade does not change.
async fn cancel(
    State(sim): State<Shared>,
    Path((gateway, out_trade_no)): Path<(Gateway, String)>,
    Query(which): Query<Which>,
) -> Response {
    let found = sim.one_trade(gateway, &out_trade_no, which.account.as_deref()).ok();
    let trade = found.and_then(|key| sim.ledger.get(&key, clock::now()));
    match trade.and_then(|trade| trade.quit_url).or(which.redirect_url.filter(|url| is_web(url))) {
        Some(url) => redirect(&url),
        None => message(StatusCode::OK, "已放弃付款", "Given up; the order can still be paid until it expires"),
    }
}

fn cashier_body(sim: &Sim, trade: &Trade, redirect: Option<&str>) -> String {
    let facts = format!(
        "<h1>{}</h1><p class=amount>¥{}</p><dl><dt>商户 Merchant</dt><dd>{} ({})</dd><dt>商品 Subject</dt><dd>{}</dd>\
         <dt>单号 Order</dt><dd>{}</dd><dt>最晚付款 Pay until</dt><dd>{}</dd><dt>状态 State</dt><dd>{}</dd></dl>",
        name(trade.gateway()),
        yuan(trade.amount_fen),
        escape(&sim.merchant_id(trade)),
        escape(&trade.account),
        escape(&trade.subject),
        escape(&trade.out_trade_no),
        escape(&clock::alipay(trade.expires_at)),
        state_words(trade),
    );
    let open = matches!(trade.state, TradeState::Offered | TradeState::Waiting) && !trade.is_expired(clock::now());
    if !open {
        return facts;
    }
    let path = cashier_path(trade);
    let (path, query) = path.split_once('?').unwrap_or((&path, ""));
    let redirect = redirect.filter(|url| is_web(url)).map(|url| format!("&redirect_url={}", percent(url)));
    let query = escape(&format!("{query}{}", redirect.unwrap_or_default()));
    let path = escape(path);
    format!(
        "{facts}<form method=post action=\"{path}/pay?{query}\"><button class=go>付款 Pay</button></form>\
         <form method=post action=\"{path}/cancel?{query}\"><button>取消 Give up</button></form>"
    )
}

fn state_words(trade: &Trade) -> &'static str {
    match trade.state {
        TradeState::Paid => "✔ 已付款 Paid",
        TradeState::Closed => "已关闭 Closed",
        _ if trade.is_expired(clock::now()) => "已超时 Expired",
        TradeState::Offered => "未打开 Not opened",
        TradeState::Waiting => "待付款 Waiting",
    }
}

fn refused(refusal: Refusal) -> Response {
    match refusal {
        Refusal::Unknown => message(StatusCode::NOT_FOUND, "没有这笔交易", "No such trade"),
        Refusal::Paid => message(StatusCode::CONFLICT, "订单已支付", "Already paid"),
        Refusal::Closed | Refusal::Differs | Refusal::Unpaid => message(StatusCode::CONFLICT, "订单已关闭", "Closed"),
        Refusal::TooOften => message(StatusCode::CONFLICT, "次数过多", "No more codes for this number"),
        Refusal::Expired => message(StatusCode::CONFLICT, "订单已超时", "The last moment to pay has passed"),
    }
}

fn message(status: StatusCode, chinese: &str, english: &str) -> Response {
    (status, page("plain", english, &format!("<h1>{chinese} <small>{english}</small></h1><p><a href=/>⌂</a></p>")))
        .into_response()
}

/// A redirect to an address that a merchant chose: it may not be a valid header value.
fn redirect(url: &str) -> Response {
    match axum::http::HeaderValue::from_str(url::Url::parse(url).map_or("/".into(), String::from).as_str()) {
        Ok(location) => (StatusCode::SEE_OTHER, [(axum::http::header::LOCATION, location)]).into_response(),
        Err(_) => Redirect::to("/").into_response(),
    }
}

fn name(gateway: Gateway) -> &'static str {
    match gateway {
        Gateway::Alipay => "支付宝 Alipay",
        Gateway::Wechat => "微信支付 WeChat Pay",
    }
}

/// Text for HTML, inside elements and quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// One page; `title` and `body` are HTML.
pub(crate) fn page(class: &str, title: &str, body: &str) -> Html<String> {
    Html(format!(
        "<!doctype html><html lang=zh><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style><body class=\"{class}\"><main>{body}</main>\
         <footer>模拟 Simulated: no money moves</footer></body></html>"
    ))
}

const STYLE: &str = "body{margin:0;font:16px/1.5 system-ui,sans-serif;background:#f3f4f6;color:#1f2937}\
main{max-width:26rem;margin:3rem auto 1rem;padding:1.5rem 2rem;background:#fff;border-radius:.75rem;\
border-top:.4rem solid #6b7280;box-shadow:0 1px 4px #0002}.wide main{max-width:64rem}.alipay main{border-color:#1677ff}\
.wechat main{border-color:#07c160}h1{font-size:1.25rem}small{color:#6b7280;font-weight:400}.amount{font-size:2.25rem;margin:.5rem 0}\
dl{display:grid;grid-template-columns:auto 1fr;gap:.25rem 1rem}dt{color:#6b7280}dd{margin:0;overflow-wrap:anywhere}\
form{margin:.75rem 0}button{font:inherit;width:100%;padding:.6rem;border:1px solid #d1d5db;border-radius:.5rem;background:#fff;cursor:pointer}\
.wide button{width:auto}input{font:inherit;padding:.5rem}.go{color:#fff;background:#374151;border:0}.alipay .go{background:#1677ff}\
.wechat .go{background:#07c160}table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #e5e7eb}\
.money{text-align:right}footer{text-align:center;color:#9ca3af;font-size:.85rem}";

//! Every kind of number that a receipt, a log line or an event can show, in one search.
//!
//! There is one query for each kind of number, and each has an index of its own. The start of a number is a range of the
//! index and no pattern, so no character of a number has a meaning.

use domain::{CaseId, MerchantOrderNo, Money, OrderId, OrderNo, RefundId, RefundNo, TradeNo, UserId, named_enum};
use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::error::DbError;

named_enum! {
    /// What a search found.
    HitKind {
        /// An order.
        Order = "order",
        /// A refund.
        Refund = "refund",
        /// A case.
        Case = "case",
        /// An event.
        Event = "event",
        /// A user who has orders.
        User = "user",
    }
}

named_enum! {
    /// Which number of the row matched.
    Matched {
        /// Our id of an order.
        OrderId = "order_id",
        /// Our number of an order.
        OrderNo = "order_no",
        /// The merchant's own number of the purchase.
        MerchantOrderNo = "merchant_order_no",
        /// The gateway's number of a payment of the order: its own, a late or a second one.
        TradeNo = "trade_no",
        /// Our id of a refund.
        RefundId = "refund_id",
        /// Our number of a refund.
        RefundNo = "refund_no",
        /// The gateway's number of a refund.
        GatewayRefundNo = "gateway_refund_no",
        /// The id of a case.
        CaseId = "case_id",
        /// What a case is about: a number of a trade or of a refund that may be no row of ours.
        SubjectRef = "subject_ref",
        /// The id of an event.
        EventId = "event_id",
        /// The id of a user.
        UserId = "user_id",
    }
}

/// A row that has the number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// What it is.
    pub kind: HitKind,
    /// Its id; of a user, the user's id.
    pub id: String,
    /// The order that it is, or is about; `None` for a user, and where no order is known.
    pub order_id: Option<OrderId>,
    /// Which of its numbers matched.
    pub matched: Matched,
    /// The whole number.
    pub number: String,
    /// The state of the order, the refund or the case; of an event `published` or `waiting`.
    pub status: Option<String>,
    /// The amount of the order or the refund.
    pub amount: Option<Money>,
    /// When it was created; when the event happened; when the user's newest order was created.
    pub created_at: OffsetDateTime,
}

/// What a search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// At most [`MOST`], newest first.
    pub hits: Vec<Hit>,
    /// Whether there are more.
    pub more: bool,
}

/// The largest number of hits.
pub const MOST: usize = 50;
/// A text of this many characters is also the start of a number.
pub const SHORTEST_START: usize = 8;
/// The longest text, in characters: the longest id of an event.
pub const LONGEST: usize = 128;

/// How many entries of an index one query reads at most, so that the start of millions of numbers costs no more than
/// others. Beyond that, the newest hits are those of the largest numbers: our numbers, and those of the gateways, begin
/// with a date.
const READ: i64 = 500;
/// How many of them it returns at most.
const RETURNED: i64 = MOST as i64 + 1;

/// The text is no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a number of 1 to 128 printable ASCII characters")]
pub struct NoNumber;

/// A number to search for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Number(String);

impl Number {
    /// Reads a number. Blanks around it, which come with copying, are left out.
    ///
    /// # Errors
    /// [`NoNumber`].
    pub fn parse(text: &str) -> Result<Number, NoNumber> {
        let text = text.trim();
        let fits = (1..=LONGEST).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if fits { Ok(Number(text.to_owned())) } else { Err(NoNumber) }
    }

    /// The number as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is long enough to be the start of a number.
    pub fn can_be_a_start(&self) -> bool {
        self.0.len() >= SHORTEST_START
    }

    /// The numbers that match.
    fn range(&self) -> Range {
        // Only what is longer by a NUL would lie between a number and the number with this character, and no column can
        // hold that.
        let exactly = || Range { from: self.0.clone(), past: format!("{}\u{1}", self.0) };
        let Some((last, start)) = self.0.as_bytes().split_last().filter(|_| self.can_be_a_start()) else {
            return exactly();
        };
        // The next character after a printable one is ASCII too.
        match std::str::from_utf8(start) {
            Ok(start) => Range { from: self.0.clone(), past: format!("{start}{}", char::from(last + 1)) },
            Err(_) => exactly(),
        }
    }
}

/// A range of numbers in the order of their bytes.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    from: String,
    past: String,
}

/// The rows that have this number, or a number that begins with it ([`Number::can_be_a_start`]; only `order_no`,
/// `merchant_order_no`, `trade_no`, `refund_no` and the gateway's number of a refund).
///
/// # Errors
/// [`DbError`].
pub async fn search(db: &mut PgConnection, number: &Number) -> Result<Found, DbError> {
    let (text, range) = (number.as_str(), number.range());
    let mut hits = by_ids(db, text).await?;
    if OrderNo::parse(text).is_ok() {
        hits.extend(by_order_no(db, &range).await?);
    }
    if MerchantOrderNo::parse(text).is_ok() {
        hits.extend(by_merchant_order_no(db, &range).await?);
    }
    if TradeNo::parse(text).is_ok() {
        hits.extend(by_trade_no(db, &range).await?);
        hits.extend(by_gateway_refund_no(db, &range).await?);
    }
    if RefundNo::parse(text).is_ok() {
        hits.extend(by_refund_no(db, &range).await?);
    }
    hits.extend(by_subject_ref(db, text).await?);
    hits.extend(by_event_id(db, text).await?);
    if let Ok(user) = UserId::parse(text) {
        hits.extend(by_user_id(db, &user).await?);
    }
    hits.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| b.id.cmp(&a.id)));
    let more = hits.len() > MOST;
    hits.truncate(MOST);
    Ok(Found { hits, more })
}

/// What each query reads of its rows.
struct Row {
    id: String,
    order_id: Option<OrderId>,
    number: String,
    status: Option<String>,
    amount: Option<Money>,
    created_at: OffsetDateTime,
}

/// What the rows are, and which of their numbers matched.
fn hits(rows: Vec<Row>, kind: HitKind, matched: Matched) -> Vec<Hit> {
    let hit = |row: Row| {
        let Row { id, order_id, number, status, amount, created_at } = row;
        Hit { kind, id, order_id, matched, number, status, amount, created_at }
    };
    rows.into_iter().map(hit).collect()
}

/// An order, a refund or a case: their ids have one form.
async fn by_ids(db: &mut PgConnection, text: &str) -> Result<Vec<Hit>, DbError> {
    let Ok(id) = OrderId::parse(text) else { return Ok(Vec::new()) };
    let orders = sqlx::query_as!(
        Row,
        r#"
        select
          id::text as "id!", id as "order_id?: OrderId", id::text as "number!", status as "status?",
          amount as "amount?: Money", created_at as "created_at!"
        from payment_orders where id = $1
        "#,
        id as OrderId,
    );
    let mut found = hits(orders.fetch_all(&mut *db).await?, HitKind::Order, Matched::OrderId);
    let refunds = sqlx::query_as!(
        Row,
        r#"
        select
          id::text as "id!", order_id as "order_id?: OrderId", id::text as "number!", status as "status?",
          refund_amount as "amount?: Money", created_at as "created_at!"
        from refund_records where id = $1
        "#,
        RefundId::from_u128(id.bits()) as RefundId,
    );
    found.extend(hits(refunds.fetch_all(&mut *db).await?, HitKind::Refund, Matched::RefundId));
    let cases = sqlx::query_as!(
        Row,
        r#"
        select
          id::text as "id!", order_id as "order_id?: OrderId", id::text as "number!", status as "status?",
          null::numeric as "amount?: Money", created_at as "created_at!"
        from cases where id = $1
        "#,
        CaseId::from_u128(id.bits()) as CaseId,
    );
    found.extend(hits(cases.fetch_all(db).await?, HitKind::Case, Matched::CaseId));
    Ok(found)
}

/// Orders whose number is in the range. `~>=~` and its kind compare bytes, as the index does.
async fn by_order_no(db: &mut PgConnection, range: &Range) -> Result<Vec<Hit>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        select
          id::text as "id!", id as "order_id?: OrderId", number as "number!", status as "status?",
          amount as "amount?: Money", created_at as "created_at!"
        from (
          select id, order_no as number, status, amount, created_at from payment_orders
          where order_no ~>=~ $1 and order_no ~<~ $2
          order by order_no using ~>~
          limit $3
        ) found
        order by id desc
        limit $4
        "#,
        range.from,
        range.past,
        READ,
        RETURNED,
    );
    Ok(hits(rows.fetch_all(db).await?, HitKind::Order, Matched::OrderNo))
}

/// Orders whose purchase has a number of the merchant's in the range. Merchants number as they like, so very many may begin with
/// what is a whole number as well: this one comes first.
async fn by_merchant_order_no(db: &mut PgConnection, range: &Range) -> Result<Vec<Hit>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        select
          id::text as "id!", id as "order_id?: OrderId", number as "number!", status as "status?",
          amount as "amount?: Money", created_at as "created_at!"
        from (
          select id, merchant_order_no as number, status, amount, created_at from payment_orders
          where merchant_order_no ~>=~ $1 and merchant_order_no ~<~ $2
          order by merchant_order_no using ~<~
          limit $3
        ) found
        order by number = $1 desc, id desc
        limit $4
        "#,
        range.from,
        range.past,
        READ,
        RETURNED,
    );
    Ok(hits(rows.fetch_all(db).await?, HitKind::Order, Matched::MerchantOrderNo))
}

/// Orders with a payment whose trade is in the range.
async fn by_trade_no(db: &mut PgConnection, range: &Range) -> Result<Vec<Hit>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        select
          o.id::text as "id!", o.id as "order_id?: OrderId", found.number as "number!", o.status as "status?",
          o.amount as "amount?: Money", o.created_at as "created_at!"
        from (
          select order_id, gateway_no as number from payment_transactions
          where action_type = 'payment' and gateway_no ~>=~ $1 and gateway_no ~<~ $2
          order by gateway_no using ~>~
          limit $3
        ) found
        join payment_orders o on o.id = found.order_id
        order by o.id desc
        limit $4
        "#,
        range.from,
        range.past,
        READ,
        RETURNED,
    );
    Ok(hits(rows.fetch_all(db).await?, HitKind::Order, Matched::TradeNo))
}

/// Refunds whose number is in the range.
async fn by_refund_no(db: &mut PgConnection, range: &Range) -> Result<Vec<Hit>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        select
          id::text as "id!", order_id as "order_id?: OrderId", number as "number!", status as "status?",
          amount as "amount?: Money", created_at as "created_at!"
        from (
          select id, order_id, refund_no as number, status, refund_amount as amount, created_at from refund_records
          where refund_no ~>=~ $1 and refund_no ~<~ $2
          order by refund_no using ~>~
          limit $3
        ) found
        order by id desc
        limit $4
        "#,
        range.from,
        range.past,
        READ,
        RETURNED,
    );
    Ok(hits(rows.fetch_all(db).await?, HitKind::Refund, Matched::RefundNo))
}

/// Refunds whose number at the gateway is in the range.
async fn by_gateway_refund_no(db: &mut PgConnection, range: &Range) -> Result<Vec<Hit>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        select
          id::text as "id!", order_id as "order_id?: OrderId", number as "number!", status as "status?",
          amount as "amount?: Money", created_at as "created_at!"
        from (
          select id, order_id, gateway_refund_no as number, status, refund_amount as amount, created_at
          from refund_records
          where gateway_refund_no ~>=~ $1 and gateway_refund_no ~<~ $2
          order by gateway_refund_no using ~>~
          limit $3
        ) found
        order by id desc
        limit $4
        "#,
        range.from,
        range.past,
        READ,
        RETURNED,
    );
    Ok(hits(rows.fetch_all(db).await?, HitKind::Refund, Matched::GatewayRefundNo))
}

/// Cases that are about exactly this number. A payment or a refund that no row of ours records has only its case.
async fn by_subject_ref(db: &mut PgConnection, number: &str) -> Result<Vec<Hit>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        select
          id::text as "id!", order_id as "order_id?: OrderId", number as "number!", status as "status?",
          null::numeric as "amount?: Money", created_at as "created_at!"
        from (
          select id, order_id, subject_ref as number, status, created_at from cases where subject_ref = $1 limit $2
        ) found
        order by id desc
        limit $3
        "#,
        number,
        READ,
        RETURNED,
    );
    Ok(hits(rows.fetch_all(db).await?, HitKind::Case, Matched::SubjectRef))
}

/// An event by its id.
async fn by_event_id(db: &mut PgConnection, event_id: &str) -> Result<Vec<Hit>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        select
          event_id as "id!", order_id as "order_id?: OrderId", event_id as "number!",
          case when published_at is null then 'waiting' else 'published' end as "status?",
          null::numeric as "amount?: Money", occurred_at as "created_at!"
        from events where event_id = $1
        "#,
        event_id,
    );
    Ok(hits(rows.fetch_all(db).await?, HitKind::Event, Matched::EventId))
}

/// A user who has an order.
async fn by_user_id(db: &mut PgConnection, user: &UserId) -> Result<Vec<Hit>, DbError> {
    let rows = sqlx::query_as!(
        Row,
        r#"
        select
          user_id as "id!", null::bpchar as "order_id?: OrderId", user_id as "number!", null::text as "status?",
          null::numeric as "amount?: Money", created_at as "created_at!"
        from payment_orders where user_id = $1
        order by id desc
        limit 1
        "#,
        user.as_str(),
    );
    Ok(hits(rows.fetch_all(db).await?, HitKind::User, Matched::UserId))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> (String, String) {
        let Range { from, past } = Number::parse(text).unwrap().range();
        (from, past)
    }

    #[test]
    fn a_long_text_is_the_start_of_numbers_and_a_short_one_is_one_number() {
        assert_eq!(range("42000022"), ("42000022".to_owned(), "42000023".to_owned()));
        assert_eq!(range("4200002"), ("4200002".to_owned(), "4200002\u{1}".to_owned()));
        // The last printable character has a next one.
        assert_eq!(range("1234567~").1, "1234567\u{7f}");
        for inside in ["42000022", "420000220", "42000022~~~", "42000022a"] {
            let (from, past) = range("42000022");
            assert!(*from <= *inside && *inside < *past, "{inside}");
        }
    }

    #[test]
    fn nothing_in_a_number_is_a_pattern() {
        assert_eq!(range("%%%%%%%%"), ("%%%%%%%%".to_owned(), "%%%%%%%&".to_owned()));
        assert_eq!(range("ORD_0001"), ("ORD_0001".to_owned(), "ORD_0002".to_owned()));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        assert_eq!(Number::parse(" \t4200\n").map(|number| number.as_str().to_owned()), Ok("4200".to_owned()));
        for text in ["", "  ", "4200 0022", "订单", "a\u{0}b", "a\u{7f}b", &"1".repeat(129)] {
            assert_eq!(Number::parse(text), Err(NoNumber), "{text:?}");
        }
    }
}

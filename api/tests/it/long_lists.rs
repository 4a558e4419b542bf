//! Filters without an index in long lists: a page looks through 10 000 rows at most, and the pages together find everything.

use axum::http::Method;
use runtime::clock::Clock;
use sqlx::PgPool;
use time::Duration;
use time::format_description::well_known::Rfc3339;

use crate::support::Who;
use crate::world::World;

/// The rows of each list but that of refunds. They are numbered from 1, the newest.
const ROWS: i64 = 25_000;
/// The newest of them have refunds.
const REFUNDS: i64 = 5_000;

/// The few that the filters find: at the ends, and on both sides of where a page ends.
const fn few(a_page: i64, rows: i64) -> [i64; 6] {
    [1, a_page, a_page + 1, 2 * a_page, 2 * a_page + 1, rows]
}

const FEW: [i64; 6] = few(10_000, ROWS);
const FEW_REFUNDS: [i64; 6] = few(2_000, REFUNDS);

/// $1: how many rows; $2: the few among them. A hundred callbacks, and a hundred acts, have one time.
const ORDERS: &str = "
    insert into payment_orders (id, user_id, order_no, product_type, subject, amount, payment_method, scene, account, status, trade_no,
      paid_at, expires_at, prepay, created_at, updated_at)
    select lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || lpad(to_hex(n), 20, '0'), 'u1', 'NUMBER' || n, 'membership',
      's', 10, 'wechat', 'native', case when n = any($2) then 'few' else 'main' end, 'paid', 'T' || n, at, at, '{}', at, at
    from (select n, now() - interval '1 minute' - n * interval '1 second' as at from generate_series(1, $1) n) as made";
const PAYMENTS: &str = "
    insert into payment_transactions (id, order_id, transaction_no, payment_method, action_type, amount, status, gateway_no, created_at,
      updated_at)
    select o.id, o.id, 'P' || n, 'wechat', 'payment', 10, 'succeeded', trade_no, created_at, created_at
    from generate_series(1, $1) n join payment_orders o on order_no = 'NUMBER' || n
    where $2::bigint[] is not null";
const REFUND_ROWS: &str = "
    insert into refund_records (id, order_id, transaction_id, refund_no, refund_amount, status, requested_by, origin, outside_key,
      succeeded_at, created_at, updated_at)
    select o.id, o.id, o.id, 'R' || n, 1, 'succeeded', 'user u1', case when n = any($2) then 'outside' else 'service' end,
      case when n = any($2) then 'K' || n end, created_at, created_at, created_at
    from generate_series(1, $1) n join payment_orders o on order_no = 'NUMBER' || n";
const CALLBACKS: &str = "
    insert into callbacks (payment_method, account, notice_id, verdict, headers, body, received_at, last_seen_at)
    select 'wechat', 'main', 'NUMBER' || n, case when n = any($2) then 'ignored' else 'settled' end, '{}', '', at, at
    from (select n, now() - interval '1 minute' - n / 100 * interval '1 second' as at from generate_series(1, $1) n) as made
    order by n desc";
const ACTS: &str = "
    insert into audit_log (at, subject, act, object, detail)
    select now() - interval '1 minute' - n / 100 * interval '1 second', case when n = any($2) then 'few' else 'many' end, 'key.made',
      'NUMBER' || n, '{}'
    from generate_series(1, $1) n
    order by n desc";

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn pages_that_end_before_they_are_full_find_everything_once(db: PgPool) {
    testkit::make_up_facts(&db).await;
    for (fill, rows, few) in [
        (ORDERS, ROWS, FEW),
        (PAYMENTS, REFUNDS, FEW_REFUNDS),
        (REFUND_ROWS, REFUNDS, FEW_REFUNDS),
        (CALLBACKS, ROWS, FEW),
        (ACTS, ROWS, FEW),
    ] {
        let filled = sqlx::query(fill).bind(rows).bind(few.to_vec()).execute(&db).await;
        filled.unwrap_or_else(|error| panic!("{fill}: {error}"));
    }
    let world = World::new(db).await;
    let from = (Clock::system().now() - Duration::days(2)).replace_nanosecond(0).unwrap().format(&Rfc3339).unwrap();
    for (path, (list, member), few) in [
        (format!("orders?account=few&created_from={from}"), ("orders", "order_no"), FEW),
        (format!("refunds?origin=outside&created_from={from}"), ("refunds", "order_no"), FEW_REFUNDS),
        (format!("callbacks?verdict=ignored&from={from}"), ("callbacks", "notice_id"), FEW),
        (format!("audit?subject=few&from={from}"), ("acts", "object"), FEW),
    ] {
        // A page of three is not full in any part, and a page of one always is, so it ends with its row.
        assert_eq!(walked(&world, &path, (list, member), 3).await, [&few[..2], &few[2..4], &few[4..]], "{path}");
        let one_by_one = walked(&world, &path, (list, member), 1).await;
        assert!(one_by_one.iter().all(|page| page.len() <= 1), "{path}: {one_by_one:?}");
        assert_eq!(one_by_one.concat(), few, "{path}");
    }
    let none = walked(&world, &format!("orders?account=none&created_from={from}"), ("orders", "order_no"), 3).await;
    assert_eq!(none, [[0_i64; 0]; 3], "a page without rows is not the last one");
    let by_index = walked(&world, "orders?account=few&user_id=u1", ("orders", "order_no"), 6).await;
    assert_eq!(by_index, [FEW], "a filter with an index finds its rows itself");
}

/// The numbers of the rows, page by page.
async fn walked(world: &World, path: &str, (list, member): (&str, &str), limit: usize) -> Vec<Vec<i64>> {
    let (mut pages, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/admin/{path}&limit={limit}{cursor}");
        let answer = world.request(Who::Admin("a1"), Method::GET, &path, None).await;
        assert_eq!(answer.status.as_u16(), 200, "{path}: {}", answer.body);
        let page = answer.json();
        let number = |row: &serde_json::Value| row[member].as_str().unwrap()[6..].parse().unwrap();
        pages.push(page[list].as_array().unwrap().iter().map(number).collect());
        assert!(pages.len() < 20, "{path}: the pages do not end");
        let Some(next) = page["next_cursor"].as_str() else { return pages };
        cursor = format!("&cursor={next}");
    }
}

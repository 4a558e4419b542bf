//! A value that our types refuse: the error names the table, the column and the row.

use domain::OrderId;
use sqlx::PgPool;
use store::tables::{cases, orders, refunds};
use store::{DbError, MIGRATOR};

/// Table, column and row of the error.
fn place<T: std::fmt::Debug>(read: Result<T, DbError>) -> (&'static str, String, String) {
    match read {
        Err(DbError::Corrupt { table, column, row, .. }) => (table, column, row),
        other => panic!("{other:?}"),
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_value_that_our_types_refuse_is_named_with_its_place(db: PgPool) {
    let new = testkit::new_order();
    orders::create(&db, std::slice::from_ref(&new)).await.unwrap();
    let (id, order_no) = (new.id, new.order_no.clone());
    let plant = "alter table payment_orders
                   drop constraint payment_orders_status, drop constraint payment_orders_paid_facts;
                 alter table payment_orders disable trigger user;
                 update payment_orders set status = 'strange'";
    sqlx::raw_sql(plant).execute(&db).await.unwrap();
    let status = |row: String| ("payment_orders", "status".to_owned(), row);

    let error = orders::get(&db, id).await.unwrap_err();
    let text = format!("column status of payment_orders, row {id}: our types refuse its value");
    assert_eq!(error.to_string(), text);
    assert!(error.blames_the_rows(), "a repeat cannot help");
    assert_eq!(place(Err::<(), _>(error)), status(id.to_string()));
    assert_eq!(place(orders::by_order_no(&db, &order_no).await), status(order_no.to_string()));
    let both = [id, OrderId::from_u128(7)];
    assert_eq!(place(orders::by_ids(&db, &both).await), status(format!("{id} or {}", both[1])));
    assert_eq!(place(orders::newest(&db, 5).await), status("of a list".to_owned()));
    let mut tx = db.begin().await.unwrap();
    assert_eq!(place(orders::lock(&mut tx, &[order_no.as_str()]).await), status(order_no.to_string()));
}

/// The last column of each list, so that none before it is miscounted.
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_column_is_found_behind_all_others(db: PgPool) {
    let new = testkit::new_order();
    orders::create(&db, std::slice::from_ref(&new)).await.unwrap();
    let plant = format!(
        "update payment_transactions set status = 'succeeded', gateway_no = 't', account = 'Not A Name';
         insert into refund_records
           (id, order_id, transaction_id, refund_no, refund_amount, status, requested_by, created_at, updated_at)
         select repeat('0', 32), order_id, id, 'R', amount, 'failed', 'b', now(), now() from payment_transactions;
         alter table cases drop constraint cases_status;
         insert into cases (id, kind, subject_ref, evidence, status, created_at, updated_at)
         values ('{}', 'dead_letter', 's', '{{}}', 'strange', now(), now())",
        new.id
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(plant)).execute(&db).await.unwrap();
    let of_order = format!("of order {}", new.id);
    let account = ("payment_transactions", "account".to_owned(), of_order);
    assert_eq!(place(refunds::of_order(&db, new.id).await), account);
    let case = domain::CaseId::parse(&new.id.to_string()).unwrap();
    assert_eq!(place(cases::get(&db, case).await), ("cases", "status".to_owned(), new.id.to_string()));
}

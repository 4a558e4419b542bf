//! One export: what is in the file, and what must never be.

use std::sync::Arc;

use export::{ExportError, Format, Limits, Selection, Task, make};
use runtime::clock::Clock;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use store::tables::order_list::OrderFilter;
use store::tables::refund_list::RefundFilter;
use tokio_util::sync::CancellationToken;

use crate::reading::{Value, csv, raw_csv, raw_texts, sheet, sheets};
use crate::world::{AT, Barrier, Place, made, orders, placed, refunded, seen_with, set, written};

/// What buyers and callers can write, and numbers that spreadsheets spoil.
const NASTY: &str = "
    update payment_orders set subject = '=HYPERLINK(\"http://evil.example\",\"点此\")', user_id = '+861234', product_type = '-1',
        order_no = '20261129000000000000000000000042' where order_no = 'ORDER_0';
    update payment_orders set subject = '@SUM(A1:A9)', user_id = '007', status = 'paid', trade_no = '4200002219202211290000000001',
        merchant_order_no = '=A1',
        paid_at = '2026-11-28 15:59:59Z', amount = 99999999.99, payment_method = 'alipay', scene = 'qr'
        where order_no = 'ORDER_1';
    update payment_orders set subject = '会员, \"一年\"; O''Neil', user_id = '=1+1', status = 'partially_refunded',
        trade_no = '9007199254740993', paid_at = '2026-11-28 16:00:00Z', amount = 0.29, refunded_amount = 0.01,
        extra_state = 'held', extra_amount = 0.07, merchant_order_no = '0012' where order_no = 'ORDER_2';
    update payment_orders set subject = '''=1', user_id = '1e5', product_type = '2026-01-02', status = 'closed', closed_at = now()
        where order_no = 'ORDER_3';
    update payment_orders set subject = '＝1+1', user_id = '123456789012' where order_no = 'ORDER_4';
    update payment_orders set subject = '_x0041_ <&> 😀', user_id = '12345678901', merchant_order_no = 'shop-1'
        where order_no = 'ORDER_5'";

/// The cells of each order, as text, without account, marks and ids. `¥` marks an amount, `@` a time.
const ROWS: [&str; 6] = [
    "20261129000000000000000000000042|||=HYPERLINK(\"http://evil.example\",\"点此\")|-1|+861234|微信支付|native|待支付|¥10.00|¥0.00|||\
        @2026-11-29 00:30:05||@2026-11-29 01:00:05",
    "ORDER_1|=A1|4200002219202211290000000001|@SUM(A1:A9)|membership|007|支付宝|qr|已支付|¥99999999.99|¥0.00|||\
        @2026-11-28 23:30:05|@2026-11-28 23:59:59|@2026-11-29 00:00:05",
    "ORDER_2|0012|9007199254740993|会员, \"一年\"; O'Neil|membership|=1+1|微信支付|native|部分退款|¥0.29|¥0.01|待处理|¥0.07|\
        @2026-11-28 22:30:05|@2026-11-29 00:00:00|@2026-11-28 23:00:05",
    "ORDER_3|||'=1|2026-01-02|1e5|微信支付|native|已关闭|¥10.00|¥0.00|||@2026-11-28 21:30:05||@2026-11-28 22:00:05",
    "ORDER_4|||＝1+1|membership|123456789012|微信支付|native|待支付|¥10.00|¥0.00|||@2026-11-28 20:30:05||@2026-11-28 21:00:05",
    "ORDER_5|shop-1||_x0041_ <&> 😀|membership|12345678901|微信支付|native|待支付|¥10.00|¥0.00|||@2026-11-28 19:30:05||@2026-11-28 20:00:05",
];

/// The cells of each order, as text.
fn expected(ids: &[String]) -> Vec<Vec<String>> {
    let row = |(row, id): (&&str, &String)| {
        let mut cells: Vec<String> = row.split('|').map(str::to_owned).collect();
        cells.insert(7, "main".to_owned());
        cells.splice(14..14, ["否".to_owned(), "否".to_owned()]);
        cells.push(id.clone());
        cells
    };
    ROWS.iter().zip(ids).map(row).collect()
}

const HEADS: [&str; 20] = [
    "订单号",
    "商户订单号",
    "通道交易号",
    "商品",
    "商品类型",
    "用户",
    "支付方式",
    "账户",
    "场景",
    "状态",
    "订单金额（元）",
    "已退金额（元）",
    "多付款状态",
    "多付款金额（元）",
    "有未结案件",
    "关闭后付款",
    "创建时间（北京时间 UTC+8）",
    "支付时间（北京时间 UTC+8）",
    "付款截止（北京时间 UTC+8）",
    "订单 ID",
];

/// The lines of the sums, with `¥` and `@` as above, and `#` for a count.
const SUMS: [&[&str]; 15] = [
    &["汇总", "订单"],
    &["导出时间（北京时间 UTC+8）", "@2026-11-29 00:30:05"],
    &["筛选条件", "无"],
    &["项目", "状态", "支付方式", "笔数", "订单金额（元）", "已退金额（元）"],
    &["合计", "全部", "全部", "#6", "¥100000040.28", "¥0.01"],
    &["按状态", "已关闭", "全部", "#1", "¥10.00", "¥0.00"],
    &["按状态", "已支付", "全部", "#1", "¥99999999.99", "¥0.00"],
    &["按状态", "部分退款", "全部", "#1", "¥0.29", "¥0.01"],
    &["按状态", "待支付", "全部", "#3", "¥30.00", "¥0.00"],
    &["按支付方式", "全部", "支付宝", "#1", "¥99999999.99", "¥0.00"],
    &["按支付方式", "全部", "微信支付", "#5", "¥40.29", "¥0.01"],
    &["按状态和支付方式", "已关闭", "微信支付", "#1", "¥10.00", "¥0.00"],
    &["按状态和支付方式", "已支付", "支付宝", "#1", "¥99999999.99", "¥0.00"],
    &["按状态和支付方式", "部分退款", "微信支付", "#1", "¥0.29", "¥0.01"],
    &["按状态和支付方式", "待支付", "微信支付", "#3", "¥30.00", "¥0.00"],
];

fn plain(cell: &str) -> String {
    cell.trim_start_matches(['¥', '#'])
        .strip_prefix('@')
        .filter(|text| text.starts_with("20"))
        .unwrap_or(cell.trim_start_matches(['¥', '#']))
        .to_owned()
}

/// What a workbook holds for a cell.
fn in_sheet(cell: &str) -> Value {
    let number = |text: &str| Value::Number(text.trim_end_matches('0').trim_end_matches('.').to_owned());
    match cell {
        "" => Value::Empty,
        "¥0.00" => Value::Number("0".to_owned()),
        text if text.starts_with('¥') => number(&text["¥".len()..]),
        text if text.starts_with('#') => Value::Number(text[1..].to_owned()),
        text if text.starts_with("@20") => Value::Time(text[1..].to_owned()),
        text => Value::Text(text.to_owned()),
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn each_cell_of_a_csv_is_read_back(db: PgPool) {
    let ids = placed(&db).await;
    set(&db, NASTY).await;
    let place = Place::new();
    let made = made(&db, &place, &orders(Format::Csv)).await.unwrap();
    let path = place.file("out.csv");
    let lines = csv(&path);
    assert_eq!(lines[0], HEADS);
    for (line, row) in lines[1..7].iter().zip(expected(&ids)) {
        assert_eq!(*line, row.iter().map(|cell| plain(cell)).collect::<Vec<_>>());
    }
    assert!(lines[7].iter().all(String::is_empty), "a line between the rows and the sums");
    for (line, sums) in lines[8..].iter().zip(SUMS) {
        let mut cells: Vec<String> = sums.iter().map(|cell| plain(cell)).collect();
        cells.resize(HEADS.len(), String::new());
        assert_eq!(*line, cells);
    }
    assert_eq!(lines.len(), 8 + SUMS.len());
    let raw = raw_csv(&path);
    assert!(raw.iter().flatten().all(|cell| !cell.starts_with(['=', '+', '-', '@', '\t', '\r', '＝'])), "{raw:?}");
    assert_eq!((&*raw[1][0], &*raw[2][5], &*raw[4][5]), ("'20261129000000000000000000000042", "'007", "'1e5"));
    assert_eq!((&*raw[6][5], &*raw[4][3]), ("12345678901", "''=1"));
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(made.sealed.bytes, bytes.len() as u64);
    assert_eq!(made.sealed.sha256, sha256(&bytes));
    assert_eq!(made.sums.total().count, 6);
}

fn sha256(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn each_cell_of_a_workbook_is_read_back(db: PgPool) {
    let ids = placed(&db).await;
    set(&db, NASTY).await;
    let place = Place::new();
    let made = made(&db, &place, &orders(Format::Xlsx)).await.unwrap();
    let path = place.file("out.xlsx");
    assert_eq!(sheets(&path), ["订单", "汇总"]);
    let rows = sheet(&path, "订单");
    assert_eq!(rows[0], HEADS.map(in_sheet));
    assert_eq!(rows.len(), 7);
    for (row, expected) in rows[1..].iter().zip(expected(&ids)) {
        assert_eq!(*row, expected.iter().map(|cell| in_sheet(cell)).collect::<Vec<_>>());
    }
    let sums = sheet(&path, "汇总");
    assert_eq!(sums.len(), SUMS.len());
    for (row, expected) in sums.iter().zip(SUMS) {
        let mut cells: Vec<Value> = expected.iter().map(|cell| in_sheet(cell)).collect();
        cells.resize(6, Value::Empty);
        assert_eq!(*row, cells);
    }
    let texts = raw_texts(&path, "订单");
    assert!(texts.iter().all(|text| !text.starts_with(['=', '+', '-', '@', '＝'])), "{texts:?}");
    assert!(texts.contains(&"20261129000000000000000000000042".to_owned()), "long numbers are text");
    assert_eq!(made.sealed.sha256, sha256(&std::fs::read(&path).unwrap()));
    assert_eq!(place.files(), ["out.xlsx"], "nothing else is left");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn refunds_are_read_back_in_both_formats(db: PgPool) {
    let ids = placed(&db).await;
    let columns =
        "refund_amount, status, refund_reason, requested_by, gateway_refund_no, succeeded_at, last_error, attempts";
    let one = refunded(
        &db,
        &ids[1],
        1,
        columns,
        "3.10, 'succeeded', '=cmd|''/C calc''!A0', '@u', '503000221920', '2026-11-29 16:00:00Z', null, 2",
    )
    .await;
    let two = refunded(&db, &ids[2], 2, columns, "0.01, 'processing', null, 'staff', null, null, '-1: busy', 0").await;
    let expected = [
        [
            "REFUND_2",
            "",
            "ORDER_2",
            "420000221920221129002",
            "微信支付",
            "main",
            "处理中",
            "¥0.01",
            "",
            "本系统",
            "staff",
            "#0",
            "-1: busy",
            "@2026-11-29 02:30:05",
            "@2026-11-29 02:30:05",
            &two,
            &ids[2],
        ],
        [
            "REFUND_1",
            "503000221920",
            "ORDER_1",
            "420000221920221129001",
            "微信支付",
            "main",
            "已退款",
            "¥3.10",
            "=cmd|'/C calc'!A0",
            "本系统",
            "@u",
            "#2",
            "",
            "@2026-11-29 01:30:05",
            "@2026-11-30 00:00:00",
            &one,
            &ids[1],
        ],
    ];
    let place = Place::new();
    for format in Format::ALL {
        let selection = Selection::Refunds(RefundFilter::default());
        let task = Task { selection, ..orders(*format) };
        let made = made(&db, &place, &task).await.unwrap();
        assert_eq!((made.sums.total().count, made.sums.total().amount, made.sums.groups().count()), (2, 311, 2));
    }
    let lines = csv(&place.file("out.csv"));
    let rows = sheet(&place.file("out.xlsx"), "退款");
    for (n, cells) in expected.iter().enumerate() {
        assert_eq!(lines[n + 1], cells.map(plain));
        assert_eq!(rows[n + 1], cells.map(in_sheet));
    }
    assert_eq!((lines[0].len(), rows.len()), (17, 3));
    assert_eq!(sheet(&place.file("out.xlsx"), "汇总").len(), 10);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn filters_select_and_no_row_is_still_a_file(db: PgPool) {
    placed(&db).await;
    let place = Place::new();
    let only = OrderFilter { user_id: Some(domain::UserId::parse("u_4").unwrap()), ..OrderFilter::default() };
    let task = Task { selection: Selection::Orders(only), ..orders(Format::Csv) };
    made(&db, &place, &task).await.unwrap();
    let lines = csv(&place.file("out.csv"));
    assert_eq!((&*lines[1][0], lines[2].join("")), ("ORDER_4", String::new()));
    let none = OrderFilter { user_id: Some(domain::UserId::parse("u_9").unwrap()), ..OrderFilter::default() };
    let task = Task { selection: Selection::Orders(none), ..orders(Format::Xlsx) };
    assert_eq!(made(&db, &place, &task).await.unwrap().sums.total().count, 0);
    assert_eq!(sheet(&place.file("out.xlsx"), "订单").len(), 1);
}

/// Never a part that looks like everything.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn more_rows_than_the_limit_are_an_error_that_names_both(db: PgPool) {
    placed(&db).await;
    let place = Place::new();
    for (rows, fits) in [(5, false), (6, true)] {
        let task = Task { limits: Limits { rows, page: 2 }, ..orders(Format::Csv) };
        match made(&db, &place, &task).await {
            Ok(_) => assert!(fits),
            Err(error) => {
                assert_eq!(error.to_string(), "6 rows match, and an export has at most 5: narrow the filters");
                assert_eq!((error.code(), place.files().len(), fits), ("too_many_rows", 0, false));
            }
        }
    }
    assert_eq!(export::MOST_ROWS, 1_000_000);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn rows_that_change_meanwhile_are_as_they_were(db: PgPool) {
    let ids = placed(&db).await;
    let barrier = Barrier::set(&db).await;
    let (place, progress) = (Place::new(), Arc::default());
    let making = tokio::spawn({
        let (db, path, progress) = (db.clone(), place.file("out.csv"), Arc::clone(&progress));
        async move { make(&db, &orders(Format::Csv), &path, &progress, &CancellationToken::new()).await }
    });
    written(&progress, 2).await;
    assert_eq!(progress.total(), Some(6));
    set(&db, "update kept_orders set amount = 77, user_id = 'changed' where order_no in ('ORDER_0', 'ORDER_4')").await;
    set(&db, "delete from kept_orders where order_no = 'ORDER_5'").await;
    set(
        &db,
        &format!(
            "insert into kept_orders select * from jsonb_populate_record(null::kept_orders, (select to_jsonb(o)
        || jsonb_build_object('id', lpad('1', 32, '0'), 'order_no', 'ORDER_9') from kept_orders o where id = '{}'))",
            ids[0]
        ),
    )
    .await;
    barrier.open().await;
    let made = making.await.unwrap().unwrap();
    assert_eq!((made.sums.total().count, made.sums.total().amount), (6, 6000));
    let lines = csv(&place.file("out.csv"));
    let column = |n: usize| lines[1..7].iter().map(|line| line[n].clone()).collect::<Vec<_>>();
    assert_eq!(column(0), ["ORDER_0", "ORDER_1", "ORDER_2", "ORDER_3", "ORDER_4", "ORDER_5"]);
    assert_eq!(
        (column(5), column(10)),
        ([0, 1, 2, 3, 4, 5].map(|n| format!("u_{n}")).to_vec(), vec!["10.00".to_owned(); 6])
    );
}

/// The view gives another amount each time it is read, as a defect in one of the two queries would.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn sums_that_differ_from_the_rows_fail_the_export(db: PgPool) {
    placed(&db).await;
    let other = "(amount + case when order_no = 'ORDER_2' then (random() * 1000000)::int else 0 end)::numeric(10, 2)";
    seen_with(&db, "amount", other).await;
    let place = Place::new();
    for format in Format::ALL {
        let failed = made(&db, &place, &orders(*format)).await.unwrap_err();
        assert!(
            matches!(&failed, ExportError::SumsDiffer(said) if said.starts_with("pending at wechat: 6 rows, ")),
            "{failed:?}"
        );
        assert_eq!(place.files(), [""; 0]);
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_place_that_cannot_be_written_is_an_error(db: PgPool) {
    placed(&db).await;
    let place = Place::new();
    std::fs::write(place.file("out.csv"), "of another export").unwrap();
    let failed = made(&db, &place, &orders(Format::Csv)).await.unwrap_err();
    assert_eq!(failed.to_string(), "the file cannot be written: entity already exists");
    assert_eq!(std::fs::read_to_string(place.file("out.csv")).unwrap(), "of another export");
    let gone = Place(place.file("gone"));
    assert_eq!(made(&db, &gone, &orders(Format::Xlsx)).await.unwrap_err().code(), "disk");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_stop_in_the_middle_leaves_no_file(db: PgPool) {
    placed(&db).await;
    let barrier = Barrier::set(&db).await;
    for format in Format::ALL {
        let (place, progress, stop) = (Place::new(), Arc::default(), CancellationToken::new());
        let making = tokio::spawn({
            let (db, path, progress, stop) = (db.clone(), place.file("out"), Arc::clone(&progress), stop.clone());
            async move { make(&db, &orders(*format), &path, &progress, &stop).await }
        });
        written(&progress, 2).await;
        assert_eq!(place.files(), ["out"]);
        stop.cancel();
        assert_eq!(making.await.unwrap().unwrap_err().code(), "cancelled");
        assert_eq!(place.files(), [""; 0]);
    }
    barrier.open().await;
}

/// Requests use the pool. An export neither waits for one of its connections nor holds one.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_export_takes_no_connection_of_the_pool(db: PgPool) {
    placed(&db).await;
    let options = (*db.connect_options()).clone().options([("statement_timeout", "1ms")]);
    let narrow = PgPoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
    let _held = narrow.acquire().await.unwrap();
    made(&narrow, &Place::new(), &orders(Format::Csv)).await.unwrap();
    let sql = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'";
    assert_eq!(sqlx::query_scalar::<_, i64>(sql).fetch_one(&db).await.unwrap(), 0);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_file_is_for_its_user_alone(db: PgPool) {
    use std::os::unix::fs::PermissionsExt as _;
    placed(&db).await;
    let place = Place::new();
    made(&db, &place, &orders(Format::Csv)).await.unwrap();
    assert_eq!(std::fs::metadata(place.file("out.csv")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(Clock::system().now() > AT);
}

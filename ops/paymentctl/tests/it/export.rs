//! `paymentctl export`: the same file as the API's, recorded with the operator's name.

use clap::Parser;
use paymentctl::export::{Command, run};
use runtime::clock::Clock;
use sqlx::PgPool;
use store::MIGRATOR;

use crate::world::{line, order, place, texts};

fn file(end: &str) -> String {
    std::env::temp_dir().join(format!("export-{:032x}.{end}", Clock::system().fresh_bits())).display().to_string()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn orders_are_written_and_the_operator_is_recorded(db: PgPool) {
    let (_, order_no) = order(&db).await;
    for format in ["csv", "xlsx"] {
        let out = file(format);
        let command = line::<Command>(&format!("orders --from 1d --to 2099-12-31 --format {format} --out {out}"));
        let answer = run(&place(&db), &command, Some("alice")).await.unwrap();
        assert!(answer.done && answer.text.starts_with("1 orders in "), "{}", answer.text);
        let bytes = std::fs::read(&out).unwrap();
        assert_eq!(answer.json["bytes"], bytes.len());
        if format == "csv" {
            assert!(String::from_utf8(bytes).unwrap().contains(&format!("\r\n{order_no},")));
        }
        // What exists is never replaced.
        let problem = run(&place(&db), &command, Some("alice")).await.unwrap_err();
        assert!(problem.said.starts_with("the file cannot be written"), "{problem}");
        std::fs::remove_file(&out).unwrap();
    }
    let acts = texts(
        &db,
        "select subject || ' ' || act || ' ' || (detail ->> 'rows') || ' ' || (detail ->> 'kind') from audit_log",
    )
    .await;
    assert_eq!(acts, ["paymentctl/alice export.made 1 orders"; 2]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn without_a_name_or_a_range_there_is_no_file(db: PgPool) {
    let out = file("csv");
    let command = line::<Command>(&format!("refunds --from 2026-02-01 --to 2026-01-31 --format csv --out {out}"));
    assert!(run(&place(&db), &command, None).await.unwrap_err().said.contains("no operator"));
    assert!(run(&place(&db), &command, Some("alice")).await.unwrap_err().usage);
    let day = line::<Command>(&format!("refunds --from 2026-02-01 --to 2026-02-01 --format csv --out {out}"));
    assert!(run(&place(&db), &day, Some("alice")).await.unwrap().done, "a date as the end is in the range");
    std::fs::remove_file(&out).unwrap();
    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        _command: Command,
    }
    for wrong in [
        "orders --format csv --out x --from 1d",
        "orders --from 1d --to 1d --format pdf --out x",
        "orders --from 1d --to 1d --format csv",
    ] {
        assert!(Line::try_parse_from(std::iter::once("test").chain(wrong.split(' '))).is_err(), "{wrong}");
    }
}

/// The function of the database accepts acts on keys and on exports, and no others.
#[sqlx::test(migrator = "MIGRATOR")]
async fn the_log_takes_acts_of_operators_on_keys_and_exports_alone(db: PgPool) {
    for (arguments, fits) in [
        ("'paymentctl/a', 'export.made', 'export:1'", true),
        ("'paymentctl/a', 'key.made', 'key:1'", true),
        ("'a', 'export.made', 'export:1'", false),
        ("'paymentctl/a', 'export.made', 'key:1'", false),
        ("'paymentctl/a', 'key.made', 'export:1'", false),
        ("'paymentctl/a', 'case.confirmed', 'export:1'", false),
    ] {
        let sql = sqlx::AssertSqlSafe(format!("select record_operator_act({arguments}, '{{}}')"));
        assert_eq!(sqlx::query_scalar::<_, bool>(sql).fetch_one(&db).await.unwrap(), fits, "{arguments}");
    }
}

//! One transaction for each callback, by pgbench: the rows that settling writes, one order at a time.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use url::Url;

use super::run;
use crate::database::id_prefix;

/// The script locks, decides (the client has no logic), writes each row and commits. Each client prepares it once.
/// The callback's body has a realistic size and is generated at the server, so this side does not have to send it.
/// The casts matter: compared with `text`, a `char(32)` column cannot use its index, and the limit would be a
/// sequential scan. `ORDER_ID` stands for the id of the nth order.
const SCRIPT: &str = "\
\\set i :i + 1
\\set n :client_id * :each + :i
begin;
select id, user_id, order_no, product_type, amount, payment_method, account, status, trade_no, metadata, version
  from payment_orders where order_no = ('B' || lpad((:n)::int::text, 12, '0'))::varchar for update;
update payment_orders
  set status = 'paid', trade_no = 'T' || (:n)::int, paid_at = now(), updated_at = now(), version = version + 1
  where order_no = ('B' || lpad((:n)::int::text, 12, '0'))::varchar and status = 'pending';
update payment_transactions set status = 'succeeded', gateway_no = 'T' || (:n)::int, updated_at = now()
  where order_id = ORDER_ID::bpchar and status = 'pending';
insert into events (event_id, type, order_id, data, occurred_at)
  values ('order.paid:' || ORDER_ID, 'order.paid', ORDER_ID,
    jsonb_build_object('order_id', ORDER_ID, 'order_no', 'B' || lpad((:n)::int::text, 12, '0'),
      'user_id', 'bench-' || (:n)::int % 1000, 'product_type', 'membership', 'amount', '12.34', 'currency', 'CNY',
      'payment_method', 'alipay', 'trade_no', 'T' || (:n)::int, 'paid_at', now(), 'order_version', 2,
      'metadata', '{\"shop\": \"bench\"}'::jsonb), now());
with ended as (delete from jobs where kind = 'check' and ref_id = ORDER_ID::bpchar returning ref_id)
  insert into jobs (kind, ref_id, due_at, created_at)
  select 'look_back', ref_id, now() + interval '1 day', now() from ended;
insert into callbacks (payment_method, account, notice_id, order_no, verdict, headers, body, received_at, last_seen_at)
  values ('alipay', 'main', 'N' || (:n)::int, 'B' || lpad((:n)::int::text, 12, '0'), 'settled',
    '{\"content-type\": \"application/x-www-form-urlencoded; charset=utf-8\"}',
    convert_to(rpad('', 1200, md5((:n)::int::text)), 'UTF8'), now(), now());
commit;
";

/// The installed tool.
pub(crate) struct Pgbench {
    program: PathBuf,
    clients: u32,
}

impl Pgbench {
    /// Finds pgbench on PATH, or where Debian installs it.
    pub(crate) fn find(clients: u32) -> Result<Pgbench> {
        let path = env::var_os("PATH").unwrap_or_default();
        let mut places: Vec<PathBuf> = env::split_paths(&path).collect();
        let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        places.extend(versions.map(|version| version.path().join("bin")));
        match places.into_iter().map(|place| place.join("pgbench")).find(|program| program.is_file()) {
            Some(program) => Ok(Pgbench { program, clients }),
            None => bail!("pgbench is neither on PATH nor in /usr/lib/postgresql/*/bin: it comes with the server"),
        }
    }

    /// Settles the orders 1 to `orders`, which must be pending; returns transactions per second.
    pub(crate) async fn settle(&self, database: &Url, dir: &Path, orders: u32) -> Result<f64> {
        let script = dir.join("settle.sql");
        let order_id = format!("('{}' || lpad(to_hex((:n)::int), 20, '0'))", id_prefix());
        fs::write(&script, SCRIPT.replace("ORDER_ID", &order_id))?;
        let each = orders / self.clients;
        let mut pgbench = Command::new(&self.program);
        pgbench.args(["--no-vacuum", "--protocol=prepared", &format!("--jobs={}", self.clients.min(2))]);
        pgbench.args([format!("--client={}", self.clients), format!("--transactions={each}")]);
        pgbench.args(["--define=i=0".to_owned(), format!("--define=each={each}")]);
        pgbench.arg("--file").arg(&script);
        // The password is passed in the environment, because all users can read the command line of a process.
        pgbench.env("PGHOST", database.host_str().unwrap_or("127.0.0.1"));
        pgbench.env("PGPORT", database.port().unwrap_or(5432).to_string());
        pgbench.env("PGUSER", database.username()).env("PGPASSWORD", database.password().unwrap_or_default());
        pgbench.env("PGDATABASE", database.path().trim_start_matches('/'));
        read(&run(pgbench).await?).context("pgbench printed something else than expected")
    }
}

/// `tps = 1234.5 (without initial connection time)`.
fn read(printed: &str) -> Option<f64> {
    let tps = printed.lines().find_map(|line| line.strip_prefix("tps = "))?;
    tps.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read() {
        let printed = "latency average = 4.1 ms\ntps = 1950.123456 (without initial connection time)\n";
        assert_eq!(read(printed), Some(1950.123456));
        assert_eq!(read("pgbench: error"), None);
    }
}

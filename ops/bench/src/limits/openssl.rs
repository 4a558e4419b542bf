//! RSA-2048 signatures per second by `openssl speed` on all processors.

use std::process::Command;

use anyhow::{Context, Result};

use super::run;

/// Measures two seconds of signing (openssl also measures two of verifying).
pub(crate) async fn signatures_per_second() -> Result<f64> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    let mut speed = Command::new("openssl");
    speed.args(["speed", "-seconds", "2", "-multi", &cores, "rsa2048"]);
    read(&run(speed).await?).context("openssl speed printed something else than expected")
}

/// The figure under `sign/s`; its column differs between versions.
fn read(printed: &str) -> Option<f64> {
    let mut lines = printed.lines();
    let column = lines.by_ref().find_map(|line| line.split_whitespace().position(|word| word == "sign/s"))?;
    let figures = lines.find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.starts_with(&["rsa", "2048", "bits"]).then(|| words[3..].join(" "))
    })?;
    figures.split(' ').nth(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_column_is_found_in_every_layout() {
        let old = "version: 3.0.17\n                  sign    verify    sign/s verify/s\n\
                   rsa 2048 bits 0.000370s 0.000011s   2701.5  90009.0\n";
        assert_eq!(read(old), Some(2701.5));
        let new = "                   sign    verify    encrypt   decrypt   sign/s verify/s  encr./s  decr./s\n\
                   rsa  2048 bits 0.0005s 0.00001s 0.00002s 0.0005s   1981.0  66000.0  60000.0  1900.0\n";
        assert_eq!(read(new), Some(1981.0));
        assert_eq!(read("nothing"), None);
    }
}

//! The minimum cost of a callback's route: one fsync (the commit) and two confirmed publishes, one after another.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use crate::broker::{Broker, confirmed, publish};

/// The write-ahead log is written in blocks of this size.
const BLOCK: [u8; 8192] = [0x5a; 8192];

/// The duration of each of `times` rounds, in milliseconds. The file is in the run's folder.
pub(crate) async fn fsync_and_two_publishes(broker: &Broker, dir: &Path, body: &[u8], times: u32) -> Result<Vec<f64>> {
    let channel = broker.confirming().await?;
    let mut file = File::create(dir.join("fsync"))?;
    let mut took = Vec::new();
    for _ in 0..times {
        let began = Instant::now();
        confirmed(publish(&channel, body).await?).await?;
        tokio::task::block_in_place(|| file.write_all(&BLOCK).and_then(|()| file.sync_data()))?;
        confirmed(publish(&channel, body).await?).await?;
        took.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    channel.close(200, "bye".into()).await?;
    Ok(took)
}

//! A private Redis: a cache that loses everything when it stops.

use std::{
    io::{Read, Write},
    path::PathBuf,
    time::Duration,
};

use anyhow::Result;
use rustix::process::Signal;

use crate::http::connect;

use super::{
    logins::REDIS_USER,
    record::Record,
    release::Usr,
    server::{Place, Server, Stop},
};

/// Redis as a native server.
#[derive(Debug)]
pub struct Redis {
    /// `redis-server`.
    pub program: PathBuf,
}

impl Server for Redis {
    fn create(&self, _: &Place, _: &mut Record) -> Result<()> {
        Ok(())
    }

    fn launch(&self, place: &Place, record: &mut Record) -> Result<()> {
        let conf = place.home.join("redis.conf");
        // The password is in a file, because all users of the machine can read the arguments of a process.
        let settings = format!(
            "bind 127.0.0.1\nport {}\nrequirepass {}\ndir \"{}\"\nsave \"\"\nappendonly no\ndaemonize no\n",
            record.port("main")?,
            record.secret(REDIS_USER)?,
            place.home.display()
        );
        place.run_as.write(&conf, &settings)?;
        let mut server = place.command(&self.program, &Usr::default());
        server.arg(&conf);
        place.launch("1-redis", &mut server, record).map(drop)
    }

    fn is_ready(&self, record: &Record) -> Result<bool> {
        Ok(answers(record.port("main")?, record.secret(REDIS_USER)?))
    }

    fn finish(&self, _: &Place, _: &Record) -> Result<()> {
        Ok(())
    }

    fn stop_signal(&self, _: Stop) -> (Signal, Duration) {
        (Signal::TERM, Duration::from_secs(10))
    }
}

/// Whether it accepts the password and answers a ping.
pub fn answers(port: u16, password: &str) -> bool {
    let Ok(mut stream) = connect(port) else { return false };
    let expected = b"+OK\r\n+PONG\r\n";
    let mut answer = [0; 12];
    write!(stream, "AUTH {password}\r\nPING\r\n").is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer == *expected
}

/// Its URL.
pub fn url(record: &Record) -> Result<String> {
    Ok(format!("redis://:{}@127.0.0.1:{}/0", record.secret(REDIS_USER)?, record.port("main")?))
}

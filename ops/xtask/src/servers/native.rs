//! Starts and stops the programs themselves. The steps are the same for each: create its data if there is none,
//! launch it, wait until it answers, set it up once.

use std::{fs, time::Instant};

use anyhow::{Context, Result, bail};

use crate::{
    files::remove_dir,
    ports,
    process::{Process, tail},
    ui::{say, wait_until},
};

use super::{
    Kind,
    find::Programs,
    postgres::{Postgres, Standby},
    rabbitmq::{Epmd, Rabbitmq},
    record::Record,
    redis::Redis,
    server::{Place, READY_LIMIT, Server, Stop, log},
};

/// How many times a start is tried with other ports when another process has taken one in the meantime.
const PORT_ATTEMPTS: u32 = 3;

/// The server of a kind, with its programs.
pub fn server(kind: Kind, programs: &Programs) -> Result<Box<dyn Server>> {
    let missing = || format!("{kind} is no longer on this machine");
    let postgres = || Ok::<_, anyhow::Error>(Postgres { programs: programs.postgres.clone().with_context(missing)? });
    let rabbitmq = || Ok::<_, anyhow::Error>(Rabbitmq { programs: programs.rabbitmq.clone().with_context(missing)? });
    Ok(match kind {
        Kind::Postgres => Box::new(postgres()?),
        Kind::Standby => Box::new(Standby(postgres()?)),
        Kind::Rabbitmq | Kind::Rabbitmq2 | Kind::Rabbitmq3 => Box::new(rabbitmq()?),
        Kind::Epmd => Box::new(Epmd(rabbitmq()?)),
        Kind::Redis => Box::new(Redis { program: programs.redis.clone().with_context(missing)? }),
    })
}

/// What to do when another program has taken a recorded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// Choose other ports: no client knows these yet.
    MayChange,
    /// Fail: a client waits for this port.
    Fixed,
}

/// Starts one server, from its data if that is complete, else with new data.
pub fn start(server: &dyn Server, place: &Place, record: &mut Record, ports: Ports) -> Result<()> {
    for attempt in 1.. {
        if ports == Ports::MayChange && !ports_are_free(record) {
            record.ports = Record::new(record.kind)?.ports;
        }
        let Err(error) = start_once(server, place, record) else { break };
        stop(server, place, record, Stop::Discard)?;
        let a_port_was_taken = ports == Ports::MayChange && !ports_are_free(record);
        if !a_port_was_taken || attempt == PORT_ATTEMPTS {
            return Err(error);
        }
    }
    Ok(())
}

fn ports_are_free(record: &Record) -> bool {
    record.ports.values().all(|port| ports::is_free(*port))
}

fn start_once(server: &dyn Server, place: &Place, record: &mut Record) -> Result<()> {
    let (kind, begun) = (record.kind, Instant::now());
    let log = log(&place.dir, kind);
    fs::create_dir_all(place.dir.join("logs"))?;
    if !record.is_set_up {
        say(&kind.to_string(), "making its data");
        remove_dir(&place.home)?;
        record.save(&place.dir)?;
        place.run_as.create_dir(&place.home)?;
        server.create(place, record)?;
    }
    server.launch(place, record)?;
    wait_until(&kind.to_string(), READY_LIMIT, || {
        if !record.is_running() {
            bail!("{kind} ended while starting; {} ends with\n{}", log.display(), tail(&log, 15));
        }
        Ok(server.is_ready(record).unwrap_or(false))
    })?;
    if !record.is_set_up {
        server.finish(place, record).with_context(|| format!("could not set up {kind}"))?;
        record.is_set_up = true;
        record.save(&place.dir)?;
    }
    let port = record.port("main")?;
    say(&kind.to_string(), format_args!("ready on 127.0.0.1:{port} ({:.1} s)", begun.elapsed().as_secs_f32()));
    Ok(())
}

/// Stops a server's processes in the reverse order of starting, and only those.
pub fn stop(server: &dyn Server, place: &Place, record: &mut Record, stop: Stop) -> Result<()> {
    let (signal, grace) = server.stop_signal(stop);
    end(place, record, |process| process.stop(signal, grace))
}

/// Kills a server's processes as a crash would.
pub fn kill(place: &Place, record: &mut Record) -> Result<()> {
    end(place, record, Process::kill)
}

fn end(place: &Place, record: &mut Record, how: impl Fn(&Process)) -> Result<()> {
    record.processes.values().rev().for_each(how);
    record.processes.clear();
    record.save(&place.dir)
}

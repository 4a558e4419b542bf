//! Free loopback ports and random secrets.

use std::{collections::BTreeSet, fs::File, io::Read, net::TcpListener};

use anyhow::{Context, Result, ensure};

/// The range lies below the kernel's range for local ports of outgoing connections (32768 and up on Linux). So a
/// server that is stopped and restarted finds its port still free.
const RANGE: std::ops::Range<u16> = 20_000..32_000;

/// `count` different ports on which no process listens. The search starts at a random port, so that two runs differ.
pub fn free(count: usize) -> Result<Vec<u16>> {
    let mut seed = [0; 2];
    random(&mut seed)?;
    let size = RANGE.end - RANGE.start;
    let first = u16::from_le_bytes(seed) % size;
    // A step that shares no factor with the size of the range visits every port once.
    let ports = (0..size).map(|step| {
        RANGE.start + u16::try_from((u32::from(first) + u32::from(step) * 7_919) % u32::from(size)).unwrap_or(0)
    });
    let found: Vec<u16> = ports.filter(|port| is_free(*port)).take(count).collect();
    ensure!(found.len() == count, "no free loopback port between {} and {}", RANGE.start, RANGE.end);
    debug_assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), count);
    Ok(found)
}

/// The usual port when it is free, otherwise another one.
pub fn usual_or_free(usual: u16) -> Result<u16> {
    if is_free(usual) { Ok(usual) } else { Ok(free(1)?[0]) }
}

/// Whether no process listens on this loopback port.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// 48 random hex digits: needs no escaping in a URL, a shell or a configuration file.
pub fn secret() -> Result<String> {
    let mut bytes = [0; 24];
    random(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// 32 random bytes in hex, the form of a key.
pub fn key() -> Result<String> {
    let mut bytes = [0; 32];
    random(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn random(bytes: &mut [u8]) -> Result<()> {
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(bytes)).context("could not read /dev/urandom")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_and_different() {
        let ports = free(20).unwrap();
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 20);
        assert!(ports.iter().all(|port| RANGE.contains(port)));
    }

    #[test]
    fn a_taken_port_is_not_free() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(!is_free(port));
        assert_ne!(usual_or_free(port).unwrap(), port);
    }

    #[test]
    fn secrets_differ() {
        assert_eq!(secret().unwrap().len(), 48);
        assert_ne!(secret().unwrap(), secret().unwrap());
    }
}

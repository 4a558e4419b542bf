//! A minimal HTTP client: it checks whether a server on this machine is ready, and creates RabbitMQ users.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail};

const TIMEOUT: Duration = Duration::from_secs(5);

/// One request; it closes the connection.
#[derive(Debug, Default, Clone, Copy)]
pub struct Request<'a> {
    /// `GET`, `PUT`, `DELETE`.
    pub method: &'a str,
    /// Path with query.
    pub path: &'a str,
    /// User and password.
    pub login: Option<(&'a str, &'a str)>,
    /// JSON.
    pub body: &'a str,
}

impl Request<'_> {
    /// Sends the request to a loopback port and returns the status and the whole answer.
    ///
    /// # Errors
    /// When no server answers within a few seconds, or the answer is not HTTP.
    pub fn send(&self, port: u16) -> Result<(u16, String)> {
        let mut stream = connect(port)?;
        let login = self.login.map(|(user, password)| {
            format!("Authorization: Basic {}\r\n", base64(format!("{user}:{password}").as_bytes()))
        });
        write!(
            stream,
            "{} {} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n{}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
            self.method,
            self.path,
            login.unwrap_or_default(),
            self.body.len(),
            self.body
        )?;
        let mut answer = Vec::new();
        // A server may close without a clean shutdown once it has answered.
        if let Err(error) = stream.read_to_end(&mut answer)
            && answer.is_empty()
        {
            bail!(error);
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = status(&answer).context("the answer is not HTTP")?;
        Ok((status, answer))
    }
}

/// Whether `GET path` is answered with a 2xx.
pub fn is_ok(port: u16, path: &str) -> bool {
    Request { method: "GET", path, ..Request::default() }.send(port).is_ok_and(|(status, _)| status / 100 == 2)
}

/// A connection to a loopback port, with time limits.
pub fn connect(port: u16) -> Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for position in 0..4 {
            let symbol = usize::try_from(group >> (18 - 6 * position) & 63).unwrap_or(0);
            text.push(if position <= chunk.len() { char::from(ALPHABET[symbol]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_agrees_with_rfc_4648() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")];
        for (plain, encoded) in cases {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }

    #[test]
    fn a_status_is_read_from_the_first_line() {
        assert_eq!(status("HTTP/1.1 204 No Content\r\n\r\n"), Some(204));
        assert_eq!(status("AMQP\0\0\u{9}\u{1}"), None);
        assert_eq!(status("HTTP/1.1"), None);
    }
}

//! A socket whose client must read a whole waiting answer within a limit, or a megabyte of a longer one.
//!
//! A client that reads one byte now and then always makes progress, so a limit on silence never closes its connection. A
//! file may be large and its client's line slow, so each [`ENOUGH`] bytes begin the limit again.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How much a client must read of a long answer within the limit, in bytes.
const ENOUGH: usize = 1024 * 1024;

/// See the module.
pub(super) struct Untaken<S> {
    socket: S,
    limit: Duration,
    /// Runs while the client has unread data. The server flushes after it has written everything.
    deadline: Option<Pin<Box<Sleep>>>,
    /// What the client has read since the deadline began.
    taken: usize,
}

impl<S> Untaken<S> {
    pub(super) fn new(socket: S, limit: Duration) -> Untaken<S> {
        Untaken { socket, limit, deadline: None, taken: 0 }
    }

    /// Counts what the socket took, which is what the client has made room for.
    fn take(&mut self, written: Poll<Result<usize>>) -> Poll<Result<usize>> {
        if let (Some(_), Poll::Ready(Ok(bytes))) = (&self.deadline, &written) {
            self.taken += bytes;
            if self.taken >= ENOUGH {
                self.begin_again();
            }
        }
        written
    }

    fn begin_again(&mut self) {
        (self.deadline, self.taken) = (None, 0);
    }

    /// Continues to wait for the client, until the limit is reached.
    fn wait<T>(&mut self, context: &mut Context<'_>) -> Poll<Result<T>> {
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(self.limit)));
        match deadline.as_mut().poll(context) {
            Poll::Ready(()) => {
                Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the client reads its answer too slowly")))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Untaken<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Untaken<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        match Pin::new(&mut self.socket).poll_write(context, bytes) {
            Poll::Pending => self.wait(context),
            written => self.take(written),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        match Pin::new(&mut self.socket).poll_write_vectored(context, parts) {
            Poll::Pending => self.wait(context),
            written => self.take(written),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(context);
        if flushed.is_ready() {
            self.begin_again();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Each megabyte takes less than a second, and the whole more than the limit.
    #[tokio::test]
    async fn a_long_answer_may_take_longer_than_the_limit() {
        const LIMIT: Duration = Duration::from_secs(3);
        let (server, mut client) = duplex(64 * 1024);
        let whole = vec![7; 10 * ENOUGH];
        let length = whole.len();
        let sent = tokio::spawn(async move { Untaken::new(server, LIMIT).write_all(&whole).await });
        let (mut part, mut read) = (vec![0; 64 * 1024], 0);
        let begun = tokio::time::Instant::now();
        while read < length {
            read += client.read(&mut part).await.unwrap();
            sleep(Duration::from_millis(22)).await;
        }
        assert!(begun.elapsed() > LIMIT);
        sent.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_takes_too_little_is_left() {
        let (server, mut client) = duplex(1024);
        let dripping = tokio::spawn(async move {
            while client.read_u8().await.is_ok() {
                sleep(Duration::from_millis(1)).await
            }
        });
        let sent = Untaken::new(server, Duration::from_millis(50)).write_all(&vec![7; 3 * ENOUGH]).await;
        assert_eq!(sent.unwrap_err().kind(), ErrorKind::TimedOut);
        dripping.await.unwrap();
    }
}

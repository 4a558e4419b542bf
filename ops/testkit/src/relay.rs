//! A fault proxy: a TCP proxy between a client and a server that causes faults on request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, broadcast, watch};

/// Listens on its own port and passes bytes on in both directions, until a fault is set. It keeps running after
/// this value is dropped.
pub struct Relay {
    port: u16,
    way: Arc<Way>,
}

/// The current faults, and the counters of connections and bytes.
struct Way {
    targets: watch::Sender<Vec<String>>,
    refused: watch::Sender<bool>,
    held: watch::Sender<bool>,
    answers_lost: watch::Sender<bool>,
    injected: broadcast::Sender<Vec<u8>>,
    cut: broadcast::Sender<()>,
    stranded: broadcast::Sender<()>,
    accepted: AtomicUsize,
    from_clients: AtomicUsize,
}

impl Relay {
    /// A fault proxy to `target`, such as `127.0.0.1:5672`.
    pub async fn to(target: String) -> Relay {
        Relay::to_any(vec![target]).await
    }

    /// A proxy to several equal servers: each connection goes to the next one that accepts it.
    pub async fn to_any(targets: Vec<String>) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("a bound port").port();
        let way = Arc::new(Way {
            targets: watch::Sender::new(targets),
            refused: watch::Sender::new(false),
            held: watch::Sender::new(false),
            answers_lost: watch::Sender::new(false),
            injected: broadcast::Sender::new(16),
            cut: broadcast::Sender::new(16),
            stranded: broadcast::Sender::new(16),
            accepted: AtomicUsize::new(0),
            from_clients: AtomicUsize::new(0),
        });
        tokio::spawn(listen(listener, port, way.clone()));
        Relay { port, way }
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections have been accepted.
    pub fn accepted(&self) -> usize {
        self.way.accepted.load(Ordering::SeqCst)
    }

    /// How many bytes clients have sent, including those that are held back.
    pub fn from_clients(&self) -> usize {
        self.way.from_clients.load(Ordering::SeqCst)
    }

    /// Waits until clients have sent more than `known` bytes.
    ///
    /// # Panics
    /// When nothing arrives for 30 s.
    pub async fn hears_more_than(&self, known: usize) {
        for _ in 0..3000 {
            if self.from_clients() > known {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no client has said anything");
    }

    /// Stops passing bytes on, or continues: this simulates a server that hangs.
    pub fn hold(&self, hold: bool) {
        self.way.held.send_replace(hold);
    }

    /// Cuts every connection and refuses new ones, or accepts them again: this simulates a server that is down.
    pub fn refuse(&self, refuse: bool) {
        self.way.refused.send_replace(refuse);
    }

    /// Passes on what clients send, and cuts the connection when the server answers; or passes answers on again.
    pub fn lose_answers(&self, lose: bool) {
        self.way.answers_lost.send_replace(lose);
    }

    /// Sends `bytes` to the clients as if they came from the server, even while it hangs.
    pub fn inject(&self, bytes: Vec<u8>) {
        // Without a connection there is no receiver.
        let _ = self.way.injected.send(bytes);
    }

    /// Sends every new connection to `target`: this simulates an address that has moved.
    pub fn point_at(&self, target: String) {
        self.way.targets.send_replace(vec![target]);
    }

    /// Passes nothing on any more over the open connections, and does not close them to the client: this simulates
    /// that the machine at the other end has vanished. New connections work.
    pub fn strand(&self) {
        let _ = self.way.stranded.send(());
    }

    /// Drops every open connection.
    pub fn cut(&self) {
        let _ = self.way.cut.send(());
    }
}

async fn listen(mut listener: TcpListener, port: u16, way: Arc<Way>) {
    let mut refused = way.refused.subscribe();
    loop {
        let taken = tokio::select! {
            taken = listener.accept() => Some(taken),
            _ = refused.wait_for(|refused| *refused) => None,
        };
        match taken {
            Some(Ok((client, _))) => {
                let nth = way.accepted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(connect(client, nth, way.clone()));
            }
            Some(Err(_)) => return,
            None => {
                drop(listener);
                let _ = way.cut.send(());
                let _ = refused.wait_for(|refused| !refused).await;
                listener = bound_to(port).await;
            }
        }
    }
}

/// Listens on the same port again. For a moment, an outgoing connection may use the port.
async fn bound_to(port: u16) -> TcpListener {
    loop {
        match TcpListener::bind(("127.0.0.1", port)).await {
            Ok(listener) => return listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn connect(client: TcpStream, nth: usize, way: Arc<Way>) {
    // From here on this connection receives every signal, even while it is being established.
    let (mut cut, mut stranded, injected) = (way.cut.subscribe(), way.stranded.subscribe(), way.injected.subscribe());
    let targets = way.targets.borrow().clone();
    let Some(server) = any_of(&targets, nth).await else { return };
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let to_client = Arc::new(Mutex::new(to_client));
    let up = pass(from_client, Arc::new(Mutex::new(to_server)), &way, |read| {
        way.from_clients.fetch_add(read, Ordering::SeqCst);
        true
    });
    let down = pass(from_server, to_client.clone(), &way, |_| !*way.answers_lost.borrow());
    let inject = inject(injected, to_client.clone());
    let is_stranded = tokio::select! {
        () = up => false,
        () = down => false,
        () = inject => false,
        _ = cut.recv() => false,
        _ = stranded.recv() => true,
    };
    // `to_client` keeps the client's socket open; the server's socket is closed by now.
    if is_stranded {
        std::future::pending::<()>().await;
    }
}

/// A connection to the `nth` of these, or to a later one.
async fn any_of(targets: &[String], nth: usize) -> Option<TcpStream> {
    for target in targets.iter().cycle().skip(nth % targets.len().max(1)).take(targets.len()) {
        if let Ok(server) = TcpStream::connect(target).await {
            return Some(server);
        }
    }
    None
}

/// Passes bytes on for as long as `goes` returns true for the next ones.
async fn pass(mut from: OwnedReadHalf, to: Arc<Mutex<OwnedWriteHalf>>, way: &Way, goes: impl Fn(usize) -> bool) {
    let (mut bytes, mut held) = (vec![0; 64 * 1024], way.held.subscribe());
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if !goes(read) || held.wait_for(|held| !held).await.is_err() {
            return;
        }
        if to.lock().await.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

async fn inject(mut injected: broadcast::Receiver<Vec<u8>>, to: Arc<Mutex<OwnedWriteHalf>>) {
    while let Ok(bytes) = injected.recv().await {
        if to.lock().await.write_all(&bytes).await.is_err() {
            return;
        }
    }
    std::future::pending().await
}

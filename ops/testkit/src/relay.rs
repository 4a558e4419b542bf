//! A relay between a client and a server, with faults on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, broadcast, watch};

/// Listens on a port of its own and passes bytes on, both ways, until told otherwise.
pub struct Relay {
    port: u16,
    targets: watch::Sender<Vec<String>>,
    held: watch::Sender<bool>,
    injected: broadcast::Sender<Vec<u8>>,
    cut: broadcast::Sender<()>,
    accepted: Arc<AtomicUsize>,
    from_clients: Arc<AtomicUsize>,
}

impl Relay {
    /// A relay to `target`, such as `127.0.0.1:5672`.
    pub async fn to(target: String) -> Relay {
        Relay::to_each_in_turn(vec![target]).await
    }

    /// A relay that gives each connection to the next of `targets`, as a load balancer does.
    pub async fn to_each_in_turn(targets: Vec<String>) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let relay = Relay {
            port: listener.local_addr().expect("a bound port").port(),
            targets: watch::Sender::new(targets),
            held: watch::Sender::new(false),
            injected: broadcast::Sender::new(16),
            cut: broadcast::Sender::new(16),
            accepted: Arc::default(),
            from_clients: Arc::default(),
        };
        let targets = relay.targets.subscribe();
        let (held, injected, cut) = (relay.held.clone(), relay.injected.clone(), relay.cut.clone());
        let (accepted, from_clients) = (relay.accepted.clone(), relay.from_clients.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let turn = accepted.fetch_add(1, Ordering::SeqCst);
                let target = {
                    let targets = targets.borrow();
                    targets[turn % targets.len()].clone()
                };
                let Ok(server) = TcpStream::connect(&target).await else { continue };
                let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
                let to_client = Arc::new(Mutex::new(to_client));
                let (mut cut, injected) = (cut.subscribe(), injected.subscribe());
                let up = pass(from_client, Arc::new(Mutex::new(to_server)), held.subscribe(), from_clients.clone());
                let down = pass(from_server, to_client.clone(), held.subscribe(), Arc::default());
                let inject = inject(injected, to_client);
                tokio::spawn(async move {
                    tokio::select! { () = up => {}, () = down => {}, () = inject => {}, _ = cut.recv() => {} }
                });
            }
        });
        relay
    }

    /// The port to connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many connections have been made.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// How many bytes have come from clients, those held back included.
    pub fn from_clients(&self) -> usize {
        self.from_clients.load(Ordering::SeqCst)
    }

    /// Waits until more than `known` bytes have come from clients.
    ///
    /// # Panics
    /// When nothing comes for half a minute.
    pub async fn hears_more_than(&self, known: usize) {
        for _ in 0..3000 {
            if self.from_clients() > known {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no client has said anything");
    }

    /// Stops passing bytes on, or goes on with it: a server that hangs.
    pub fn hold(&self, hold: bool) {
        self.held.send_replace(hold);
    }

    /// Sends `bytes` to the clients as if they came from the server, also while it hangs.
    pub fn inject(&self, bytes: Vec<u8>) {
        // Without a connection there is nobody to send to.
        let _ = self.injected.send(bytes);
    }

    /// Gives every connection from now on to `target`: an address that has moved.
    pub fn point_at(&self, target: String) {
        self.targets.send_replace(vec![target]);
    }

    /// Drops every connection that is open.
    pub fn cut(&self) {
        let _ = self.cut.send(());
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    to: Arc<Mutex<OwnedWriteHalf>>,
    mut held: watch::Receiver<bool>,
    count: Arc<AtomicUsize>,
) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        count.fetch_add(read, Ordering::SeqCst);
        if held.wait_for(|held| !held).await.is_err() || to.lock().await.write_all(&bytes[..read]).await.is_err() {
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

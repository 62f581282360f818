//! A TCP relay that can lose answers, cut connections, or fall silent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

#[derive(Default)]
pub(crate) struct Faults {
    /// From now on, cut the connection instead of passing an answer on.
    pub(crate) lose_answers: AtomicBool,
    /// From now on, pass nothing on in either direction, but keep connections open.
    pub(crate) silent: AtomicBool,
    /// Connections cut by `lose_answers`.
    pub(crate) cut: AtomicUsize,
}

pub(crate) struct Proxy {
    pub(crate) address: String,
    pub(crate) faults: Arc<Faults>,
    relaying: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.relaying.abort();
    }
}

impl Proxy {
    pub(crate) async fn to(server: &str) -> anyhow::Result<Proxy> {
        let target = server.trim_start_matches("https://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("https://{}", listener.local_addr()?);
        let faults = Arc::new(Faults::default());
        let relaying = tokio::spawn(relay(listener, target, Arc::clone(&faults)));
        Ok(Proxy { address, faults, relaying })
    }
}

async fn relay(listener: TcpListener, target: String, faults: Arc<Faults>) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        let Ok(far) = TcpStream::connect(&target).await else { continue };
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        let faults = Arc::clone(&faults);
        connections.spawn(async move {
            tokio::select! {
                () = copy(near_read, far_write, &faults, false) => {}
                () = copy(far_read, near_write, &faults, true) => {}
            }
        });
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, faults: &Faults, answers: bool) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) if faults.silent.load(Ordering::SeqCst) => continue,
            // Acknowledgements and settings of HTTP/2 are small; an answer isn't.
            Ok(count) if answers && count > 64 && faults.lose_answers.load(Ordering::SeqCst) => {
                faults.cut.fetch_add(1, Ordering::SeqCst);
                return;
            }
            Ok(count) => {
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

//! Asking a node's admin port whether it can serve.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long one question may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The most of an answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// `None` when the node is ready; else its reasons, one per line.
///
/// # Errors
/// When it doesn't answer (yet).
pub(super) async fn ask(admin: SocketAddr) -> anyhow::Result<Option<String>> {
    let answer = tokio::time::timeout(TIMEOUT, get(admin)).await.context("it does not answer in time")??;
    let (head, body) = answer.split_once("\r\n\r\n").context("its answer is no HTTP")?;
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(None),
        Some("503") => Ok(Some(body.to_owned())),
        _ => bail!("its admin port answers {}", head.lines().next().unwrap_or_default()),
    }
}

async fn get(admin: SocketAddr) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(admin).await?;
    // HTTP/1.0: the answer ends with the connection, and is not chunked.
    stream.write_all(format!("GET /readyz HTTP/1.0\r\nHost: {admin}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await?;
    Ok(answer)
}

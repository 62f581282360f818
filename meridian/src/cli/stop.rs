//! When to stop: Ctrl-C, SIGTERM, or the end of stdin.

use std::io::Read;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Resolves at SIGINT or SIGTERM; with its name.
pub(super) async fn signalled() -> anyhow::Result<&'static str> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    Ok(tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    })
}

/// Resolves when stdin ends: whoever holds its other end asked for it, or is gone.
pub(super) async fn stdin_ended() -> anyhow::Result<()> {
    let (ended, wait) = oneshot::channel();
    // A thread of its own, never joined: a blocking read can't be cancelled, and tokio would wait for one of its own.
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut buffer = [0; 64];
        while matches!(std::io::stdin().read(&mut buffer), Ok(1..)) {}
        let _ = ended.send(());
    })?;
    let _ = wait.await;
    Ok(())
}

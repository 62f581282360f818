//! `meridian server`: one node, until it is told to stop.

use std::path::PathBuf;

use tracing::info;

use super::stop;
use crate::config::Config;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The node's configuration (TOML). Scalars may come from the environment: MERIDIAN_LISTEN__RPC=0.0.0.0:7100.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Let a primary that was lost wait for `meridian reinstate` before it becomes a replica of its successor.
    #[arg(long)]
    manual_reinstate: bool,
    /// Stop cleanly when stdin ends: for a parent that must not leave nodes behind.
    #[arg(long)]
    stop_on_stdin_eof: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    let mut config = Config::load(&args.config)?;
    config.limits.manual_reinstate |= args.manual_reinstate;
    let until_eof = args.stop_on_stdin_eof;
    let stopped = async move {
        let why = tokio::select! {
            signal = stop::signalled() => signal.unwrap_or("no signals"),
            _ = stop::stdin_ended(), if until_eof => "end of stdin",
        };
        info!(why, "stopping");
    };
    crate::server::run(config, stopped).await
}

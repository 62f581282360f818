//! The command line: words in, one command run, an exit code out.
//!
//! Each command is a file below `cli/`: its arguments and what it does with them.

use clap::{CommandFactory, Parser, Subcommand};

mod backup;
mod bench;
mod bucket;
mod cert;
mod connect;
mod demo;
mod dev;
mod drill;
mod events;
mod exit;
mod failover;
mod kv;
mod lag;
mod metadata;
mod moment;
mod node;
mod operation;
mod resync;
mod salvage;
mod server;
mod status;
mod stop;
mod switchover;
mod transfer;
mod upgrade;
mod words;

pub use exit::{Code, Failure};

use crate::output::Format;
use connect::Connection;

/// Geo-replicated storage: one cluster across regions, a policy per bucket.
#[derive(Debug, Parser)]
#[command(name = "meridian", version, max_term_width = 110, disable_help_subcommand = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 not ready, 3 consent needed, 4 fenced, 5 invalid, 6 no quorum, 7 aborted and restored.\n\
New here? `meridian demo` shows everything on this machine; `meridian dev` keeps it running."
)]
pub struct Cli {
    #[command(flatten)]
    connection: Connection,
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, default_value_t, env = "MERIDIAN_OUTPUT")]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the whole product on real files: three regions, three policies, proven equal.
    Demo(demo::Args),
    /// Run three regions on this machine, with simulated distances.
    Dev(dev::Args),
    /// Run one node.
    Server(server::Args),
    /// Create the CA and certificates of a cluster.
    #[command(subcommand)]
    Cert(cert::Command),
    /// Create, list and change buckets.
    #[command(subcommand)]
    Bucket(bucket::Command),
    /// Read and write keys.
    #[command(subcommand)]
    Kv(kv::Command),
    /// Store the files below a directory in a bucket.
    Import(transfer::ImportArgs),
    /// Write what was imported back to a directory, checked.
    Export(transfer::ExportArgs),
    /// Back buckets up, check what was kept, and write it back.
    #[command(subcommand)]
    Backup(backup::Command),
    /// Show regions, nodes, buckets, and what is wrong.
    Status(status::Args),
    /// Show how far each region is behind.
    Lag(lag::Args),
    /// List nodes, and change which of them serve their region.
    #[command(subcommand)]
    Node(node::Command),
    /// See how far an upgrade of the nodes is, and end it.
    #[command(subcommand)]
    Upgrade(upgrade::Command),
    /// Move primaries to another region: planned, without loss, proven.
    #[command(subcommand)]
    Switchover(switchover::Command),
    /// Replace primaries of a lost region: what it would cost, doing it, and whether it happens by itself.
    #[command(subcommand)]
    Failover(failover::Command),
    /// Rehearse a failover on a copy of the data, which is removed afterwards.
    #[command(subcommand)]
    Drill(drill::Command),
    /// List, show, watch and give up operations.
    #[command(subcommand)]
    Operation(operation::Command),
    /// Show who changed what, when, and what came of it.
    Events(events::Args),
    /// Recover the metadata plane after its majority was lost.
    #[command(subcommand)]
    Metadata(metadata::Command),
    /// Show what lost primaries kept, compare it, write it back.
    #[command(subcommand)]
    Salvage(salvage::Command),
    /// Show replicas being made equal to their primary, or have one compared.
    #[command(subcommand)]
    Resync(resync::Command),
    /// Let a lost primary become a replica, where it waits for an operator (`limits.manual_reinstate`).
    Reinstate(resync::ReinstateArgs),
    /// Measure throughput and latency.
    Bench(bench::Args),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Parses the command line, runs the command, and says how it ended.
pub fn main() -> Code {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(asked) => {
            // Help and version are answers, everything else is a mistake; clap knows which stream is right.
            let _ = asked.print();
            return if asked.use_stderr() { Code::Invalid } else { Code::Done };
        }
    };
    match run(cli) {
        Ok(()) => Code::Done,
        Err(error) => {
            crate::output::note(&exit::explain(&error));
            exit::code(&error)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli { connection, output, command } = cli;
    match command {
        Command::Completions { shell } => completions(shell),
        Command::Cert(command) => cert::run(&command),
        command => runtime()?.block_on(async {
            match command {
                Command::Demo(args) => demo::run(args, output).await,
                Command::Dev(args) => dev::run(args).await,
                Command::Server(args) => server::run(args).await,
                Command::Bucket(command) => bucket::run(command, &connection, output).await,
                Command::Kv(command) => kv::run(command, &connection, output).await,
                Command::Import(args) => transfer::import(args, &connection, output).await,
                Command::Export(args) => transfer::export(args, &connection, output).await,
                Command::Backup(command) => backup::run(command, &connection, output).await,
                Command::Status(args) => status::run(args, &connection, output).await,
                Command::Lag(args) => lag::run(args, &connection, output).await,
                Command::Node(command) => node::run(command, &connection, output).await,
                Command::Upgrade(command) => upgrade::run(command, &connection, output).await,
                Command::Switchover(command) => switchover::run(command, &connection, output).await,
                Command::Failover(command) => failover::run(command, &connection, output).await,
                Command::Drill(command) => drill::run(command, &connection, output).await,
                Command::Operation(command) => operation::run(command, &connection, output).await,
                Command::Events(args) => events::run(args, &connection, output).await,
                Command::Metadata(command) => metadata::run(command, output).await,
                Command::Salvage(command) => salvage::run(command, &connection, output).await,
                Command::Resync(command) => resync::run(command, &connection, output).await,
                Command::Reinstate(args) => resync::reinstate(args, &connection).await,
                Command::Bench(args) => bench::run(args, &connection, output).await,
                Command::Completions { .. } | Command::Cert(_) => Ok(()),
            }
        }),
    }
}

/// One core is left to what has threads of its own: Raft, the log, the store, or the server that a client talks to. On
/// two cores this matters most: a second worker is woken with the first, and for nothing (docs/performance.md).
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    tokio::runtime::Builder::new_multi_thread().worker_threads((cores - 1).max(1)).enable_all().build()
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "meridian", &mut script);
    crate::output::raw(&script)
}

#[cfg(test)]
mod tests;

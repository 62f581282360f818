//! The command line of `chaos moves`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, ensure};
use meridian_types::{AutoMode, Breach, LagBound, MaxLag, Policy};

use super::stage::{Options, Stage};
use super::{degrading, failovers, forced, leaders, reinstate, switchovers};
use crate::real::{ONE_EACH, REGIONS};
use crate::wan::namespaces;

/// How the primary moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum How {
    /// Switchovers: planned, without loss.
    Switchover,
    /// The primary's region is killed, and the cluster replaces it by itself.
    Failover,
    /// The region of an async bucket is killed, and an operator agrees to the loss.
    Forced,
    /// The same, and the region is away for a minute under load: how much its return moves.
    Reinstate,
    /// A sync bucket degrades and returns, and its primary is killed at each stage of that.
    Degrading,
    /// It stays: of three nodes of its region the one that leads most is killed, and comes back.
    Leader,
}

impl How {
    /// Whether callers count all the time; else writers write when they are told to.
    fn calls(self) -> bool {
        matches!(self, How::Switchover | How::Failover | How::Leader)
    }

    /// How many nodes each region has.
    fn nodes(self) -> [usize; REGIONS.len()] {
        if self == How::Leader { leaders::NODES } else { ONE_EACH }
    }
}

/// What `chaos moves` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// How the primary moves.
    #[arg(long, value_enum, default_value = "switchover")]
    how: How,
    /// How often; failovers at most 96 times, which is all a bucket may do by itself in a day.
    #[arg(long, default_value_t = 90)]
    rounds: usize,
    /// Callers, each with one request under way.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Pause of a caller between two requests, in milliseconds.
    #[arg(long, default_value_t = 20)]
    think_ms: u64,
    /// The policy of the bucket where callers count: async, sync.
    #[arg(long, default_value = "sync")]
    policy: Policy,
    /// Operations that an async bucket which is forced may be behind before it takes no more: what an estimate is proven by.
    #[arg(long, default_value_t = 1000)]
    ceiling: u64,
    /// Round trips in milliseconds: us-east to eu-west, us-east to ap-south, eu-west to ap-south.
    #[arg(long, value_delimiter = ',', default_value = "30,80,120")]
    rtt: Vec<f64>,
    /// The `meridian` to test; the one beside this program unless given.
    #[arg(long)]
    binary: Option<PathBuf>,
}

impl Arguments {
    /// Runs; whether every promise was kept.
    ///
    /// # Errors
    /// When the run broke down, which says nothing about the product.
    pub fn run(self, out: &mut impl Write) -> anyhow::Result<bool> {
        if let Some(reason) = namespaces::missing() {
            writeln!(out, "skipped: {reason}")?;
            return Ok(true);
        }
        let [first, second, third] = self.rtt[..] else { bail!("--rtt needs three round trips") };
        ensure!(self.rtt.iter().all(|ms| (0.0..=10_000.0).contains(ms)), "--rtt takes 0 to 10000 milliseconds each");
        ensure!(self.policy.has_primary(), "--policy needs a primary that can move: async or sync");
        let options = Options {
            binary: crate::wan::binary(self.binary.as_deref())?,
            round_trips: [first, second, third].map(|ms| Duration::from_secs_f64(ms / 1000.0)),
            policy: self.policy(),
            auto: if self.how == How::Failover { AutoMode::ZeroLoss } else { AutoMode::Manual },
            nodes: self.how.nodes(),
            callers: self.clients,
            calls: self.how.calls(),
            think: Duration::from_millis(self.think_ms),
        };
        let prefix = format!("{}{}-", namespaces::PREFIX, std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir()?;
        let kept = self.play(&options, dir.path(), out)?;
        if !kept {
            writeln!(out, "the evidence is kept in {}", dir.keep().display())?;
        }
        Ok(kept)
    }

    fn policy(&self) -> Policy {
        match self.how {
            How::Switchover | How::Failover | How::Leader => self.policy,
            How::Forced | How::Reinstate => self.ceiling(),
            How::Degrading => degrading::POLICY,
        }
    }

    fn ceiling(&self) -> Policy {
        let bound = LagBound { operations: Some(self.ceiling), ..LagBound::default() };
        Policy::Async { max_lag: Some(MaxLag { bound, on_breach: Breach::Block }) }
    }

    fn play(&self, options: &Options, dir: &Path, out: &mut impl Write) -> anyhow::Result<bool> {
        let tools = Stage::tools(options, dir)?;
        namespaces::enter(tools.ground().observer().name())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut stage = Stage::set_up(options, tools, dir).await?;
            match self.how {
                How::Switchover => switchovers::play(&mut stage, self.rounds, out).await,
                How::Failover => failovers::play(&mut stage, self.rounds, out).await,
                How::Forced => forced::play(&mut stage, self.rounds, out).await,
                How::Reinstate => reinstate::play(&mut stage, self.rounds, out).await,
                How::Degrading => degrading::play(&mut stage, self.rounds, out).await,
                How::Leader => leaders::play(&mut stage, self.rounds, out).await,
            }
        })
    }
}

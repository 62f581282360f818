//! The command line of `chaos wan`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::runner::{self, Options, What};
use crate::real::BUCKETS;

/// What `chaos wan` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// How long, in minutes. The round that is under way then is played to its end.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Decides faults and clients; random unless given. What the network and the machine do, it doesn't decide.
    #[arg(long)]
    seed: Option<u64>,
    /// Round trips in milliseconds: us-east to eu-west, us-east to ap-south, eu-west to ap-south.
    #[arg(long, value_delimiter = ',', default_value = "30,80,120")]
    rtt: Vec<f64>,
    /// Policies whose buckets are used: `all`, or some of async, sync, active-active.
    #[arg(long, value_delimiter = ',', default_value = "all")]
    policies: Vec<String>,
    /// Mean pause of each of the 54 clients between two operations, in milliseconds.
    #[arg(long, default_value_t = 100)]
    think_ms: u64,
    /// Leave primaries where they are: no switchovers, and no failovers of sync buckets by themselves.
    #[arg(long)]
    primaries_stay: bool,
    /// The `meridian` to test; the one beside this program unless given.
    #[arg(long)]
    binary: Option<PathBuf>,
    /// libfaketimeMT.so.1, where it isn't where distributions put it.
    #[arg(long)]
    faketime: Option<PathBuf>,
}

impl Arguments {
    /// Runs; whether every promise was kept.
    ///
    /// # Errors
    /// When the run broke down, which says nothing about the product.
    pub fn run(self, out: &mut impl Write) -> anyhow::Result<bool> {
        let [first, second, third] = self.rtt[..] else { bail!("--rtt needs three round trips") };
        ensure!(self.rtt.iter().all(|ms| (0.0..=10_000.0).contains(ms)), "--rtt takes 0 to 10000 milliseconds each");
        let options = Options {
            binary: binary(self.binary.as_deref())?,
            seed: self.seed.unwrap_or_else(rand::random),
            round_trips: [first, second, third].map(|ms| Duration::from_secs_f64(ms / 1000.0)),
            policies: policies(&self.policies)?,
            think: Duration::from_millis(self.think_ms),
            primaries_move: !self.primaries_stay,
            faketime: self.faketime,
            what: What::Rounds(Duration::from_secs_f64(self.minutes.max(0.0) * 60.0)),
        };
        Ok(runner::run(&options, out)?.is_none_or(|report| report.is_clean()))
    }
}

/// Places in [`BUCKETS`].
fn policies(words: &[String]) -> anyhow::Result<Vec<usize>> {
    if words.iter().any(|word| word == "all") {
        return Ok((0..BUCKETS.len()).collect());
    }
    let place = |word: &String| {
        BUCKETS.iter().position(|(name, _)| name == word).with_context(|| format!("`{word}` is no policy"))
    };
    words.iter().map(place).collect()
}

/// The binary under test: the one given, or the one beside this program.
pub(crate) fn binary(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let beside = || Ok::<_, anyhow::Error>(std::env::current_exe()?.with_file_name("meridian"));
    let binary = given.map_or_else(beside, |given| Ok(given.to_owned()))?;
    ensure!(binary.is_file(), "there is no {}: build it, or name one with --binary", binary.display());
    Ok(binary.canonicalize()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_named_or_all() {
        let places = |words: &[&str]| policies(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(places(&["all"]).unwrap(), [0, 1, 2]);
        assert_eq!(places(&["active-active", "async"]).unwrap(), [2, 0]);
        assert!(places(&["asink"]).is_err());
    }
}

//! Many seeds at a time, each world on a thread of its own, with progress for whoever watches.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::{Chosen, Failure, Outcome, minimise, only, play};
use crate::scenario::Scenario;
use crate::trace::Trace;
use crate::world::{Met, STEPS};

/// Which worlds to play.
#[derive(Clone, Copy, Debug)]
pub struct Swarm {
    /// The first seed.
    pub from: u64,
    /// How many.
    pub seeds: u64,
    /// How many at a time.
    pub jobs: usize,
    /// How long clients work in each, in simulated seconds.
    pub seconds: u64,
    /// Stop after so many failures.
    pub failures_max: usize,
    /// Play each world twice and compare the hashes of everything that happened.
    pub twice: bool,
    /// Look for the fewest and shortest faults that still fail.
    pub minimise: bool,
    /// Play only the worlds in which nothing breaks.
    pub calm: bool,
    /// Play only the worlds whose regions have several nodes.
    pub several: bool,
}

/// What a swarm came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Worlds played.
    pub seeds: u64,
    /// The seeds that failed, and how.
    pub failures: Vec<(u64, String)>,
    /// Simulated seconds.
    pub simulated_s: f64,
    /// Requests of clients.
    pub operations: u64,
    /// Messages carried.
    pub messages: u64,
    /// What broke how often.
    pub hits: BTreeMap<&'static str, u64>,
    /// Which faults met which steps of what is done to buckets, how often.
    pub met: Met,
    /// Real time.
    pub took: Duration,
    /// Processor time of this process.
    pub cpu: Duration,
}

/// Kinds of faults that are alike, by words in them.
struct Group {
    name: &'static str,
    kinds: &'static [&'static str],
}

/// What there is to be at every step.
const GROUPS: [Group; 7] = [
    Group { name: "crash", kinds: &["crash", "stop of a node", "lost with its disk"] },
    Group { name: "cut", kinds: &["partition", "isolated", "cut off", "deaf"] },
    Group { name: "loss, delay", kinds: &["packet loss", "lost answers", "delay", "narrow link"] },
    Group { name: "slow, stopped", kinds: &["slow", "stalled", "paused"] },
    Group { name: "clock", kinds: &["clock"] },
    Group { name: "metadata", kinds: &["metadata leader"] },
    Group {
        name: "operator",
        kinds: &["switchover", "failover", "change of policy", "one region", "given up", "opening", "closing"],
    },
];

impl Swarm {
    /// Plays them all and tells `out` about it.
    ///
    /// # Errors
    /// When `out` can't be written.
    pub fn run(self, out: &mut impl Write) -> io::Result<Summary> {
        let (began, cpu) = (Instant::now(), cpu_time());
        let mut summary = Summary::default();
        let (next, end) = (AtomicU64::new(self.from), self.from.saturating_add(self.seeds));
        // Worlds wait while a failure is made smaller, rather than pile up.
        let (tell, told) = mpsc::sync_channel(self.jobs.max(1));
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                let (tell, next) = (tell.clone(), &next);
                scope.spawn(move || {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= end {
                            return;
                        }
                        let scenario = Scenario::drawn(seed, self.seconds);
                        if (self.calm && !scenario.faults.is_empty()) || (self.several && scenario.nodes == 1) {
                            continue;
                        }
                        // Whoever listens stops the others by raising `next`.
                        if tell.send((seed, self.one(seed, &scenario))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(tell);
            let mut said = Instant::now();
            for (seed, outcome) in told {
                if let Some(failure) = &outcome.failure {
                    self.failed(seed, failure, out)?;
                    summary.failures.push((seed, failure.label()));
                    if summary.failures.len() >= self.failures_max {
                        next.store(end, Ordering::Relaxed);
                    }
                }
                summary.add(&outcome);
                if said.elapsed() >= Duration::from_secs(5) {
                    said = Instant::now();
                    (summary.took, summary.cpu) = (began.elapsed(), cpu_time().saturating_sub(cpu));
                    writeln!(out, "{}", summary.line())?;
                }
            }
            io::Result::Ok(())
        })?;
        (summary.took, summary.cpu) = (began.elapsed(), cpu_time().saturating_sub(cpu));
        Ok(summary)
    }

    fn one(self, seed: u64, scenario: &Scenario) -> Outcome {
        let mut outcome = play(seed, scenario);
        // All that happened in a world is some megabytes, and nobody reads it here.
        outcome.trace = Trace::default();
        if self.twice && outcome.failure.is_none() {
            let again = play(seed, scenario);
            if again.hash != outcome.hash {
                let why = format!("two runs differ: {:016x} and {:016x}", outcome.hash, again.hash);
                outcome.failure = Some(Failure::Ended(why));
            }
        }
        outcome
    }

    fn failed(self, seed: u64, failure: &Failure, out: &mut impl Write) -> io::Result<()> {
        let scenario = Scenario::drawn(seed, self.seconds);
        let all: Vec<Chosen> = (0..scenario.faults.len()).map(Chosen::whole).collect();
        let kept = if self.minimise { minimise(seed, &scenario, failure) } else { all.clone() };
        let list: Vec<_> = kept.iter().map(ToString::to_string).collect();
        writeln!(out, "seed {seed} failed: {failure}")?;
        for planned in only(&scenario, &kept).faults {
            writeln!(out, "    at {} ms: {:?}", planned.at_ms, planned.what)?;
        }
        let faults = if kept == all { String::new() } else { format!(" --faults={}", list.join(",")) };
        writeln!(
            out,
            "reproduce: cargo run --release -p chaos -- run --seed {seed} --seconds {}{faults}",
            self.seconds
        )?;
        out.flush()
    }
}

impl Summary {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.simulated_s += outcome.simulated_us as f64 / 1e6;
        self.operations += outcome.operations as u64;
        self.messages += outcome.messages;
        for (what, times) in &outcome.hits {
            *self.hits.entry(what).or_default() += times;
        }
        for (meeting, times) in &outcome.met {
            *self.met.entry(*meeting).or_default() += times;
        }
    }

    /// How often something of a group met a step: a line for each step, a column for each group.
    pub fn coverage(&self) -> String {
        let mut text = format!("{:<16}", "");
        for group in &GROUPS {
            text += &format!("{:>14}", group.name);
        }
        for step in STEPS {
            text += &format!("\n{step:<16}");
            for group in &GROUPS {
                text += &format!("{:>14}", self.met_by(step, group));
            }
        }
        text
    }

    /// The steps that a group never met.
    pub fn never_met(&self) -> Vec<(&'static str, &'static str)> {
        let pairs = STEPS.iter().flat_map(|step| GROUPS.iter().map(move |group| (*step, group)));
        pairs.filter(|(step, group)| self.met_by(step, group) == 0).map(|(step, group)| (step, group.name)).collect()
    }

    fn met_by(&self, step: &str, group: &Group) -> u64 {
        let of = |(of, what): &(&str, &str)| *of == step && group.kinds.iter().any(|kind| what.contains(kind));
        self.met.iter().filter(|(meeting, _)| of(meeting)).map(|(_, times)| times).sum()
    }

    /// How it goes, in one line.
    pub fn line(&self) -> String {
        let (took, cpu) = (self.took.as_secs_f64().max(1e-9), self.cpu.as_secs_f64().max(1e-9));
        format!(
            "{} seeds, {} failed, {:.1} seeds/s, {:.0} seeds/h and core, {:.0} simulated seconds per CPU second, {} operations",
            self.seeds,
            self.failures.len(),
            self.seeds as f64 / took,
            self.seeds as f64 / cpu * 3600.0,
            self.simulated_s / cpu,
            self.operations,
        )
    }
}

/// Processor time of this process so far.
fn cpu_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let (secs, nanos) = (u64::try_from(spent.tv_sec), u32::try_from(spent.tv_nsec));
    Duration::new(secs.unwrap_or_default(), nanos.unwrap_or_default())
}

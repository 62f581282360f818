//! The nemesis: carries out an agenda against a planet, counts what it did, and heals everything.
//!
//! A node that ends without having been killed is a violation, with one exception: the product stops a node that can't
//! write its log, so one whose disk is full may end, and is started again when there is room, as a supervisor would.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::Signal;

use super::agenda::Agenda;
use super::fault::{Fault, Kind};
use super::tools::Tools;
use crate::real::{Planet, REGIONS};

/// How often it looks whether nodes still run.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What it does now, for whoever prints progress. Cheap to clone.
#[derive(Clone, Default)]
pub struct Doing(Arc<Mutex<String>>);

impl Doing {
    /// In a few words.
    pub fn words(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Now it is this.
    pub(super) fn set(&self, words: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = words.into();
    }
}

/// What it did and saw.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Faults injected, by kind.
    pub faults: BTreeMap<Kind, u32>,
    /// Nodes that stopped because their disk was full, and were started again.
    pub stopped_full: u32,
    /// What no fault explains.
    pub surprises: Vec<String>,
}

/// Does harm, and undoes it.
pub struct Nemesis {
    planet: Planet,
    tools: Arc<Tools>,
    doing: Doing,
    tally: Tally,
    /// Nodes whose disk was full since they were last started: they may end.
    may_end: BTreeSet<usize>,
    /// How far ahead a node's monotonic clock is to be when it is started next.
    ahead_s: BTreeMap<usize, u32>,
    began: Instant,
    log: Vec<String>,
}

impl Nemesis {
    /// A nemesis of this planet.
    pub fn new(planet: Planet, tools: Arc<Tools>, doing: Doing) -> Nemesis {
        Nemesis {
            planet,
            tools,
            doing,
            tally: Tally::default(),
            may_end: BTreeSet::new(),
            ahead_s: BTreeMap::new(),
            began: Instant::now(),
            log: Vec::new(),
        }
    }

    /// Carries out an agenda, heals, and returns the planet, what it did, and a line for each thing it did.
    ///
    /// # Errors
    /// When a tool fails, which says nothing about the product.
    pub fn carry_out(mut self, agenda: &Agenda) -> (Planet, anyhow::Result<(Tally, Vec<String>)>) {
        let done = self.follow(agenda);
        (self.planet, done.map(|()| (self.tally, self.log)))
    }

    fn follow(&mut self, agenda: &Agenda) -> anyhow::Result<()> {
        let mut active: BTreeSet<usize> = BTreeSet::new();
        let mut seen: BTreeSet<usize> = BTreeSet::new();
        self.say(&active, agenda);
        for change in &agenda.changes {
            self.watch_until(self.began + change.at)?;
            let fault = &agenda.faults[change.fault];
            if change.begins {
                active.insert(change.fault)
            } else {
                active.remove(&change.fault)
            };
            // A flapping link begins more than once, and counts once.
            if seen.insert(change.fault) {
                *self.tally.faults.entry(fault.kind()).or_default() += 1;
            }
            self.say(&active, agenda);
            self.note(format!("{} {fault:?}", if change.begins { "begins" } else { "ends  " }));
            if fault.kind().is_of_links() {
                self.tools.weather(active.iter().map(|at| &agenda.faults[*at]));
            } else if change.begins {
                self.begin(fault).with_context(|| format!("beginning {fault:?}"))?;
            } else {
                self.end(fault).with_context(|| format!("ending {fault:?}"))?;
            }
        }
        self.heal()
    }

    fn begin(&mut self, fault: &Fault) -> anyhow::Result<()> {
        match *fault {
            Fault::Kill { node } => self.kill(node),
            Fault::ClockJump { node, by_s } => {
                self.ahead_s.insert(node, by_s);
                self.kill(node);
            }
            Fault::KillAll => (0..REGIONS.len()).for_each(|node| self.kill(node)),
            Fault::Pause { node } => self.signal(node, Signal::STOP),
            Fault::DiskLow { node } => self.tools.fill(node, false)?,
            Fault::DiskFull { node } => {
                self.may_end.insert(node);
                self.tools.fill(node, true)?;
            }
            Fault::DiskStall { node } => self.tools.disk(node).map_or(Ok(()), |disk| disk.stall())?,
            Fault::DiskSlow { node, writes_per_second } => {
                let process = self.planet.process(node);
                self.tools.disk(node).map_or(Ok(()), |disk| disk.limit(process, writes_per_second))?;
            }
            Fault::ClockStep { node, by_ms } => {
                self.tools.clocks().map_or(Ok(()), |clocks| clocks.set(node, by_ms))?;
            }
            Fault::Isolate { .. }
            | Fault::Deafen { .. }
            | Fault::Mute { .. }
            | Fault::Bridge { .. }
            | Fault::Ring { .. }
            | Fault::Flap { .. }
            | Fault::Lose { .. }
            | Fault::Duplicate { .. }
            | Fault::Reorder { .. }
            | Fault::Corrupt { .. }
            | Fault::Throttle { .. }
            | Fault::Stretch { .. } => {}
        }
        Ok(())
    }

    fn end(&mut self, fault: &Fault) -> anyhow::Result<()> {
        match *fault {
            Fault::Kill { node } | Fault::ClockJump { node, .. } => self.start(node)?,
            Fault::KillAll => (0..REGIONS.len()).try_for_each(|node| self.start(node))?,
            Fault::Pause { node } => self.signal(node, Signal::CONT),
            Fault::DiskLow { node } => self.tools.disk(node).map_or(Ok(()), |disk| disk.free())?,
            Fault::DiskFull { node } => {
                self.tools.disk(node).map_or(Ok(()), |disk| disk.free())?;
                self.look()?;
                self.start(node)?;
            }
            Fault::DiskStall { node } => self.tools.disk(node).map_or(Ok(()), |disk| disk.resume())?,
            Fault::DiskSlow { node, .. } => self.tools.disk(node).map_or(Ok(()), |disk| disk.limit(None, 0))?,
            Fault::ClockStep { node, .. } => self.tools.clocks().map_or(Ok(()), |clocks| clocks.set(node, 0))?,
            Fault::Isolate { .. }
            | Fault::Deafen { .. }
            | Fault::Mute { .. }
            | Fault::Bridge { .. }
            | Fault::Ring { .. }
            | Fault::Flap { .. }
            | Fault::Lose { .. }
            | Fault::Duplicate { .. }
            | Fault::Reorder { .. }
            | Fault::Corrupt { .. }
            | Fault::Throttle { .. }
            | Fault::Stretch { .. } => {}
        }
        Ok(())
    }

    /// Everything whole: fair weather, and every node running.
    fn heal(&mut self) -> anyhow::Result<()> {
        self.tools.weather([]);
        self.look()?;
        (0..REGIONS.len()).try_for_each(|node| self.start(node))?;
        self.doing.set("healed");
        Ok(())
    }

    fn kill(&mut self, node: usize) {
        if !self.planet.is_started(node) {
            return;
        }
        if let Err(error) = self.planet.kill(node) {
            self.tally.surprises.push(format!("{error:#}"));
        }
    }

    /// Starts a node unless it runs.
    fn start(&mut self, node: usize) -> anyhow::Result<()> {
        if self.planet.is_started(node) {
            return Ok(());
        }
        let ahead_s = self.ahead_s.remove(&node).unwrap_or_default();
        self.planet.start_with(node, &self.tools.launch(node, ahead_s)?)
    }

    fn signal(&mut self, node: usize, signal: Signal) {
        if let Err(error) = self.planet.signal(node, signal) {
            self.tally.surprises.push(format!("{error:#}"));
        }
    }

    fn watch_until(&mut self, until: Instant) -> anyhow::Result<()> {
        loop {
            self.look()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        }
    }

    /// Whether every node that should run does.
    fn look(&mut self) -> anyhow::Result<()> {
        for (node, region) in REGIONS.into_iter().enumerate() {
            let Some(status) = self.planet.ended(node)? else { continue };
            self.note(format!("{region} ended by itself: {status}"));
            if self.may_end.remove(&node) {
                self.tally.stopped_full += 1;
            } else {
                let tail = self.planet.log_tail(node);
                self.tally.surprises.push(format!("the node of {region} ended by itself ({status}); {tail}"));
                // Started again, so that the rest of the run has a planet.
                self.start(node)?;
            }
        }
        Ok(())
    }

    fn note(&mut self, what: String) {
        self.log.push(format!("{:8.3} s  {what}", self.began.elapsed().as_secs_f64()));
    }

    fn say(&self, active: &BTreeSet<usize>, agenda: &Agenda) {
        let kinds: Vec<String> = active.iter().map(|at| agenda.faults[*at].kind().to_string()).collect();
        self.doing.set(if kinds.is_empty() { "calm".to_owned() } else { kinds.join(" + ") });
    }
}

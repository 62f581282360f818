//! Runs rounds for as long as was asked, prints what happens, and keeps the evidence when something is wrong.

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::agenda::{Agenda, Bag};
use super::fault::Fault;
use super::namespaces;
use super::nemesis::Doing;
use super::regions::Meter;
use super::report::Report;
use super::round::{self, Outcome, Script, Stage};
use super::tools::Tools;
use super::weather::Distances;
use crate::real::{ONE_EACH, Planet, REGIONS};

/// How long the faults of a round go on: a handful of them.
const ROUND: Duration = Duration::from_secs(90);

/// How long a cluster may take to form, or a node to come back, on a machine that does other things.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long clients go on after the faults of a round: long enough to see that everything works again.
const AFTERWARDS: Duration = Duration::from_secs(15);

/// The same in a round of chosen faults, which is short.
const AFTERWARDS_SHORT: Duration = Duration::from_secs(5);

/// Between two lines of progress.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The binary under test.
    pub binary: PathBuf,
    /// Decides faults and clients.
    pub seed: u64,
    /// Round trips between regions 0–1, 0–2, 1–2.
    pub round_trips: [Duration; 3],
    /// Policies whose buckets are used: places in [`crate::real::BUCKETS`].
    pub policies: Vec<usize>,
    /// Mean pause of a client between two operations.
    pub think: Duration,
    /// Whether primaries move meanwhile.
    pub primaries_move: bool,
    /// libfaketime, where it isn't where it usually is.
    pub faketime: Option<PathBuf>,
    /// What is done.
    pub what: What,
}

/// What is done to the planet.
#[derive(Clone, Debug)]
pub enum What {
    /// Rounds of drawn faults, until this long after the start no new one begins.
    Rounds(Duration),
    /// One round with these faults, each with this long a quiet phase before it.
    These(Vec<(Fault, Duration)>, Duration),
}

/// Whether every promise was kept; `None` where there can be no emulated WAN, with the reason printed.
///
/// # Errors
/// When the run broke down, which says nothing about the product.
pub fn run(options: &Options, out: &mut impl Write) -> anyhow::Result<Option<Report>> {
    if let Some(reason) = namespaces::missing() {
        writeln!(out, "skipped: {reason}")?;
        return Ok(None);
    }
    let prefix = format!("{}{}-", namespaces::PREFIX, std::process::id());
    let dir = tempfile::Builder::new().prefix(&prefix).tempdir()?;
    let distances = Distances::of_three(options.round_trips);
    let tools = Tools::gather(dir.path(), distances, options.faketime.as_deref(), options.seed)?;
    for sentence in tools.missing() {
        writeln!(out, "{sentence}")?;
    }
    namespaces::enter(tools.ground().observer().name())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(rounds(options, Arc::new(tools), dir.path(), out))?;
    if !report.is_clean() {
        writeln!(out, "the evidence is kept in {}", dir.keep().display())?;
    }
    Ok(Some(report))
}

async fn rounds(options: &Options, tools: Arc<Tools>, dir: &Path, out: &mut impl Write) -> anyhow::Result<Report> {
    let began = Instant::now();
    let mut stage = set_up(options, tools, dir, began).await?;
    writeln!(out, "three regions are up after {:.1} s; seed {}", began.elapsed().as_secs_f64(), options.seed)?;
    let mut random = StdRng::seed_from_u64(options.seed);
    let mut bag = Bag::of(stage.tools.kinds());
    let mut report = Report::default();
    for number in 1.. {
        let (agenda, afterwards) = match &options.what {
            What::Rounds(_) => (Agenda::draw(&mut bag, REGIONS.len(), ROUND, &mut random), AFTERWARDS),
            What::These(faults, quiet) => (Agenda::of(faults.iter().copied(), *quiet), AFTERWARDS_SHORT),
        };
        let script = Script {
            number,
            seed: random.random(),
            agenda,
            policies: options.policies.clone(),
            think: options.think,
            afterwards,
            primaries_move: options.primaries_move,
        };
        writeln!(
            out,
            "round {number}: {} faults in {:.0} s",
            script.agenda.faults.len(),
            script.length().as_secs_f64()
        )?;
        let doing = stage.doing.clone();
        let played = round::play(stage, &script, |meter| tell(meter, doing, began, &mut *out)).await;
        let outcome;
        (stage, outcome) = played.with_context(|| format!("playing round {number}"))?;
        writeln!(out, "  {}", outcome.verdict.to_string().trim_end().replace('\n', "\n  "))?;
        for wrong in &outcome.wrong {
            writeln!(out, "  WRONG: {wrong}")?;
        }
        if !outcome.is_clean() {
            keep(dir, &script, &outcome)?;
        }
        report.add(&outcome);
        match &options.what {
            What::Rounds(length) if began.elapsed() < *length => {}
            What::Rounds(_) | What::These(..) => break,
        }
    }
    report.lasted = began.elapsed();
    writeln!(out, "\n{report}")?;
    Ok(report)
}

async fn set_up(options: &Options, tools: Arc<Tools>, dir: &Path, began: Instant) -> anyhow::Result<Stage> {
    let mut planet = Planet::create_at(&options.binary, dir, tools.places(ONE_EACH), ONE_EACH)?;
    for node in 0..REGIONS.len() {
        planet.start_with(node, &tools.launch(node, 0)?)?;
    }
    planet.ready(PATIENCE).await?;
    let observer = planet.client(0).await?;
    Ok(Stage { planet, tools, observer, began, doing: Doing::default() })
}

/// Prints a line every few seconds: what is being done, and what clients get.
async fn tell(meter: Meter, doing: Doing, began: Instant, out: &mut impl Write) {
    let mut before = meter.read();
    loop {
        let since = Instant::now();
        tokio::time::sleep(TELL_EVERY).await;
        let now = meter.read();
        let mut line = format!("  {:6.0} s  {:<44}", began.elapsed().as_secs_f64(), doing.words());
        for (bucket, counted) in &now {
            let earlier = before.get(bucket).map_or(0, |earlier| earlier.answered);
            let rate = (counted.answered - earlier) as f64 / since.elapsed().as_secs_f64();
            let silence = counted.last.map_or(since.elapsed(), |last| last.elapsed());
            // Writing to a string can't fail.
            let _ = write!(line, "  {bucket} {rate:.0}/s");
            if silence > Duration::from_secs(1) {
                let _ = write!(line, " (silent {:.0} s)", silence.as_secs_f64());
            }
        }
        before = now;
        // A terminal that is gone is no reason to stop.
        let _ = writeln!(out, "{line}");
        let _ = out.flush();
    }
}

/// Writes down everything that is known of a round, beside the nodes' logs.
fn keep(dir: &Path, script: &Script, outcome: &Outcome) -> anyhow::Result<()> {
    let dir = dir.join(format!("round-{}", script.number));
    std::fs::create_dir_all(&dir)?;
    let mut history = std::io::BufWriter::new(std::fs::File::create(dir.join("history.txt"))?);
    for operation in &outcome.operations {
        writeln!(history, "{operation:?}")?;
    }
    history.flush()?;
    std::fs::write(dir.join("faults.txt"), outcome.log.join("\n"))?;
    std::fs::write(dir.join("verdict.txt"), format!("{}\n{}", outcome.verdict, outcome.wrong.join("\n")))?;
    Ok(())
}

//! `chaos mutants`: plants each bug in a copy of the tree and tells who noticed.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::tree::{Ended, Tree};
use super::{Mutant, all};
use crate::scenario::Scenario;

/// The longest that one build may take.
const BUILD_MAX: Duration = Duration::from_secs(3600);

/// What `chaos mutants` is told.
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Only those whose names contain one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How many seeds each mutant is played with
    #[arg(long, default_value_t = 500)]
    seeds: u64,
    /// How many worlds at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// How long clients work in each world, in simulated seconds; as in the tests
    #[arg(long, default_value_t = 40)]
    seconds: u64,
    /// The longest that the seeds of one mutant may take, in seconds; then it counts as not noticed
    #[arg(long, default_value_t = 900)]
    limit: u64,
    /// Where the copy of the tree and its target directory are kept, for the next time
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Don't play the unchanged tree first
    #[arg(long)]
    skip_baseline: bool,
    /// Only check that every mutant finds its place
    #[arg(long)]
    check: bool,
}

/// What became of a mutant.
enum Fate {
    /// Who found it, and with which seed.
    Noticed { by: String, seed: String },
    /// Nobody did before the time was over.
    Late,
    /// Nobody did.
    Survived,
    /// It is no program.
    Unbuildable(String),
}

impl Arguments {
    /// Plants every bug that is asked for, and prints a table. `true` when all were noticed.
    ///
    /// # Errors
    /// When the tree can't be copied, a mutant does not find its place, or the unchanged tree fails.
    pub fn run(&self, out: &mut impl Write) -> anyhow::Result<bool> {
        let root = root()?;
        let mut mutants = all(&root)?;
        mutants.retain(|mutant| self.only.is_empty() || self.only.iter().any(|only| mutant.name.contains(only)));
        ensure!(!mutants.is_empty(), "there is no such mutant");
        for mutant in &mutants {
            mutant.applied(&root)?;
        }
        if self.check {
            writeln!(out, "{} mutants find their places", mutants.len())?;
            return Ok(true);
        }
        let dir = self.dir.clone().unwrap_or_else(|| std::env::temp_dir().join("meridian-mutants"));
        let tree = Tree::copy(&root, &dir)?;
        if !self.skip_baseline {
            self.baseline(&tree, &mutants, out)?;
        }
        writeln!(out, "| mutant | row | breaks | noticed by | seed | seconds |\n|---|---|---|---|---|---|")?;
        let mut survivors = 0;
        for mutant in &mutants {
            let began = Instant::now();
            let fate = self.try_out(&root, &tree, mutant)?;
            survivors += usize::from(!matches!(fate, Fate::Noticed { .. }));
            let (by, seed) = match fate {
                Fate::Noticed { by, seed } => (by, seed),
                Fate::Late => ("**nobody in time**".to_owned(), String::new()),
                Fate::Survived => ("**nobody**".to_owned(), String::new()),
                Fate::Unbuildable(why) => (format!("**no program**: {why}"), String::new()),
            };
            let (name, row, breaks) = (&mutant.name, mutant.row, &mutant.breaks);
            writeln!(out, "| {name} | {row} | {breaks} | {by} | {seed} | {} |", began.elapsed().as_secs())?;
            out.flush()?;
        }
        writeln!(out, "{} of {} were noticed", mutants.len() - survivors, mutants.len())?;
        Ok(survivors == 0)
    }

    /// The unchanged tree passes what is to notice its mutants.
    fn baseline(&self, tree: &Tree, mutants: &[Mutant], out: &mut impl Write) -> anyhow::Result<()> {
        let tests: BTreeSet<&String> = mutants.iter().filter_map(|mutant| mutant.test.as_ref()).collect();
        for test in tests {
            let tested = run_test(tree, test)?;
            ensure!(tested.success == Some(true), "the unchanged tree fails `cargo test {test}`:\n{}", tested.said);
            let passed = passed(&tested.said);
            // A name that no test has any more passes, too.
            ensure!(passed > 0, "`cargo test {test}` runs no test: bring its name up to date");
            writeln!(out, "the unchanged tree passes `cargo test {test}`: {passed} tests")?;
        }
        if mutants.iter().all(|mutant| mutant.test.is_some()) {
            return Ok(());
        }
        let built = build(tree)?;
        ensure!(built.success == Some(true), "the unchanged tree can't be built:\n{}", built.said);
        let played = self.play(tree, false)?;
        match played.success {
            Some(true) => Ok(writeln!(out, "the unchanged tree keeps every promise with {} seeds", self.seeds)?),
            _ => bail!("the unchanged tree fails, so that mutants prove nothing:\n{}", played.said),
        }
    }

    fn try_out(&self, root: &Path, tree: &Tree, mutant: &Mutant) -> anyhow::Result<Fate> {
        for (file, text) in mutant.applied(root)? {
            tree.write(&file, text.as_bytes())?;
        }
        let fate = self.fate(tree, mutant);
        for edit in &mutant.edits {
            tree.restore(&edit.file)?;
        }
        fate
    }

    fn fate(&self, tree: &Tree, mutant: &Mutant) -> anyhow::Result<Fate> {
        if let Some(test) = &mutant.test {
            let tested = run_test(tree, test)?;
            return Ok(match tested.success {
                Some(true) => Fate::Survived,
                Some(false) if tested.said.contains("test result: FAILED") => {
                    Fate::Noticed { by: failed_test(&tested.said), seed: String::new() }
                }
                Some(false) => Fate::Unbuildable(first_error(&tested.said)),
                None => Fate::Late,
            });
        }
        let built = build(tree)?;
        if built.success != Some(true) {
            return Ok(Fate::Unbuildable(first_error(&built.said)));
        }
        let played = self.play(tree, mutant.calm)?;
        Ok(match played.success {
            Some(true) => self.replay(tree)?,
            Some(false) => {
                let (seed, by) = finding(&played.said).context(played.said)?;
                Fate::Noticed { by, seed }
            }
            None => Fate::Late,
        })
    }

    /// Plays the worlds in which the product failed once: what no seed notices, they may.
    fn replay(&self, tree: &Tree) -> anyhow::Result<Fate> {
        for (name, scenario) in Scenario::all(&tree.path("chaos/pinned"))? {
            let file = format!("chaos/pinned/{name}.toml");
            let played = tree.chaos(&["run", "--scenario", &file], Duration::from_secs(self.limit))?;
            if played.success == Some(false) {
                let by = format!("pinned world `{name}` ({})", noticed_by(&played.said));
                let seed = scenario.seed.map(|seed| seed.to_string()).unwrap_or_default();
                return Ok(Fate::Noticed { by, seed });
            }
        }
        Ok(Fate::Survived)
    }

    fn play(&self, tree: &Tree, calm: bool) -> anyhow::Result<Ended> {
        let (seeds, jobs, seconds) = (self.seeds.to_string(), self.jobs.to_string(), self.seconds.to_string());
        let mut arguments = vec!["swarm", "--seeds", &seeds, "--jobs", &jobs, "--seconds", &seconds];
        arguments.extend(["--failures", "1", "--as-drawn"]);
        arguments.extend(calm.then_some("--calm"));
        tree.chaos(&arguments, Duration::from_secs(self.limit))
    }
}

fn build(tree: &Tree) -> anyhow::Result<Ended> {
    tree.cargo(&["build", "--quiet", "-p", "chaos", "--bin", "chaos"], BUILD_MAX)
}

/// Runs a test command: arguments of `cargo test`.
fn run_test(tree: &Tree, test: &str) -> anyhow::Result<Ended> {
    let mut arguments = vec!["test", "--quiet"];
    arguments.extend(test.split_whitespace());
    tree.cargo(&arguments, BUILD_MAX)
}

/// How many tests passed, of all that a command ran.
fn passed(said: &str) -> usize {
    let count = |line: &str| line.strip_prefix("test result: ok. ")?.split(' ').next()?.parse::<usize>().ok();
    said.lines().filter_map(count).sum()
}

/// The seed that a swarm failed with, and who said so.
fn finding(said: &str) -> Option<(String, String)> {
    let (_, rest) = said.split_once("seed ")?;
    let (seed, why) = rest.split_once(" failed: ")?;
    let told = why.split("\nreproduce:").next().unwrap_or(why);
    let by = noticed_by(told);
    let by = if by.is_empty() { told.lines().next().unwrap_or_default().to_owned() } else { by };
    Some((seed.to_owned(), by))
}

/// The checkers that found something.
fn noticed_by(told: &str) -> String {
    let broken = told.lines().filter_map(|line| line.split_once(" is broken ("));
    broken.filter_map(|(_, rest)| rest.split(')').next()).collect::<Vec<_>>().join(", ")
}

fn failed_test(said: &str) -> String {
    let failed = said.lines().find_map(|line| line.strip_prefix("---- ")).unwrap_or("a test");
    format!("test `{}`", failed.trim_end_matches(" stdout ----"))
}

fn first_error(said: &str) -> String {
    said.lines().find(|line| line.starts_with("error")).unwrap_or("it can't be built").to_owned()
}

/// The root of the tree that this program was built from.
fn root() -> anyhow::Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the crate has no parent")?;
    Ok(root.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_swarm_says_of_a_failure_is_understood() {
        let said = "10 seeds, 0 failed\nseed 17 failed: CON-1 is broken (linear): no order\n    [1s] x\nONE-1 is broken (once): twice\n\n    at 5 ms: Crash\nreproduce: cargo run\n";
        assert_eq!(finding(said), Some(("17".to_owned(), "linear, once".to_owned())));
        let panicked = "seed 3 failed: panicked: assertion failed\n\nreproduce: x\n";
        assert_eq!(finding(panicked), Some(("3".to_owned(), "panicked: assertion failed".to_owned())));
        assert_eq!(finding("everything is fine"), None);
    }

    #[test]
    fn tests_that_passed_are_counted_and_the_one_that_failed_is_named() {
        let said = "running 2 tests\n..\ntest result: ok. 2 passed; 0 failed; 0 ignored\n\ntest result: ok. 0 passed; 0 failed\n";
        assert_eq!(passed(said), 2);
        let said = "running 1 test\nF\nfailures:\n\n---- churn::members stdout ----\n\nthread panicked\ntest result: FAILED. 0 passed\n";
        assert_eq!((passed(said), failed_test(said)), (0, "test `churn::members`".to_owned()));
    }
}

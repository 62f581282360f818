//! The runbooks of `docs/runbooks/`, read from the page and played on real processes as they are written: every command, in its order, with
//! what one is to see and how it ends. What the world does meanwhile happens where the page comes to it, at a heading.
//!
//! A command that nobody plays fails the first test, so that a page can't say what nobody has tried.

mod page;
mod stage;
mod told;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, ensure};

use crate::page::{Page, Part};
use crate::stage::Stage;
use crate::world::Happening;

/// A runbook as somebody goes through it.
struct Play {
    page: &'static str,
    /// What happens when he comes to a heading.
    happens: &'static [(&'static str, Happening)],
    /// Headings whose sections are not for him, as they say themselves.
    passes_over: &'static [&'static str],
}

const MAINTENANCE: Play = Play { page: "planned-maintenance.md", happens: &[], passes_over: &[] };

const SPLIT: Play = Play {
    page: "split-network.md",
    happens: &[("What is seen", Happening::IsCutOff("us-east")), ("When it heals", Happening::IsMended("us-east"))],
    passes_over: &[],
};

/// The region comes back, on the day after.
const LOST: Play = Play {
    page: "lost-datacenter.md",
    happens: &[("What is seen", Happening::DiesWithATail("us-east"))],
    passes_over: &["On a quiet day before", "If it never comes back"],
};

/// Everybody thinks that it does not.
const LOST_FOR_GOOD: Play = Play { passes_over: &[], ..LOST };

const RETURNS: Play = Play {
    page: "returning-datacenter.md",
    happens: &[],
    passes_over: &["Where `manual_reinstate` is set", "Where it was taken out of active-active buckets"],
};

const RETURNS_AFTER_ALL: Play = Play { passes_over: &[], ..RETURNS };

const METADATA: Play = Play {
    page: "lost-metadata-majority.md",
    happens: &[
        ("What is seen", Happening::Dies("us-east")),
        ("What is seen", Happening::Burns("ap-south")),
        ("Recover", Happening::RecoversTooEarly("eu-west-1")),
    ],
    passes_over: &[],
};

const PLAYS: [Play; 7] = [MAINTENANCE, SPLIT, LOST, LOST_FOR_GOOD, RETURNS, RETURNS_AFTER_ALL, METADATA];

#[test]
fn every_command_of_every_runbook_is_played() -> anyhow::Result<()> {
    let pages = pages()?;
    let typed: BTreeSet<String> = pages.values().flat_map(Page::typed).map(|it| anywhere(&it.line)).collect();
    for (name, page) in &pages {
        let plays: Vec<_> = PLAYS.iter().filter(|play| play.page == name).collect();
        let mut heading = "";
        for part in &page.parts {
            match part {
                Part::Heading(next) => heading = next,
                Part::Typed(line) => ensure!(
                    plays.iter().any(|play| !play.passes_over.contains(&heading)),
                    "{name}:{}: nobody plays `{}`",
                    line.at,
                    line.line
                ),
            }
        }
        let headings: BTreeSet<_> = page.headings().collect();
        let known = plays.iter().flat_map(|play| play.happens.iter().map(|it| &it.0).chain(play.passes_over));
        for heading in known {
            ensure!(headings.contains(heading), "{name} has no heading `{heading}` any more");
        }
        for command in &page.named {
            let is_typed = typed.iter().any(|line| line.starts_with(&anywhere(command)));
            ensure!(is_typed, "{name} names `{command}`, which no runbook types: put it into a block");
        }
    }
    for play in PLAYS {
        ensure!(pages.contains_key(play.page), "{} is gone", play.page);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_is_taken_down_for_maintenance_and_comes_home() -> anyhow::Result<()> {
    let mut stage = Stage::open("").await?;
    stage.holds_data().await?;
    if let Some(why) = lacks_disk(&mut stage).await? {
        eprintln!("skipped: no switchover is ready on this machine, whose disk is nearly full: {why}");
        return Ok(());
    }
    goes(&mut stage, &MAINTENANCE).await?;
    for bucket in ["pay", "feed", "orders"] {
        ensure!(stage.primary(bucket).await? == "us-east", "{bucket} is not home");
    }
    stage.nothing_is_missing().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_side_with_the_majority_goes_on_when_the_network_is_split() -> anyhow::Result<()> {
    let mut stage = Stage::open("").await?;
    stage.holds_data().await?;
    goes(&mut stage, &SPLIT).await?;
    stage.nothing_is_missing().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_datacenter_is_replaced_and_returns() -> anyhow::Result<()> {
    let mut stage = Stage::open("").await?;
    stage.holds_data().await?;
    goes(&mut stage, &LOST).await?;
    goes(&mut stage, &RETURNS).await?;
    stage.the_tail_is_back().await?;
    stage.nothing_is_missing().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datacenter_that_was_given_up_for_good_returns_after_all_and_is_reinstated_by_hand() -> anyhow::Result<()> {
    let mut stage = Stage::open("[limits]\nmanual_reinstate = true").await?;
    stage.holds_data().await?;
    goes(&mut stage, &LOST_FOR_GOOD).await?;
    goes(&mut stage, &RETURNS_AFTER_ALL).await?;
    stage.the_tail_is_back().await?;
    stage.nothing_is_missing().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_metadata_majority_is_recovered() -> anyhow::Result<()> {
    let mut stage = Stage::open("").await?;
    stage.holds_data().await?;
    goes(&mut stage, &METADATA).await?;
    stage.is_recovered().await
}

/// What the check before a switchover finds wrong with the disk of this machine, which no test can mend.
async fn lacks_disk(stage: &mut Stage) -> anyhow::Result<Option<String>> {
    let said = stage.quietly("meridian switchover check --to eu-west --all-from us-east || true").await?;
    let line = said.lines().find(|line| line.contains("FAIL") && line.contains(" disk "));
    Ok(line.map(str::to_owned))
}

/// Plays a runbook.
async fn goes(stage: &mut Stage, play: &Play) -> anyhow::Result<()> {
    let page = read(&runbooks().join(play.page))?;
    let began = Instant::now();
    let mut is_read = true;
    stage.begins();
    for part in &page.parts {
        match part {
            Part::Heading(heading) => {
                is_read = !play.passes_over.contains(&heading.as_str());
                for (_, what) in play.happens.iter().filter(|(at, _)| at == heading) {
                    stage.happens(*what).await.with_context(|| format!("{what:?}"))?;
                }
            }
            Part::Typed(typed) if is_read => {
                stage.types(typed).await.with_context(|| format!("docs/runbooks/{}:{}", play.page, typed.at))?;
                eprintln!("{:5.1} s  {}", began.elapsed().as_secs_f64(), typed.line);
            }
            Part::Typed(_) => {}
        }
    }
    Ok(())
}

fn runbooks() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/runbooks")
}

fn read(path: &Path) -> anyhow::Result<Page> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Page::read(&text).with_context(|| path.display().to_string())
}

fn pages() -> anyhow::Result<BTreeMap<String, Page>> {
    let mut pages = BTreeMap::new();
    for entry in std::fs::read_dir(runbooks())? {
        let entry = entry?;
        pages.insert(entry.file_name().to_string_lossy().into_owned(), read(&entry.path())?);
    }
    Ok(pages)
}

/// A line without the region that it is typed in.
fn anywhere(line: &str) -> String {
    match line.split_once(" --region ") {
        Some((before, rest)) => format!("{before} {}", rest.split_once(' ').map_or("", |(_, line)| line)),
        None => line.to_owned(),
    }
}

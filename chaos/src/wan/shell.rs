//! Commands of the operating system: run, and their words kept when they fail.

use std::process::Command;

use anyhow::{Context, ensure};

/// Runs a command and returns what it printed.
///
/// # Errors
/// What it said, when it is missing or failed.
pub(super) fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("running `{program}`"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

//! Holds the tree to ARCHITECTURE.md: every line there that begins with **Invariant:** is read and
//! checked against `cargo metadata`. A rule this test cannot read fails too, so none is only prose.

#![allow(clippy::expect_used, reason = "a test that can't read its own tree must fail, and say where")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

const PREFIX: &str = "**Invariant:** ";

/// Rooms that may import anything of ours, as the style of the house says.
const UNBOUND: [&str; 2] = ["meridian", "chaos"];

#[derive(Debug)]
enum Rule {
    /// "`room` imports nothing of ours but `a`, `b`."
    Imports { room: String, allowed: BTreeSet<String> },
    /// "only `room` depends on the crate `name`."
    Owns { rooms: BTreeSet<String>, krate: String },
}

#[test]
fn every_door_in_the_architecture_page_is_kept() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lives in the workspace");
    let page = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is readable");
    let rules: Vec<Rule> = page.lines().filter_map(|line| line.strip_prefix(PREFIX)).map(parse).collect();
    let metadata = metadata();
    let rooms = rooms(&metadata, root);

    let mut broken = Vec::new();
    for rule in &rules {
        check(rule, &metadata, &rooms, &mut broken);
    }
    let ruled: BTreeSet<&str> = rules
        .iter()
        .filter_map(|rule| match rule {
            Rule::Imports { room, .. } => Some(room.as_str()),
            Rule::Owns { .. } => None,
        })
        .collect();
    for room in rooms.values().filter(|room| !UNBOUND.contains(&room.as_str())) {
        if !ruled.contains(room.as_str()) {
            broken.push(format!("`{room}` has no import rule in ARCHITECTURE.md"));
        }
    }
    assert!(broken.is_empty(), "doors broken:\n  {}", broken.join("\n  "));
}

/// Failpoints are in tests alone: nothing that is built otherwise, a release above all, has any.
#[test]
fn only_tests_arm_failpoints() {
    let metadata = metadata();
    let mut armed_by = Vec::new();
    for package in metadata.workspace_packages() {
        let defaults = package.features.get("default").map_or(&[][..], Vec::as_slice);
        assert!(!defaults.iter().any(|feature| feature.contains("armed")), "{} arms them by default", package.name);
        for dependency in package.dependencies.iter().filter(|it| it.name == "meridian-failpoint") {
            if !dependency.features.is_empty() {
                armed_by.push((package.name.to_string(), dependency.kind));
            }
        }
    }
    assert_eq!(armed_by, [("meridian".to_owned(), DependencyKind::Development)]);
}

#[test]
fn every_dependency_has_a_licence_that_deny_toml_allows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lives in the workspace");
    let deny: toml::Table = std::fs::read_to_string(root.join("deny.toml"))
        .expect("deny.toml is readable")
        .parse()
        .expect("deny.toml is TOML");
    let allowed: BTreeSet<&str> =
        deny["licenses"]["allow"].as_array().expect("a list").iter().filter_map(toml::Value::as_str).collect();

    let mut broken = Vec::new();
    for package in metadata().packages {
        let licence = package.license.clone().unwrap_or_default();
        if !permits(&licence, &allowed) {
            broken.push(format!("{} {}: `{licence}`", package.name, package.version));
        }
    }
    assert!(broken.is_empty(), "licences not allowed:\n  {}", broken.join("\n  "));
}

fn metadata() -> Metadata {
    MetadataCommand::new().manifest_path("../Cargo.toml").exec().expect("cargo metadata runs")
}

/// Package name -> folder below the root.
fn rooms(metadata: &Metadata, root: &Path) -> BTreeMap<String, String> {
    let root = root.canonicalize().expect("the workspace exists");
    metadata
        .workspace_packages()
        .into_iter()
        .map(|package| {
            let folder = package.manifest_path.parent().expect("a manifest has a folder");
            let room = folder.as_std_path().strip_prefix(&root).expect("members are below the root");
            (package.name.to_string(), room.display().to_string())
        })
        .collect()
}

fn parse(line: &str) -> Rule {
    let named = || line.split('`').skip(1).step_by(2).map(str::to_owned);
    if line.contains("imports nothing of ours") {
        let mut names = named();
        let room = names.next().unwrap_or_else(|| panic!("an import rule names its room: {line}"));
        return Rule::Imports { room, allowed: names.collect() };
    }
    if line.starts_with("only ") && line.contains(" the crate ") {
        let mut names: Vec<String> = named().collect();
        let krate = names.pop().unwrap_or_else(|| panic!("an ownership rule names its crate: {line}"));
        return Rule::Owns { rooms: names.into_iter().collect(), krate };
    }
    panic!("this test cannot read the invariant: {line}");
}

fn check(rule: &Rule, metadata: &Metadata, rooms: &BTreeMap<String, String>, broken: &mut Vec<String>) {
    for package in metadata.workspace_packages() {
        let room = &rooms[package.name.as_str()];
        // What tests import is no door: a test may look at anything.
        let dependencies = package.dependencies.iter().filter(|d| d.kind != DependencyKind::Development);
        for dependency in dependencies {
            match rule {
                Rule::Imports { room: ruled, allowed } if ruled == room => {
                    if let Some(imported) = rooms.get(&dependency.name)
                        && !allowed.contains(imported)
                    {
                        broken.push(format!("`{room}` imports `{imported}`"));
                    }
                }
                Rule::Owns { rooms, krate } if dependency.name == *krate && !rooms.contains(room) => {
                    broken.push(format!("`{room}` depends on the crate `{krate}`"));
                }
                Rule::Imports { .. } | Rule::Owns { .. } => {}
            }
        }
    }
    if let Rule::Imports { room, .. } = rule
        && !rooms.values().any(|known| known == room)
    {
        broken.push(format!("ARCHITECTURE.md names `{room}`, which is no member of the workspace"));
    }
}

/// Whether an SPDX expression can be satisfied with the allowed licences. `/` is the old spelling of OR.
/// Handles the expressions that occur: OR binds weaker than AND, brackets one level deep.
fn permits(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let expression = expression.trim();
    if expression.is_empty() {
        return false;
    }
    split(expression, &[" OR ", "/"]).iter().any(|choice| {
        split(choice, &[" AND "]).iter().all(|part| {
            let part = part.trim();
            match part.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
                Some(inner) => permits(inner, allowed),
                None => allowed.contains(part),
            }
        })
    })
}

/// Splits at separators outside brackets.
fn split<'a>(text: &'a str, separators: &[&str]) -> Vec<&'a str> {
    let (mut parts, mut start, mut depth, mut at) = (Vec::new(), 0, 0, 0);
    while at < text.len() {
        match text.as_bytes()[at] {
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ => {}
        }
        match separators.iter().find(|s| depth == 0 && text[at..].starts_with(**s)) {
            Some(separator) => {
                parts.push(&text[start..at]);
                at += separator.len();
                start = at;
            }
            None => at += 1,
        }
    }
    parts.push(&text[start..]);
    parts
}

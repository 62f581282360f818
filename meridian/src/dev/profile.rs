//! `connect.toml`: how a CLI finds the cluster that `meridian dev` runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use meridian_types::RegionName;
use serde::{Deserialize, Serialize};

/// Its name within a profile's directory.
const FILE: &str = "connect.toml";

/// A cluster as a client finds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The cluster's name.
    pub cluster: String,
    /// The CA's certificate.
    pub ca: PathBuf,
    /// The client's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Its regions; the first is where a client is unless told otherwise.
    pub regions: Vec<ProfileRegion>,
}

/// A region as a client in it sees the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileRegion {
    /// Its name.
    pub name: RegionName,
    /// Its nodes, `https://host:port`.
    pub endpoints: Vec<String>,
    /// Its first node's admin port, `http://host:port`.
    pub admin: String,
    /// The process of its first node, where it runs on this machine.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Other regions' addresses as a client here must dial them.
    #[serde(default)]
    pub translate: BTreeMap<String, String>,
    /// The simulated round trip to each region, in milliseconds.
    #[serde(default)]
    pub round_trip_ms: BTreeMap<RegionName, f64>,
}

impl Profile {
    /// Reads `connect.toml` in `dir`.
    ///
    /// # Errors
    /// When it is missing or malformed.
    pub fn read(dir: &Path) -> anyhow::Result<Profile> {
        let file = dir.join(FILE);
        let text = std::fs::read_to_string(&file).with_context(|| {
            format!(
                "cannot read {}: start `meridian dev` first, or give --endpoint with --ca, --cert and --key",
                file.display()
            )
        })?;
        toml::from_str(&text).with_context(|| format!("{} is not valid", file.display()))
    }

    /// Whether `dir` holds one.
    pub fn exists(dir: &Path) -> bool {
        dir.join(FILE).is_file()
    }

    /// Writes it to `dir`, whole or not at all.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let (file, fresh) = (dir.join(FILE), dir.join("connect.toml.new"));
        std::fs::write(&fresh, toml::to_string(self)?)
            .and_then(|()| std::fs::rename(&fresh, &file))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// The region of that name, or the first.
    ///
    /// # Errors
    /// When there is none of that name; lists those there are.
    pub fn region(&self, name: Option<&RegionName>) -> anyhow::Result<&ProfileRegion> {
        let found = match name {
            None => self.regions.first(),
            Some(name) => self.regions.iter().find(|region| region.name == *name),
        };
        found.ok_or_else(|| {
            let known: Vec<&str> = self.regions.iter().map(|region| region.name.as_str()).collect();
            let asked = name.map_or("first", RegionName::as_str);
            crate::cli::Failure::invalid(format!("the profile has no region `{asked}`; it has {}", known.join(", ")))
                .into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_what_an_operator_s_commands_read() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/three-regions/operator");
        let profile = Profile::read(&dir).expect("it is valid");
        let names: Vec<&str> = profile.regions.iter().map(|region| region.name.as_str()).collect();
        assert_eq!(names, ["us-east", "eu-west", "ap-south"]);
    }
}

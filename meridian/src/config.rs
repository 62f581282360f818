//! What `meridian server` is told: one TOML file, overridden by `MERIDIAN_*` environment variables
//! (`MERIDIAN_LISTEN__RPC=0.0.0.0:7100` for `[listen] rpc`). Unknown fields are errors, not ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Toml};
use meridian_types::{NodeName, RegionName};
use serde::{Deserialize, Serialize};

/// The configuration of one node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The cluster's name, for people.
    pub cluster: String,
    /// The region this node lives in.
    pub region: RegionName,
    /// This node's name; one of `members`, or with `joins` another one; the one its certificate names.
    pub node: NodeName,
    /// Where everything durable lives. One process at a time.
    pub data_dir: PathBuf,
    /// Shards per region. Fixed when the cluster is formed; the same on every node.
    #[serde(default = "default_shards")]
    pub shards: u16,
    /// Addresses to listen on.
    pub listen: Listen,
    /// Certificates.
    pub tls: Tls,
    /// The nodes that form the cluster; the same list, in the same order, on every node.
    pub members: Vec<Member>,
    /// Of a node that joins a cluster that is there: where others reach it. It is not one of `members`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joins: Option<Joins>,
    /// Addresses as this node must dial them, where they differ from the advertised ones (NAT, emulated distance).
    #[serde(default)]
    pub translate: BTreeMap<String, String>,
    /// Logs, traces and metrics.
    #[serde(default)]
    pub telemetry: Telemetry,
    /// Bounds on memory and disk.
    #[serde(default)]
    pub limits: Limits,
}

/// Addresses to listen on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// TCP: gRPC for clients, operators and other nodes.
    pub rpc: SocketAddr,
    /// UDP: QUIC for replication. A witness has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<SocketAddr>,
    /// TCP: plain HTTP for metrics and health. Bind it to an address only operators reach.
    pub admin: SocketAddr,
}

/// Certificates, PEM.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The cluster's CA.
    pub ca: PathBuf,
    /// This node's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// A node that forms the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name.
    pub name: NodeName,
    /// Its region.
    pub region: RegionName,
    /// Its failure domain within the region.
    #[serde(default = "default_zone")]
    pub zone: String,
    /// `host:port` where others reach its gRPC endpoint.
    pub rpc: String,
    /// `host:port` where others reach its replication endpoint. A witness has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub replication: String,
    /// Whether it only votes in the metadata plane: it holds no data, and its region is no region for buckets.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub witness: bool,
}

/// A node that joins a cluster that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joins {
    /// Its failure domain within the region.
    #[serde(default = "default_zone")]
    pub zone: String,
    /// `host:port` where others reach its gRPC endpoint.
    pub rpc: String,
    /// `host:port` where others reach its replication endpoint.
    pub replication: String,
}

/// Logs, traces and metrics.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// What to log, in `tracing` filter syntax. The default keeps openraft to errors: it warns of every message to a
    /// node that is down, and consensus tells of what matters itself.
    pub log: String,
    /// How to write logs.
    pub log_format: LogFormat,
    /// An OTLP/gRPC collector, such as `http://127.0.0.1:4317`; empty for none.
    pub otlp_endpoint: String,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Telemetry {
    fn default() -> Self {
        Telemetry { log: "info,openraft=error".to_owned(), log_format: LogFormat::Text, otlp_endpoint: String::new() }
    }
}

/// Bounds on memory and disk (RES-1). The defaults keep a node below 512 MiB of memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Below this much free disk, writes are refused while reads go on.
    pub disk_reserve_bytes: u64,
    /// A write and sync of the log that takes longer, in milliseconds, counts as a disk that hangs: the node is not ready and refuses writes.
    pub disk_stall_ms: u64,
    /// How much log is kept for regions that are behind, before they need a resync.
    pub log_retention_bytes: u64,
    /// How much log is kept even when every region has it: as far back incremental backups need not read all rows, and every moment can
    /// be restored. At most `log_retention_bytes`.
    pub log_kept_bytes: u64,
    /// How many connections of clients and other nodes may be open at a time; fewer where the process may not have so
    /// many file descriptors.
    pub connections_max: usize,
    /// Size of the log's segments: disk is taken and given back in steps of this. At least 1 MiB.
    pub log_segment_bytes: u64,
    /// How long applied state may stay unsynced, in milliseconds; so much log is replayed after a crash.
    pub persist_every_ms: u64,
    /// The most bytes per second that replicas being repaired on this node receive from other regions.
    pub repair_bytes_per_s: u64,
    /// Whether a primary that was lost waits for `meridian reinstate` before it becomes a replica of its successor.
    pub manual_reinstate: bool,
    /// After so long without a sign of life a node of a region is replaced by a spare, if there is one, in milliseconds; 0 for never.
    pub repair_after_ms: u64,
    /// How long shutdown waits for requests in progress, in milliseconds.
    pub shutdown_grace_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            disk_reserve_bytes: 256 << 20,
            disk_stall_ms: 2_000,
            log_retention_bytes: 8 << 30,
            log_kept_bytes: 0,
            connections_max: 4_096,
            log_segment_bytes: 64 << 20,
            persist_every_ms: 10_000,
            repair_bytes_per_s: 32 << 20,
            manual_reinstate: false,
            repair_after_ms: 600_000,
            shutdown_grace_ms: 5_000,
        }
    }
}

fn default_shards() -> u16 {
    16
}

fn default_zone() -> String {
    "a".to_owned()
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file does not exist.
    #[error("there is no configuration file at {0}: give one with --config (examples are in examples/three-regions/)")]
    Missing(PathBuf),
    /// It is not valid TOML, has an unknown field, or a value of the wrong type.
    #[error("the configuration {file} is not valid: {source}")]
    Malformed {
        /// The file.
        file: PathBuf,
        /// Where and why.
        source: Box<figment::Error>,
    },
    /// Its values contradict each other.
    #[error("the configuration {file} is not valid: {reason}")]
    Contradiction {
        /// The file.
        file: PathBuf,
        /// The fields in conflict.
        reason: String,
    },
}

impl Config {
    /// Reads the file, applies the environment, and checks the whole.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and the field.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        if !file.is_file() {
            return Err(ConfigError::Missing(file.to_owned()));
        }
        let environment = Env::prefixed("MERIDIAN_").split("__").only(&Self::overridable());
        Config::from(&Figment::new().merge(Toml::file_exact(file)).merge(environment), file)
    }

    /// Reads what stands in a file, the environment left out.
    ///
    /// # Errors
    /// [`ConfigError`] names the file and the field.
    pub fn parse(text: &str, file: &Path) -> Result<Config, ConfigError> {
        Config::from(&Figment::new().merge(Toml::string(text)), file)
    }

    fn from(figment: &Figment, file: &Path) -> Result<Config, ConfigError> {
        let extracted = figment.extract();
        let config: Config =
            extracted.map_err(|source| ConfigError::Malformed { file: file.to_owned(), source: Box::new(source) })?;
        config.check().map_err(|reason| ConfigError::Contradiction { file: file.to_owned(), reason })?;
        Ok(config)
    }

    /// What the environment may override: scalars that differ between machines, never the member list.
    fn overridable() -> Vec<&'static str> {
        vec![
            "data_dir",
            "listen.rpc",
            "listen.replication",
            "listen.admin",
            "tls.ca",
            "tls.cert",
            "tls.key",
            "telemetry.log",
            "telemetry.log_format",
            "telemetry.otlp_endpoint",
            "limits.disk_reserve_bytes",
            "limits.disk_stall_ms",
            "limits.log_retention_bytes",
            "limits.log_kept_bytes",
            "limits.connections_max",
            "limits.log_segment_bytes",
            "limits.persist_every_ms",
            "limits.repair_bytes_per_s",
            "limits.manual_reinstate",
            "limits.repair_after_ms",
            "limits.shutdown_grace_ms",
        ]
    }

    fn check(&self) -> Result<(), String> {
        if self.shards == 0 || self.shards > 1024 {
            return Err(format!("`shards = {}`: use 1 to 1024", self.shards));
        }
        let Limits { log_kept_bytes, log_retention_bytes, .. } = self.limits;
        if log_kept_bytes > log_retention_bytes {
            return Err(format!(
                "`limits.log_kept_bytes = {log_kept_bytes}`: use at most `limits.log_retention_bytes`, {log_retention_bytes}"
            ));
        }
        let names: BTreeSet<&NodeName> = self.members.iter().map(|member| &member.name).collect();
        if names.len() != self.members.len() {
            return Err("`members` names the same node twice".to_owned());
        }
        self.members.iter().try_for_each(|member| self.check_member(member))?;
        self.check_sizes()?;
        if self.joins.is_some() && self.members.iter().any(|member| member.name == self.node) {
            return Err(format!("`joins` conflicts with `members`, which names {}: drop one of them", self.node));
        }
        let own = self.own_member().ok_or_else(|| {
            format!(
                "`node = {}` is not among `members`; if it joins a cluster that is there, say where others reach it in `[joins]`",
                self.node
            )
        })?;
        if own.region != self.region {
            return Err(format!(
                "`region = {}` conflicts with `members`: {} is in {} there",
                self.region, self.node, own.region
            ));
        }
        match (own.witness, self.listen.replication) {
            (true, Some(address)) => Err(format!(
                "`listen.replication = {address}` conflicts with `witness = true` of {}: a witness has no data to replicate; drop it",
                self.node
            )),
            (false, None) => Err("`listen.replication` is missing: name the UDP address for other regions".to_owned()),
            (true, None) | (false, Some(_)) => Ok(()),
        }
    }

    /// Every node of a region votes in each of its shards: two outlive no more than one, and four no more than three.
    fn check_sizes(&self) -> Result<(), String> {
        let mut sizes: BTreeMap<&RegionName, usize> = BTreeMap::new();
        self.members.iter().for_each(|member| *sizes.entry(&member.region).or_default() += 1);
        match sizes.iter().find(|(_, nodes)| !matches!(**nodes, 1 | 3 | 5)) {
            Some((region, nodes)) => {
                Err(format!("`members` has {nodes} nodes in {region}: use 1, 3 or 5 in each region"))
            }
            None => Ok(()),
        }
    }

    fn check_member(&self, member: &Member) -> Result<(), String> {
        if member.witness != member.replication.is_empty() {
            let remedy = if member.witness { "drop it" } else { "add it, or set `witness = true`" };
            return Err(format!(
                "`replication` of member {} conflicts with `witness = {}`: a witness has no data to replicate; {remedy}",
                member.name, member.witness
            ));
        }
        if self.members.iter().any(|other| other.region == member.region && other.witness != member.witness) {
            return Err(format!(
                "`witness` differs among the members in {}: give the witness a region of its own",
                member.region
            ));
        }
        Ok(())
    }

    /// Whether this node is a witness.
    pub fn is_witness(&self) -> bool {
        self.own_member().is_some_and(|member| member.witness)
    }

    /// This node, as others know it.
    pub fn own_member(&self) -> Option<Member> {
        let joins = |joins: &Joins| Member {
            name: self.node.clone(),
            region: self.region.clone(),
            zone: joins.zone.clone(),
            rpc: joins.rpc.clone(),
            replication: joins.replication.clone(),
            witness: false,
        };
        let listed = self.members.iter().find(|member| member.name == self.node);
        listed.cloned().or_else(|| self.joins.as_ref().map(joins))
    }

    /// An address as this node must dial it.
    pub fn translate<'a>(&'a self, address: &'a str) -> &'a str {
        self.translate.get(address).map_or(address, String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = r#"
        cluster = "test"
        region = "us-east"
        node = "us-east-1"
        data_dir = "/tmp/x"
        [listen]
        rpc = "127.0.0.1:1"
        replication = "127.0.0.1:2"
        admin = "127.0.0.1:3"
        [tls]
        ca = "ca.pem"
        cert = "c.pem"
        key = "k.pem"
        [[members]]
        name = "us-east-1"
        region = "us-east"
        rpc = "127.0.0.1:1"
        replication = "127.0.0.1:2"
    "#;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("it is writable");
        Config::load(file.path())
    }

    #[test]
    fn a_small_file_is_enough() {
        let config = load(VALID).expect("it is valid");
        assert_eq!(config.shards, 16);
        assert_eq!(config.members[0].zone, "a");
    }

    #[test]
    fn the_examples_are_what_the_server_reads() {
        for example in ["three-regions", "two-regions-and-a-witness"] {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(example);
            let files = std::fs::read_dir(&dir).expect("it is there").filter_map(Result::ok).map(|entry| entry.path());
            let configs: Vec<_> = files
                .filter(|file| file.extension().is_some_and(|extension| extension == "toml"))
                .map(|file| Config::load(&file).expect("it is valid"))
                .collect();
            assert_eq!(configs.len(), 3, "{}", dir.display());
            assert!(configs.iter().all(|config| config.members == configs[0].members), "{}", dir.display());
            let witnesses = configs.iter().filter(|config| config.is_witness()).count();
            assert_eq!(witnesses, usize::from(example == "two-regions-and-a-witness"));
        }
    }

    #[test]
    fn a_misspelt_field_is_named() {
        let error = load(&VALID.replace("data_dir", "datadir")).expect_err("it is misspelt");
        assert!(error.to_string().contains("dat"), "{error}");
    }

    #[test]
    fn a_node_outside_the_members_is_refused() {
        let error = load(&VALID.replace("node = \"us-east-1\"", "node = \"us-east-2\"")).expect_err("it is no member");
        assert!(error.to_string().contains("`node = us-east-2` is not among `members`"), "{error}");
    }

    #[test]
    fn a_node_that_joins_says_where_it_is_reached_and_is_no_member() {
        let joins = "[joins]\nrpc = \"h:9\"\nreplication = \"h:10\"\nzone = \"d\"\n";
        let joining = VALID.replace("node = \"us-east-1\"", "node = \"us-east-9\"");
        let config = load(&format!("{joining}\n{joins}")).expect("it is valid");
        let own = config.own_member().expect("it says so");
        assert_eq!((own.name.as_str(), own.zone.as_str(), own.rpc.as_str()), ("us-east-9", "d", "h:9"));
        assert!(!config.is_witness() && config.members.len() == 1);
        let both = load(&format!("{VALID}\n{joins}")).expect_err("it is a member").to_string();
        assert!(both.contains("`joins` conflicts with `members`"), "{both}");
    }

    #[test]
    fn a_witness_has_no_replication_and_a_region_of_its_own() {
        let witness = VALID
            .replace("replication = \"127.0.0.1:2\"\n        admin", "admin")
            .replace("replication = \"127.0.0.1:2\"", "witness = true");
        assert!(load(&witness).expect("it is valid").is_witness());
        let error =
            load(&VALID.replace(
                "rpc = \"127.0.0.1:1\"\n        replication = \"127.0.0.1:2\"\n    ",
                "rpc = \"127.0.0.1:1\"\n",
            ));
        assert!(error.expect_err("data needs replication").to_string().contains("witness = false"));
        let both = format!(
            "{VALID}\n[[members]]\nname = \"us-east-2\"\nregion = \"us-east\"\nrpc = \"127.0.0.1:4\"\nwitness = true\n"
        );
        assert!(load(&both).expect_err("one region is both").to_string().contains("a region of its own"));
    }

    #[test]
    fn a_region_has_an_odd_number_of_nodes() {
        let another = |name: &str| {
            format!("[[members]]\nname = \"{name}\"\nregion = \"us-east\"\nrpc = \"h:1\"\nreplication = \"h:2\"\n")
        };
        let two = format!("{VALID}\n{}", another("us-east-2"));
        let error = load(&two).expect_err("two outlive no more than one").to_string();
        assert!(error.contains("2 nodes in us-east: use 1, 3 or 5"), "{error}");
        assert!(load(&format!("{two}{}", another("us-east-3"))).is_ok());
    }

    #[test]
    fn a_missing_file_says_where_examples_are() {
        let error = Config::load(Path::new("/nowhere/node.toml")).expect_err("it does not exist");
        assert!(error.to_string().contains("examples/"), "{error}");
    }
}

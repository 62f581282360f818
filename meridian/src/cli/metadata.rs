//! `meridian metadata`: what is done to the metadata plane by hand, on the machine of a node.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use meridian_metadata_core::recover::Recovery;
use meridian_metadata_node::recover::Survivor;
use meridian_proto::dial;
use meridian_proto::tls::{TlsFiles, TlsMaterial};
use meridian_types::{NodeId, Topology};
use serde::Serialize;

use super::exit::Failure;
use crate::config::Config;
use crate::output::{Format, Show, Table, count, note, show};

/// How long another voter may take to show its certificate before it counts as silent.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make this node's copy the metadata plane, because the majority of its voters is lost for good. Its server must be
    /// stopped. Read docs/runbooks/lost-metadata-majority.md first: changes that only the lost voters had are gone.
    Recover(Recover),
}

#[derive(Debug, clap::Args)]
pub(super) struct Recover {
    /// The node's configuration, as `meridian server` reads it.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Say what would be done and what may be lost; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// The words that the dry run prints, for whoever has read what may be lost.
    #[arg(long, value_name = "WORDS")]
    confirm: Option<String>,
}

pub(super) async fn run(command: Command, format: Format) -> anyhow::Result<()> {
    match command {
        Command::Recover(args) => recover(args, format).await,
    }
}

async fn recover(args: Recover, format: Format) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    let log = meridian_consensus::Options::new(NodeId::of(&config.node), config.data_dir.join("log"));
    if !config.data_dir.join("metadata").is_dir() {
        let message = format!(
            "{} holds no metadata: name the configuration of a node that has been part of the cluster",
            config.data_dir.display()
        );
        return Err(Failure::invalid(message).into());
    }
    let survivor = Survivor::open(&config.data_dir.join("metadata"), &log)?;
    let found = Found::of(&config, &survivor, voters(&config, &survivor).await?);
    if args.dry_run {
        note("this is what would be done; nothing was changed:");
        return show(format, &found);
    }
    found.check(args.confirm.as_deref())?;
    survivor.recover(wall_ms(), config.node.as_str())?;
    note(&format!(
        "recovered: generation {} begins with {} as its only voter. Start this node now, then the others; `meridian status` shows who follows",
        found.generation, found.node
    ));
    show(format, &Done(found))
}

/// Who voted, and who of them answers now.
async fn voters(config: &Config, survivor: &Survivor) -> anyhow::Result<Vec<Voter>> {
    let topology = survivor.state().topology();
    let tls = TlsFiles::new(config.tls.ca.clone(), config.tls.cert.clone(), config.tls.key.clone()).load()?;
    let mut voters = Vec::new();
    for id in &survivor.standing().voters {
        let member = config.members.iter().find(|member| NodeId::of(&member.name) == *id);
        let known = topology.nodes.get(id);
        let address = member.map(|it| it.rpc.as_str()).or(known.map(|it| it.rpc_address.as_str())).unwrap_or_default();
        let this = NodeId::of(&config.node) == *id;
        voters.push(Voter {
            name: node_label(&topology, *id),
            address: address.to_owned(),
            this,
            answers: !this && answers(config.translate(address), &tls).await,
        });
    }
    Ok(voters)
}

/// Whether a node of this cluster is there. That something accepts a connection says little: a balancer does, whoever is behind it.
async fn answers(address: &str, tls: &TlsMaterial) -> bool {
    let Ok(endpoint) = dial::endpoint(&format!("https://{address}"), tls) else { return false };
    tokio::time::timeout(PROBE_TIMEOUT, endpoint.connect()).await.is_ok_and(|connected| connected.is_ok())
}

fn node_label(topology: &Topology, id: NodeId) -> String {
    topology.nodes.get(&id).map_or_else(|| format!("node-{id}"), |node| node.name.to_string())
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or_default()
}

#[derive(Debug, Serialize)]
struct Voter {
    name: String,
    address: String,
    this: bool,
    answers: bool,
}

/// What was found on this node, and what recovering from it means.
#[derive(Debug, Serialize)]
struct Found {
    node: String,
    region: String,
    cluster: String,
    term: u64,
    position: u64,
    /// The generation of the metadata plane that a recovery begins.
    generation: u32,
    voters: Vec<Voter>,
    raised: Vec<Raised>,
    given_up: Vec<String>,
    /// What `--confirm` takes.
    confirm: String,
}

/// The same once it is done: what was changed, without what there was to think about before.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Done(Found);

impl Show for Done {
    fn text(&self) -> String {
        self.0.changes()
    }
}

#[derive(Debug, Serialize)]
struct Raised {
    bucket: String,
    primary: String,
    epoch_before: u64,
    epoch: u64,
}

impl Found {
    fn of(config: &Config, survivor: &Survivor, voters: Vec<Voter>) -> Found {
        let (standing, state) = (survivor.standing(), survivor.state());
        let Recovery { raised, given_up } = survivor.preview(wall_ms(), config.node.as_str());
        let topology = state.topology();
        let primary = |name| {
            let bucket = state.bucket_named(name).and_then(|bucket| bucket.primary);
            bucket.map(|region| topology.region_label(region)).unwrap_or_default()
        };
        Found {
            node: config.node.to_string(),
            region: config.region.to_string(),
            cluster: state.cluster().map(|id| id.to_string()).unwrap_or_default(),
            term: standing.term,
            position: standing.last.0,
            generation: survivor.next_generation(),
            voters,
            raised: raised
                .iter()
                .map(|(name, before, after)| Raised {
                    bucket: name.to_string(),
                    primary: primary(name),
                    epoch_before: before.0,
                    epoch: after.0,
                })
                .collect(),
            given_up: given_up.iter().map(ToString::to_string).collect(),
            confirm: format!("lose-changes-after-{}", standing.last.0),
        }
    }

    /// What a recovery changes of the cluster.
    fn changes(&self) -> String {
        let mut table = Table::new(&["bucket", "primary", ">epoch", ">raised to"]);
        for it in &self.raised {
            let (before, after) = (it.epoch_before.to_string(), it.epoch.to_string());
            table.row([it.bucket.as_str(), it.primary.as_str(), before.as_str(), after.as_str()]);
        }
        let raised =
            if table.is_empty() { "no bucket has a primary: no epoch is raised".to_owned() } else { table.to_string() };
        match self.given_up.as_slice() {
            [] => raised,
            given_up => format!("{raised}\n\ngiven up: {}", given_up.join(", ")),
        }
    }

    /// The majority is not lost while it answers, and nobody loses anything that he has not read about.
    fn check(&self, confirm: Option<&str>) -> Result<(), Failure> {
        let up: Vec<_> = self.voters.iter().filter(|it| it.answers).map(|it| it.name.as_str()).collect();
        // This node counts: it only has to be started again.
        if up.len() + 1 > self.voters.len() / 2 && self.voters.len() > 1 && !up.is_empty() {
            return Err(Failure::failed(format!(
                "nothing was changed: {} answer, and with this node they are a majority of the {} voters, so nothing is lost: start this node's server again",
                up.join(" and "),
                self.voters.len()
            )));
        }
        if confirm == Some(self.confirm.as_str()) {
            return Ok(());
        }
        Err(Failure::consent(format!(
            "nothing was changed: recovering loses what only the lost voters had. Look at all survivors with --dry-run, take the one with the highest term, then position, and run there with --confirm {}",
            self.confirm
        )))
    }
}

impl Show for Found {
    fn text(&self) -> String {
        let mut text = format!(
            "cluster {}\n{} in {} has its metadata up to position {} of term {}; generation {} would begin here\n\n",
            self.cluster,
            self.node,
            self.region,
            count(self.position),
            self.term,
            self.generation
        );
        let mut table = Table::new(&["voter", "address", "state"]);
        for it in &self.voters {
            let state = match (it.this, it.answers) {
                (true, _) => "this node, stopped: it will be the only voter",
                (false, true) => "ANSWERS: stop it first, or don't recover at all",
                (false, false) => "does not answer",
            };
            table.row([it.name.as_str(), it.address.as_str(), state]);
        }
        let _ = write!(text, "{table}\n\n{}\n\n", self.changes());
        let _ = write!(
            text,
            "WHAT MAY BE LOST: every change of the cluster that the lost voters committed and this node had not heard of: buckets\n\
             created or deleted, policies, operations, and primaries that moved. A region that became primary by such a\n\
             change is refused from now on; what it has acknowledged since is set aside there, not merged.\n\
             Old voters must not run among themselves: start them only where they reach {}.\n\n\
             confirm with: --confirm {}",
            self.node, self.confirm
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(answering: &[bool]) -> Found {
        let voter = |(at, answers): (usize, &bool)| Voter {
            name: format!("n{at}"),
            address: "h:1".to_owned(),
            this: at == 0,
            answers: *answers,
        };
        Found {
            node: "n0".to_owned(),
            region: "r".to_owned(),
            cluster: "c".to_owned(),
            term: 3,
            position: 1234,
            generation: 1,
            voters: answering.iter().enumerate().map(voter).collect(),
            raised: vec![Raised { bucket: "orders".to_owned(), primary: "r".to_owned(), epoch_before: 1, epoch: 9 }],
            given_up: vec!["op-7".to_owned()],
            confirm: "lose-changes-after-1234".to_owned(),
        }
    }

    #[test]
    fn nothing_is_recovered_without_the_words_or_while_a_majority_is_up() {
        let words = Some("lose-changes-after-1234");
        assert!(found(&[false, false, false]).check(words).is_ok());
        let refused = found(&[false, false, false]).check(None).unwrap_err();
        assert!(refused.to_string().contains("--confirm lose-changes-after-1234"), "{refused}");
        assert!(found(&[false, false, false]).check(Some("lose-changes-after-1233")).is_err());
        let refused = found(&[false, true, false]).check(words).unwrap_err();
        assert!(refused.to_string().contains("n1 answer"), "{refused}");
    }

    #[test]
    fn what_may_be_lost_is_told() {
        let text = found(&[false, true, false]).text();
        for expected in ["WHAT MAY BE LOST", "1,234", "ANSWERS", "orders", "op-7"] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }
}

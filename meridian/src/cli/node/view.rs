//! What `meridian node` prints.

use meridian_client::Error;
use meridian_types::{MemberChange, Node, NodeId, NodeStatus, RegionId, ShardId, Topology};
use serde::Serialize;

use super::is;
use crate::cli::moment::moment;
use crate::output::{Show, Table, bytes, millis, share};

/// All nodes, and the changes under way.
#[derive(Debug, Serialize)]
pub(super) struct List {
    nodes: Vec<Row>,
    changes: Vec<Change>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    region: String,
    zone: String,
    /// What it is to its region.
    is: &'static str,
    /// Of how many shards it votes in the group, as is on record.
    shards: usize,
    metadata: &'static str,
    rpc: String,
    version: String,
    /// `None` when it does not answer.
    status: Option<NodeStatus>,
}

impl Row {
    fn of(node: &Node, status: Result<&NodeStatus, &Error>, topology: &Topology) -> Row {
        let votes = |shard: &u16| topology.voters(node.region, ShardId(*shard)).contains(&node.id);
        let metadata = match status {
            Ok(status) if status.metadata_leader == Some(node.id) => "leads",
            Ok(status) if status.votes => "votes",
            Ok(_) => "follows",
            Err(_) => "-",
        };
        Row {
            name: node.name.to_string(),
            region: topology.region_label(node.region),
            zone: node.zone.clone(),
            is: is(topology, node),
            shards: (0..topology.shards).filter(votes).count(),
            metadata,
            rpc: node.rpc_address.clone(),
            version: node.version.clone(),
            status: status.ok().cloned(),
        }
    }

    fn state(&self) -> &'static str {
        match &self.status {
            None => "DOWN",
            Some(status) if status.lease_ms == 0 => "NO LEASE",
            Some(status) if !status.problems.is_empty() => "PROBLEMS",
            Some(_) => "ok",
        }
    }
}

impl List {
    pub(super) fn of(statuses: &[(Node, Result<NodeStatus, Error>)], topology: &Topology) -> List {
        let mut nodes: Vec<Row> =
            statuses.iter().map(|(node, status)| Row::of(node, status.as_ref(), topology)).collect();
        nodes.sort_by(|one, other| (&one.region, &one.name).cmp(&(&other.region, &other.name)));
        let changes = topology.changes.iter().map(|(region, it)| Change::of(*region, it, topology, false)).collect();
        List { nodes, changes }
    }
}

impl Show for List {
    fn text(&self) -> String {
        let columns =
            ["node", "region", "zone", "is", "state", ">shards", ">leads", "metadata", "version", "rpc", ">up"];
        let mut table = Table::new(&columns);
        for row in &self.nodes {
            let of_status = |cell: &dyn Fn(&NodeStatus) -> String| row.status.as_ref().map_or("-".to_owned(), cell);
            table.row([
                row.name.clone(),
                row.region.clone(),
                row.zone.clone(),
                row.is.to_owned(),
                row.state().to_owned(),
                row.shards.to_string(),
                of_status(&|status| status.shards_led.to_string()),
                row.metadata.to_owned(),
                row.version.clone(),
                row.rpc.clone(),
                of_status(&|status| millis(status.uptime_ms)),
            ]);
        }
        let mut text = table.to_string();
        for change in &self.changes {
            text.push_str(&format!("\n\n{}", change.text()));
        }
        text
    }
}

/// One node.
#[derive(Debug, Serialize)]
pub(super) struct Detail {
    #[serde(flatten)]
    row: Row,
    replication: String,
    /// Why there is no status.
    silent: Option<String>,
    #[serde(skip)]
    shards_total: u16,
}

impl Detail {
    pub(super) fn of(node: &Node, status: &Result<NodeStatus, Error>, topology: &Topology) -> Detail {
        Detail {
            row: Row::of(node, status.as_ref(), topology),
            replication: node.replication_address.clone(),
            silent: status.as_ref().err().map(|why| why.message.clone()),
            shards_total: topology.shards,
        }
    }
}

impl Show for Detail {
    fn text(&self) -> String {
        let row = &self.row;
        let mut lines = vec![
            format!("{}, a {} of {} in zone {}", row.name, row.is, row.region, row.zone),
            format!("  state        {}", row.state()),
            format!("  shards       votes in {} of {}", row.shards, self.shards_total),
            format!("  addresses    rpc {}, replication {}", row.rpc, self.replication),
            format!("  metadata     {}", row.metadata),
        ];
        if let Some(status) = &row.status {
            let (free, total) = (status.disk_free_bytes, status.disk_total_bytes);
            lines.push(format!("  leads        {} shards", status.shards_led));
            lines.push(format!("  lease        {}", millis(status.lease_ms)));
            lines.push(format!("  version      {}, up {}", status.version, millis(status.uptime_ms)));
            lines.push(format!("  disk         {} ({}) free", bytes(free), share(free, total)));
            lines.push(format!("  log, state   {}, {}", bytes(status.log_bytes), bytes(status.state_bytes)));
            lines.push(format!("  memory       {}", bytes(status.resident_bytes)));
            lines.extend(status.problems.iter().map(|problem| format!("  ! {problem}")));
        }
        lines.extend(self.silent.iter().map(|why| format!("  ! it does not answer: {why}")));
        lines.join("\n")
    }
}

/// A change of a region's members.
#[derive(Debug, Serialize)]
pub(super) struct Change {
    region: String,
    by: String,
    since_ms: u64,
    joins: Vec<String>,
    leaves: Vec<String>,
    serves: Vec<String>,
    shards: usize,
    moved: usize,
    /// How many serve it before.
    served_by: usize,
    /// What one of them has on disk.
    bytes: u64,
    dry_run: bool,
}

/// How many of so many nodes may die without anybody waiting for them.
fn outlives(nodes: usize) -> usize {
    nodes.saturating_sub(1) / 2
}

impl Change {
    /// With what each of those that join is to be sent.
    pub(super) fn with_bytes(self, bytes: u64) -> Change {
        Change { bytes, ..self }
    }

    pub(super) fn of(region: RegionId, change: &MemberChange, topology: &Topology, dry_run: bool) -> Change {
        let name = |id: &NodeId| topology.nodes.get(id).map_or_else(|| id.to_string(), |node| node.name.to_string());
        let only = |these: &[NodeId], others: &[NodeId]| {
            these.iter().filter(|node| !others.contains(node)).map(name).collect::<Vec<_>>()
        };
        let shards = usize::from(topology.shards);
        Change {
            region: topology.region_label(region),
            by: change.who.clone(),
            since_ms: change.since_ms,
            joins: only(&change.target, &change.before),
            leaves: only(&change.before, &change.target),
            serves: change.target.iter().map(name).collect(),
            shards,
            moved: shards.saturating_sub(change.pending.len()),
            served_by: change.before.len(),
            bytes: 0,
            dry_run,
        }
    }
}

impl Show for Change {
    fn text(&self) -> String {
        let deed = |one: &str, many: &str, nodes: &[String]| match nodes {
            [] => None,
            [node] => Some(format!("{node} {one}")),
            nodes => Some(format!("{} {many}", nodes.join(", "))),
        };
        let deeds = [deed("joins", "join", &self.joins), deed("leaves", "leave", &self.leaves)];
        let deeds: Vec<String> = deeds.into_iter().flatten().collect();
        let what = if deeds.is_empty() { "everything stays".to_owned() } else { deeds.join(", ") };
        let (region, serves) = (&self.region, self.serves.join(", "));
        if self.dry_run {
            let (before, after) = (outlives(self.served_by), outlives(self.serves.len()));
            return format!(
                "{region}: {what}; {} shards would move, {} to each that joins; then {serves} would serve it, of which {after} may die at a time (now {before})",
                self.shards,
                bytes(self.bytes),
            );
        }
        format!(
            "{region}: {what}; {} of {} shards have moved, since {} by {}",
            self.moved,
            self.shards,
            moment(self.since_ms),
            self.by
        )
    }
}

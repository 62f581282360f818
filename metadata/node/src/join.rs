//! What the other members know of the cluster, before this node takes part in anything.
//!
//! Cases in which a node must not vote (docs/runbooks/lost-metadata-majority.md): it was removed from the cluster, and a voter that
//! has not heard of that could be elected by it; it has lost its disk, and would form a
//! second cluster with others like it, or vote again in a term in which it has voted ([`crate::directory`]); or the metadata plane was recovered without it, and it would decide with others like
//! it what has been decided otherwise. In both, one member that knows better is enough.

use std::sync::Arc;
use std::time::Duration;

use meridian_proto::dial::Dial;
use meridian_proto::v1;
use meridian_proto::v1::cluster_client::ClusterClient;
use meridian_types::NodeId;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::Code;

use crate::options::Options;

/// How long a member may take to answer: a connection and a question, between the farthest regions. Every start waits
/// for it at most once, and only where members are silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long after nobody answered they are asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// The largest topology taken from a member, in bytes.
const TOPOLOGY_BYTES_MAX: usize = 64 << 20;

/// What is known elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Elsewhere {
    /// Some other member is there.
    pub(crate) answered: bool,
    /// Some other member knows the cluster.
    pub(crate) formed: bool,
    /// This node has registered there: it has run before.
    pub(crate) registered: bool,
    /// This node was removed from it.
    pub(crate) removed: bool,
    /// The latest generation of the metadata plane that another member belongs to.
    pub(crate) generation: u32,
}

/// Asks every other member. A node that is none of them forms no cluster, and can't tell a directory that it lost from a new one without
/// somebody who knows: with a new one it waits for somebody.
pub(crate) async fn ask_until_known(options: &Options, dial: &Arc<dyn Dial>, is_new: bool) -> Elsewhere {
    let founds = options.members.iter().any(|member| member.name == options.this.name);
    loop {
        let found = ask(options, dial).await;
        if founds || !is_new || found.answered {
            return found;
        }
        tracing::warn!("none of `members` answers: this node joins once one does; name nodes that are there now");
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
    }
}

/// Asks every other member.
async fn ask(options: &Options, dial: &Arc<dyn Dial>) -> Elsewhere {
    let mut asked = JoinSet::new();
    for member in options.members.iter().filter(|member| member.name != options.this.name) {
        let Some(channel) = dial.channel(member.id()) else { continue };
        let mut member = ClusterClient::new(channel).max_decoding_message_size(TOPOLOGY_BYTES_MAX);
        asked.spawn(async move { timeout(ANSWER_TIMEOUT, member.topology(v1::TopologyRequest {})).await });
    }
    let mut found = Elsewhere::default();
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok(Ok(Ok(answer))) => {
                let known = answer.into_inner();
                // Whoever leads by now may be nobody that this node was told of.
                known.nodes.iter().for_each(|node| dial.learn(NodeId(node.id), &node.rpc_address));
                found.answered = true;
                found.take(options.this.id(), &known);
            }
            Ok(Ok(Err(refused))) => found.answered |= refused.code() != Code::Unavailable,
            // Too late, or gone.
            Ok(Err(_)) | Err(_) => {}
        }
    }
    found
}

impl Elsewhere {
    /// Takes in what one member knows.
    fn take(&mut self, this: NodeId, known: &v1::TopologyResponse) {
        self.formed |= !known.cluster_id.is_empty();
        self.generation = self.generation.max(known.metadata_generation);
        // A cluster is formed with nodes that have no version yet: each tells its own when it registers.
        self.removed |= known.retired.contains(&this.0);
        self.registered |= known.nodes.iter().any(|node| node.id == this.0 && !node.version.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(version: &str) -> v1::TopologyResponse {
        let node = v1::Node { id: 7, version: version.to_owned(), ..v1::Node::default() };
        v1::TopologyResponse { cluster_id: "cluster".into(), nodes: vec![node], ..v1::TopologyResponse::default() }
    }

    #[test]
    fn a_member_that_has_never_started_is_new_and_one_that_has_told_its_version_is_not() {
        let mut found = Elsewhere::default();
        found.take(NodeId(7), &known(""));
        assert_eq!(found, Elsewhere { formed: true, ..Elsewhere::default() });
        found.take(NodeId(8), &known("0.1.0"));
        assert!(!found.registered, "that is another node");
        found.take(NodeId(7), &known("0.1.0"));
        found.take(NodeId(7), &known(""));
        assert!(found.registered, "one that knows is enough");
        let removed = v1::TopologyResponse { retired: vec![7], ..known("0.1.0") };
        assert!(!found.removed);
        found.take(NodeId(7), &removed);
        assert!(found.removed);
    }
}

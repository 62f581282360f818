//! What the other members know of the cluster, before this node takes part in anything.
//!
//! Two cases in which a node must not vote (docs/runbooks/lost-metadata-majority.md): it has lost its disk, and would form a
//! second cluster with others like it; or the metadata plane was recovered without it, and it would decide with others like
//! it what has been decided otherwise. In both, one member that knows better is enough: then this node waits to be taken in.

use std::sync::Arc;
use std::time::Duration;

use meridian_proto::dial::Dial;
use meridian_proto::v1;
use meridian_proto::v1::cluster_client::ClusterClient;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::options::Options;

/// How long a member may take to answer: a connection and a question, between the farthest regions. Every start waits
/// for it at most once, and only where members are silent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The largest topology taken from a member, in bytes.
const TOPOLOGY_BYTES_MAX: usize = 64 << 20;

/// What is known elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Elsewhere {
    /// Some other member knows the cluster.
    pub(crate) formed: bool,
    /// The latest generation of the metadata plane that another member belongs to.
    pub(crate) generation: u32,
}

/// Asks every other member.
pub(crate) async fn ask(options: &Options, dial: &Arc<dyn Dial>) -> Elsewhere {
    let mut asked = JoinSet::new();
    for member in options.members.iter().filter(|member| member.name != options.this.name) {
        let Some(channel) = dial.channel(member.id()) else { continue };
        let mut member = ClusterClient::new(channel).max_decoding_message_size(TOPOLOGY_BYTES_MAX);
        asked.spawn(async move { timeout(ANSWER_TIMEOUT, member.topology(v1::TopologyRequest {})).await });
    }
    let mut found = Elsewhere::default();
    while let Some(answer) = asked.join_next().await {
        if let Ok(Ok(Ok(answer))) = answer {
            let answer = answer.into_inner();
            found.formed |= !answer.cluster_id.is_empty();
            found.generation = found.generation.max(answer.metadata_generation);
        }
    }
    found
}

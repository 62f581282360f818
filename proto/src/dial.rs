//! How nodes reach each other: the seam between rooms that call peers and the composition root that knows addresses.

use meridian_types::NodeId;
use tonic::transport::Channel;

/// How to reach a node. Implemented by the composition root: addresses come from the topology, translated for
/// emulated distances.
pub trait Dial: Send + Sync + 'static {
    /// A channel to `node`, connecting lazily and cached; `None` while its address is not known.
    fn channel(&self, node: NodeId) -> Option<Channel>;
}

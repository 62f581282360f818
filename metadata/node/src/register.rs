//! Registration: the cluster knows this node as it is now (region, addresses, version), or this keeps trying.

use std::sync::Arc;
use std::time::Duration;

use meridian_metadata_core::{Action, Command, OperationId};
use meridian_types::{Node, NodeId, RefusalKind, Topology};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::ask::Asker;
use crate::attempt::Backoff;
use crate::clock::wall_ms;
use crate::copy::LocalCopy;
use crate::options::Options;

/// The longest pause between two attempts, also after a refusal that only an operator can remedy.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How long an accepted registration may take to arrive in this node's own copy.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether the cluster knows this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Registration {
    /// Not yet, or not as it is now.
    Pending,
    /// As it is now.
    Done,
    /// It was refused; what it says needs an operator.
    Refused(String),
}

/// Registers and stays registered.
pub(crate) async fn register(
    options: Arc<Options>,
    asker: Arc<Asker>,
    copy: Arc<LocalCopy>,
    progress: watch::Sender<Registration>,
) {
    let mut changes = copy.changes();
    let mut backoff = Backoff::new(PAUSE_MAX);
    loop {
        if is_registered(&changes.borrow_and_update(), &options) {
            set(&progress, Registration::Done);
            backoff.reset();
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        }
        if *progress.borrow() == Registration::Done {
            set(&progress, Registration::Pending);
        }
        match asker.propose(&command(&options)).await {
            Ok(_) => {
                let arrived = changes.wait_for(|topology| is_registered(topology, &options));
                // A node that is no voter gets its first copy only after the leader took it in.
                let _ = timeout(ARRIVAL_TIMEOUT, arrived).await;
            }
            Err(refusal) => match refusal.kind {
                RefusalKind::Conflict | RefusalKind::Invalid | RefusalKind::NotFound | RefusalKind::Denied => {
                    set(&progress, Registration::Refused(refusal.message));
                }
                _ => tracing::info!(%refusal, "this node is not registered yet"),
            },
        }
        sleep(backoff.next_pause()).await;
    }
}

fn set(progress: &watch::Sender<Registration>, now: Registration) {
    let changed = progress.send_if_modified(|seen| std::mem::replace(seen, now.clone()) != now);
    match now {
        Registration::Done if changed => tracing::info!("this node is registered"),
        Registration::Refused(why) if changed => tracing::error!(why, "this node's registration was refused"),
        Registration::Done | Registration::Pending | Registration::Refused(_) => {}
    }
}

fn command(options: &Options) -> Command {
    Command {
        operation: OperationId(rand::random()),
        who: options.this.name.to_string(),
        at_ms: wall_ms(),
        action: Action::RegisterNode(options.this.spec(&options.version)),
    }
}

/// Whether that topology has this node as it is now.
fn is_registered(topology: &Topology, options: &Options) -> bool {
    let this = &options.this;
    topology.nodes.get(&NodeId::of(&this.name)).is_some_and(|node: &Node| {
        topology.regions.get(&node.region).is_some_and(|region| region.name == this.region)
            && node.zone == this.zone
            && node.rpc_address == this.rpc_address
            && node.replication_address == this.replication_address
            && node.version == options.version
    })
}

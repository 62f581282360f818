//! Follows what Raft says of a group: who leads, whether this node is alone in it, and whether it has failed.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use meridian_types::NodeId;
use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use openraft::error::Fatal;
use openraft::metrics::RaftServerMetrics;
use openraft_rt_tokio::TokioRuntime;

use crate::group::{Electorate, Inner, Leadership};
use crate::poison::Poison;
use crate::raft::types::TypeConfig;

type Metrics = RaftServerMetrics<TypeConfig<TokioRuntime>>;

/// Runs as long as the group does.
pub(crate) async fn watch(group: Arc<Inner>, poison: Poison) {
    let mut metrics = group.raft.server_metrics();
    let mut applied = group.progress.applied.subscribe();
    let mut changes = group.leadership.subscribe();
    loop {
        let awaits_apply = {
            let now = metrics.borrow_and_update().clone();
            applied.mark_unchanged();
            group.note(&now);
            now.state == ServerState::Leader && !group.leadership.borrow().leads
        };
        changes.mark_unchanged();
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() { break },
            _ = applied.changed(), if awaits_apply => {}
            _ = changes.changed() => {}
        }
    }
    if !group.stopped.swap(true, Ordering::AcqRel) {
        let state = group.raft.metrics().borrow_watched().running_state.clone();
        let why = match state {
            Err(Fatal::Stopped) | Ok(()) => "its Raft stopped by itself".to_owned(),
            Err(error) => error.to_string(),
        };
        poison.report(Some(group.id), why);
    }
    group.leadership.send_replace(Leadership::default());
}

impl Inner {
    fn note(&self, now: &Metrics) {
        let term = now.vote.leader_id.term;
        let leads = now.state == ServerState::Leader && self.progress.applied_term.load(Ordering::Acquire) >= term;
        self.note_solo(now, leads);
        self.note_electorate(now);
        let new = Leadership { leader: now.current_leader.map(NodeId), term, leads };
        self.leadership.send_if_modified(|old| {
            let changed = *old != new;
            if changed {
                tracing::info!(
                    group = %self.id,
                    leader = new.leader.map(tracing::field::display),
                    term = new.term,
                    leads = new.leads,
                    "leadership changed"
                );
                *old = new;
            }
            changed
        });
    }

    fn note_electorate(&self, now: &Metrics) {
        let members = &now.membership_config;
        // Of two configurations at once a majority of each decides.
        let settled = members.get_joint_config().len() == 1;
        let voters: Vec<_> = members.voter_ids().map(NodeId).collect();
        let mut known = self.electorate.lock().unwrap_or_else(PoisonError::into_inner);
        if !settled {
            *known = None;
        } else if known.as_ref().is_none_or(|known| known.voters != voters) {
            *known = Some(Electorate { voters, since: Instant::now() });
        }
    }

    /// A leader that is alone has nobody to elect, to hear from or to ask: its clock stops, so that it costs
    /// nothing while idle.
    fn note_solo(&self, now: &Metrics, leads: bool) {
        let members = &now.membership_config;
        let alone = now.membership_config == now.committed_membership_config
            && members.get_joint_config().len() == 1
            && members.nodes().map(|(id, _)| *id).eq([self.node.0])
            && members.voter_ids().eq([self.node.0]);
        let solo = alone && leads && self.changing.load(Ordering::Acquire) == 0;
        if self.solo.swap(solo, Ordering::AcqRel) != solo {
            self.raft.runtime_config().tick(!solo);
        }
        // A change may have begun between the check and the store.
        if self.changing.load(Ordering::Acquire) > 0 && self.solo.swap(false, Ordering::AcqRel) {
            self.raft.runtime_config().tick(true);
        }
    }
}

//! Hands the node's lease to the monitor of a fenced pod, as often as it is renewed.

use std::sync::Arc;

use super::node::Node;

/// Runs beside the worker for as long as the pod is fenced: a worker may be busy for seconds, and a lease is short. One message a
/// renewal; renewals that come while the monitor does not answer are passed over for the latest.
pub(super) async fn keep(node: Arc<Node>, uid: String) {
    let mut lease = node.lease.clone();
    let mut told = None;
    loop {
        lease.mark_unchanged();
        // Without a lease it is told so, once: a monitor that knows a deadline already keeps it, one that knows none ends what
        // runs.
        let until = node.lease_until(&uid);
        if told.is_none_or(|told| told < until) {
            told = Some(until);
            if let Err(failure) = node.containers.lease(&uid, until).await {
                tracing::debug!(uid, reason = failure.message, "a fenced pod has no lease");
            }
        }
        if lease.changed().await.is_err() {
            return;
        }
    }
}

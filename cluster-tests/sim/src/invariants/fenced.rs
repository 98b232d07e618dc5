//! A fenced pod runs on one node at a time.

use super::Held;

/// Looks at all nodes at one moment: whether the pod runs on each, by that node's own clock.
///
/// # Errors
/// It runs on two.
pub fn runs_once(now: u64, running: &[bool]) -> Held {
    let nodes: Vec<usize> = running.iter().enumerate().filter(|(_, runs)| **runs).map(|(node, _)| node).collect();
    if nodes.len() > 1 {
        return Err(format!("at {now} ms the fenced pod runs on nodes {nodes:?} at once"));
    }
    Ok(())
}

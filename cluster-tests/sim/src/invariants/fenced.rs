//! A fenced pod runs on one node at a time, and there once.

use super::Held;

/// Looks at all nodes at one moment of the world: how many copies run on each.
///
/// # Errors
/// More than one runs.
pub fn runs_once(now: u64, running: &[usize]) -> Held {
    if running.iter().sum::<usize>() > 1 {
        let nodes: Vec<usize> = (0..running.len()).filter(|node| running[*node] > 0).collect();
        return Err(format!("at {now} ms the fenced pod runs {running:?} times on nodes {nodes:?}"));
    }
    Ok(())
}

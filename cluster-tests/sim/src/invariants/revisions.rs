//! No reader goes back in time: on one server the revision only grows, and a read sees all that was acknowledged before it began.

use super::Held;

/// The newest revision somebody has seen.
#[derive(Debug, Default)]
pub struct Revisions {
    seen: u64,
}

impl Revisions {
    /// A look at a server that runs since before the last look.
    ///
    /// # Errors
    /// It shows an older state than before.
    pub fn see(&mut self, server: usize, revision: u64) -> Held {
        if revision < self.seen {
            return Err(format!("server {server} went back from revision {} to {revision}", self.seen));
        }
        self.seen = revision;
        Ok(())
    }
}

/// A read that began when `acknowledged` was the newest acknowledged revision.
///
/// # Errors
/// It does not see it.
pub fn read(server: usize, acknowledged: u64, revision: u64) -> Held {
    if revision < acknowledged {
        return Err(format!(
            "a read on server {server} saw revision {revision}; {acknowledged} was acknowledged before it began"
        ));
    }
    Ok(())
}

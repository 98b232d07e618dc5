//! Which of two deliveries is newer: a cluster epoch and a revision in it.

/// Raised by a restore from backup and by a forced recovery, so that older revisions of a newer epoch are accepted.
pub type Epoch = u64;

/// The store-wide counter, +1 per changed object.
pub type Revision = u64;

/// What every delivery to an agent or a watcher carries; an older one is refused. Ordered by epoch first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation {
    /// The cluster's epoch.
    pub epoch: Epoch,
    /// The revision within the epoch.
    pub revision: Revision,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_epoch_wins_over_a_higher_revision() {
        assert!(Generation { epoch: 2, revision: 1 } > Generation { epoch: 1, revision: 900 });
    }
}

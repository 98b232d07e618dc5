//! The replicaset controller.

use coracle_base::Millis;
use coracle_store::{Transaction, View};

use crate::Ids;

/// What should change now.
#[must_use]
pub fn plan(_view: &View, _now: Millis, _ids: &mut dyn Ids) -> Vec<Transaction> {
    Vec::new()
}

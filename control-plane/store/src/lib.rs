//! The cluster's memory: commands, apply, revisions, watch history and snapshots.
//!
//! Pure: `Store::apply` gives the same bytes on every server. Who calls it (the replicated log), who wakes watchers and who
//! answers clients are the shells around this room.
#![forbid(unsafe_code)]

pub mod codec;
mod command;
mod fit;
mod hash;
mod history;
mod object;
mod sketch;
mod snapshot;
mod store;
mod view;

pub use command::{Expect, Op, Outcome, Rejection, Transaction};
pub use fit::Usage;
pub use history::Gone;
pub use object::{Key, Object};
pub use snapshot::{Frozen, Restore, SnapshotError};
pub use store::{Applied, EPOCH_STEP, Limits, Store};
pub use view::{Event, EventKind, FENCED, Mark, View};

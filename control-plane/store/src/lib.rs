//! The cluster's memory: commands, apply, revisions, watch history and snapshots.
//!
//! Pure: `Store::apply` gives the same bytes on every server. Who calls it (the replicated log), who wakes watchers and who
//! answers clients are the shells around this room.
#![forbid(unsafe_code)]

mod command;
mod object;
mod view;

pub use command::{Expect, Op, Outcome, Rejection, Transaction};
pub use object::{Key, Object, ObjectError};
pub use view::{Event, EventKind, View};

//! What must hold in every run, one promise a file. Each says in words how it was broken.

pub mod acknowledged;
pub mod fenced;
pub mod leaders;
pub mod linearizable;
pub mod revisions;
pub mod states;
pub mod votes;
pub mod watchers;

/// How a promise was broken; `Ok` while it holds.
pub type Held = Result<(), String>;

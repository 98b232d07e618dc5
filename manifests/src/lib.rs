//! What a user may write: kinds, fields, strict decoding, defaults, validation, patches, selectors, quantities.
#![forbid(unsafe_code)]

pub mod check;
pub mod decode;
pub mod default;
pub mod kinds;
pub mod patch;
mod problem;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod time;
pub mod validate;
pub mod view;

pub use problem::{Position, Problem, Reason};

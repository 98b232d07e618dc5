//! What a user may write: kinds, fields, strict decoding, defaults, validation, patches, selectors, quantities.
#![forbid(unsafe_code)]

pub mod kinds;

//! The web status pages and the same data as JSON.

//! Objects of the store, as planners make and change them.

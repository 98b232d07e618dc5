//! Image references, import, pull, the local store and its garbage collection.

//! Records and answers of one immutable table of names.

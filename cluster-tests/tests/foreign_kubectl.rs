//! Real kubectl, version by version, against a whole machine.

//! Nothing to use here: `tests/` holds our table of fields against k8s-openapi, which is too heavy for every build.
#![forbid(unsafe_code)]

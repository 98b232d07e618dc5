//! Real applications of others: nginx and redis from Debian packages, as Deployments.

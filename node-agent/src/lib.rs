//! One agent process: session, assignment ledger, pod workers, feeds and status.

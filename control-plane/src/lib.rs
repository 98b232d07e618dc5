//! One server process: assembly, proposer, agent sessions and the tasks of the leader.

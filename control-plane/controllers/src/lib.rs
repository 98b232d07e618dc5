//! What should exist next: one pure planner per controller, from a snapshot and a time to commands.

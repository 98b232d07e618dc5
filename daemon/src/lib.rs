//! What every long-running process needs: logs, metrics, orderly shutdown, task driver, status.

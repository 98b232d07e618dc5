//! Which node a pod runs on: node table, filters, scores, plan and the words that explain them.

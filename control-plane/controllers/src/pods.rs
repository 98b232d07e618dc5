//! What several planners ask of a pod.

//! Containers on this kernel: launch, cgroups, mounts, exec, logs.

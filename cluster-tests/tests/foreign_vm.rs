//! The whole thing in a virtual machine: systemd, cgroup v2 and a Debian kernel.

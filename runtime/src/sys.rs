//! The one call of the agent's half that has no safe wrapper: bpf(2), to load a device filter and hang it on a cgroup.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const CGROUP_DEVICE_PROGRAM: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
/// Programs of levels above and below decide as well: nobody inside can replace ours.
const ALLOW_MULTI: u32 = 2;

/// The part of `union bpf_attr` that loading reads.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_kind: u32,
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads a device filter (`struct bpf_insn`, one after the other).
pub(crate) fn load_device_filter(program: &[u8]) -> std::io::Result<OwnedFd> {
    let attributes = Load {
        kind: CGROUP_DEVICE_PROGRAM,
        count: u32::try_from(program.len() / 8).unwrap_or(0),
        instructions: program.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
        attach_kind: CGROUP_DEVICE,
        ..Load::default()
    };
    // SAFETY: the structure has the size that is given; it points at bytes that outlive the call and are as many as it says.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of::<Load>()) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just given us this descriptor; nobody else knows its number.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Hangs a device filter on a cgroup of v2.
pub(crate) fn attach_device_filter(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> std::io::Result<()> {
    let attributes = Attach {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the structure has the size that is given and outlives the call.
    match unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attributes, size_of::<Attach>()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

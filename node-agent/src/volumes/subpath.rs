//! A path inside a volume, opened so that no link in it can lead out (CVE-2017-1002101, CVE-2021-25741).

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// Opens `sub_path` below `volume`; directories that are missing are made. The handle names the very file that was checked:
/// bind `/proc/self/fd/N`, not the path.
///
/// # Errors
/// The path leaves the volume, or the file system's word.
pub fn open(volume: &Path, sub_path: &str) -> std::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let root = rustix::fs::openat(CWD, volume, flags | OFlags::DIRECTORY, Mode::empty())?;
    if sub_path.split('/').any(|part| part == "..") || sub_path.starts_with('/') {
        return Err(std::io::Error::other(format!("subPath `{sub_path}` leaves the volume")));
    }
    match rustix::fs::openat2(&root, sub_path, flags, Mode::empty(), inside) {
        Ok(found) => return Ok(found),
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let mut at = root.try_clone()?;
    let mut walked = String::new();
    for part in sub_path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        walked.push('/');
        walked.push_str(part);
        // Each step is resolved from the volume's root again: a link on the way stays inside.
        at = match rustix::fs::openat2(&root, walked.as_str(), flags, Mode::empty(), inside) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT) => {
                match rustix::fs::mkdirat(at.as_fd(), part, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                rustix::fs::openat2(&root, walked.as_str(), flags, Mode::empty(), inside)?
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::symlink;

    fn opened(volume: &Path, sub_path: &str) -> Option<String> {
        let handle = open(volume, sub_path).ok()?;
        Some(std::fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd())).unwrap().display().to_string())
    }

    #[test]
    fn no_link_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir_all(volume.join("etc")).unwrap();
        std::fs::write(volume.join("etc/passwd"), "inside").unwrap();
        symlink("/etc", volume.join("abs")).unwrap();
        symlink("../../../../../../etc", volume.join("rel")).unwrap();
        let inside = volume.join("etc/passwd").display().to_string();
        assert_eq!(opened(&volume, "etc/passwd"), Some(inside.clone()));
        assert_eq!(opened(&volume, "abs/passwd"), Some(inside.clone()));
        assert_eq!(opened(&volume, "rel/passwd"), Some(inside));
        assert_eq!(opened(&volume, "../outside"), None);
        assert_eq!(opened(&volume, "/etc/passwd"), None);
        // Made inside, through the link, not in the machine's /etc.
        assert_eq!(opened(&volume, "abs/new/deep"), Some(volume.join("etc/new/deep").display().to_string()));
        assert!(!Path::new("/etc/new").exists());
    }
}

//! Kernel settings under /proc/sys/net of the calling thread's network namespace.

use std::fs;

use crate::NetError;

/// What our rules need: forwarding, no source check stricter than our routes, no redirects on our own link.
pub(crate) fn wanted(bridge: &str) -> Vec<(String, &'static str)> {
    vec![
        ("/proc/sys/net/ipv4/ip_forward".to_owned(), "1"),
        // The kernel takes the larger of this and the one for all links: 2 (loose) overrules 1 (strict).
        (format!("/proc/sys/net/ipv4/conf/{bridge}/rp_filter"), "2"),
        // A link sends redirects if this or the setting for all links says so; other links keep their own. A redirect,
        // even one that our rules drop, also uses up the pod's allowance of ICMP errors: refusals would be lost.
        (format!("/proc/sys/net/ipv4/conf/{bridge}/send_redirects"), "0"),
        ("/proc/sys/net/ipv4/conf/all/send_redirects".to_owned(), "0"),
    ]
}

/// What the VXLAN device needs. Another node may reach us through it although we reach that node directly.
pub(crate) fn wanted_of_tunnel(device: &str) -> Vec<(String, &'static str)> {
    vec![(format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"), "2")]
}

/// Whether packets that come in by the link must come from where answers would go (rp_filter 1).
pub(crate) fn is_strict(link: &str) -> bool {
    let of = |what: &str| read(&format!("/proc/sys/net/ipv4/conf/{what}/rp_filter"));
    of("all").max(of(link)).as_deref() == Some("1")
}

/// Writes what differs and says how many did. Reads first: a read-only /proc/sys is fine while all is as wanted.
pub(crate) fn ensure(wanted: Vec<(String, &'static str)>) -> Result<usize, NetError> {
    let mut written = 0;
    for (path, value) in wanted {
        if read(&path).as_deref() == Some(value) {
            continue;
        }
        fs::write(&path, value).map_err(|source| NetError::Setting { path, value: value.to_owned(), source })?;
        written += 1;
    }
    Ok(written)
}

/// A setting that is not as we want it and cannot be made so; looks only. A bridge that is yet to come begins with the
/// defaults.
pub(crate) fn locked(bridge: &str) -> Option<(String, std::io::Error)> {
    let there = fs::exists(format!("/proc/sys/net/ipv4/conf/{bridge}")).unwrap_or(false);
    let settings = wanted(if there { bridge } else { "default" }).into_iter();
    let mut wrong = settings.filter(|(path, value)| read(path).as_deref() != Some(value)).map(|(path, _)| path);
    wrong.find_map(|path| fs::OpenOptions::new().write(true).open(&path).err().map(|error| (path, error)))
}

/// A setting's value, if it exists.
pub(crate) fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

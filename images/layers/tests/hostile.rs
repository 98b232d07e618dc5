//! Archives that mean harm: one case per rule, and random ones that must never panic nor give a path that leads outside.

use std::convert::Infallible;
use std::io::{Read, Write};

use coracle_layers::{DecodeError, Decoder, Entry, Format, Kind, Limits, Rule, Sink, WalkError, walk};
use proptest::prelude::*;

#[derive(Default)]
struct Collect(Vec<(Entry, Vec<u8>)>);

impl Sink for Collect {
    type Error = Infallible;
    fn entry(&mut self, entry: &Entry, data: &mut dyn Read) -> Result<(), Infallible> {
        let mut contents = Vec::new();
        // A cut archive shows in the walk, not here.
        let _ = data.read_to_end(&mut contents);
        self.0.push((entry.clone(), contents));
        Ok(())
    }
}

/// One header block; the checksum is right.
fn header(name: &[u8], kind: u8, size: u64, edit: impl FnOnce(&mut [u8; 512])) -> Vec<u8> {
    let mut block = [0u8; 512];
    block[..name.len()].copy_from_slice(name);
    let mut octal = |at: usize, length: usize, value: u64| {
        let text = format!("{value:0width$o}", width = length - 1);
        block[at..at + length - 1].copy_from_slice(text.as_bytes());
    };
    octal(100, 8, 0o644);
    octal(108, 8, 0);
    octal(116, 8, 0);
    octal(124, 12, size);
    octal(136, 12, 0);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    edit(&mut block);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.to_vec()
}

fn file(name: &str, contents: &[u8]) -> Vec<u8> {
    let mut tar = header(name.as_bytes(), b'0', contents.len() as u64, |_| {});
    tar.extend_from_slice(contents);
    tar.resize(tar.len().next_multiple_of(512), 0);
    tar
}

fn plain(name: &str, kind: u8) -> Vec<u8> {
    header(name.as_bytes(), kind, 0, |_| {})
}

fn link(name: &str, kind: u8, target: &str) -> Vec<u8> {
    header(name.as_bytes(), kind, 0, |block| block[157..157 + target.len()].copy_from_slice(target.as_bytes()))
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let body = key.len() + value.len() + 3;
        let length = (body..).find(|length| length - length.to_string().len() == body).unwrap();
        data.extend_from_slice(format!("{length} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    let mut tar = header(b"PaxHeaders/x", b'x', data.len() as u64, |_| {});
    tar.extend_from_slice(&data);
    tar.resize(tar.len().next_multiple_of(512), 0);
    tar
}

fn read(parts: &[Vec<u8>]) -> Result<Vec<(Entry, Vec<u8>)>, WalkError<Infallible>> {
    let mut sink = Collect::default();
    let limits = Limits { entries: 1000, xattrs: 4, xattr_bytes: 100, extended_bytes: 4096, ..Limits::default() };
    walk(parts.concat().as_slice(), &limits, &mut sink).map(|_| sink.0)
}

fn rule(parts: &[Vec<u8>]) -> Rule {
    match read(parts) {
        Err(WalkError::Refused { rule, .. }) => rule,
        other => panic!("not refused: {other:?}"),
    }
}

fn kinds(parts: &[Vec<u8>]) -> Vec<(String, Kind)> {
    read(parts).unwrap().into_iter().map(|(entry, _)| (entry.path.to_string(), entry.kind)).collect()
}

#[test]
fn paths_that_climb_are_refused_wherever_they_stand() {
    for bad in ["../x", "a/../../x", "..", "a/.."] {
        assert!(matches!(rule(&[file(bad, b"")]), Rule::Path(_)), "{bad}");
        assert!(matches!(rule(&[pax(&[("path", bad.as_bytes())]), file("x", b"")]), Rule::Path(_)), "{bad}");
        assert!(matches!(rule(&[link("x", b'1', bad)]), Rule::Target(_)), "{bad}");
    }
    assert!(matches!(rule(&[pax(&[("path", b"a\0b")]), file("x", b"")]), Rule::Path(_)));
    assert!(matches!(rule(&[pax(&[("path", &[b'x'; 300])]), file("x", b"")]), Rule::Path(_)));
    assert_eq!(kinds(&[file("/etc/passwd", b"")])[0].0, "/etc/passwd", "absolute means from the layer's root");
}

#[test]
fn the_root_is_a_directory_and_stays_one() {
    assert_eq!(kinds(&[plain("./", b'5')]), [("/".to_owned(), Kind::Directory)]);
    assert_eq!(rule(&[file(".", b"x")]), Rule::Root);
    assert_eq!(rule(&[link("/", b'2', "/etc")]), Rule::Root);
    assert_eq!(rule(&[link(".", b'1', "etc")]), Rule::Root);
}

#[test]
fn links() {
    assert_eq!(
        kinds(&[link("a", b'2', "../../etc")])[0].1,
        Kind::Symlink { target: b"../../etc".to_vec() },
        "a link's text is free"
    );
    assert_eq!(rule(&[link("a", b'2', "")]), Rule::Symlink);
    assert_eq!(rule(&[pax(&[("linkpath", b"a\0b")]), link("a", b'2', "x")]), Rule::Symlink);
    assert_eq!(rule(&[link("a", b'1', "./a")]), Rule::Hardlink);
    assert_eq!(rule(&[link("a", b'1', "/")]), Rule::Hardlink);
}

#[test]
fn whiteouts() {
    assert_eq!(kinds(&[file("a/.wh.b", b"")]), [("/a/b".to_owned(), Kind::Whiteout)]);
    assert_eq!(kinds(&[file("a/.wh..wh..opq", b"")]), [("/a".to_owned(), Kind::Opaque)]);
    assert_eq!(kinds(&[file(".wh..wh..opq", b"")]), [("/".to_owned(), Kind::Opaque)]);
    assert_eq!(kinds(&[file(".wh..wh.plnk", b"x"), file("a", b"")]).len(), 1, "aufs' own files are nobody's");
    for bad in [".wh.", "a/.wh..", "a/.wh...", "a/.wh.b/c"] {
        assert_eq!(rule(&[file(bad, b"")]), Rule::Whiteout, "{bad}");
    }
}

#[test]
fn devices_and_types() {
    let device = |major: &'static [u8], minor: &'static [u8]| {
        header(b"dev/x", b'3', 0, move |block| {
            block[329..329 + major.len()].copy_from_slice(major);
            block[337..337 + minor.len()].copy_from_slice(minor);
        })
    };
    assert_eq!(kinds(&[device(b"1", b"3")])[0].1, Kind::Character { major: 1, minor: 3 });
    assert_eq!(rule(&[device(b"0", b"0")]), Rule::Device, "it would be a whiteout that no rule has seen");
    assert_eq!(rule(&[plain("x", b'S')]), Rule::Sparse);
    assert_eq!(rule(&[pax(&[("GNU.sparse.realsize", b"1")]), file("x", b"")]), Rule::Sparse);
    assert_eq!(rule(&[plain("x", b'V')]), Rule::Type(b'V'));
    assert_eq!(kinds(&[plain("old/", 0)])[0].1, Kind::Directory, "before POSIX");
}

#[test]
fn owners_must_fit_and_not_mean_unchanged() {
    for owner in ["4294967295", "4294967296", "18446744073709551615"] {
        assert!(matches!(rule(&[pax(&[("uid", owner.as_bytes())]), file("x", b"")]), Rule::Owner(_)), "{owner}");
        assert!(matches!(rule(&[pax(&[("gid", owner.as_bytes())]), file("x", b"")]), Rule::Owner(_)), "{owner}");
    }
    let negative = header(b"x", b'0', 0, |block| block[108..116].fill(0xff));
    assert_eq!(rule(&[negative]), Rule::Number("uid"));
    assert_eq!(read(&[pax(&[("uid", b"4294967294")]), file("x", b"")]).unwrap()[0].0.meta.uid, 4_294_967_294);
}

#[test]
fn an_extended_size_is_for_the_file_and_not_for_a_header_between() {
    // CVE-2026-53655, CVE-2025-62518: readers that applied it to the wrong header saw other files than the rest of the world.
    let name = "n".repeat(120);
    let mut long = header(b"././@LongLink", b'L', 121, |_| {});
    long.extend_from_slice(name.as_bytes());
    long.resize(1024, 0);
    let mut body = header(b"short", b'0', 0, |_| {});
    body.extend_from_slice(&file("inner", b"hidden")[..1024]);
    let entries = read(&[pax(&[("size", b"1024")]), long, body, file("after", b"x")]).unwrap();
    let names: Vec<String> = entries.iter().map(|(entry, _)| entry.path.to_string()).collect();
    assert_eq!(names, [format!("/{name}"), "/after".to_owned()]);
    assert_eq!(entries[0].1.len(), 1024);
    // Directories and links have no data, whatever they claim.
    let claims = header(b"d/", b'5', 512, |_| {});
    assert_eq!(kinds(&[claims, file("next", b"")]).len(), 2);
}

#[test]
fn what_would_fill_memory_is_refused() {
    let big = header(b"x", b'x', 1 << 32, |_| {});
    assert_eq!(rule(&[big]), Rule::ExtendedSize(4096));
    let long = header(b"x", b'L', 1 << 30, |_| {});
    assert!(matches!(rule(&[long]), Rule::Path(_)));
    let huge = header(b"x", b'0', 0, |block| {
        block[124..136].fill(0);
        block[124] = 0x80;
        block[128] = 0x7f;
    });
    assert_eq!(rule(&[huge]), Rule::Number("size"));
    let five: Vec<(String, Vec<u8>)> = (0..5).map(|at| (format!("SCHILY.xattr.user.{at}"), b"x".to_vec())).collect();
    let five: Vec<(&str, &[u8])> = five.iter().map(|(key, value)| (key.as_str(), value.as_slice())).collect();
    assert_eq!(rule(&[pax(&five), file("x", b"")]), Rule::Xattrs(4));
    assert_eq!(rule(&[pax(&[("SCHILY.xattr.user.a", &[0; 101])]), file("x", b"")]), Rule::XattrSize(100));
    let many: Vec<Vec<u8>> = (0..1001).map(|at| file(&format!("f{at}"), b"")).collect();
    assert_eq!(rule(&many), Rule::Entries(1000));
}

#[test]
fn cut_archives_are_errors_and_a_missing_trailer_is_none() {
    let whole = file("a", b"contents");
    assert!(matches!(read(&[whole[..700].to_vec()]), Err(WalkError::Read(..))));
    assert!(matches!(read(&[whole[..100].to_vec()]), Err(WalkError::Read(0, _))));
    assert_eq!(read(std::slice::from_ref(&whole)).unwrap().len(), 1);
    let mut damaged = whole;
    damaged[0] ^= 1;
    assert_eq!(rule(&[damaged]), Rule::Checksum);
}

#[test]
fn the_digest_covers_what_follows_the_end() {
    use sha2::Digest as _;
    let tar = [file("a", b"x"), vec![0; 1024], b"junk behind the end".to_vec()].concat();
    let walked = walk(tar.as_slice(), &Limits::default(), &mut Collect::default()).unwrap();
    assert_eq!(walked.diff_id, coracle_base::Digest::from_sha256(&sha2::Sha256::digest(&tar).into()));
    assert_eq!((walked.bytes, walked.entries), (tar.len() as u64, 1));
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn decode(blob: &[u8], limits: &Limits) -> std::io::Result<(Vec<u8>, coracle_layers::Compressed)> {
    let mut decoder = Decoder::new(blob, limits)?;
    let mut out = Vec::new();
    decoder.read_to_end(&mut out)?;
    Ok((out, decoder.finish()?))
}

#[test]
fn the_format_is_seen_from_the_first_bytes() {
    let tar = file("a", b"x");
    let limits = Limits::default();
    let zstd = |data: &[u8]| zstd::encode_all(data, 1).unwrap();
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4][..], &zstd(&tar)].concat();
    for (blob, format) in [
        (tar.clone(), Format::Tar),
        (gzip(&tar), Format::Gzip),
        ([gzip(&tar[..500]), gzip(&tar[500..])].concat(), Format::Gzip),
        (zstd(&tar), Format::Zstd),
        ([zstd(&tar[..500]), zstd(&tar[500..])].concat(), Format::Zstd),
        (skippable, Format::Zstd),
    ] {
        let (out, compressed) = decode(&blob, &limits).unwrap();
        assert_eq!((out, compressed.format, compressed.bytes), (tar.clone(), format, blob.len() as u64));
    }
    let why = |blob: &[u8]| decode(blob, &limits).unwrap_err().to_string();
    assert!(why(&[0xfd, b'7', b'z', b'X', b'Z', 0, 0]).contains("xz"));
    assert!(why(b"BZh91AY").contains("bzip2"));
}

#[test]
fn bombs_are_defused() {
    let zeros = vec![0u8; 80 << 20];
    let bomb = gzip(&zeros);
    let inner = |limits: &Limits| {
        let error = decode(&bomb, limits).unwrap_err();
        error.get_ref().and_then(|error| error.downcast_ref::<DecodeError>()).cloned()
    };
    assert_eq!(inner(&Limits::default()), Some(DecodeError::Ratio(400)));
    assert_eq!(inner(&Limits { bytes: 1 << 20, ..Limits::default() }), Some(DecodeError::TooLarge(1 << 20)));
    assert!(decode(&gzip(&zeros[..32 << 20]), &Limits::default()).is_ok(), "a layer of some zeros does no harm");
}

/// What every entry must be, whatever came in.
fn sound(entries: &[(Entry, Vec<u8>)]) {
    for (entry, _) in entries {
        let plain = |path: &coracle_layers::LayerPath| {
            path.components().all(|part| part != b".." && part != b"." && !part.contains(&0) && part.len() <= 255)
                && !path.as_bytes().starts_with(b"/")
        };
        assert!(plain(&entry.path), "{entry:?}");
        match &entry.kind {
            Kind::Hardlink { target } => assert!(plain(target) && !target.is_root()),
            Kind::Symlink { target } => assert!(!target.is_empty() && !target.contains(&0)),
            Kind::Directory | Kind::Opaque => {}
            _ => assert!(!entry.path.is_root()),
        }
        assert!(entry.meta.mode <= 0o7777 && entry.meta.uid != u32::MAX && entry.meta.gid != u32::MAX);
        assert!(entry.meta.mtime.nanoseconds < 1_000_000_000);
        assert!(
            entry
                .meta
                .xattrs
                .iter()
                .all(|(name, _)| !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay."))
        );
    }
}

fn part() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof!["[a-c./]{1,12}", Just(".wh.x".to_owned()), Just("a/.wh..wh..opq".to_owned()), "\\PC{0,20}"];
    let name = name.prop_map(|name| name.chars().take(24).collect::<String>());
    let record = (
        prop_oneof![
            Just("path"),
            Just("linkpath"),
            Just("size"),
            Just("uid"),
            Just("mtime"),
            Just("SCHILY.xattr.user.a"),
            Just("SCHILY.xattr.trusted.overlay.opaque")
        ],
        prop::collection::vec(any::<u8>(), 0..30),
    );
    prop_oneof![
        (name.clone(), prop::collection::vec(any::<u8>(), 0..600)).prop_map(|(name, contents)| file(&name, &contents)),
        (name.clone(), prop::sample::select(b"123456\0xgLKS7".to_vec()), any::<u16>())
            .prop_map(|(name, kind, size)| header(name.as_bytes(), kind, u64::from(size), |_| {})),
        (name.clone(), prop::sample::select(b"12".to_vec()), name)
            .prop_map(|(name, kind, target)| link(&name, kind, &target)),
        prop::collection::vec(record, 0..4).prop_map(|records| {
            let records: Vec<(&str, &[u8])> = records.iter().map(|(key, value)| (*key, value.as_slice())).collect();
            pax(&records)
        }),
        Just(vec![0; 512]),
        prop::collection::vec(any::<u8>(), 0..1024),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn archives_of_strange_parts_never_panic_nor_escape(parts in prop::collection::vec(part(), 0..8)) {
        let mut sink = Collect::default();
        let _ = walk(parts.concat().as_slice(), &Limits::default(), &mut sink);
        sound(&sink.0);
    }

    #[test]
    fn damaged_archives_never_panic_nor_escape(
        parts in prop::collection::vec(part(), 1..5),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        fix_sums in any::<bool>(),
    ) {
        let mut tar = parts.concat();
        prop_assume!(!tar.is_empty());
        for (at, byte) in damage {
            let at = at.index(tar.len());
            tar[at] = byte;
        }
        if fix_sums {
            // So that the damage is looked at, and not only its checksum.
            for block in tar.chunks_exact_mut(512) {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let mut sink = Collect::default();
        let _ = walk(tar.as_slice(), &Limits::default(), &mut sink);
        sound(&sink.0);
        for blob in [tar.clone(), gzip(&tar)] {
            let mut decoder = Decoder::new(blob.as_slice(), &Limits::default()).unwrap();
            let _ = walk(&mut decoder, &Limits::default(), &mut Collect::default());
            let _ = decoder.into_raw().drain();
        }
    }

    #[test]
    fn damaged_blobs_never_panic(contents in prop::collection::vec(any::<u8>(), 0..2000), damage in any::<(prop::sample::Index, u8)>(), zstd in any::<bool>()) {
        let tar = file("a", &contents);
        let mut blob = if zstd { zstd::encode_all(tar.as_slice(), 1).unwrap() } else { gzip(&tar) };
        let at = damage.0.index(blob.len());
        blob[at] = damage.1;
        let _ = decode(&blob, &Limits::default());
        blob.truncate(at);
        let _ = decode(&blob, &Limits::default());
    }

    #[test]
    fn what_a_common_writer_writes_is_read_as_meant(
        names in prop::collection::btree_set("[a-z]{1,80}(/[a-z]{1,80}){0,3}", 1..10),
        contents in prop::collection::vec(any::<u8>(), 0..1500),
        mode in 0u32..0o10000, uid in 0u64..0xffff_fffe, mtime in 0u64..1 << 40,
    ) {
        let mut builder = tar::Builder::new(Vec::new());
        for name in &names {
            let mut header = tar::Header::new_gnu();
            header.set_size(contents.len() as u64);
            header.set_mode(mode);
            header.set_uid(uid);
            header.set_gid(7);
            header.set_mtime(mtime);
            builder.append_data(&mut header, name, contents.as_slice()).unwrap();
        }
        let tar = builder.into_inner().unwrap();
        let mut sink = Collect::default();
        walk(tar.as_slice(), &Limits::default(), &mut sink).unwrap();
        prop_assert_eq!(sink.0.len(), names.len());
        for ((entry, data), name) in sink.0.iter().zip(&names) {
            prop_assert_eq!(entry.path.as_bytes(), name.as_bytes());
            prop_assert_eq!(data, &contents);
            prop_assert_eq!((entry.meta.mode, u64::from(entry.meta.uid)), (mode, uid));
            prop_assert_eq!(entry.meta.mtime.seconds, i64::try_from(mtime).unwrap());
        }
    }
}

//! Manifests, indexes and configurations: parsed by their fields, refused where two readings are possible.

use coracle_base::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ImageConfiguration;
use crate::error::ImageError;
use crate::platform::Platform;

/// What any of these documents may measure (distribution-spec: registries take at least this much).
pub const DOCUMENT_BYTES: u64 = 4 << 20;
/// overlayfs stacks no more.
const LAYERS: usize = 500;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// A content descriptor (image-spec `descriptor.md`) with its digest checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    #[serde(with = "as_text")]
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<OfferedPlatform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedPlatform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Descriptor {
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }

    fn offered(&self) -> Option<Platform> {
        self.platform.as_ref().map(|platform| Platform {
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone().unwrap_or_default(),
        })
    }
}

mod as_text {
    use coracle_base::Digest;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(digest.as_str())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// One of the two documents a name can lead to.
#[derive(Debug, Clone)]
pub enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Debug, Clone, Deserialize)]
pub struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

impl Document {
    /// `content_type` is what the registry or the descriptor called it; where the document says so too, both must agree, and a
    /// document that could be read both ways is refused (CVE-2021-41190).
    pub fn parse(what: &str, bytes: &[u8], content_type: Option<&str>) -> Result<Self, ImageError> {
        let bad = |why: String| ImageError::document(what, why);
        let mut value: Value = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
        without_nulls(&mut value);
        let own_type = value["mediaType"].as_str().unwrap_or_default().to_owned();
        let content_type =
            content_type.map(|text| text.split(';').next().unwrap_or_default().trim()).unwrap_or_default();
        let known = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];
        if known.contains(&content_type) && !own_type.is_empty() && own_type != content_type {
            return Err(bad(format!("it says it is a {own_type} but came as a {content_type}")));
        }
        if value["schemaVersion"] == 1 || !value["fsLayers"].is_null() {
            return Err(
                bad("it is in Docker's first schema, which nobody reads any more; push the image again".into()),
            );
        }
        let index = !value["manifests"].is_null();
        let manifest = !value["layers"].is_null() || !value["config"].is_null();
        match (index, manifest) {
            (true, true) => {
                Err(bad("it has both `manifests` and `layers` or `config`, so it can be read in two ways".into()))
            }
            (false, false) => Err(bad("it has neither `manifests` nor `layers`".into())),
            (true, false) => {
                let index: Index = serde_json::from_value(value).map_err(|error| bad(error.to_string()))?;
                Ok(Self::Index(index.manifests))
            }
            (false, true) => {
                let manifest: Manifest = serde_json::from_value(value).map_err(|error| bad(error.to_string()))?;
                if manifest.layers.len() > LAYERS {
                    return Err(bad(format!("it has {} layers, more than {LAYERS}", manifest.layers.len())));
                }
                if manifest.layers.iter().chain([&manifest.config]).any(|part| part.digest.algorithm() != "sha256") {
                    return Err(bad(
                        "it names contents by another digest than sha256, which is not supported yet".into()
                    ));
                }
                Ok(Self::Manifest(manifest))
            }
        }
    }
}

/// Go programs write `null` where they mean an empty list.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(without_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// The entry of an index that runs best on `platform`; attestations (`unknown/unknown`) are no candidates. An entry without a
/// platform is taken when nothing better is there: its configuration will tell.
pub fn choose<'a>(
    reference: &str,
    manifests: &'a [Descriptor],
    platform: &Platform,
) -> Result<&'a Descriptor, ImageError> {
    let ranked = manifests.iter().enumerate().filter_map(|(at, descriptor)| {
        let rank = match descriptor.offered() {
            Some(offered) => platform.rank(&offered)?,
            None => u32::MAX,
        };
        Some(((rank, at), descriptor))
    });
    if let Some((_, descriptor)) = ranked.min_by_key(|(rank, _)| *rank) {
        return Ok(descriptor);
    }
    let mut available: Vec<String> = manifests
        .iter()
        .filter_map(Descriptor::offered)
        .filter(|offered| offered.os != "unknown")
        .map(|offered| offered.to_string())
        .collect();
    available.dedup();
    available.truncate(20);
    if available.is_empty() {
        available.push("nothing at all".into());
    }
    Err(ImageError::Architecture { reference: reference.into(), wanted: platform.to_string(), available })
}

/// A configuration and its layers' diff ids, bottom first, as many as the manifest has layers.
pub fn config(
    reference: &str,
    manifest: &Manifest,
    bytes: &[u8],
    platform: &Platform,
) -> Result<(ImageConfiguration, Vec<Digest>), ImageError> {
    let what = format!("configuration {}", manifest.config.digest);
    let bad = |why: String| ImageError::document(&what, why);
    let mut value: Value = serde_json::from_slice(bytes).map_err(|error| bad(error.to_string()))?;
    without_nulls(&mut value);
    let config: ImageConfiguration = serde_json::from_value(value).map_err(|error| {
        bad(format!("{error}; is it an image? artifacts (charts, signatures) have the same form but cannot run"))
    })?;
    let offered = Platform {
        os: config.os().to_string(),
        architecture: config.architecture().to_string(),
        variant: config.variant().clone().unwrap_or_default(),
    };
    if platform.rank(&offered).is_none() {
        return Err(ImageError::Architecture {
            reference: reference.into(),
            wanted: platform.to_string(),
            available: vec![offered.to_string()],
        });
    }
    let diff_ids = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| text.parse::<Digest>().map_err(|error| bad(error.to_string())))
        .collect::<Result<Vec<_>, _>>()?;
    if diff_ids.len() != manifest.layers.len() {
        return Err(bad(format!("it names {} layers, its manifest {}", diff_ids.len(), manifest.layers.len())));
    }
    if diff_ids.iter().any(|diff_id| diff_id.algorithm() != "sha256") {
        return Err(bad("it names layers by another digest than sha256, which is not supported yet".into()));
    }
    Ok((config, diff_ids))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn digest(byte: &str) -> String {
        format!("sha256:{}", byte.repeat(32))
    }

    fn parse(value: &Value, content_type: Option<&str>) -> Result<Document, String> {
        Document::parse("manifest", value.to_string().as_bytes(), content_type).map_err(|error| error.to_string())
    }

    fn layer() -> Value {
        json!({"mediaType": "x", "digest": digest("ab"), "size": 3})
    }

    #[test]
    fn a_document_has_one_reading() {
        let manifest = json!({"schemaVersion": 2, "config": layer(), "layers": [layer()]});
        assert!(matches!(parse(&manifest, Some(OCI_MANIFEST)), Ok(Document::Manifest(_))));
        let both = json!({"manifests": [], "layers": [layer()], "config": layer()});
        assert!(parse(&both, None).unwrap_err().contains("two ways"));
        let lying = json!({"mediaType": OCI_INDEX, "manifests": []});
        assert!(
            parse(&lying, Some("application/vnd.oci.image.manifest.v1+json; charset=x"))
                .unwrap_err()
                .contains("came as")
        );
        assert!(matches!(parse(&lying, Some("text/plain")), Ok(Document::Index(_))), "an unknown type says nothing");
        assert!(parse(&json!({}), None).unwrap_err().contains("neither"));
        assert!(parse(&json!({"schemaVersion": 1, "fsLayers": []}), None).unwrap_err().contains("first schema"));
        let wrong = json!({"config": layer(), "layers": [{"digest": "sha256:../../x", "size": 1}]});
        assert!(parse(&wrong, None).unwrap_err().contains("not a digest"));
        let many = json!({"config": layer(), "layers": vec![layer(); 501]});
        assert!(parse(&many, None).unwrap_err().contains("501 layers"));
        let negative = json!({"config": layer(), "layers": [{"digest": digest("ab"), "size": -1}]});
        assert!(parse(&negative, None).is_err());
    }

    #[test]
    fn the_fitting_manifest_is_chosen_and_a_miss_names_what_is_there() {
        let entry = |byte: &str, os: &str, architecture: &str| json!({"digest": digest(byte), "size": 1, "platform": {"os": os, "architecture": architecture}});
        let index = json!({"manifests": [
            entry("01", "unknown", "unknown"), entry("02", "linux", "arm64"), entry("03", "linux", "amd64"), entry("04", "linux", "386")
        ]});
        let Ok(Document::Index(manifests)) = parse(&index, None) else { panic!() };
        let platform = |architecture: &str| Platform {
            os: "linux".into(),
            architecture: architecture.into(),
            variant: String::new(),
        };
        assert_eq!(choose("x", &manifests, &platform("amd64")).unwrap().digest.as_str(), digest("03"));
        let error = choose("x:1", &manifests, &platform("s390x")).unwrap_err().to_string();
        let line = "image x:1 has nothing for linux/s390x; it is there for linux/arm64, linux/amd64, linux/386";
        assert_eq!(error.lines().next(), Some(line));
        assert!(error.contains("hint: take an image that was built for linux/s390x"), "{error}");
    }

    #[test]
    fn a_configuration_must_match_its_manifest() {
        let Ok(Document::Manifest(manifest)) = parse(&json!({"config": layer(), "layers": [layer()]}), None) else {
            panic!()
        };
        let here = Platform { os: "linux".into(), architecture: "amd64".into(), variant: String::new() };
        let try_config = |value: Value| {
            config("x", &manifest, value.to_string().as_bytes(), &here).map_err(|error| error.to_string())
        };
        let good = json!({"architecture": "amd64", "os": "linux", "config": {"Env": null, "Cmd": ["x"]}, "history": null,
            "rootfs": {"type": "layers", "diff_ids": [digest("cd")]}});
        assert_eq!(try_config(good.clone()).unwrap().1.len(), 1);
        let mut more = good.clone();
        more["rootfs"]["diff_ids"] = json!([digest("cd"), digest("ef")]);
        assert!(try_config(more).unwrap_err().contains("names 2 layers, its manifest 1"));
        let mut other = good;
        other["architecture"] = json!("arm64");
        assert!(try_config(other).unwrap_err().contains("it is there for linux/arm64"));
        assert!(try_config(json!({"apiVersion": "v1"})).unwrap_err().contains("artifacts"));
    }
}

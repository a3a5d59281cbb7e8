//! `cpu-config` of a configuration file: a CPU template, or the path of a file with it.

use std::path::PathBuf;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{ConfigError, CpuConfig, read_json};

/// A CPU template, or the path of a file with it.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
#[serde(untagged)]
pub enum CpuConfigOrPath {
    /// The template.
    Template(CpuConfig),
    /// A file with it. Only a configuration file may name one.
    Path(PathBuf),
}

impl CpuConfigOrPath {
    /// Reads the template where it is in a file.
    pub(super) fn load(self) -> Result<Self, ConfigError> {
        match self {
            Self::Path(path) => read_json(&path).map(Self::Template),
            template @ Self::Template(_) => Ok(template),
        }
    }

    /// The template, if it is here.
    pub(super) fn template(&self) -> Option<&CpuConfig> {
        match self {
            Self::Template(template) => Some(template),
            Self::Path(_) => None,
        }
    }

    /// Checks the template.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match self {
            Self::Template(template) => template.check(),
            Self::Path(path) => Err(ConfigError::OutOfRange {
                field: "cpu-config",
                found: format!("the path {}, and its file was not read", path.display()),
                allowed: "a template".to_owned(),
            }),
        }
    }
}

impl<'de> Deserialize<'de> for CpuConfigOrPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = CpuConfigOrPath;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object or the path of a file with one")
            }

            fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<Self::Value, E> {
                Ok(CpuConfigOrPath::Path(path.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                CpuConfig::deserialize(MapAccessDeserializer::new(map)).map(CpuConfigOrPath::Template)
            }
        }

        deserializer.deserialize_any(Either)
    }
}

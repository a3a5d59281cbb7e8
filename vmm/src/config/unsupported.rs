//! Parts of Firecracker's configuration that this VMM does not have yet.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A value that is only accepted when it asks for nothing (absent, `null` or `[]`).
///
/// It keeps nothing but whether something was asked for. An empty object is not nothing: `"entropy": {}` asks for a
/// device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unsupported {
    asked_for: bool,
}

impl Unsupported {
    /// Whether the configuration asks for nothing here.
    pub fn is_absent(&self) -> bool {
        !self.asked_for
    }
}

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let nothing = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        Ok(Self { asked_for: !nothing })
    }
}

impl Serialize for Unsupported {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_none()
    }
}

//! JSON objects that are read as objects only.
//!
//! serde reads a struct from a list of its fields' values, too, and from `[]` where each has a default: `"entropy": []`
//! would be a device, and `"rate_limiter": []` a limiter that limits nothing.

/// Implements [`serde::Serialize`] and [`serde::Deserialize`] for a type that derives both with `#[serde(remote = "Self")]`,
/// so that it is read from an object and nothing else.
macro_rules! objects_only {
    ($($type:ty),+ $(,)?) => {$(
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Object;

                impl<'de> serde::de::Visitor<'de> for Object {
                    type Value = $type;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("a JSON object")
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                        // What `remote` derives: an associated function, which goes before the trait's.
                        <$type>::deserialize(serde::de::value::MapAccessDeserializer::new(map))
                    }
                }

                deserializer.deserialize_map(Object)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                <$type>::serialize(self, serializer)
            }
        }
    )+};
}

pub(crate) use objects_only;

//! The layers of the confinement by name, and which of them a developer leaves out.

use std::fmt;
use std::str::FromStr;

/// One layer of the confinement that can be left out. The others (no new privileges, no core dumps, no tracing, limits)
/// every Linux has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// No files but those that are open or named.
    Landlock,
    /// System-call filters.
    Seccomp,
    /// No capabilities.
    Capabilities,
    /// Another user than root.
    User,
}

impl Layer {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Landlock, Self::Seccomp, Self::Capabilities, Self::User];

    /// As it stands on the command line, in the log and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Capabilities => "capabilities",
            Self::User => "user",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Layer {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|layer| layer.as_str() == name);
        found.ok_or_else(|| format!("one of {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

/// The layers that are left out; none, unless each is named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Omitted(u8);

impl Omitted {
    /// Whether this layer is left out.
    pub fn contains(self, layer: Layer) -> bool {
        self.0 & (1 << layer as u8) != 0
    }

    /// The layers that are left out.
    pub fn layers(self) -> impl Iterator<Item = Layer> {
        Layer::ALL.into_iter().filter(move |layer| self.contains(*layer))
    }

    /// Each layer's name, with 1 where it is left out and 0 where it is not.
    pub fn metrics(self) -> serde_json::Value {
        let count = |layer: Layer| (layer.as_str().to_owned(), u8::from(self.contains(layer)).into());
        serde_json::Value::Object(Layer::ALL.map(count).into_iter().collect())
    }
}

impl FromIterator<Layer> for Omitted {
    fn from_iter<T: IntoIterator<Item = Layer>>(layers: T) -> Self {
        Self(layers.into_iter().fold(0, |all, layer| all | 1 << layer as u8))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_left_out_by_its_own_name_only() {
        for layer in Layer::ALL {
            assert_eq!(layer.as_str().parse(), Ok(layer));
            let omitted = Omitted::from_iter([layer]);
            assert_eq!(omitted.layers().collect::<Vec<_>>(), [layer]);
            assert_eq!(omitted.metrics()[layer.as_str()], 1);
            let ones = omitted.metrics().as_object().unwrap().values().filter(|value| **value == 1).count();
            assert_eq!(ones, 1);
        }
        for name in ["", "all", "Landlock", "no_new_privs"] {
            assert!(name.parse::<Layer>().unwrap_err().contains("landlock, seccomp, capabilities, user"));
        }
        assert_eq!(Omitted::default().layers().count(), 0);
    }
}

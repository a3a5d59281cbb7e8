//! The document, and what is given of it.

use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::config::{MmdsConfig, Version};
use super::merge_patch::merge;
use super::metrics::Metrics;
use super::token::Sessions;

/// Most bytes of the document, written without spaces, if nothing else is asked for.
pub const DEFAULT_LIMIT: usize = 51_200;

/// Why the document was not changed, or not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MmdsError {
    /// It would be too large.
    #[error("the metadata would have {found} bytes; the limit is {limit} (--mmds-size-limit)")]
    TooLarge {
        /// Bytes that it would have.
        found: usize,
        /// Bytes that it may have.
        limit: usize,
    },
    /// There is nothing to be patched.
    #[error("there is no metadata yet: PUT it first, then PATCH it")]
    Empty,
    /// The document has nothing there.
    #[error("there is no such metadata")]
    NotFound,
    /// Something that is neither text nor an object, asked for as text.
    #[error("the value is neither text nor an object, ask for it as JSON")]
    NotText,
}

/// How a part of the document is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As JSON.
    Json,
    /// As EC2's service does: text as it is, of an object the names, one a line, those of objects with a slash.
    Imds,
}

/// The metadata of one VM, and the guest's sessions.
#[derive(Debug)]
pub struct Mmds {
    document: Option<Value>,
    limit: usize,
    pub(super) version: Version,
    pub(super) imds_compat: bool,
    pub(super) sessions: Sessions,
    pub(super) metrics: Arc<Metrics>,
}

impl Mmds {
    /// An empty one that holds up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            document: None,
            limit,
            version: Version::default(),
            imds_compat: false,
            sessions: Sessions::default(),
            metrics: Arc::default(),
        }
    }

    /// For the API and the cards.
    pub fn into_shared(self) -> super::SharedMmds {
        Arc::new(Mutex::new(self))
    }

    /// Takes over how guests are answered.
    pub fn configure(&mut self, config: &MmdsConfig) {
        (self.version, self.imds_compat) = (config.version, config.imds_compat);
    }

    fn set(&mut self, document: Value) -> Result<(), MmdsError> {
        let found = document.to_string().len();
        if found > self.limit {
            return Err(MmdsError::TooLarge { found, limit: self.limit });
        }
        self.document = Some(document);
        Ok(())
    }

    /// Replaces the document.
    pub fn put(&mut self, document: Value) -> Result<(), MmdsError> {
        self.set(document)
    }

    /// Changes the document by a merge patch (RFC 7396). On an error it stays as it was.
    pub fn patch(&mut self, patch: Value) -> Result<(), MmdsError> {
        let mut document = self.document.clone().ok_or(MmdsError::Empty)?;
        merge(&mut document, patch);
        self.set(document)
    }

    /// The whole document; `null` before there is one.
    pub fn get(&self) -> Value {
        self.document.clone().unwrap_or_default()
    }

    /// The part of the document at `path` (a JSON pointer, RFC 6901; a slash at its end is left out), written out.
    pub fn part(&self, path: &str, format: Format) -> Result<String, MmdsError> {
        let pointer = path.strip_suffix('/').unwrap_or(path);
        let document = self.document.as_ref().ok_or(MmdsError::NotFound)?;
        let part = document.pointer(pointer).ok_or(MmdsError::NotFound)?;
        match (format, part) {
            (Format::Json, part) => Ok(part.to_string()),
            (Format::Imds, Value::String(text)) => Ok(text.clone()),
            (Format::Imds, Value::Object(members)) => {
                let name = |(name, value): (&String, &Value)| {
                    let slash = if value.is_object() { "/" } else { "" };
                    format!("{name}{slash}")
                };
                Ok(members.iter().map(name).collect::<Vec<_>>().join("\n"))
            }
            _ => Err(MmdsError::NotText),
        }
    }

    /// Counters since the last call, by Firecracker's names: the object `mmds`.
    pub fn metrics(&self) -> Value {
        serde_json::to_value(&*self.metrics).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn filled() -> Mmds {
        let mut mmds = Mmds::new(DEFAULT_LIMIT);
        mmds.put(json!({
            "name": {"first": "Ada", "last": "L."}, "age": 36, "tags": ["a", {"b": "c"}], "none": null, "ok": true,
            "a/b": {"~": "odd"}, "empty": {}, "": "nameless"
        }))
        .unwrap();
        mmds
    }

    #[test]
    fn parts_are_given_as_json_and_as_lists() {
        let mmds = filled();
        let both = |path| [Format::Json, Format::Imds].map(|format| mmds.part(path, format));
        let given = |json: &str, text: &str| [Ok(json.to_owned()), Ok(text.to_owned())];
        assert_eq!(both("/name"), given(r#"{"first":"Ada","last":"L."}"#, "first\nlast"));
        assert_eq!(both("/name/"), both("/name"));
        assert_eq!(both("/name/first"), given(r#""Ada""#, "Ada"));
        assert_eq!(both("/empty"), given("{}", ""));
        assert_eq!(both("/tags/1/b"), given(r#""c""#, "c"));
        assert_eq!(both("/a~1b/~0"), given(r#""odd""#, "odd"));
        let names = "\na/b/\nage\nempty/\nname/\nnone\nok\ntags";
        assert_eq!(both("/")[1], Ok(names.to_owned()));
        for (path, json) in [("/age", "36"), ("/tags", r#"["a",{"b":"c"}]"#), ("/none", "null"), ("/ok", "true")] {
            assert_eq!(both(path), [Ok(json.to_owned()), Err(MmdsError::NotText)], "{path}");
        }
        for path in ["/nobody", "/name/first/x", "/tags/2", "/tags/01", "name", "/name//"] {
            assert_eq!(both(path), [(); 2].map(|()| Err(MmdsError::NotFound)), "{path}");
        }
    }

    #[test]
    fn before_there_is_a_document_there_is_nothing() {
        let mut mmds = Mmds::new(DEFAULT_LIMIT);
        assert_eq!(mmds.get(), Value::Null);
        assert_eq!(mmds.part("/", Format::Json), Err(MmdsError::NotFound));
        assert_eq!(mmds.patch(json!({"a": 1})), Err(MmdsError::Empty));
        mmds.put(json!({})).unwrap();
        mmds.patch(json!({"a": {"b": "c", "d": null}})).unwrap();
        assert_eq!(mmds.get(), json!({"a": {"b": "c"}}));
    }

    #[test]
    fn the_limit_holds_for_both_and_leaves_what_there_was() {
        let mut mmds = Mmds::new(10);
        mmds.put(json!({"a": "1234"})).unwrap_err();
        mmds.put(json!({"a": "12"})).unwrap();
        assert_eq!(mmds.patch(json!({"a": "123"})), Err(MmdsError::TooLarge { found: 11, limit: 10 }));
        assert_eq!(mmds.get(), json!({"a": "12"}));
        mmds.patch(json!({"a": null, "b": "34"})).unwrap();
        assert_eq!(mmds.get(), json!({"b": "34"}));
    }
}

//! Keeps what was read out of Secure Boot's databases: hosts show the same ones again and again, and reading
//! certificates costs more than all else in an appraisal but the signature check.

use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use super::{SignatureDatabase, SignatureListError};
use crate::ima::GoodSignatures;
use crate::key::{Bank, MAX_DIGEST};

/// Most bytes of databases that are kept in parsed form. A machine's own have some tens of kilobytes.
const MAX_BYTES: usize = 4 << 20;

/// A database larger than this is parsed each time.
const MAX_KEPT: usize = 128 << 10;

/// What an entry is counted for beside its own bytes, so that very small ones are bounded too.
const ENTRY_BYTES: usize = 512;

/// Databases and certificates that were parsed before, by the digest of the event that showed them; and which signatures
/// of files were found good.
///
/// Bounded; when it is full, what came first goes first. One is shared by all appraisals of a process: a host can crowd
/// out what others showed, which costs them time, and can change nothing that they get, for a digest stands for one
/// content only.
#[derive(Debug, Default)]
pub struct CertificateCache {
    kept: Mutex<Kept>,
    signatures: GoodSignatures,
}

#[derive(Debug, Default)]
struct Kept {
    databases: HashMap<Key, Arc<SignatureDatabase>>,
    order: VecDeque<(Key, usize)>,
    bytes: usize,
}

/// In which form an event shows a database. The digest does not cover the event's type, so it is part of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Lists of signatures: PK, KEK, db and dbx.
    Lists,
    /// One entry: what verified an image.
    Entry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    form: Form,
    bank: Bank,
    digest: [u8; MAX_DIGEST],
}

impl Hash for Key {
    /// Digests differ in their first bytes: with the map's secret these find a place as well as all would.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let first: Option<&[u8; 8]> = self.digest.first_chunk();
        state.write_u64(u64::from_ne_bytes(first.copied().unwrap_or_default()));
    }
}

impl CertificateCache {
    /// Begins with nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The signatures of files that were found good.
    pub(crate) const fn signatures(&self) -> &GoodSignatures {
        &self.signatures
    }

    /// The parsed form of a variable's content. `digest` is the event's, which the caller found to be that of all the
    /// event's data; so it stands for this content.
    ///
    /// # Errors
    /// If the content is no list of signatures. That is not kept.
    pub(crate) fn database(
        &self,
        form: Form,
        bank: Bank,
        digest: &[u8],
        content: &[u8],
    ) -> Result<Arc<SignatureDatabase>, SignatureListError> {
        let key = key(form, bank, digest).filter(|_| content.len() <= MAX_KEPT);
        if let Some(known) = key.and_then(|key| self.lock(|kept| kept.databases.get(&key).cloned())) {
            return Ok(known);
        }
        let database = Arc::new(match form {
            Form::Lists => SignatureDatabase::from_lists(content)?,
            Form::Entry => SignatureDatabase::from_entry(content),
        });
        if let Some(key) = key {
            self.lock(|kept| kept.put(key, &database, content.len().saturating_add(ENTRY_BYTES)));
        }
        Ok(database)
    }

    fn lock<T>(&self, use_kept: impl FnOnce(&mut Kept) -> T) -> T {
        // Whoever panicked while holding the lock can at worst have left the count of bytes wrong.
        use_kept(&mut self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Kept {
    fn put(&mut self, key: Key, database: &Arc<SignatureDatabase>, bytes: usize) {
        if self.databases.insert(key, Arc::clone(database)).is_some() {
            return; // Another appraisal was faster.
        }
        self.order.push_back((key, bytes));
        self.bytes = self.bytes.saturating_add(bytes);
        while self.bytes > MAX_BYTES
            && let Some((oldest, bytes)) = self.order.pop_front()
        {
            self.databases.remove(&oldest);
            self.bytes = self.bytes.saturating_sub(bytes);
        }
    }
}

/// `None` for SHA-1, of which one digest may stand for two contents.
fn key(form: Form, bank: Bank, digest: &[u8]) -> Option<Key> {
    let mut padded = [0; MAX_DIGEST];
    padded.get_mut(..digest.len())?.copy_from_slice(digest);
    (bank != Bank::Sha1).then_some(Key { form, bank, digest: padded })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventlog::log_builder::signature_list;

    fn put(cache: &CertificateCache, content: &[u8]) -> Arc<SignatureDatabase> {
        let digest = Bank::Sha256.hash(content);
        cache.database(Form::Lists, Bank::Sha256, &digest, content).unwrap()
    }

    #[test]
    fn a_database_is_parsed_once_and_each_form_for_itself() {
        let cache = CertificateCache::new();
        let content = signature_list(b"certificate");
        let first = put(&cache, &content);
        assert!(Arc::ptr_eq(&first, &put(&cache, &content)));
        let digest = Bank::Sha256.hash(&content);
        let entry = cache.database(Form::Entry, Bank::Sha256, &digest, &content).unwrap();
        assert!(!Arc::ptr_eq(&first, &entry));
        let other_bank = cache.database(Form::Lists, Bank::Sm3_256, &digest, &content).unwrap();
        assert!(!Arc::ptr_eq(&first, &other_bank));
        // Two contents may have one SHA-1 digest.
        let of = |content: &[u8]| cache.database(Form::Lists, Bank::Sha1, &[1; 20], content).unwrap();
        assert_ne!(of(&content), of(&[]));
    }

    #[test]
    fn it_holds_a_bounded_number_of_bytes_whatever_is_shown() {
        let cache = CertificateCache::new();
        let first = put(&cache, &signature_list(b"first"));
        for size in [1_usize, 1000, MAX_KEPT - 44] {
            for number in 0_u32..12_000 / u32::try_from(size.min(100)).unwrap() {
                let mut certificate = number.to_le_bytes().to_vec();
                certificate.resize(size.max(4), 0);
                put(&cache, &signature_list(&certificate));
                let (bytes, entries, order) = cache.lock(|kept| (kept.bytes, kept.databases.len(), kept.order.len()));
                assert!(bytes <= MAX_BYTES && entries == order, "{bytes} bytes, {entries} entries, {order} in order");
            }
        }
        assert!(!Arc::ptr_eq(&first, &put(&cache, &signature_list(b"first"))), "the oldest should have gone");
        let large = signature_list(&vec![0; MAX_KEPT]);
        assert!(!Arc::ptr_eq(&put(&cache, &large), &put(&cache, &large)));
    }

    #[test]
    fn what_cannot_be_read_stays_an_error() {
        let cache = CertificateCache::new();
        for _ in 0..2 {
            assert!(cache.database(Form::Lists, Bank::Sha256, &[1; 32], b"no list").is_err());
        }
    }
}

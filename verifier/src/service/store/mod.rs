//! All state of the service, in one SQLite file. Nothing outside this module speaks SQL.
//!
//! What must happen together happens in one transaction here: a nonce is consumed by the statement that reads it, an
//! order by the transaction that records its release. A process that dies in between leaves either all or nothing.

mod enrolments;
mod hosts;
mod nonces;
mod orders;
mod volumes;

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, Transaction, TransactionBehavior};

pub use self::enrolments::{Enrolment, Pending};
pub use self::hosts::{Admitted, HostRow, Judgement};
pub use self::nonces::Nonce;
pub use self::orders::{NewOrder, OrderRow, Receipted, Release};
pub use self::volumes::{SealedVolume, VolumePut};

/// The version of the schema below. A database of another version is refused, never guessed at.
const SCHEMA_VERSION: i64 = 4;
const SCHEMA: &str = include_str!("schema.sql");
/// What version 1 lacks. Its hosts' certificates come with their next enrolment.
const FROM_VERSION_1: &str = "ALTER TABLE hosts ADD COLUMN ek_certificate BLOB; \
                              ALTER TABLE enrolments ADD COLUMN ek_certificate BLOB;";
/// What version 2 lacks. Which PCR banks its hosts have comes with their next enrolment; until then they are not trusted.
/// Nor is a certificate vouched for that nobody kept: version 1 kept none.
const FROM_VERSION_2: &str = "ALTER TABLE hosts ADD COLUMN banks TEXT; \
                              UPDATE hosts SET certificate = 'none' WHERE ek_certificate IS NULL; \
                              UPDATE hosts SET trusted_until = NULL, generation = generation + 1;";
/// What version 2 lacks of admissions by name. A TPM that is enrolled was admitted under the name that it has; one that
/// never enrolled waits until an operator names its host.
const NAMES_FROM_VERSION_2: &str = "ALTER TABLE admissions ADD COLUMN host TEXT; \
     UPDATE admissions SET host = (SELECT hosts.host FROM hosts WHERE hosts.ek = admissions.ek); \
     CREATE UNIQUE INDEX one_tpm_a_host ON admissions (host);";
/// What version 2 lacks of tenants' pins.
const PINS_FROM_VERSION_2: &str = "ALTER TABLE hosts ADD COLUMN judged_policy TEXT; \
     ALTER TABLE hosts ADD COLUMN judged_signer TEXT; \
     ALTER TABLE volumes ADD COLUMN pins TEXT NOT NULL DEFAULT '{\"policies\":[],\"signers\":[]}';";
/// What version 3 lacks: what is kept of a forgotten host with its admission. What was forgotten before is not known.
const FROM_VERSION_3: &str = "ALTER TABLE admissions ADD COLUMN banks TEXT; \
     ALTER TABLE admissions ADD COLUMN certificate TEXT \
     CHECK (certificate IS NULL OR certificate IN ('verified', 'none')); \
     ALTER TABLE admissions ADD COLUMN ek_certificate BLOB; ALTER TABLE admissions ADD COLUMN cordon TEXT;";

/// Why the store cannot do what it should.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite failed.
    #[error("the database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// Made by another version.
    #[error("the database has schema version {found}, this program needs {SCHEMA_VERSION}")]
    Version {
        /// The version in the file.
        found: i64,
    },
    /// A row does not hold what it should.
    #[error("the database holds a {what} that cannot be read: {problem}")]
    Content {
        /// What.
        what: &'static str,
        /// Why not.
        problem: String,
    },
}

/// The store.
pub struct Store {
    connection: Mutex<Connection>,
}

/// Seconds since 1970.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// How far the clock may have been set back, in seconds, without making void what was issued before. Set back further, what
/// was issued in the clock's future would hold for as long again.
const CLOCK_SLACK: u64 = 60;

/// Whether something was issued later than it is now.
fn is_of_the_future(issued_at: u64, now: u64) -> bool {
    issued_at > now.saturating_add(CLOCK_SLACK)
}

/// SQLite's integers are signed; times and counts never come near the difference.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

impl Store {
    /// Opens or makes the database at `path`.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // A release that was answered must be on the disk: an order is used once also across a power cut.
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        connection.pragma_update(None, "secure_delete", true)?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive)?;
        let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        match found {
            0 if tables == 0 => {
                transaction.execute_batch(SCHEMA)?;
                transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            }
            1..SCHEMA_VERSION => {
                if found == 1 {
                    transaction.execute_batch(FROM_VERSION_1)?;
                }
                if found <= 2 {
                    transaction.execute_batch(FROM_VERSION_2)?;
                    transaction.execute_batch(NAMES_FROM_VERSION_2)?;
                    transaction.execute_batch(PINS_FROM_VERSION_2)?;
                }
                transaction.execute_batch(FROM_VERSION_3)?;
                transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            }
            SCHEMA_VERSION => {}
            found => return Err(StoreError::Version { found }),
        }
        transaction.commit()?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    /// Runs `work` in one transaction that is committed when it succeeds and rolled back when it fails or panics.
    fn transact<T, E: From<StoreError>>(&self, work: impl FnOnce(&Transaction<'_>) -> Result<T, E>) -> Result<T, E> {
        // A panic under the lock rolled its transaction back, so what the lock guards is whole.
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|e| E::from(StoreError::Sqlite(e)))?;
        let done = work(&transaction)?;
        transaction.commit().map_err(|e| E::from(StoreError::Sqlite(e)))?;
        Ok(done)
    }

    /// Whether the database answers.
    pub fn alive(&self) -> Result<(), StoreError> {
        self.transact(|transaction| {
            Ok(transaction.query_row("SELECT count(*) FROM admissions", [], |row| row.get::<_, i64>(0)).map(drop)?)
        })
    }
}

impl Store {
    /// Checks the whole database: its pages, its references, and that keys were released exactly for the orders that
    /// say so. Gives the number of releases.
    pub fn check(&self) -> Result<u64, StoreError> {
        self.transact(|transaction| {
            let broken = |problem: String| StoreError::Content { what: "state", problem };
            let pages: String = transaction.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
            if pages != "ok" {
                return Err(broken(pages));
            }
            if transaction.prepare("PRAGMA foreign_key_check")?.exists([])? {
                return Err(broken("a row refers to one that is not there".into()));
            }
            let (released, matching): (i64, i64) = transaction.query_row(
                "SELECT (SELECT count(*) FROM releases), (SELECT count(*) FROM orders WHERE state <> 'placed' \
                 AND EXISTS (SELECT 1 FROM releases WHERE order_id = id))",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            let used: i64 =
                transaction.query_row("SELECT count(*) FROM orders WHERE state <> 'placed'", [], |row| row.get(0))?;
            if released != matching || released != used {
                return Err(broken(format!("{released} releases, {used} used orders, {matching} of them released")));
            }
            Ok(uint(released))
        })
    }
}

fn from_json<T: serde::de::DeserializeOwned>(what: &'static str, json: &str) -> Result<T, StoreError> {
    serde_json::from_str(json).map_err(|e| StoreError::Content { what, problem: e.to_string() })
}

fn to_json<T: serde::Serialize>(what: &'static str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| StoreError::Content { what, problem: e.to_string() })
}

#[cfg(test)]
mod tests;

//! Challenges: each for one host, one purpose, one TLS key, one answer.

use rusqlite::{OptionalExtension, params};

use super::{Store, StoreError, int, is_of_the_future, uint};

/// Most challenges open for one host and TLS key, and for all together. Anyone can ask for one with a key made on the spot,
/// so beyond the second bound the oldest makes room: refusing would let whoever floods keep every host from attesting,
/// while a host needs its own only for the seconds that its TPM takes.
const MAX_OPEN_PER_KEY: i64 = 16;
pub(super) const MAX_OPEN: i64 = 65_536;

/// A challenge as it was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nonce {
    /// The host it was issued to.
    pub host: String,
    /// What for.
    pub purpose: String,
    /// To which TLS key.
    pub tls_spki: [u8; 32],
    /// Seconds since 1970.
    pub expires_at: u64,
}

impl Nonce {
    /// Whether it can be answered no more, where challenges live for `ttl` seconds.
    pub fn has_expired(&self, ttl: u64, now: u64) -> bool {
        self.expires_at <= now || is_of_the_future(self.expires_at.saturating_sub(ttl), now)
    }
}

impl Store {
    /// Remembers a challenge. False when too many are open for the same host and TLS key.
    pub fn open_nonce(&self, nonce: &[u8; 32], issued: &Nonce, now: u64) -> Result<bool, StoreError> {
        self.transact(|transaction| {
            transaction.execute("DELETE FROM nonces WHERE expires_at + 600 <= ?1", [int(now)])?;
            let of_key: i64 = transaction.query_row(
                "SELECT count(*) FROM nonces WHERE host = ?1 AND tls_spki = ?2 AND expires_at > ?3",
                params![issued.host, issued.tls_spki, int(now)],
                |row| row.get(0),
            )?;
            if of_key >= MAX_OPEN_PER_KEY {
                return Ok(false);
            }
            let all: i64 = transaction.query_row("SELECT count(*) FROM nonces", [], |row| row.get(0))?;
            if all >= MAX_OPEN {
                transaction.execute(
                    "DELETE FROM nonces WHERE rowid IN (SELECT rowid FROM nonces ORDER BY rowid LIMIT ?1)",
                    [all - MAX_OPEN + 1],
                )?;
            }
            transaction.execute(
                "INSERT INTO nonces VALUES (?1, ?2, ?3, ?4, ?5)",
                params![nonce, issued.host, issued.purpose, issued.tls_spki, int(issued.expires_at)],
            )?;
            Ok(true)
        })
    }

    /// Takes a challenge out, so that a second answer finds nothing, however the first one is judged.
    pub fn take_nonce(&self, nonce: &[u8]) -> Result<Option<Nonce>, StoreError> {
        self.transact(|transaction| {
            let taken = transaction
                .query_row(
                    "DELETE FROM nonces WHERE nonce = ?1 RETURNING host, purpose, tls_spki, expires_at",
                    [nonce],
                    |row| {
                        Ok(Nonce {
                            host: row.get(0)?,
                            purpose: row.get(1)?,
                            tls_spki: row.get(2)?,

                            expires_at: uint(row.get(3)?),
                        })
                    },
                )
                .optional()?;
            Ok(taken)
        })
    }
}

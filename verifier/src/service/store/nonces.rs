//! Challenges: each for one host, one purpose, one TLS key, one answer.

use rusqlite::{OptionalExtension, params};

use super::{Store, StoreError, int, uint};

/// Most challenges open for one host and TLS key, and for all together.
const MAX_OPEN_PER_KEY: i64 = 16;
const MAX_OPEN: i64 = 65_536;

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

impl Store {
    /// Remembers a challenge. False when too many are open.
    pub fn open_nonce(&self, nonce: &[u8; 32], issued: &Nonce, now: u64) -> Result<bool, StoreError> {
        self.transact(|transaction| {
            transaction.execute("DELETE FROM nonces WHERE expires_at + 600 <= ?1", [int(now)])?;
            let (of_key, all): (i64, i64) = transaction.query_row(
                "SELECT (SELECT count(*) FROM nonces WHERE host = ?1 AND tls_spki = ?2 AND expires_at > ?3), \
                 (SELECT count(*) FROM nonces WHERE expires_at > ?3)",
                params![issued.host, issued.tls_spki, int(now)],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            if of_key >= MAX_OPEN_PER_KEY || all >= MAX_OPEN {
                return Ok(false);
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

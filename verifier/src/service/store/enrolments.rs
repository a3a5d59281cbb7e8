//! Enrolments and the hosts that come out of them.

use rusqlite::{OptionalExtension, Transaction, params};

use super::{Store, StoreError, int};
use crate::reason::ServiceCode;

/// Most enrolments pending at a time, for one host and for all together.
const MAX_PENDING_PER_HOST: i64 = 8;
const MAX_PENDING: i64 = 4_096;
/// Most hosts that wait for an operator. Anyone can make keys that look like a TPM without certificate, so what waits is
/// bounded; a TPM that was admitted beforehand always gets in.
const MAX_WAITING: i64 = 10_000;

/// What a host claims to be, checked as far as it can be without the TPM's answer.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// The host's name.
    pub host: String,
    /// EK fingerprint, hex.
    pub ek: String,
    /// The EK's TPMT_PUBLIC.
    pub ek_public: Vec<u8>,
    /// `verified` or `none`.
    pub certificate: String,
    /// The AK's TPMT_PUBLIC.
    pub ak_public: Vec<u8>,
    /// The AK's name, hex.
    pub ak_name: String,
}

/// An enrolment whose challenge is not answered yet.
#[derive(Clone, Debug)]
pub struct Pending {
    /// What is enrolled.
    pub enrolment: Enrolment,
    /// SHA-256 of the challenge's secret.
    pub secret_sha256: [u8; 32],
    /// The TLS key that began it.
    pub tls_spki: [u8; 32],
    /// Seconds since 1970.
    pub expires_at: u64,
}

/// Who stands against an enrolment: a host never changes its keys and a TPM never its host without an operator.
fn conflicts(transaction: &Transaction<'_>, new: &Enrolment) -> Result<Vec<ServiceCode>, StoreError> {
    let mut found = Vec::new();
    let known: Option<(String, String)> = transaction
        .query_row("SELECT ek, ak_name FROM hosts WHERE host = ?1", [&new.host], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    if known.is_some_and(|(ek, ak)| ek != new.ek || ak != new.ak_name) {
        found.push(ServiceCode::HostConflict);
    }
    let elsewhere: i64 = transaction.query_row(
        "SELECT count(*) FROM hosts WHERE host <> ?1 AND (ek = ?2 OR ak_name = ?3)",
        [&new.host, &new.ek, &new.ak_name],
        |row| row.get(0),
    )?;
    if elsewhere > 0 {
        found.push(ServiceCode::EkConflict);
    }
    Ok(found)
}

impl Store {
    /// Remembers a pending enrolment under `id`, unless something stands against it.
    pub fn begin_enrolment(&self, id: &str, pending: &Pending, now: u64) -> Result<Vec<ServiceCode>, StoreError> {
        self.transact(|transaction| {
            transaction.execute("DELETE FROM enrolments WHERE expires_at <= ?1", [int(now)])?;
            let mut found = conflicts(transaction, &pending.enrolment)?;
            let (of_host, all): (i64, i64) = transaction.query_row(
                "SELECT count(*) FILTER (WHERE host = ?1 AND tls_spki = ?2), count(*) FROM enrolments",
                params![pending.enrolment.host, pending.tls_spki],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            if of_host >= MAX_PENDING_PER_HOST || all >= MAX_PENDING {
                found.push(ServiceCode::EnrolmentsFull);
            }
            if found.is_empty() {
                let new = &pending.enrolment;
                transaction.execute(
                    "INSERT INTO enrolments VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
                    params![
                        id,
                        new.host,
                        new.ek,
                        new.ek_public,
                        new.certificate,
                        new.ak_public,
                        new.ak_name,
                        pending.secret_sha256,
                        pending.tls_spki,
                        int(pending.expires_at)
                    ],
                )?;
            }
            Ok(found)
        })
    }

    /// Takes a pending enrolment out: whatever comes of it, it is not tried twice.
    pub fn take_enrolment(&self, id: &str) -> Result<Option<Pending>, StoreError> {
        self.transact(|transaction| {
            let taken = transaction
                .query_row(
                    "DELETE FROM enrolments WHERE id = ?1 RETURNING host, ek, ek_public, certificate, ak_public, \
                     ak_name, secret_sha256, tls_spki, expires_at",
                    [id],
                    |row| {
                        Ok(Pending {
                            enrolment: Enrolment {
                                host: row.get(0)?,
                                ek: row.get(1)?,
                                ek_public: row.get(2)?,
                                certificate: row.get(3)?,
                                ak_public: row.get(4)?,
                                ak_name: row.get(5)?,
                            },
                            secret_sha256: row.get(6)?,
                            tls_spki: row.get(7)?,
                            expires_at: super::uint(row.get(8)?),
                        })
                    },
                )
                .optional()?;
            Ok(taken)
        })
    }

    /// Enrols the host, unless something stands against it. Enrolling the same again changes nothing.
    pub fn enrol(&self, new: &Enrolment, now: u64) -> Result<Vec<ServiceCode>, StoreError> {
        self.transact(|transaction| {
            let mut found = conflicts(transaction, new)?;
            let (waiting, admitted): (i64, bool) = transaction.query_row(
                "SELECT (SELECT count(*) FROM hosts WHERE host <> ?1 AND ek NOT IN (SELECT ek FROM admissions)), \
                 EXISTS (SELECT 1 FROM admissions WHERE ek = ?2)",
                [&new.host, &new.ek],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            if waiting >= MAX_WAITING && !admitted {
                found.push(ServiceCode::EnrolmentsFull);
            }
            if found.is_empty() {
                transaction.execute(
                    "INSERT INTO hosts (host, ek, ek_public, certificate, ak_public, ak_name, enrolled_at) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (host) DO NOTHING",
                    params![new.host, new.ek, new.ek_public, new.certificate, new.ak_public, new.ak_name, int(now)],
                )?;
            }
            Ok(found)
        })
    }
}

//! Enrolments and the hosts that come out of them.

use portcullis_attest::appraise::PinnedBanks;
use rusqlite::{OptionalExtension, ToSql, Transaction, params};

use super::hosts::{ADMITTED, LIVE, host_in, kept_in, remove_in};
use super::{Store, StoreError, int, to_json};
use crate::reason::ServiceCode;

/// Most enrolments pending at a time, for one host and for all together. Anyone can begin one, so beyond the second bound
/// the oldest makes room: refusing would let whoever floods keep everybody out, while a host needs its own place only for
/// the seconds in which its TPM solves the challenge.
const MAX_PENDING_PER_HOST: i64 = 8;
pub(super) const MAX_PENDING: i64 = 4_096;
/// Most hosts that wait for an operator. Anyone can make keys that look like a TPM without certificate, so what waits is
/// bounded, and here too the oldest makes room, those without a certificate first: a host that was forgotten enrols anew
/// by itself.
pub(super) const MAX_WAITING: i64 = 1_000;

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
    /// The EK certificate (DER), if there is one.
    pub ek_certificate: Option<Vec<u8>>,
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

impl Enrolment {
    /// What both tables store of it, by the names of their columns.
    fn columns(&self) -> [(&'static str, &dyn ToSql); 7] {
        [
            (":host", &self.host),
            (":ek", &self.ek),
            (":ek_public", &self.ek_public),
            (":certificate", &self.certificate),
            (":ek_certificate", &self.ek_certificate),
            (":ak_public", &self.ak_public),
            (":ak_name", &self.ak_name),
        ]
    }
}

/// Who stands against an enrolment: a host never changes its keys and a TPM never its host without an operator.
///
/// An operator admits a TPM as one host, and no TPM that is admitted enrols as another. Anybody can come first with a name:
/// so a TPM that was admitted under it is not kept out by hosts that nobody admitted and that hold no orders, its own
/// enrolment under another name among them. Those are given by name, to be forgotten.
fn conflicts(
    transaction: &Transaction<'_>,
    new: &Enrolment,
    now: u64,
) -> Result<(Vec<ServiceCode>, Vec<String>), StoreError> {
    let named: Option<Option<String>> =
        transaction.query_row("SELECT host FROM admissions WHERE ek = ?1", [&new.ek], |row| row.get(0)).optional()?;
    let named = named.flatten();
    let admitted = named.as_ref() == Some(&new.host);
    let query = format!(
        "SELECT host, ek, ak_name, {ADMITTED} OR {LIVE} > 0 FROM hosts WHERE host = ?3 OR ek = ?2 OR ak_name = ?4",
    );
    let mut statement = transaction.prepare(&query)?;
    let mut rows = statement.query(params![int(now), new.ek, new.host, new.ak_name])?;
    let (mut found, mut in_the_way) = (Vec::new(), Vec::new());
    if named.is_some() && !admitted {
        found.push(ServiceCode::HostOtherName);
    }
    while let Some(row) = rows.next()? {
        let (host, ek, ak_name): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        if (&host, &ek, &ak_name) == (&new.host, &new.ek, &new.ak_name) {
            continue;
        }
        let firm: bool = row.get(3)?;
        let code = if host == new.host { ServiceCode::HostConflict } else { ServiceCode::EkConflict };
        if admitted && !firm {
            in_the_way.push(host);
        } else if !found.contains(&code) {
            found.push(code);
        }
    }
    Ok((found, in_the_way))
}

/// Forgets hosts that wait for an operator and hold no orders, until there is room for one more.
fn make_room(transaction: &Transaction<'_>, new: &Enrolment, now: u64) -> Result<(), StoreError> {
    let query = format!(
        "SELECT host FROM hosts WHERE host <> ?2 AND {LIVE} = 0 AND NOT {ADMITTED} \
         ORDER BY certificate = 'verified' DESC, enrolled_at DESC, rowid DESC LIMIT -1 OFFSET ?3"
    );
    let mut statement = transaction.prepare(&query)?;
    let hosts = statement.query_map(params![int(now), new.host, MAX_WAITING - 1], |row| row.get(0))?;
    for host in hosts.collect::<Result<Vec<String>, _>>()? {
        remove_in(transaction, &host)?;
    }
    Ok(())
}

impl Store {
    /// Remembers a pending enrolment under `id`, unless something stands against it.
    pub fn begin_enrolment(&self, id: &str, pending: &Pending, now: u64) -> Result<Vec<ServiceCode>, StoreError> {
        self.transact(|transaction| {
            transaction.execute("DELETE FROM enrolments WHERE expires_at <= ?1", [int(now)])?;
            let (mut found, _) = conflicts(transaction, &pending.enrolment, now)?;
            let of_host: i64 = transaction.query_row(
                "SELECT count(*) FROM enrolments WHERE host = ?1 AND tls_spki = ?2",
                params![pending.enrolment.host, pending.tls_spki],
                |row| row.get(0),
            )?;
            if of_host >= MAX_PENDING_PER_HOST {
                found.push(ServiceCode::EnrolmentsFull);
            }
            if found.is_empty() {
                transaction.execute(
                    "DELETE FROM enrolments WHERE rowid IN \
                     (SELECT rowid FROM enrolments ORDER BY rowid DESC LIMIT -1 OFFSET ?1)",
                    [MAX_PENDING - 1],
                )?;
                let (begun, expires_at) = (pending.enrolment.columns(), int(pending.expires_at));
                let more: [(&str, &dyn ToSql); 4] = [
                    (":id", &id),
                    (":secret_sha256", &pending.secret_sha256),
                    (":tls_spki", &pending.tls_spki),
                    (":expires_at", &expires_at),
                ];
                transaction.execute(
                    "INSERT INTO enrolments (id, host, ek, ek_public, certificate, ak_public, ak_name, secret_sha256, \
                     tls_spki, expires_at, ek_certificate) VALUES (:id, :host, :ek, :ek_public, :certificate, \
                     :ak_public, :ak_name, :secret_sha256, :tls_spki, :expires_at, :ek_certificate)",
                    [&begun[..], &more].concat().as_slice(),
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
                     ak_name, secret_sha256, tls_spki, expires_at, ek_certificate",
                    [id],
                    |row| {
                        Ok(Pending {
                            enrolment: Enrolment {
                                host: row.get(0)?,
                                ek: row.get(1)?,
                                ek_public: row.get(2)?,
                                certificate: row.get(3)?,
                                ek_certificate: row.get(9)?,
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

    /// Enrols the host, unless something stands against it. Enrolling the same again changes nothing, but that a
    /// certificate may be added, and PCR banks where none are known: no certificate is taken away, lest a host get rid of
    /// one that will be revoked, and no banks are replaced by others. The same holds for a host that was forgotten, as long
    /// as its TPM stays admitted as that host.
    pub fn enrol(&self, new: &Enrolment, banks: &PinnedBanks, now: u64) -> Result<Vec<ServiceCode>, StoreError> {
        self.transact(|transaction| {
            let (mut found, in_the_way) = conflicts(transaction, new, now)?;
            let same = host_in(transaction, &new.host, now)?.filter(|row| row.ek == new.ek);
            let (pinned, certificate, cordon) = match same {
                Some(row) => (row.banks, None, None),
                None => kept_in(transaction, &new.host, &new.ek)?
                    .map_or((None, None, None), |kept| (kept.banks, kept.certificate, kept.cordon)),
            };
            if pinned.is_some_and(|pinned| pinned != *banks) {
                found.push(ServiceCode::EnrolmentBanksConflict);
            }
            let mut new = new.clone();
            if let Some((certificate, ek_certificate)) = certificate.filter(|_| new.ek_certificate.is_none()) {
                (new.certificate, new.ek_certificate) = (certificate, Some(ek_certificate));
            }
            let new = &new;
            if found.is_empty() {
                for host in &in_the_way {
                    remove_in(transaction, host)?;
                }
                make_room(transaction, new, now)?;
                let (enrolled, at, banks) = (new.columns(), int(now), to_json("list of PCR banks", banks)?);
                let more: [(&str, &dyn ToSql); 3] = [(":now", &at), (":banks", &banks), (":cordon", &cordon)];
                // A generation is of one enrolment: what was judged of a host that had this name before, even with the
                // same keys, never counts for this one.
                transaction.execute(
                    "INSERT INTO hosts (host, ek, ek_public, certificate, ak_public, ak_name, enrolled_at, \
                     ek_certificate, banks, cordon, generation) VALUES (:host, :ek, :ek_public, :certificate, :ak_public, :ak_name, :now, \
                     :ek_certificate, :banks, :cordon, abs(random() >> 2)) ON CONFLICT (host) DO UPDATE SET banks = coalesce(banks, excluded.banks), \
                     certificate = CASE WHEN excluded.ek_certificate IS NULL THEN certificate \
                     ELSE excluded.certificate END, ek_certificate = coalesce(excluded.ek_certificate, ek_certificate)",
                    [&enrolled[..], &more].concat().as_slice(),
                )?;
            }
            Ok(found)
        })
    }
}

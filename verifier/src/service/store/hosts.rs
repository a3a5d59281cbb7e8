//! Enrolled hosts, who admitted them, and what was judged about them last.

use portcullis_attest::appraise::PinnedBanks;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::{Store, StoreError, from_json, int, is_of_the_future, to_json, uint};
use crate::api::AdmissionView;
use crate::reason::{Reason, ServiceCode};

/// Most bytes of JSON that are kept of the reasons against a host: of one that an operator admitted, and of one that anybody
/// may have made up, with reasons that quote what its maker likes.
const MAX_REASONS: usize = 64 * 1024;
const MAX_REASONS_WAITING: usize = 4 * 1024;
/// Most hosts without admission that a tenant is told of.
const MAX_WAITING_SHOWN: i64 = 32;

/// Placed, released and running orders of a host: `?1` is now. With [`super::CLOCK_SLACK`].
pub(super) const LIVE: &str = "(SELECT count(*) FROM orders WHERE orders.host = hosts.host AND (state IN ('released', 'running') \
                    OR (state = 'placed' AND expires_at > ?1 AND placed_at <= ?1 + 60)))";
const COLUMNS: &str = "host, ek, ek_public, certificate, ak_public, ak_name, tls_spki, judged, boot, trusted_until, \
                       attested_at, reasons, cordon, generation, \
                       (SELECT admissions.host FROM admissions WHERE admissions.ek = hosts.ek), ek_certificate, \
                       judged_policy, judged_signer, banks";
/// Whether an operator admitted a host's TPM under the name that the host has.
pub(super) const ADMITTED: &str =
    "EXISTS (SELECT 1 FROM admissions WHERE admissions.ek = hosts.ek AND admissions.host = hosts.host)";

/// An enrolled host.
#[derive(Clone, Debug)]
pub struct HostRow {
    /// Its name.
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
    /// SHA-256 of the TLS key that it quoted last in good evidence.
    pub tls_spki: Option<[u8; 32]>,
    /// JSON of the last good judgement.
    pub judged: Option<String>,
    /// JSON of the boot instance of the last good judgement.
    pub boot: Option<String>,
    /// Until when it is trusted; nothing when its last evidence was bad.
    pub trusted_until: Option<u64>,
    /// When it last attested.
    pub attested_at: Option<u64>,
    /// What was wrong with its last evidence; empty when nothing was.
    pub reasons: Vec<Reason>,
    /// Why an operator closed it for work.
    pub cordon: Option<String>,
    /// Counts judgements, so that one made on older knowledge is not recorded.
    pub generation: i64,
    /// Whether an operator admitted its TPM, under this name.
    pub admitted: bool,
    /// The name under which an operator admitted its TPM, if one did.
    pub admitted_as: Option<String>,
    /// The EK certificate (DER), if it has one.
    pub ek_certificate: Option<Vec<u8>>,
    /// The PCR banks that were active when it enrolled, and into which of them its firmware measured. Nothing when that is
    /// not known yet: then it is not trusted.
    pub banks: Option<PinnedBanks>,
    /// SHA-256 (hex) of the policy by which its last good evidence was judged.
    pub judged_policy: Option<String>,
    /// The id of the key that signed the reference values by which its last good evidence was judged.
    pub judged_signer: Option<String>,
    /// VMs placed, released or running there.
    pub vms: u32,
}

/// What good evidence changes.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The TLS key that it binds.
    pub tls_spki: [u8; 32],
    /// JSON of what the next evidence must continue.
    pub judged: String,
    /// JSON of the boot instance.
    pub boot: String,
    /// The generation of the host row that it was judged on.
    pub generation: i64,
    /// Name of the AK that quoted it, hex: a host of the same name may have been enrolled anew since.
    pub ak_name: String,
    /// SHA-256 of the policy by which it was judged, hex.
    pub policy_sha256: String,
    /// The id of the key that signed the reference values, if one did.
    pub reference_signer: Option<String>,
}

/// What became of an admission.
#[derive(Debug, PartialEq, Eq)]
pub enum Admitted {
    /// It is recorded, or was before.
    Yes,
    /// The TPM is admitted under this other name.
    OtherName(String),
    /// Another TPM is admitted under this name.
    NameTaken(String),
}

impl HostRow {
    /// The row, and its columns of JSON: reasons and banks.
    fn read(row: &Row<'_>) -> rusqlite::Result<(Self, String, Option<String>)> {
        let (host, admitted_as): (String, Option<String>) = (row.get(0)?, row.get(14)?);
        let host = Self {
            admitted: admitted_as.as_ref() == Some(&host),
            host,
            ek: row.get(1)?,
            ek_public: row.get(2)?,
            certificate: row.get(3)?,
            ak_public: row.get(4)?,
            ak_name: row.get(5)?,
            tls_spki: row.get(6)?,
            judged: row.get(7)?,
            boot: row.get(8)?,
            trusted_until: row.get::<_, Option<i64>>(9)?.map(uint),
            attested_at: row.get::<_, Option<i64>>(10)?.map(uint),
            reasons: Vec::new(),
            cordon: row.get(12)?,
            generation: row.get(13)?,
            admitted_as,
            ek_certificate: row.get(15)?,
            banks: None,
            judged_policy: row.get(16)?,
            judged_signer: row.get(17)?,
            vms: row.get(19)?,
        };
        Ok((host, row.get(11)?, row.get(18)?))
    }

    fn parse((host, reasons, banks): (Self, String, Option<String>)) -> Result<Self, StoreError> {
        let banks = banks.map(|banks| from_json("list of PCR banks", &banks)).transpose()?;
        Ok(Self { reasons: from_json("list of reasons", &reasons)?, banks, ..host })
    }

    /// Whether its EK had a certificate of a configured vendor when it enrolled.
    pub fn is_certified(&self) -> bool {
        self.certificate == "verified"
    }

    /// Why it gets no new work, for tenants: of a host that no operator admitted only that, for whatever else is known of
    /// it, it said itself.
    pub fn why_closed_to_tenants(&self, now: u64) -> Vec<Reason> {
        if self.admitted { self.why_closed(now) } else { vec![ServiceCode::NotAdmitted.into()] }
    }

    /// Why no operator's word is for it; empty when one is. For operators and for the host itself.
    pub fn why_not_admitted(&self) -> Vec<Reason> {
        if self.admitted {
            return Vec::new();
        }
        let mut found = vec![Reason::new(ServiceCode::NotAdmitted).values("an admitted EK fingerprint", &self.ek)];
        if let Some(name) = &self.admitted_as {
            found.push(Reason::new(ServiceCode::HostOtherName).values(name, &self.host));
        }
        found
    }

    /// Why nothing in its name counts at `now`; empty when it does.
    pub fn why_untrusted(&self, now: u64) -> Vec<Reason> {
        let mut found = self.why_not_admitted();
        if self.banks.is_none() {
            found.push(ServiceCode::HostBanksUnknown.into());
        }
        match self.trusted_until {
            // Set when it attested, by the same clock.
            Some(until) if until > now && !self.attested_at.is_some_and(|at| is_of_the_future(at, now)) => {}
            Some(_) => found.push(ServiceCode::HostExpired.into()),
            None if self.reasons.is_empty() => found.push(ServiceCode::HostNeverAttested.into()),
            None => {
                found.push(ServiceCode::HostUntrusted.into());
                found.extend(self.reasons.iter().cloned());
            }
        }
        found
    }

    /// Why it gets no new work: what [`HostRow::why_untrusted`] says, and an operator's cordon.
    pub fn why_closed(&self, now: u64) -> Vec<Reason> {
        let mut found = self.why_untrusted(now);
        if let Some(reason) = &self.cordon {
            found.push(Reason::new(ServiceCode::HostCordoned).values("open", reason));
        }
        found
    }
}

/// The host as it is inside a transaction.
pub(super) fn host_in(transaction: &Transaction<'_>, host: &str, now: u64) -> Result<Option<HostRow>, StoreError> {
    let query = format!("SELECT {COLUMNS}, {LIVE} FROM hosts WHERE host = ?2");
    let found = transaction.query_row(&query, params![int(now), host], HostRow::read).optional()?;
    found.map(HostRow::parse).transpose()
}

/// Records good evidence inside a transaction. False when the host was judged anew in between.
pub(super) fn record_in(
    transaction: &Transaction<'_>,
    host: &str,
    good: &Judgement,
    now: u64,
) -> Result<bool, StoreError> {
    let changed = transaction.execute(
        "UPDATE hosts SET tls_spki = ?2, judged = ?3, boot = ?4, attested_at = ?5, reasons = '[]', \
         generation = generation + 1, judged_policy = ?8, judged_signer = ?9 \
         WHERE host = ?1 AND generation = ?6 AND ak_name = ?7",
        params![
            host,
            good.tls_spki,
            good.judged,
            good.boot,
            int(now),
            good.generation,
            good.ak_name,
            good.policy_sha256,
            good.reference_signer
        ],
    )?;
    Ok(changed == 1)
}

/// What an admission keeps of its host once that is forgotten.
pub(super) struct Kept {
    /// As in [`HostRow::banks`].
    pub banks: Option<PinnedBanks>,
    /// As in [`HostRow::certificate`], with the certificate; nothing when there is none.
    pub certificate: Option<(String, Vec<u8>)>,
    /// As in [`HostRow::cordon`].
    pub cordon: Option<String>,
}

/// What is kept of a forgotten host that had this name and this TPM, if an operator admitted the one as the other.
pub(super) fn kept_in(transaction: &Transaction<'_>, host: &str, ek: &str) -> Result<Option<Kept>, StoreError> {
    let query = "SELECT banks, certificate, ek_certificate, cordon FROM admissions WHERE host = ?1 AND ek = ?2";
    let read = |row: &Row<'_>| {
        let certificate: Option<String> = row.get(1)?;
        Ok((row.get::<_, Option<String>>(0)?, certificate.zip(row.get(2)?), row.get(3)?))
    };
    let Some((banks, certificate, cordon)) = transaction.query_row(query, [host, ek], read).optional()? else {
        return Ok(None);
    };
    let banks = banks.map(|banks| from_json("list of PCR banks", &banks)).transpose()?;
    Ok(Some(Kept { banks, certificate, cordon }))
}

/// Forgets a host inside a transaction. What binds its TPM to more than a name stays with the TPM's admission: root on the
/// host can make it necessary to forget it, and gains nothing by that.
pub(super) fn remove_in(transaction: &Transaction<'_>, host: &str) -> Result<(), StoreError> {
    transaction.execute(
        "UPDATE admissions SET (banks, certificate, ek_certificate, cordon) = \
         (SELECT banks, certificate, ek_certificate, cordon FROM hosts WHERE hosts.host = ?1) \
         WHERE host = ?1 AND ek = (SELECT hosts.ek FROM hosts WHERE hosts.host = ?1)",
        [host],
    )?;
    transaction.execute("DELETE FROM hosts WHERE host = ?1", [host])?;
    transaction.execute("DELETE FROM nonces WHERE host = ?1", [host])?;
    Ok(())
}

/// As many of the reasons as fit, as JSON; the last one says how many did not.
fn bounded(reasons: &[Reason], most: usize) -> Result<String, StoreError> {
    let (mut kept, mut left): (Vec<Reason>, usize) = (Vec::new(), most);
    for reason in reasons {
        let mut reason = reason.clone();
        if kept.is_empty() && to_json("reason", &reason)?.len() > left {
            // One is kept in any case: without any, nothing would say that the evidence was bad.
            reason = Reason { event: None, expected: None, found: None, ..reason };
            reason.text = reason.text.chars().take(200).collect();
        }
        let size = to_json("reason", &reason)?.len().saturating_add(1);
        if size > left && !kept.is_empty() {
            break;
        }
        left = left.saturating_sub(size);
        kept.push(reason);
    }
    let more = reasons.len().saturating_sub(kept.len());
    if more > 0
        && let Some(last) = kept.last_mut()
    {
        last.text = format!("{} (And {more} more reasons.)", last.text);
    }
    to_json("list of reasons", &kept)
}

impl Store {
    /// One host.
    pub fn host(&self, host: &str, now: u64) -> Result<Option<HostRow>, StoreError> {
        self.transact(|transaction| host_in(transaction, host, now))
    }

    /// Every host, by name.
    pub fn hosts(&self, now: u64) -> Result<Vec<HostRow>, StoreError> {
        self.hosts_where("1", params![int(now)])
    }

    /// Records good evidence of an admitted host: it is trusted until `until`. False when the host was judged anew or
    /// lost its admission in between.
    pub fn record_trusted(&self, host: &str, good: &Judgement, until: u64, now: u64) -> Result<bool, StoreError> {
        self.transact(|transaction| {
            let row = host_in(transaction, host, now)?;
            if !row.is_some_and(|row| row.admitted) || !record_in(transaction, host, good, now)? {
                return Ok(false);
            }
            transaction.execute("UPDATE hosts SET trusted_until = ?2 WHERE host = ?1", params![host, int(until)])?;
            Ok(true)
        })
    }

    /// Hosts that a placement looks at: every admitted one, and of those that wait for an operator the first to enrol.
    pub fn hosts_for_placement(&self, now: u64) -> Result<Vec<HostRow>, StoreError> {
        let condition = format!(
            "{ADMITTED} OR host IN (SELECT host FROM hosts WHERE NOT {ADMITTED} \
             ORDER BY enrolled_at, rowid LIMIT ?2)"
        );
        self.hosts_where(&condition, params![int(now), MAX_WAITING_SHOWN])
    }

    fn hosts_where(&self, condition: &str, values: impl rusqlite::Params) -> Result<Vec<HostRow>, StoreError> {
        self.transact(|transaction| {
            let query = format!("SELECT {COLUMNS}, {LIVE} FROM hosts WHERE {condition} ORDER BY host");
            let mut statement = transaction.prepare(&query)?;
            let rows = statement.query_map(values, HostRow::read)?;
            rows.map(|row| HostRow::parse(row?)).collect()
        })
    }

    /// Records bad evidence that the AK `ak_name` signed: the host is untrusted at once, whatever else is judged at the
    /// same time.
    pub fn record_denied(&self, host: &str, ak_name: &str, reasons: &[Reason], now: u64) -> Result<(), StoreError> {
        self.transact(|transaction| {
            let Some(row) = host_in(transaction, host, now)? else { return Ok(()) };
            let reasons = bounded(reasons, if row.admitted { MAX_REASONS } else { MAX_REASONS_WAITING })?;
            transaction.execute(
                "UPDATE hosts SET trusted_until = NULL, attested_at = ?2, reasons = ?3, generation = generation + 1 \
                 WHERE host = ?1 AND ak_name = ?4",
                params![host, int(now), reasons, ak_name],
            )?;
            Ok(())
        })
    }

    /// Closes a host for new work, or opens it again. False when there is none.
    pub fn cordon(&self, host: &str, reason: Option<&str>) -> Result<bool, StoreError> {
        self.transact(|transaction| {
            let changed = transaction.execute("UPDATE hosts SET cordon = ?2 WHERE host = ?1", params![host, reason])?;
            Ok(changed == 1)
        })
    }

    /// Forgets which PCR banks a host had, and with that its trust: the next enrolment pins others. `None` if no such host
    /// is enrolled and nothing is kept of a forgotten one; false if a TPM was admitted under this name and another one is
    /// enrolled under it, for then the operator looked at the wrong banks.
    pub fn forget_banks(&self, host: &str) -> Result<Option<bool>, StoreError> {
        self.transact(|transaction| {
            let is_another: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM hosts JOIN admissions USING (host) \
                 WHERE host = ?1 AND hosts.ek <> admissions.ek)",
                [host],
                |row| row.get(0),
            )?;
            if is_another {
                return Ok(Some(false));
            }
            let changed = transaction.execute(
                "UPDATE hosts SET banks = NULL, trusted_until = NULL, generation = generation + 1 WHERE host = ?1",
                [host],
            )?;
            let kept = transaction
                .execute("UPDATE admissions SET banks = NULL WHERE host = ?1 AND banks IS NOT NULL", [host])?;
            Ok((changed == 1 || kept == 1).then_some(true))
        })
    }

    /// Forgets a host, except for its PCR banks, certificate and cordon while its TPM is admitted under its name. False when it
    /// holds orders; nothing when there is none.
    pub fn remove_host(&self, host: &str, now: u64) -> Result<Option<bool>, StoreError> {
        self.transact(|transaction| {
            let Some(row) = host_in(transaction, host, now)? else { return Ok(None) };
            if row.vms > 0 {
                return Ok(Some(false));
            }
            remove_in(transaction, host)?;
            Ok(Some(true))
        })
    }

    /// Admits one TPM as one host. What was admitted before is not changed: an operator withdraws it first.
    pub fn admit(&self, admission: &AdmissionView) -> Result<Admitted, StoreError> {
        let AdmissionView { ek_fingerprint: ek, host, note, by, at } = admission;
        self.transact(|transaction| {
            let mut statement = transaction.prepare("SELECT ek, host FROM admissions WHERE ek = ?1 OR host = ?2")?;
            let found = statement.query_map(params![ek, host], |row| Ok((row.get(0)?, row.get(1)?)))?;
            for (admitted_ek, admitted_host) in found.collect::<Result<Vec<(String, Option<String>)>, _>>()? {
                match admitted_host {
                    Some(other) if admitted_ek == *ek && host.as_ref() != Some(&other) => {
                        return Ok(Admitted::OtherName(other));
                    }
                    Some(_) if admitted_ek != *ek => return Ok(Admitted::NameTaken(admitted_ek)),
                    _ => {}
                }
            }
            transaction.execute(
                "INSERT INTO admissions (ek, note, admitted_by, admitted_at, host) VALUES (?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT (ek) DO UPDATE SET note = excluded.note, admitted_by = excluded.admitted_by, \
                 admitted_at = excluded.admitted_at, host = excluded.host WHERE host IS NULL",
                params![ek, note, by, int(*at), host],
            )?;
            Ok(Admitted::Yes)
        })
    }

    /// Takes an admission back; its host is untrusted with it. False when there was none.
    pub fn withdraw(&self, ek: &str) -> Result<bool, StoreError> {
        self.transact(|transaction| {
            let gone = transaction.execute("DELETE FROM admissions WHERE ek = ?1", [ek])?;
            transaction
                .execute("UPDATE hosts SET trusted_until = NULL, generation = generation + 1 WHERE ek = ?1", [ek])?;
            Ok(gone == 1)
        })
    }

    /// Every admission.
    pub fn admissions(&self) -> Result<Vec<AdmissionView>, StoreError> {
        self.transact(|transaction| {
            let mut statement =
                transaction.prepare("SELECT ek, note, admitted_by, admitted_at, host FROM admissions ORDER BY ek")?;
            let rows = statement.query_map([], |row| {
                Ok(AdmissionView {
                    ek_fingerprint: row.get(0)?,
                    note: row.get(1)?,
                    by: row.get(2)?,
                    at: uint(row.get(3)?),
                    host: row.get(4)?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

//! Tenants' volumes: a name, an encrypted key, and what a host must have been judged by to get it.

use rusqlite::{OptionalExtension, Transaction, params};

use super::{Store, StoreError, from_json, int, to_json};
use crate::api::{Pins, VolumeView};

/// What became of a deposit.
#[derive(Debug, PartialEq, Eq)]
pub enum VolumePut {
    /// The volume is new.
    New,
    /// There is one of that name, with this encrypted key: nothing was changed.
    There(Vec<u8>),
}

/// A volume's encrypted key and its pins.
#[derive(Debug, PartialEq, Eq)]
pub struct SealedVolume {
    /// The key, encrypted.
    pub sealed_key: Vec<u8>,
    /// What the tenant pinned.
    pub pins: Pins,
}

/// What a tenant pinned of a volume; nothing if there is no such volume.
pub(super) fn pins_in(transaction: &Transaction<'_>, tenant: &str, volume: &str) -> Result<Option<Pins>, StoreError> {
    let found: Option<String> = transaction
        .query_row("SELECT pins FROM volumes WHERE tenant = ?1 AND name = ?2", [tenant, volume], |row| row.get(0))
        .optional()?;
    found.map(|pins| from_json("list of pins", &pins)).transpose()
}

impl Store {
    /// Deposits an encrypted key under a new name, with these pins.
    pub fn put_volume(
        &self,
        tenant: &str,
        name: &str,
        volume: &SealedVolume,
        now: u64,
    ) -> Result<VolumePut, StoreError> {
        let pins = to_json("list of pins", &volume.pins)?;
        self.transact(|transaction| {
            let there = transaction
                .query_row("SELECT sealed_key FROM volumes WHERE tenant = ?1 AND name = ?2", [tenant, name], |row| {
                    row.get(0)
                })
                .optional()?;
            if let Some(sealed) = there {
                return Ok(VolumePut::There(sealed));
            }
            transaction.execute(
                "INSERT INTO volumes (tenant, name, sealed_key, created_at, pins) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![tenant, name, volume.sealed_key, int(now), pins],
            )?;
            Ok(VolumePut::New)
        })
    }

    /// Replaces a volume's pins.
    pub fn pin_volume(&self, tenant: &str, name: &str, pins: &Pins) -> Result<(), StoreError> {
        let pins = to_json("list of pins", pins)?;
        self.transact(|transaction| {
            let query = "UPDATE volumes SET pins = ?3 WHERE tenant = ?1 AND name = ?2";
            transaction.execute(query, params![tenant, name, pins])?;
            Ok(())
        })
    }

    /// What a tenant pinned of a volume; nothing if there is no such volume.
    pub fn pins(&self, tenant: &str, name: &str) -> Result<Option<Pins>, StoreError> {
        self.transact(|transaction| pins_in(transaction, tenant, name))
    }

    /// A tenant's volume.
    pub fn volume(&self, tenant: &str, name: &str) -> Result<Option<SealedVolume>, StoreError> {
        self.transact(|transaction| {
            let found: Option<(Vec<u8>, String)> = transaction
                .query_row(
                    "SELECT sealed_key, pins FROM volumes WHERE tenant = ?1 AND name = ?2",
                    [tenant, name],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )
                .optional()?;
            found
                .map(|(sealed_key, pins)| Ok(SealedVolume { sealed_key, pins: from_json("list of pins", &pins)? }))
                .transpose()
        })
    }

    /// A tenant's volumes, by name.
    pub fn volumes(&self, tenant: &str) -> Result<Vec<VolumeView>, StoreError> {
        self.transact(|transaction| {
            let mut statement = transaction.prepare(
                "SELECT name, (SELECT id FROM orders WHERE orders.tenant = volumes.tenant AND volume = name \
                 AND state IN ('released', 'running')), pins FROM volumes WHERE tenant = ?1 ORDER BY name",
            )?;
            let rows = statement.query_map([tenant], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?)))?;
            rows.map(|row| {
                let (name, held_by, pins) = row?;
                Ok(VolumeView { name, held_by, pins: from_json("list of pins", &pins)? })
            })
            .collect()
        })
    }
}

//! Tenants' volumes: a name and an encrypted key.

use rusqlite::{OptionalExtension, params};

use super::{Store, StoreError, int};
use crate::api::VolumeView;

/// What became of a deposit.
#[derive(Debug, PartialEq, Eq)]
pub enum VolumePut {
    /// The volume is new.
    New,
    /// There is one of that name, with this encrypted key: nothing was changed.
    There(Vec<u8>),
}

impl Store {
    /// Deposits an encrypted key under a new name.
    pub fn put_volume(&self, tenant: &str, name: &str, sealed: &[u8], now: u64) -> Result<VolumePut, StoreError> {
        self.transact(|transaction| {
            let there = transaction
                .query_row("SELECT sealed_key FROM volumes WHERE tenant = ?1 AND name = ?2", [tenant, name], |row| {
                    row.get(0)
                })
                .optional()?;
            if let Some(sealed) = there {
                return Ok(VolumePut::There(sealed));
            }
            transaction
                .execute("INSERT INTO volumes VALUES (?1, ?2, ?3, ?4)", params![tenant, name, sealed, int(now)])?;
            Ok(VolumePut::New)
        })
    }

    /// The encrypted key of a tenant's volume.
    pub fn volume_key(&self, tenant: &str, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.transact(|transaction| {
            Ok(transaction
                .query_row("SELECT sealed_key FROM volumes WHERE tenant = ?1 AND name = ?2", [tenant, name], |row| {
                    row.get(0)
                })
                .optional()?)
        })
    }

    /// A tenant's volumes, by name.
    pub fn volumes(&self, tenant: &str) -> Result<Vec<VolumeView>, StoreError> {
        self.transact(|transaction| {
            let mut statement = transaction.prepare(
                "SELECT name, (SELECT id FROM orders WHERE orders.tenant = volumes.tenant AND volume = name \
                 AND state IN ('released', 'running')) FROM volumes WHERE tenant = ?1 ORDER BY name",
            )?;
            let rows =
                statement.query_map([tenant], |row| Ok(VolumeView { name: row.get(0)?, held_by: row.get(1)? }))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }
}

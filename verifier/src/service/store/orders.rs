//! Launch orders: placed, released, running, ended; each step once.

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::hosts::{host_in, record_in};
use super::volumes::pins_in;
use super::{CLOCK_SLACK, Judgement, Store, StoreError, int, is_of_the_future, uint};
use crate::api::{JudgedHost, OrderState, VmView};
use crate::reason::ServiceCode;
use crate::receipt::Event;

const COLUMNS: &str = "id, host, tenant, volume, vm, boot, jws, state, placed_at, expires_at, detail";

/// An order.
#[derive(Clone, Debug)]
pub struct OrderRow {
    /// Its id.
    pub id: String,
    /// The host it is for.
    pub host: String,
    /// Whose it is.
    pub tenant: String,
    /// The volume to open.
    pub volume: String,
    /// The VM's name.
    pub vm: String,
    /// JSON of the boot it is for.
    pub boot: String,
    /// What was signed.
    pub jws: String,
    /// `placed`, `released`, `running` or `ended`.
    pub state: String,
    /// Seconds since 1970.
    pub placed_at: u64,
    /// Seconds since 1970.
    pub expires_at: u64,
    /// The last receipt's words.
    pub detail: String,
}

/// A signed order to be recorded.
#[derive(Clone, Debug)]
pub struct NewOrder {
    /// The order.
    pub row: OrderRow,
    /// Most VMs on its host.
    pub max_vms: u32,
}

/// What is recorded when a key is released.
#[derive(Clone, Debug)]
pub struct Release {
    /// The order that is consumed.
    pub order: String,
    /// Who gets the key.
    pub host: String,
    /// What the launch evidence was found to be.
    pub judgement: Judgement,
}

/// A receipt that was appraised.
#[derive(Clone, Debug)]
pub struct Receipted {
    /// The order.
    pub order: String,
    /// Who sent it.
    pub host: String,
    /// The generation of the host row that its evidence was judged on.
    pub generation: i64,
    /// What happened.
    pub event: Event,
    /// The receipt's JSON.
    pub receipt: String,
    /// JSON of the quotes that sign it.
    pub quotes: String,
    /// A few words.
    pub detail: String,
}

impl OrderRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            host: row.get(1)?,
            tenant: row.get(2)?,
            volume: row.get(3)?,
            vm: row.get(4)?,
            boot: row.get(5)?,
            jws: row.get(6)?,
            state: row.get(7)?,
            placed_at: uint(row.get(8)?),
            expires_at: uint(row.get(9)?),
            detail: row.get(10)?,
        })
    }

    /// What became of it by `now`.
    pub fn state_at(&self, now: u64) -> OrderState {
        match self.state.as_str() {
            "released" => OrderState::Released,
            "running" => OrderState::Running,
            "ended" => OrderState::Ended,
            _ if self.expires_at <= now || is_of_the_future(self.placed_at, now) => OrderState::Expired,
            _ => OrderState::Placed,
        }
    }

    /// As its tenant sees it.
    pub fn view(&self, now: u64) -> VmView {
        VmView {
            order_id: self.id.clone(),
            name: self.vm.clone(),
            tenant: self.tenant.clone(),
            host: self.host.clone(),
            volume: self.volume.clone(),
            state: self.state_at(now),
            placed_at: self.placed_at,
            detail: self.detail.clone(),
        }
    }
}

fn order_in(transaction: &Transaction<'_>, id: &str) -> Result<Option<OrderRow>, StoreError> {
    let query = format!("SELECT {COLUMNS} FROM orders WHERE id = ?1");
    Ok(transaction.query_row(&query, [id], OrderRow::read).optional()?)
}

/// Whether an order other than `except` may still have the volume open or is about to.
fn is_held(
    transaction: &Transaction<'_>,
    tenant: &str,
    volume: &str,
    except: &str,
    now: u64,
) -> Result<bool, StoreError> {
    Ok(transaction.query_row(
        "SELECT EXISTS (SELECT 1 FROM orders WHERE tenant = ?1 AND volume = ?2 AND id <> ?4 \
         AND (state IN ('released', 'running') OR (state = 'placed' AND expires_at > ?3 AND placed_at <= ?5)))",
        params![tenant, volume, int(now), except, int(now.saturating_add(CLOCK_SLACK))],
        |row| row.get(0),
    )?)
}

impl Store {
    /// One order.
    pub fn order(&self, id: &str) -> Result<Option<OrderRow>, StoreError> {
        self.transact(|transaction| order_in(transaction, id))
    }

    /// A tenant's orders, newest first, at most 1000.
    pub fn orders_of_tenant(&self, tenant: &str) -> Result<Vec<OrderRow>, StoreError> {
        self.transact(|transaction| {
            let query = format!(
                "SELECT {COLUMNS} FROM orders WHERE tenant = ?1 ORDER BY placed_at DESC, rowid DESC LIMIT 1000"
            );
            let mut statement = transaction.prepare(&query)?;
            let rows = statement.query_map([tenant], OrderRow::read)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Orders that wait for this boot of a host, oldest first, at most 64.
    pub fn orders_waiting(&self, host: &str, boot: &str, now: u64) -> Result<Vec<String>, StoreError> {
        self.transact(|transaction| {
            let mut statement = transaction.prepare(
                "SELECT jws FROM orders WHERE host = ?1 AND boot = ?2 AND state = 'placed' AND expires_at > ?3 \
                 ORDER BY placed_at, rowid LIMIT 64",
            )?;
            let rows = statement.query_map(params![host, boot, int(now)], |row| row.get(0))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
    }

    /// Whether the tenant has the volume and nothing holds it.
    pub fn volume_free(&self, tenant: &str, volume: &str, now: u64) -> Result<Option<ServiceCode>, StoreError> {
        self.transact(|transaction| volume_free_in(transaction, tenant, volume, now))
    }

    /// Records a signed order, unless the volume was taken, or the host lost trust, boot or room in between.
    pub fn place(&self, new: &NewOrder, now: u64) -> Result<Option<ServiceCode>, StoreError> {
        self.transact(|transaction| {
            let order = &new.row;
            if let Some(code) = volume_free_in(transaction, &order.tenant, &order.volume, now)? {
                return Ok(Some(code));
            }
            let Some(host) = host_in(transaction, &order.host, now)? else {
                return Ok(Some(ServiceCode::HostUnknown));
            };
            if !host.why_closed(now).is_empty() {
                return Ok(Some(ServiceCode::HostUntrusted));
            }
            if host.boot.as_deref() != Some(order.boot.as_str()) {
                return Ok(Some(ServiceCode::OrderOtherBoot));
            }
            if host.vms >= new.max_vms {
                return Ok(Some(ServiceCode::HostBusy));
            }
            transaction.execute(
                "INSERT INTO orders (id, host, tenant, volume, vm, boot, jws, state, placed_at, expires_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'placed', ?8, ?9)",
                params![
                    order.id,
                    order.host,
                    order.tenant,
                    order.volume,
                    order.vm,
                    order.boot,
                    order.jws,
                    int(order.placed_at),
                    int(order.expires_at)
                ],
            )?;
            Ok(None)
        })
    }

    /// Consumes the order, binds the volume to it, records the release and what was judged: all or nothing. Every
    /// condition is checked here again, because only here nothing else can change it.
    pub fn release(&self, release: &Release, now: u64) -> Result<Option<ServiceCode>, StoreError> {
        self.transact(|transaction| {
            let Some(order) = order_in(transaction, &release.order)? else {
                return Ok(Some(ServiceCode::OrderUnknown));
            };
            let refused = match order.state_at(now) {
                _ if order.host != release.host => Some(ServiceCode::OrderOtherHost),
                OrderState::Placed if order.boot != release.judgement.boot => Some(ServiceCode::OrderOtherBoot),
                OrderState::Placed => None,
                OrderState::Expired => Some(ServiceCode::OrderExpired),
                OrderState::Released | OrderState::Running | OrderState::Ended => Some(ServiceCode::OrderUsed),
            };
            if refused.is_some() {
                return Ok(refused);
            }
            if is_held(transaction, &order.tenant, &order.volume, &order.id, now)? {
                return Ok(Some(ServiceCode::VolumeBusy));
            }
            let Some(pins) = pins_in(transaction, &order.tenant, &order.volume)? else {
                return Ok(Some(ServiceCode::VolumeUnknown));
            };
            let host = host_in(transaction, &release.host, now)?;
            let Some(host) = host else { return Ok(Some(ServiceCode::HostUnknown)) };
            let Judgement { policy_sha256, reference_signer, .. } = &release.judgement;
            let judged = JudgedHost { ek: &host.ek, policy_sha256, reference_signer: reference_signer.as_deref() };
            if let Some(code) = pins.refuse(&judged).first() {
                return Ok(Some(*code));
            }
            if !host.why_untrusted(now).is_empty() {
                return Ok(Some(ServiceCode::HostUntrusted));
            }
            if host.tls_spki != Some(release.judgement.tls_spki) {
                return Ok(Some(ServiceCode::HostOtherKey));
            }
            if !record_in(transaction, &release.host, &release.judgement, now)? {
                return Ok(Some(ServiceCode::HostConcurrent));
            }
            transaction.execute("UPDATE orders SET state = 'released' WHERE id = ?1", [&order.id])?;
            transaction.execute(
                "INSERT INTO releases VALUES (?1, ?2, ?3, ?4)",
                params![order.id, release.judgement.boot, release.judgement.tls_spki, int(now)],
            )?;
            Ok(None)
        })
    }

    /// Ends an order that holds its volume, on an operator's word.
    pub fn fence(&self, id: &str, detail: &str) -> Result<Option<ServiceCode>, StoreError> {
        self.transact(|transaction| {
            if order_in(transaction, id)?.is_none() {
                return Ok(Some(ServiceCode::OrderUnknown));
            }
            let ended = transaction.execute(
                "UPDATE orders SET state = 'ended', detail = ?2 WHERE id = ?1 AND state IN ('released', 'running')",
                params![id, detail],
            )?;
            Ok((ended == 0).then_some(ServiceCode::ReceiptOutOfOrder))
        })
    }

    /// Records a receipt and the order's new state. The same receipt again changes nothing; another one of the same event,
    /// or any after the order has ended, by a receipt or by a fence, is refused. That the sender is still the host that was
    /// judged is checked here again, because only here nothing else can change it.
    pub fn record_receipt(&self, receipt: &Receipted, now: u64) -> Result<Option<ServiceCode>, StoreError> {
        self.transact(|transaction| {
            let Some(order) = order_in(transaction, &receipt.order)? else {
                return Ok(Some(ServiceCode::OrderUnknown));
            };
            if order.host != receipt.host {
                return Ok(Some(ServiceCode::ReceiptMismatch));
            }
            match host_in(transaction, &receipt.host, now)? {
                None => return Ok(Some(ServiceCode::HostUnknown)),
                Some(host) if !host.admitted => return Ok(Some(ServiceCode::NotAdmitted)),
                Some(host) if host.generation != receipt.generation => return Ok(Some(ServiceCode::HostConcurrent)),
                Some(_) => {}
            }
            let (event, next) = match receipt.event {
                Event::Started => ("started", "running"),
                Event::Ended => ("ended", "ended"),
            };
            let recorded: Option<String> = transaction
                .query_row(
                    "SELECT receipt FROM receipts WHERE order_id = ?1 AND event = ?2",
                    [&order.id, event],
                    |row| row.get(0),
                )
                .optional()?;
            if order.state == next && recorded.as_ref() == Some(&receipt.receipt) {
                return Ok(None);
            }
            let follows = match receipt.event {
                Event::Started => order.state == "released",
                Event::Ended => matches!(order.state.as_str(), "released" | "running"),
            };
            if !follows {
                return Ok(Some(ServiceCode::ReceiptOutOfOrder));
            }
            transaction.execute(
                "INSERT INTO receipts VALUES (?1, ?2, ?3, ?4, ?5)",
                params![order.id, event, receipt.receipt, receipt.quotes, int(now)],
            )?;
            transaction.execute(
                "UPDATE orders SET state = ?2, detail = ?3 WHERE id = ?1",
                params![order.id, next, receipt.detail],
            )?;
            Ok(None)
        })
    }
}

fn volume_free_in(
    transaction: &Transaction<'_>,
    tenant: &str,
    volume: &str,
    now: u64,
) -> Result<Option<ServiceCode>, StoreError> {
    let there: bool = transaction.query_row(
        "SELECT EXISTS (SELECT 1 FROM volumes WHERE tenant = ?1 AND name = ?2)",
        [tenant, volume],
        |row| row.get(0),
    )?;
    if !there {
        return Ok(Some(ServiceCode::VolumeUnknown));
    }
    Ok(is_held(transaction, tenant, volume, "", now)?.then_some(ServiceCode::VolumeBusy))
}

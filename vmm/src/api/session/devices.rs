//! Devices: put together before the start, changed after it.

use serde::Deserialize;

use super::{Answer, Session, object, same_name};
use crate::api::fault::Fault;
use crate::api::http::Response;
use crate::config::{BalloonConfig, DriveConfig, NetworkInterface, NetworkInterfaceUpdate, VmConfig};
use crate::devices::balloon::{Balloon, BalloonError};
use crate::devices::block::{Block, Disk, DriveUpdate};
use crate::devices::net::Net;
use crate::rate_limiter::RateLimiterConfig;

/// `PATCH /balloon`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BalloonPatch {
    amount_mib: u32,
}

/// `PATCH /balloon/statistics`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BalloonStatisticsPatch {
    stats_polling_interval_s: u16,
}

/// Puts `new` into the place of the one that is `same`, or at the end.
fn put<T>(all: &mut Vec<T>, new: T, same: impl Fn(&T) -> bool) {
    match all.iter_mut().find(|old| same(old)) {
        Some(old) => *old = new,
        None => all.push(new),
    }
}

/// Takes over the buckets that `new` names.
fn merge_limits(old: &mut Option<RateLimiterConfig>, new: Option<RateLimiterConfig>) {
    let Some(new) = new else {
        return;
    };
    let merged = old.get_or_insert_default();
    merged.bandwidth = new.bandwidth.or(merged.bandwidth);
    merged.ops = new.ops.or(merged.ops);
}

impl Session {
    pub(super) fn put_drive(&mut self, name: &str, body: &[u8]) -> Answer {
        let drive: DriveConfig = object(body)?;
        same_name(name, &drive.drive_id)?;
        let named = drive.clone();
        let set = |config: &mut VmConfig| put(&mut config.drives, drive, |old| old.drive_id == name);
        self.put_of_host(set, move || Ok(Disk::open(&named)?))
    }

    pub(super) fn patch_drive(&mut self, name: &str, body: &[u8]) -> Answer {
        let update: DriveUpdate = object(body)?;
        same_name(name, &update.drive_id)?;
        self.after_start()?;
        if update.path_on_host.is_none() && update.rate_limiter.is_none() {
            return Err(Fault::new("nothing is to change: give path_on_host or rate_limiter"));
        }
        let old = self.config.drives.iter().find(|drive| drive.drive_id == name);
        let mut new = old.cloned().ok_or_else(|| Fault::new(format!("the VM has no drive {name}")))?;
        new.path_on_host = update.path_on_host.clone().unwrap_or(new.path_on_host);
        merge_limits(&mut new.rate_limiter, update.rate_limiter);
        new.check()?;
        // Opened here: the main thread can open no files any more.
        let disk = update.path_on_host.map(|_| Disk::open(&new)).transpose();
        let disk = disk.map_err(|error| Fault::new(error.to_string()))?;
        let limits = update.rate_limiter;
        self.controller.device(&format!("drive {name}"), move |block: &mut Block, _| {
            let changed = disk.is_some();
            let result = disk.map_or(Ok(()), |disk| block.replace(disk));
            if let (Ok(()), Some(limits)) = (&result, &limits) {
                block.limit(limits);
            }
            (result, changed)
        })?;
        put(&mut self.config.drives, new, |old| old.drive_id == name);
        Ok(Response::done())
    }

    pub(super) fn put_network_interface(&mut self, name: &str, body: &[u8]) -> Answer {
        let interface: NetworkInterface = object(body)?;
        same_name(name, &interface.iface_id)?;
        let named = interface.clone();
        let set = |config: &mut VmConfig| put(&mut config.network_interfaces, interface, |old| old.iface_id == name);
        self.put_of_host(set, move || Ok(Net::open(&named, None)?))
    }

    pub(super) fn patch_network_interface(&mut self, name: &str, body: &[u8]) -> Answer {
        let update: NetworkInterfaceUpdate = object(body)?;
        same_name(name, &update.iface_id)?;
        update.check()?;
        self.after_start()?;
        let (rx, tx) = (update.rx_rate_limiter, update.tx_rate_limiter);
        self.controller.device(&Net::name_of(name), move |net: &mut Net, _| {
            net.update(&update);
            (Ok(()), false)
        })?;
        if let Some(card) = self.config.network_interfaces.iter_mut().find(|card| card.iface_id == name) {
            merge_limits(&mut card.rx_rate_limiter, rx);
            merge_limits(&mut card.tx_rate_limiter, tx);
        }
        Ok(Response::done())
    }

    pub(super) fn balloon(&self) -> Answer {
        let balloon = self.config.balloon.as_ref().ok_or_else(no_balloon)?;
        Ok(Response::json(balloon))
    }

    pub(super) fn patch_balloon(&mut self, body: &[u8]) -> Answer {
        let BalloonPatch { amount_mib } = object(body)?;
        self.with_balloon(true, move |balloon| balloon.set_target(amount_mib))?;
        self.keep_balloon(|config| config.amount_mib = amount_mib);
        Ok(Response::done())
    }

    pub(super) fn balloon_statistics(&self) -> Answer {
        let statistics = self.with_balloon(false, |balloon| balloon.statistics())?;
        Ok(Response::json(&statistics))
    }

    pub(super) fn patch_balloon_statistics(&mut self, body: &[u8]) -> Answer {
        let BalloonStatisticsPatch { stats_polling_interval_s: interval } = object(body)?;
        self.with_balloon(false, move |balloon| balloon.set_polling(interval))?;
        self.keep_balloon(|config| config.stats_polling_interval_s = interval);
        Ok(Response::done())
    }

    /// Does `work` with the balloon of the running VM. The driver is told when that `changes` its configuration.
    fn with_balloon<T: Send + 'static>(
        &self,
        changes: bool,
        work: impl FnOnce(&mut Balloon) -> Result<T, BalloonError> + Send + 'static,
    ) -> Result<T, Fault> {
        self.after_start()?;
        if self.config.balloon.is_none() {
            return Err(no_balloon());
        }
        let result = self.controller.device("balloon", move |balloon: &mut Balloon, _| {
            let result = work(balloon).map_err(|error| error.to_string());
            let tell = changes && result.is_ok();
            (result, tell)
        });
        Ok(result?)
    }

    fn keep_balloon(&mut self, change: impl FnOnce(&mut BalloonConfig)) {
        if let Some(config) = &mut self.config.balloon {
            change(config);
        }
    }
}

fn no_balloon() -> Fault {
    Fault::new("the VM has no balloon")
}

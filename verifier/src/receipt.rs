//! Receipts: what a host says became of a launch order. A host signs one by quoting it (purpose `receipt`), so the
//! JSON itself carries no signature; `schemas/receipt-1.json` describes it.

use serde::{Deserialize, Serialize};

use crate::name;
use crate::order::is_hex;

/// The schema that every receipt names.
pub const SCHEMA: &str = "portcullis/receipt/1";
/// Longest receipt, in bytes of JSON.
pub const MAX_RECEIPT_BYTES: usize = 16 * 1024;

/// What happened.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// The VM was started.
    Started,
    /// The VM is gone, its memory and the volume's key with it: the volume may be opened elsewhere.
    Ended,
}

/// A receipt.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// [`SCHEMA`].
    pub schema: String,
    /// The order's id, 32 lower-case hex digits.
    pub order: String,
    /// The host that writes it.
    pub host: String,
    /// The VM's name in the order.
    pub vm: String,
    /// What happened.
    pub event: Event,
    /// A few words for a person, at most 4096 bytes: "exit status 0", "guest reset".
    pub detail: String,
}

/// Why a receipt cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// Not the JSON of a receipt.
    #[error("the receipt is not the JSON of a receipt: {0}")]
    Malformed(String),
    /// A field has a value that it cannot have.
    #[error("the receipt's {0} is no good")]
    Field(&'static str),
}

impl Receipt {
    /// Parses and checks a receipt's JSON. Unknown and repeated fields are refused.
    pub fn parse(json: &str) -> Result<Self, ReceiptError> {
        if json.len() > MAX_RECEIPT_BYTES {
            return Err(ReceiptError::Malformed(format!("longer than {MAX_RECEIPT_BYTES} bytes")));
        }
        let receipt: Self = serde_json::from_str(json).map_err(|e| ReceiptError::Malformed(e.to_string()))?;
        if receipt.schema != SCHEMA {
            return Err(ReceiptError::Field("schema"));
        }
        if !is_hex(&receipt.order, 32) {
            return Err(ReceiptError::Field("order"));
        }
        name::check("host", &receipt.host).map_err(|_| ReceiptError::Field("host"))?;
        name::check("vm", &receipt.vm).map_err(|_| ReceiptError::Field("vm"))?;
        if receipt.detail.len() > 4096 {
            return Err(ReceiptError::Field("detail"));
        }
        Ok(receipt)
    }
}

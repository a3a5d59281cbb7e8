//! Receipts: what the host swears became of an order. The TPM quotes over each (purpose `receipt`).

use portcullis_attest::binding::Purpose;
use portcullis_verifier::api::ReceiptRequest;
use portcullis_verifier::client::{Client, ClientError};
use portcullis_verifier::reason::{Code, ServiceCode};
use portcullis_verifier::receipt::{Event, Receipt, SCHEMA};
use sha2::{Digest, Sha256};

use crate::prover::{Party, Prover, ProverError};
use crate::vm_record::{VmRecord, VmStatus};

/// Most bytes of a receipt's detail.
const MAX_DETAIL: usize = 4096;

/// Sends the receipt that a VM runs.
pub fn started(prover: &mut Prover, client: &Client, party: &Party, status: &VmStatus) -> Result<(), ProverError> {
    let boot = status.boot_ms.map_or_else(|| "no boot mark yet".to_owned(), |ms| format!("booted in {ms} ms"));
    let kernel = status.kernel.as_ref().map_or_else(String::new, |kernel| format!(", kernel {kernel}"));
    send(prover, client, party, status, Event::Started, format!("{boot}{kernel}"))
}

/// Sends the receipt that a VM is gone and its volume closed; the record then owes none.
///
/// An answer that no repetition will change also settles the debt: the verifier knows the order as ended, or not at all.
pub fn ended(prover: &mut Prover, client: &Client, party: &Party, record: &mut VmRecord) -> Result<(), ProverError> {
    let detail = record.status.reason.clone().unwrap_or_else(|| "ended".to_owned());
    match send(prover, client, party, &record.status, Event::Ended, detail) {
        Err(ProverError::Client(ClientError::Denied { reasons }))
            if reasons.iter().all(|reason| is_final(&reason.code)) =>
        {
            let order = &record.status.order;
            tracing::warn!(order, ?reasons, "the verifier does not want this receipt; it is not sent again");
        }
        other => other?,
    }
    record.status.receipt_owed = false;
    record.save_or_warn();
    Ok(())
}

fn is_final(code: &Code) -> bool {
    use ServiceCode::{
        OrderOtherHost, OrderOtherTpm, OrderUnknown, ReceiptMalformed, ReceiptMismatch, ReceiptOutOfOrder,
    };
    matches!(
        code,
        Code::Service(
            OrderUnknown | OrderOtherHost | OrderOtherTpm | ReceiptMalformed | ReceiptMismatch | ReceiptOutOfOrder
        )
    )
}

fn send(
    prover: &mut Prover,
    client: &Client,
    party: &Party,
    status: &VmStatus,
    event: Event,
    mut detail: String,
) -> Result<(), ProverError> {
    while detail.len() > MAX_DETAIL {
        detail.pop();
    }
    let receipt = Receipt {
        schema: SCHEMA.to_owned(),
        order: status.order.clone(),
        host: party.host.clone(),
        vm: status.name.clone(),
        event,
        detail,
    };
    let json = serde_json::to_string(&receipt).map_err(|error| ClientError::Setup(error.to_string()))?;
    let (evidence, _) = prover.answer(client, party, Purpose::Receipt, Sha256::digest(json.as_bytes()).into())?;
    client.receipt(&status.order, &ReceiptRequest { host: party.host.clone(), receipt: json, evidence })?;
    Ok(())
}

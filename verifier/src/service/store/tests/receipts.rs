//! Receipts: each once, in order, of the host and the enrolment that the order is for.

use super::*;
use crate::receipt::Event;

fn receipt(order: &str, event: Event, text: &str) -> Receipted {
    Receipted {
        order: order.into(),
        host: "h1".into(),
        generation: 1,
        event,
        receipt: text.into(),
        quotes: "[]".into(),
        detail: text.into(),
    }
}

#[test]
fn n104_an_order_that_ended_takes_no_further_receipt() {
    let (_dir, store) = placed();
    let id = "v".repeat(32);
    let send = |event, text: &str| store.record_receipt(&receipt(&id, event, text), 2).unwrap();
    let told = || {
        let order = store.order(&id).unwrap().unwrap();
        (order.state, order.detail)
    };
    let out_of_order = Some(ServiceCode::ReceiptOutOfOrder);
    assert_eq!(store.release(&release(&id, 0), 1).unwrap(), None);
    // The same again is the answer that got lost; another one is none.
    for (event, text, other, state) in
        [(Event::Started, "up", "up again", "running"), (Event::Ended, "down", "down again", "ended")]
    {
        assert_eq!(send(event, text), None);
        assert_eq!(send(event, text), None);
        assert_eq!(send(event, other), out_of_order);
        assert_eq!(told(), (state.to_owned(), text.to_owned()));
    }
    assert_eq!((send(Event::Started, "up"), send(Event::Started, "later")), (out_of_order, out_of_order));
    assert_eq!(told(), ("ended".to_owned(), "down".to_owned()));
}

#[test]
fn n104_after_a_fence_no_receipt_and_no_release_counts() {
    let (_dir, store) = placed();
    let (id, other) = ("v".repeat(32), "w".repeat(32));
    assert_eq!(store.release(&release(&id, 0), 1).unwrap(), None);
    assert_eq!(store.release(&release(&other, 1), 1).unwrap(), None);
    let send = |id: &str, event, generation| {
        store.record_receipt(&Receipted { generation, ..receipt(id, event, "x") }, 2).unwrap()
    };
    assert_eq!(send(&id, Event::Started, 2), None);
    assert_eq!(store.fence(&id, "power off").unwrap(), None);
    for event in [Event::Started, Event::Ended] {
        assert_eq!(send(&id, event, 2), Some(ServiceCode::ReceiptOutOfOrder), "{event:?}");
    }
    assert_eq!(store.release(&release(&id, 2), 2).unwrap(), Some(ServiceCode::OrderUsed));
    let order = store.order(&id).unwrap().unwrap();
    assert_eq!((order.state.as_str(), order.detail.as_str()), ("ended", "power off"));
    assert_eq!(store.fence(&id, "again").unwrap(), Some(ServiceCode::ReceiptOutOfOrder));
    // The order that was not fenced goes on.
    assert_eq!(send(&other, Event::Started, 2), None);
}

#[test]
fn n104_a_receipt_is_of_the_host_that_was_judged() {
    let refused = |change: &str, sent: &Receipted, expected: ServiceCode| {
        let (_dir, store) = placed();
        let id = "v".repeat(32);
        assert_eq!(store.release(&release(&id, 0), 1).unwrap(), None);
        store.transact(|t| -> Result<(), StoreError> { Ok(t.execute_batch(change)?) }).unwrap();
        assert_eq!(store.record_receipt(sent, 2).unwrap(), Some(expected), "{change}");
        assert_eq!(state(&store, &id), "released");
    };
    let good = receipt(&"v".repeat(32), Event::Ended, "x");
    refused("DELETE FROM admissions", &good, ServiceCode::NotAdmitted);
    refused("UPDATE admissions SET host = 'h2'", &good, ServiceCode::NotAdmitted);
    refused("UPDATE hosts SET generation = generation + 1", &good, ServiceCode::HostConcurrent);
    refused("DELETE FROM hosts", &good, ServiceCode::HostUnknown);
    refused("", &Receipted { host: "h2".into(), ..good.clone() }, ServiceCode::ReceiptMismatch);
    refused("", &Receipted { order: "x".repeat(32), ..good }, ServiceCode::OrderUnknown);
}

#[test]
fn n104_what_was_judged_before_a_host_was_forgotten_is_not_of_the_one_that_enrolled_anew() {
    let (_dir, store) = store();
    let host = enrolment("h", EK);
    admit(&store, EK, "h");
    assert_eq!(store.enrol(&host, &banks(), 1).unwrap(), []);
    let before = judged(&store.host("h", 1).unwrap().unwrap());
    assert_eq!(store.remove_host("h", 1).unwrap(), Some(true));
    assert_eq!(store.enrol(&host, &banks(), 1).unwrap(), []);
    assert!(!store.record_trusted("h", &before, 500, 1).unwrap());
    let now = judged(&store.host("h", 1).unwrap().unwrap());
    assert!(store.record_trusted("h", &now, 500, 1).unwrap());
}

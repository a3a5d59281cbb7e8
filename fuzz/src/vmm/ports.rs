//! The old devices, behind ports and in the memory-mapped hole: the serial line, the keyboard controller, power
//! management, the I/O APIC, and the boot timer.

use std::collections::BTreeSet;
use std::sync::Arc;

use portcullis_vmm::devices::acpi_power::{self, AcpiPower};
use portcullis_vmm::devices::boot_timer;
use portcullis_vmm::devices::i8042::{self, I8042};
use portcullis_vmm::devices::ioapic::{self, Ioapic, Message, Messages, Pin};
use portcullis_vmm::devices::serial::{self, Serial};
use portcullis_vmm::devices::{Action, Bus};
use portcullis_vmm::log::MarkSource;
use portcullis_vmm::memory::layout;
use vmm_sys_util::eventfd::EventFd;

use super::Target;
use super::input::Input;

/// Any accesses of a guest, and what the host does with them.
pub const PORTS: Target = Target { name: "ports", body: ports, max_len: 512, seeds: |_| seeds() };

/// Accesses, and host's turns, at most.
const MAX_STEPS: usize = 256;
/// Bytes that wait for the guest on its line, at most.
const MAX_INPUT: usize = 64;
/// Bytes that the guest has written and nobody has taken, at most.
const MAX_OUTPUT: usize = 0x1_0000;
/// Bytes of one string instruction: a page.
const LONGEST: u16 = 4096;
/// Lines of the I/O APIC.
const LINES: u8 = 6;

struct Machine {
    bus: Bus,
    serial: Arc<Serial>,
    keyboard: Arc<I8042>,
    power: Arc<AcpiPower>,
    ioapic: Arc<Ioapic>,
    /// Marks that were made, those of booting as one.
    marks: BTreeSet<(bool, u8)>,
    /// What was passed on of the serial line, before each restore too.
    passed: u64,
}

/// The local APICs: no message is for anyone else.
struct LocalApics;

impl Messages for LocalApics {
    fn send(&self, message: Message) {
        assert!(message.address >> 20 == 0xfee && message.data <= 0x7ff, "{message:x?}");
    }
}

fn ports(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let mut machine = Machine::new();
    let mut ended = false;
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        ended |= machine.step(&mut input);
    }
    ended
}

impl Machine {
    fn new() -> Self {
        let ioapic = Arc::new(Ioapic::new(LINES, Arc::new(LocalApics)));
        let line = |number| Pin::new(Arc::clone(&ioapic), number);
        let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK).expect("an event counter"));
        let serial = Arc::new(Serial::new(line(serial::IRQ), wake));
        let (keyboard, power) = (Arc::new(I8042::new(line(i8042::IRQ))), Arc::new(AcpiPower::default()));
        let mut bus = Bus::default();
        bus.attach(u64::from(serial::PORT), u64::from(serial::PORTS), serial.clone());
        bus.attach(u64::from(i8042::PORT), i8042::PORTS, keyboard.clone());
        bus.attach(u64::from(acpi_power::CONTROL_PORT), acpi_power::PORTS, power.clone());
        bus.attach(u64::from(boot_timer::PORT), 1, Arc::new(boot_timer::Port::default()));
        bus.attach(boot_timer::MMIO, boot_timer::MMIO_LEN, Arc::new(boot_timer::Register::default()));
        bus.attach(u64::from(layout::IOAPIC), ioapic::LEN, ioapic.clone());
        Self { bus, serial, keyboard, power, ioapic, marks: BTreeSet::new(), passed: 0 }
    }

    /// One operation; gives whether the guest has ended its VM.
    fn step(&mut self, input: &mut Input<'_>) -> bool {
        let places = [
            u64::from(serial::PORT),
            u64::from(i8042::PORT),
            u64::from(acpi_power::CONTROL_PORT),
            u64::from(boot_timer::PORT),
            boot_timer::MMIO,
            u64::from(layout::IOAPIC),
        ];
        match input.u8() % 8 {
            0..=2 => {
                let at = places[input.below(0..places.len())] + u64::from(input.u8() % 16);
                let len = input.below(1..9);
                return self.write(at, input.bytes(len));
            }
            3 => return self.write(u64::from(serial::PORT), &vec![input.u8(); usize::from(input.u16() % LONGEST) + 1]),
            4 => {
                let at = places[input.below(0..places.len())] + u64::from(input.u8() % 16);
                self.bus.read(at, &mut vec![0xff; input.below(0..17)]);
            }
            5 => self.host_reads(input),
            6 => self.host_writes(input),
            _ => self.save_and_restore(),
        }
        false
    }

    fn write(&mut self, at: u64, data: &[u8]) -> bool {
        let before = self.serial.counters();
        let action = self.bus.write(at, data);
        let after = self.serial.counters();
        assert!(after.lost - before.lost <= data.len() as u64 && after.passed == before.passed);
        // SLP_EN and the type of S5.
        let off = at == u64::from(acpi_power::CONTROL_PORT) && data.first().is_some_and(|byte| byte & 0x3c == 0x34);
        assert_eq!(action == Some(Action::PowerOff), off, "{data:x?} at {at:#x}");
        let keyboard = [u64::from(i8042::PORT), u64::from(i8042::COMMAND_PORT)].contains(&at);
        assert!(action != Some(Action::Reset) || keyboard && data[0] & 1 == 0, "{data:x?} at {at:#x}");
        if let Some(Action::Mark(source, value)) = action {
            let value = if boot_timer::is_boot(source, value) { boot_timer::BOOTED } else { value };
            let new = self.marks.insert((source == MarkSource::Mmio, value));
            assert!(new, "{value} was marked twice: marks flood the log");
        }
        matches!(action, Some(Action::PowerOff | Action::Reset))
    }

    fn host_reads(&mut self, input: &mut Input<'_>) {
        let mut bytes = vec![0; MAX_OUTPUT + 1];
        assert!(self.serial.take_output(&mut bytes) <= MAX_OUTPUT, "the line's output has no bounds");
        bytes.truncate(usize::from(input.u16()));
        let count = self.serial.take_output(&mut bytes);
        assert_eq!(count > 0, self.serial.has_output() && !bytes.is_empty());
        self.serial.output_done(count, true);
        self.passed += count as u64;
        assert_eq!(self.serial.counters().passed, self.passed);
    }

    fn host_writes(&mut self, input: &mut Input<'_>) {
        let len = input.below(0..128);
        let room = self.serial.input_room();
        let bytes = input.bytes(len);
        assert!(room <= MAX_INPUT && self.serial.give_input(bytes) == room.min(bytes.len()));
        let _ = self.keyboard.press_ctrl_alt_del();
    }

    fn save_and_restore(&mut self) {
        let (line, keyboard, power) = (self.serial.save(), self.keyboard.save(), self.power.save());
        let ioapic = self.ioapic.save();
        let bytes = postcard::to_stdvec(&(&line, &keyboard, &power, &ioapic)).expect("it can be written");
        let read: (serial::State, i8042::Controller, acpi_power::State, ioapic::State) =
            postcard::from_bytes(&bytes).expect("what was written");
        let new = Self::new();
        new.serial.restore(read.0);
        new.keyboard.restore(read.1);
        new.power.restore(read.2);
        new.ioapic.restore(&read.3).expect("as many lines");
        assert_eq!((new.keyboard.save(), new.power.save(), new.ioapic.save()), (keyboard, power, ioapic));
        *self = new;
    }
}

/// A guest that prints, reads its keyboard, sets its marks, and ends.
fn seeds() -> Vec<Vec<u8>> {
    let write = |place: u8, offset: u8, data: &[u8]| {
        [&[0, place, offset, u8::try_from(data.len() - 1).expect("a few")], data].concat()
    };
    let read = |place: u8, offset: u8| vec![4, place, offset, 1];
    let begin = [
        write(0, 1, &[3]),
        write(0, 0, b"hello"),
        read(0, 5),
        vec![5, 0, 1],
        vec![6, 3, 1, 2, 3],
        read(0, 0),
        read(1, 4),
        read(1, 0),
        write(3, 0, &[123]),
        write(4, 0, &[123]),
        // The serial line's pin: vector 0x49, and an edge.
        write(5, 0, &[0x18]),
        write(5, 0x10, &[0x49, 0, 0, 0]),
        write(0, 1, &[2]),
        vec![7],
        read(5, 0x10),
        read(2, 2),
    ]
    .concat();
    let ends = [write(2, 0, &[0x34]), write(1, 4, &[0xfe]), [write(1, 4, &[0xd1]), write(1, 0, &[0xde])].concat()];
    let flood = [3, b'x', 0xff, 0x0f].repeat(17);
    let flood = [flood.as_slice(), &read(0, 5), &[5, 0, 0x40], &read(0, 2), &write(2, 0, &[0x34])].concat();
    ends.iter().map(|end| [begin.as_slice(), end].concat()).chain([flood]).collect()
}

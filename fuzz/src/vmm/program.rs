//! Programs of well-behaved drivers, in the bytes that [`guest`](super::guest) reads.

/// A program.
#[derive(Default)]
pub struct Program(Vec<u8>);

/// One part of a chain.
#[derive(Clone, Copy)]
pub struct Part {
    address: u16,
    len: u16,
    writable: bool,
}

impl Part {
    /// For the device to read.
    pub fn read(address: u16, len: u16) -> Self {
        Self { address, len, writable: false }
    }

    /// For the device to write.
    pub fn write(address: u16, len: u16) -> Self {
        Self { address, len, writable: true }
    }
}

impl Program {
    /// One that does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Its bytes.
    pub fn bytes(self) -> Vec<u8> {
        self.0
    }

    fn then(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// Starts the device, with these of its features and queues of 2 to the power of `exponent` entries.
    pub fn start(self, features: u32, exponent: u8) -> Self {
        self.then(&[0]).then(&features.to_le_bytes()).then(&[exponent])
    }

    /// Puts a chain into a queue.
    pub fn offer(self, queue: u8, parts: &[Part]) -> Self {
        let count = u8::try_from(parts.len() - 1).expect("a few");
        let writable = parts.iter().rev().fold(0, |mask, part| mask << 1 | u8::from(part.writable));
        let program = self.then(&[2, queue | count << 2, writable]);
        parts.iter().fold(program, |program, part| {
            program.then(&part.address.to_le_bytes()).then(&[254]).then(&part.len.to_le_bytes())
        })
    }

    /// Tells the device of it.
    pub fn notify(self, queue: u8) -> Self {
        self.then(&[4, queue])
    }

    /// Lets the device have a turn.
    pub fn serve(self) -> Self {
        self.then(&[5])
    }

    /// Writes memory.
    pub fn poke(self, at: u16, bytes: &[u8]) -> Self {
        bytes.chunks(63).zip((at..).step_by(63)).fold(self, |program, (part, at)| {
            let len = u8::try_from(part.len()).expect("a byte");
            program.then(&[7]).then(&at.to_le_bytes()).then(&[len]).then(part)
        })
    }

    /// Goes on in another process.
    pub fn save_and_restore(self) -> Self {
        self.then(&[12])
    }

    /// Something happens on the host's side.
    pub fn act(self, bytes: &[u8]) -> Self {
        self.then(&[14]).then(bytes)
    }
}

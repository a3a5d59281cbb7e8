//! A very small assembler, and the ELF file around its output.

/// Where guests are loaded and entered.
pub const BASE: u64 = 0x10_0000;
/// A byte of memory for the guest's own use.
pub const SCRATCH: u32 = 0x600;

const SERIAL: u16 = 0x3f8;

/// Machine code of a guest. The same bytes run in 64-bit and in 32-bit mode.
#[derive(Clone, Default)]
pub struct Guest {
    code: Vec<u8>,
}

impl Guest {
    pub fn new() -> Self {
        Self::default()
    }

    /// Any bytes.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.code.extend(bytes);
        self
    }

    /// What another guest does.
    pub fn then(self, other: &Self) -> Self {
        self.raw(&other.code)
    }

    /// `mov dx, port`
    fn port(self, port: u16) -> Self {
        self.raw(&[0x66, 0xba]).raw(&port.to_le_bytes())
    }

    /// `out dx, al` with the byte.
    pub fn out8(self, port: u16, value: u8) -> Self {
        self.port(port).raw(&[0xb0, value, 0xee])
    }

    /// `out dx, ax` with the word.
    pub fn out16(self, port: u16, value: u16) -> Self {
        self.port(port).raw(&[0x66, 0xb8]).raw(&value.to_le_bytes()).raw(&[0x66, 0xef])
    }

    /// `in al, dx`
    pub fn in8(self, port: u16) -> Self {
        self.port(port).raw(&[0xec])
    }

    /// Writes text to the serial line, not asking whether it is ready.
    pub fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |guest, byte| guest.out8(SERIAL, byte))
    }

    /// Prints `text` only if AL is `value`.
    pub fn print_if_al(self, value: u8, text: &str) -> Self {
        let body = Guest::new().print(text).code;
        // cmp al, value; jne over the body
        self.raw(&[0x3c, value, 0x0f, 0x85]).raw(&u32::try_from(body.len()).unwrap().to_le_bytes()).raw(&body)
    }

    /// `mov edi, address`
    pub fn edi(self, address: u32) -> Self {
        self.raw(&[0xbf]).raw(&address.to_le_bytes())
    }

    /// Writes a byte to memory.
    pub fn store8(self, address: u32, value: u8) -> Self {
        self.edi(address).raw(&[0xc6, 0x07, value])
    }

    /// Writes a double word to memory.
    pub fn store32(self, address: u32, value: u32) -> Self {
        self.edi(address).raw(&[0xc7, 0x07]).raw(&value.to_le_bytes())
    }

    /// Reads a byte of memory into AL.
    pub fn load8(self, address: u32) -> Self {
        self.edi(address).raw(&[0x8a, 0x07])
    }

    /// Writes a word to memory.
    pub fn store16(self, address: u32, value: u16) -> Self {
        self.edi(address).raw(&[0x66, 0xc7, 0x07]).raw(&value.to_le_bytes())
    }

    /// Writes a quad word to memory, as two double words.
    pub fn store64(self, address: u32, value: u64) -> Self {
        let half = |shift: u32| u32::try_from((value >> shift) & 0xffff_ffff).unwrap();
        self.store32(address, half(0)).store32(address + 4, half(32))
    }

    /// Copies a double word from one address to another; either may be a device's register.
    pub fn copy32(self, from: u32, to: u32) -> Self {
        self.edi(from).raw(&[0x8b, 0x07]).edi(to).raw(&[0x89, 0x07])
    }

    /// Waits until the word at `address` is `value`.
    pub fn wait_for16(self, address: u32, value: u16) -> Self {
        // cmp word [rdi], value; pause; jne back
        self.edi(address).raw(&[0x66, 0x81, 0x3f]).raw(&value.to_le_bytes()).raw(&[0xf3, 0x90, 0x75, 0xf7])
    }

    /// Waits until the words at two addresses are equal.
    pub fn wait_equal16(self, one: u32, other: u32) -> Self {
        // mov esi, other; mov ax, [rdi]; cmp ax, [rsi]; pause; jne back
        let guest = self.edi(one).raw(&[0xbe]).raw(&other.to_le_bytes());
        guest.raw(&[0x66, 0x8b, 0x07, 0x66, 0x3b, 0x06, 0xf3, 0x90, 0x75, 0xf6])
    }

    /// Adds to a word of memory.
    pub fn add16(self, address: u32, value: u16) -> Self {
        self.edi(address).raw(&[0x66, 0x81, 0x07]).raw(&value.to_le_bytes())
    }

    /// Writes `value` to `count` double words of memory, `step` bytes apart, and adds `rise` to it after each.
    pub fn store_all32(self, address: u32, count: u32, step: u32, value: u32, rise: u32) -> Self {
        // mov ecx, count; mov eax, value; mov [rdi], eax; add edi, step; add eax, rise; dec ecx; jnz back
        let guest = self.edi(address).raw(&[0xb9]).raw(&count.to_le_bytes()).raw(&[0xb8]).raw(&value.to_le_bytes());
        let guest = guest.raw(&[0x89, 0x07, 0x81, 0xc7]).raw(&step.to_le_bytes());
        guest.raw(&[0x05]).raw(&rise.to_le_bytes()).raw(&[0xff, 0xc9, 0x75, 0xef])
    }

    /// Adds a double word of memory to another.
    pub fn add32_from(self, from: u32, to: u32) -> Self {
        // mov eax, [from]; add [to], eax
        self.edi(from).raw(&[0x8b, 0x07]).edi(to).raw(&[0x01, 0x07])
    }

    /// Adds each of `[len_at]` bytes from `address` on to the double word at `total`.
    pub fn add_bytes(self, address: u32, len_at: u32, total: u32) -> Self {
        // mov ecx, [len_at]; mov esi, address; jecxz over; lodsb; movzx eax, al; add [total], eax; dec ecx; jnz back
        let guest = self.edi(len_at).raw(&[0x8b, 0x0f, 0xbe]).raw(&address.to_le_bytes()).edi(total);
        guest.raw(&[0xe3, 10, 0xac, 0x0f, 0xb6, 0xc0, 0x01, 0x07, 0xff, 0xc9, 0x75, 0xf6])
    }

    /// Does `body` until the double word at `address` is `value`.
    pub fn until32(self, address: u32, value: u32, body: &Guest) -> Self {
        // body; cmp dword [address], value; jne back
        let guest = self.raw(&body.code).edi(address).raw(&[0x81, 0x3f]).raw(&value.to_le_bytes()).raw(&[0x0f, 0x85]);
        let back = u32::try_from(body.code.len() + 5 + 6 + 6).unwrap().wrapping_neg();
        guest.raw(&back.to_le_bytes())
    }

    /// Prints `count` bytes of memory in hexadecimal.
    pub fn print_hex(self, address: u32, count: u32) -> Self {
        // add al, '0'; cmp al, '9'; jbe +2; add al, 'a' - '9' - 1; out dx, al
        const DIGIT: [u8; 9] = [0x04, b'0', 0x3c, b'9', 0x76, 0x02, 0x04, 0x27, 0xee];
        let guest = self.port(SERIAL).raw(&[0xbe]).raw(&address.to_le_bytes()).raw(&[0xb9]).raw(&count.to_le_bytes());
        let start = guest.code.len();
        // lodsb; mov bl, al; shr al, 4; digit; mov al, bl; and al, 15; digit; dec ecx; jnz back
        let guest = guest.raw(&[0xac, 0x88, 0xc3, 0xc0, 0xe8, 4]).raw(&DIGIT).raw(&[0x88, 0xd8, 0x24, 15]).raw(&DIGIT);
        let guest = guest.raw(&[0xff, 0xc9, 0x75]);
        let back = u8::try_from(guest.code.len() + 1 - start).unwrap();
        guest.raw(&[back.wrapping_neg()])
    }

    /// Writes what `CPUID` answers to memory: EAX, EBX, ECX and EDX.
    pub fn cpuid(self, leaf: u32, subleaf: u32, to: u32) -> Self {
        // mov eax, leaf; mov ecx, subleaf; cpuid; mov [rdi], eax; mov [rdi+4], ebx; mov [rdi+8], ecx; mov [rdi+12], edx
        let guest = self.edi(to).raw(&[0xb8]).raw(&leaf.to_le_bytes()).raw(&[0xb9]).raw(&subleaf.to_le_bytes());
        guest.raw(&[0x0f, 0xa2, 0x89, 0x07, 0x89, 0x5f, 4, 0x89, 0x4f, 8, 0x89, 0x57, 12])
    }

    /// Writes a model-specific register to memory.
    pub fn rdmsr(self, msr: u32, to: u32) -> Self {
        // mov ecx, msr; rdmsr; mov [rdi], eax; mov [rdi+4], edx
        self.edi(to).raw(&[0xb9]).raw(&msr.to_le_bytes()).raw(&[0x0f, 0x32, 0x89, 0x07, 0x89, 0x57, 4])
    }

    /// Sets both halves of a model-specific register to `half`.
    pub fn wrmsr(self, msr: u32, half: u32) -> Self {
        // mov ecx, msr; mov eax, half; mov edx, eax; wrmsr
        let guest = self.raw(&[0xb9]).raw(&msr.to_le_bytes()).raw(&[0xb8]).raw(&half.to_le_bytes());
        guest.raw(&[0x89, 0xc2, 0x0f, 0x30])
    }

    /// Waits until the byte at `address` is `value`.
    pub fn wait_for(self, address: u32, value: u8) -> Self {
        // cmp byte [rdi], value; pause; jne back
        self.edi(address).raw(&[0x80, 0x3f, value, 0xf3, 0x90, 0x75, 0xf9])
    }

    /// Waits until the double word at `address` is `value`; it may be a device's register.
    pub fn wait_for32(self, address: u32, value: u32) -> Self {
        // cmp dword [rdi], value; pause; jne back
        self.edi(address).raw(&[0x81, 0x3f]).raw(&value.to_le_bytes()).raw(&[0xf3, 0x90, 0x75, 0xf6])
    }

    /// Sends every byte of serial input back, until `last` has been sent.
    pub fn echo_until(self, last: u8) -> Self {
        let start = self.code.len();
        // Wait for LSR.DR, read, write, compare, loop.
        let guest = self.in8(SERIAL + 5).raw(&[0xa8, 0x01, 0x74, 0xf7]);
        let guest = guest.in8(SERIAL).raw(&[0xee, 0x3c, last, 0x75]);
        let back = u8::try_from(guest.code.len() + 1 - start).unwrap();
        guest.raw(&[back.wrapping_neg()])
    }

    /// Does `work` again and again. At each key it prints `len` bytes at `address` in hexadecimal; at `q` it resets.
    pub fn serve_keys(self, work: &Guest, address: u32, len: u32) -> Self {
        let start = self.code.len();
        let guest = self.raw(&work.code).in8(SERIAL + 5).raw(&[0xa8, 0x01, 0x0f, 0x84]);
        let guest = guest.jump_back(start).in8(SERIAL).edi(SCRATCH).raw(&[0x88, 0x07]);
        let guest = guest.print_hex(address, len).load8(SCRATCH).raw(&[0x3c, b'q', 0x0f, 0x85]);
        guest.jump_back(start).reset()
    }

    /// The 32-bit operand of a jump to `start`.
    fn jump_back(self, start: usize) -> Self {
        let distance = u32::try_from(self.code.len() + 4 - start).unwrap();
        self.raw(&distance.wrapping_neg().to_le_bytes())
    }

    /// Prints what lies in its memory for ever, as fast as it can: string instructions, 4 KiB each.
    pub fn flood(self) -> Self {
        // mov esi, BASE; mov ecx, 4096; rep outsb; jmp back
        let base = u32::try_from(BASE).unwrap().to_le_bytes();
        self.port(SERIAL).raw(&[0xbe]).raw(&base).raw(&[0xb9, 0, 0x10, 0, 0, 0xf3, 0x6e, 0xeb, 0xf2])
    }

    /// Resets through the i8042, then waits.
    pub fn reset(self) -> Self {
        self.out8(0x64, 0xfe).hang()
    }

    /// Powers off through the sleep control register: SLP_TYP 5, SLP_EN.
    pub fn power_off(self) -> Self {
        self.out8(0x600, (5 << 2) | (1 << 5)).hang()
    }

    /// Does nothing for ever.
    pub fn hang(self) -> Self {
        self.raw(&[0xeb, 0xfe])
    }

    /// Copies bytes to memory below 64 KiB, then goes on behind them.
    pub fn copy_low(self, to: u32, bytes: &[u8]) -> Self {
        bytes.iter().zip(to..).fold(self, |guest, (byte, at)| guest.store8(at, *byte))
    }

    /// An ELF file that is entered in 64-bit mode.
    pub fn elf(&self) -> Vec<u8> {
        elf(&self.code, None)
    }

    /// An ELF file that is entered by PVH, in 32-bit mode.
    pub fn pvh_elf(&self) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [4u32, 4, 18] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"Xen\0");
        note.extend(u32::try_from(BASE).unwrap().to_le_bytes());
        elf(&self.code, Some(&note))
    }
}

/// One loaded segment with the code, and a note segment where there is one.
fn elf(code: &[u8], note: Option<&[u8]>) -> Vec<u8> {
    let headers = 1 + u16::from(note.is_some());
    let start = 64 + 56 * u64::from(headers);
    let len = |bytes: &[u8]| bytes.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for word in [BASE, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, headers, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let mut segment = |kind: u32, offset: u64, address: u64, size: u64| {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for word in [offset, address, address, size, size, 4] {
            file.extend(word.to_le_bytes());
        }
    };
    segment(1, start, BASE, len(code));
    if let Some(note) = note {
        segment(4, start + len(code), 0, len(note));
    }
    file.extend(code);
    file.extend(note.unwrap_or_default());
    file
}

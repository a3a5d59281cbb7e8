//! Firmware event logs: what the firmware and the boot loader say they measured.

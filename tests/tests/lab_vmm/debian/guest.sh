# What the guest does once systemd has started it. A word of the kernel's command line says what after its report.

# The console is opened for each line: getty hangs it up when it starts.
say() { echo "guest: $*" >/dev/console; }

report() {
    say "system $(systemctl is-system-running --wait)"
    say "failed units: $(systemctl --failed --plain --no-legend | cut -d ' ' -f 1 | tr '\n' ' ')"
    say "root $(findmnt -no SOURCE,FSTYPE / | tr -s ' ') $(readlink -f /sys/block/vda/device/driver) $(readlink -f /sys/block/vda)"
    say "kernel $(uname -r) $(modinfo -F signer virtio_mmio) tainted $(cat /sys/module/*/taint | tr -d '\n')."
    say "modules $(lsmod | cut -d ' ' -f 1 | tr '\n' ' ')"
    say "vcpus $(cat /sys/devices/system/cpu/online)"
}

report
for word in $(cat /proc/cmdline); do
    [ "$word" != then=wait ] || say "waiting"
done

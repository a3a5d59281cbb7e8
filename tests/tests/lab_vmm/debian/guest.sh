# What the guest does once systemd has started it. A word of the kernel's command line says what after its report:
# then=load|write|check, the last with written=N.

# The console is opened for each line: getty hangs it up when it starts.
say() { echo "guest: $*" >/dev/console; }

# A device by its serial number.
disk() {
    for device in /sys/block/vd*; do
        [ "$(cat "$device/serial")" != "$1" ] || echo "/dev/${device##*/}"
    done
}

report() {
    say "system $(systemctl is-system-running --wait)"
    say "failed units: $(systemctl --failed --plain --no-legend | cut -d ' ' -f 1 | tr '\n' ' ')"
    say "root $(findmnt -no SOURCE,FSTYPE / | tr -s ' ') $(readlink -f /sys/block/vda/device/driver) $(readlink -f /sys/block/vda)"
    say "kernel $(uname -r) $(modinfo -F signer virtio_mmio) tainted $(cat /sys/module/*/taint | tr -d '\n')."
    say "modules $(lsmod | cut -d ' ' -f 1 | tr '\n' ' ')"
    say "vcpus $(cat /sys/devices/system/cpu/online)"
}

# Every vCPU counts at the same time and says which it is (the 39th field of a process).
work() {
    for cpu in 0 1 2 3; do
        taskset -c $cpu sh -c 'seq 1 50000 | wc -l; cut -d " " -f 39 /proc/self/stat' | tr '\n' ' ' >/run/cpu$cpu &
    done
    wait
    say "work $(cat /run/cpu?)"
}

# Eight MiB of one writer: what it wrote, and what the disk has once nothing of it is in memory.
writer() {
    head -c 8M /dev/urandom >"/run/source$1"
    dd if="/run/source$1" of="$data" bs=64k seek=$(($1 * 128)) conv=notrunc,fsync 2>/run/dd$1 || say "dd: $(cat /run/dd$1)"
}

load() {
    for n in 0 1 2 3; do writer $n & done
    wait
    echo 3 >/proc/sys/vm/drop_caches
    for n in 0 1 2 3; do
        source=$(sha256sum <"/run/source$n" | cut -d ' ' -f 1)
        read=$(dd if="$data" bs=64k skip=$((n * 128)) count=128 2>/dev/null | sha256sum | cut -d ' ' -f 1)
        say "writer $n wrote $source read $read"
    done
}

discard() {
    blkdiscard -o 8M -l 8M "$data" && say "discarded a writer's part"
    say "zeros $(dd if="$data" bs=64k skip=128 count=128 2>/dev/null | tr -d '\0' | wc -c)"
    say "trim $(fstrim -v / 2>&1)"
}

# Neither by a write nor by giving up its blocks.
refused() {
    say "read-only $(cat "/sys/block/${fixed##*/}/ro") $(sha256sum <"$fixed" | cut -d ' ' -f 1)"
    blockdev --setrw "$fixed" 2>/dev/null
    echo changed | dd of="$fixed" conv=notrunc,fsync 2>/dev/null && say "the read-only disk took a write"
    blkdiscard -f "$fixed" 2>/dev/null && say "the read-only disk took a discard"
    say "tried to change the read-only disk"
}

# Files whose contents follow from their numbers; each is reported once it is on the disk.
block() { yes "block $1" | head -c 64k; }

write() {
    n=0
    while :; do
        n=$((n + 1))
        block $n | dd of=/var/lib/block-$n bs=64k iflag=fullblock conv=fsync 2>/dev/null && sync /var/lib && say "written $n."
    done
}

check() {
    n=0 good=0
    while [ $n -lt "$1" ]; do
        n=$((n + 1))
        block $n | cmp -s - /var/lib/block-$n && good=$((good + 1))
    done
    say "good blocks $good"
}

report
data=$(disk data) fixed=$(disk fixed)
for word in $(cat /proc/cmdline); do
    case $word in written=*) written=${word#*=} ;; esac
done
for word in $(cat /proc/cmdline); do
    case $word in
    then=load) work && load && discard && refused && systemctl poweroff ;;
    then=write) write ;;
    then=check) check "$written" ;;
    esac
done

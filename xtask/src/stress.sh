#!/usr/bin/busybox sh
# The guest of `cargo xtask stress`: runs it, says how it ended, shows the kernel's log.
export PATH=/bin:/sbin
/bin/busybox mount -t proc none /proc
/bin/busybox --install -s /bin
mount -t devtmpfs none /dev
mkdir -p /dev/shm
mount -t sysfs none /sys
mount -t tmpfs none /tmp
mount -t tmpfs none /dev/shm
cd /tmp
STRESS 2>&1
echo "stress: ended with $?"
dmesg -r
poweroff -f

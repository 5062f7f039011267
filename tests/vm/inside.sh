# Looks at the machine from inside, in sections; the test that runs this judges what they say.
section() { echo "== $1"; }
exec 2>&1
cpus=$(nproc)

section date; date +%s
section cpus; echo $cpus
section release; uname -r
section memory; dmesg | grep -o 'Memory: .*K available'
section free; grep MemTotal: /proc/meminfo
section clock; cat /sys/devices/system/clocksource/clocksource0/current_clocksource
section ticks-before; grep LOC: /proc/interrupts

section sleep
before=$(cut -d' ' -f1 /proc/uptime); sleep 1; after=$(cut -d' ' -f1 /proc/uptime)
echo $before $after

# Processes, signals, pipes.
section forks
i=0; n=0
while [ $i -lt 100 ]; do /bin/true && n=$((n+1)); i=$((i+1)); done
echo $n
section signals
sh -c 'kill -SEGV $$' 2>/dev/null; echo $?
sh -c 'timeout 1 sleep 100; exit $?' 2>/dev/null; echo $?
section pipes
yes ringer | head -c 1000000 | sha256sum
echo 1000000 | (read n; seq $((n / 50))) | awk '{ s += $1 } END { print s, s / 3 }'

# Floating point and vectors, by programs that use them.
section float
awk 'BEGIN { x = 1; for (i = 0; i < 1000; i++) x = x / 1.0001 + i / 7; printf "%.15g %.17g\n", x, 1 / 3 }'
section deflate
head -c 500000 /bin/busybox >/tmp/packed
gzip -c /tmp/packed | gunzip -c | cmp - /tmp/packed && echo same

# All processors at work at once, each pinned.
section load
p=0
while [ $p -lt $cpus ]; do
	taskset $((1 << p)) sh -c 'i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done; echo done' &
	p=$((p+1))
done
wait
grep '^cpu[0-9]' /proc/stat

# Modules from the initramfs, a block device and a file system.
section modules
for m in dummy loop crc32c_intel sha256_ssse3 aesni_intel; do
	modprobe $m && grep "^$m " /proc/modules | cut -d' ' -f1
done
# The cloud kernel has it built in.
modprobe ext4
section disk
dd if=/dev/zero of=/tmp/disk bs=1M count=4 2>/dev/null
mke2fs -F -I 256 /tmp/disk >/dev/null
mount -o loop -t ext4 /tmp/disk /mnt && cp /bin/busybox /mnt/ && umount /mnt
mount -o loop -t ext4 /tmp/disk /mnt && cmp /mnt/busybox /bin/busybox && echo same
umount /mnt

if [ $cpus -gt 1 ]; then
	section hotplug
	cpu=/sys/devices/system/cpu/cpu1/online
	for i in 1 2; do
		echo 0 >$cpu; nproc
		echo 1 >$cpu; nproc
	done
fi

section ticks-after; grep LOC: /proc/interrupts
section lines; grep ttyS /proc/interrupts
section date-after; date +%s
section log; dmesg -r
section end

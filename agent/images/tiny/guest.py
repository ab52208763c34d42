"""The files of the guest that are ours: how it starts, takes its seed, gets its address and answers."""

from __future__ import annotations

import shlex

from ...guest_program.bundle import PORT as PORT_NAME
from ...guest_program.bundle import PORT_PATH, start_code

# Modules the guest cannot do without, and those it takes where the kernel has them.
REQUIRED_MODULES = ("virtio_pci", "virtio_net", "virtio_blk", "virtio_console", "button", "evdev", "isofs")
WANTED_MODULES = ("virtio_balloon", "virtio_rng", "ahci", "sr_mod")

INIT = r"""#!/bin/sh
# The first process. Stages are printed on the console with the seconds since the kernel's start.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
/bin/busybox --install -s /bin
ln -s /bin/busybox /sbin/hwclock  # the guest agent sets no clock without it
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/virtio-ports
mount -t devpts pts /dev/pts
mount -t tmpfs run /run
mount -t tmpfs -o mode=1777,size=25% tmp /tmp
say() { echo "tiny: $* at $(cut -d' ' -f1 /proc/uptime)" >/dev/console; }
for module in $(cat /lib/modules.order); do insmod "/lib/modules/$module.ko" || say "no $module"; done
say kernel up

# The NoCloud seed: a disk whose ISO 9660 label, at byte 32808, is cidata.
for device in /dev/vd? /dev/sr? /dev/sd?; do
    [ -b "$device" ] || continue
    case "$(dd if="$device" bs=8 skip=4101 count=4 2>/dev/null | tr a-z A-Z)" in
    CIDATA*) mount -t iso9660 -o ro "$device" /seed && break ;;
    esac
done
name=tiny
if [ -f /seed/meta-data ]; then
    found=$(tr -d "\"'" </seed/meta-data | sed -n 's/.*local-hostname: *\([A-Za-z0-9.-]*\).*/\1/p' | head -n 1)
    name=${found:-tiny}
fi
hostname "$name"
echo "$name" >/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$name" >/etc/hosts

ip link set lo up
echo "$name" >/www/index.html
httpd -p 80 -h /www
acpid -c /etc/acpi -l /run/acpid.log -p /run/acpid.pid
/sbin/agent &
(/sbin/network; [ ! -x /usr/sbin/dropbear ] || nc -ll -p 22 -e /usr/sbin/dropbear -i -R & /sbin/guest) &
if [ -f /seed/user-data ] && [ "$(head -c 2 /seed/user-data)" = "#!" ]; then
    cp /seed/user-data /run/user-data
    chmod 700 /run/user-data
    (/run/user-data >/run/user-data.log 2>&1; say "user-data ended with $?") &
fi
say ready
[ -c /dev/tty1 ] && (while :; do setsid getty 38400 tty1 linux; sleep 1; done) &
while :; do setsid getty -L 115200 ttyS0 vt100; sleep 1; done
"""

NETWORK = r"""#!/bin/sh
# Every wired interface asks for an address and keeps it.
for path in /sys/class/net/*; do
    interface=${path##*/}
    [ "$interface" = lo ] && continue
    ip link set "$interface" up
    udhcpc -b -t 3 -T 1 -A 2 -i "$interface" -x hostname:"$(hostname)" -s /sbin/lease >"/run/$interface.log" 2>&1
done
"""

LEASE = r"""#!/bin/sh
# What udhcpc calls when a lease comes or goes.
case "$1" in
deconfig)
    ip addr flush dev "$interface"
    ;;
bound)
    ip addr flush dev "$interface"
    ip addr add "$ip/${mask:-24}" dev "$interface"
    for gateway in $router; do ip route replace default via "$gateway" && break; done
    : >/etc/resolv.conf
    for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
    echo "tiny: address $ip on $interface at $(cut -d' ' -f1 /proc/uptime)" >/dev/console
    ;;
esac
"""

PORT = r"""#!/bin/sh
# Waits up to 5 seconds for the virtio port of a name, and links the ports that there are.
tries=0
while [ $tries -lt 50 ]; do
    for port in /sys/class/virtio-ports/*; do
        read -r name <"$port/name" || continue
        ln -sf "../${port##*/}" "/dev/virtio-ports/$name"
    done 2>/dev/null
    [ -e "/dev/virtio-ports/$1" ] && exit 0
    tries=$((tries + 1))
    sleep 0.1
done
exit 1
"""

AGENT = r"""#!/bin/sh
# The guest agent speaks through a virtio port, if the machine has one.
/sbin/port org.qemu.guest_agent.0 || exit 0
exec qemu-ga -m virtio-serial -p /dev/virtio-ports/org.qemu.guest_agent.0 -t /run -l /run/qemu-ga.log
"""

GUEST_PROGRAM = "usr/lib/twinshare/guest.zip"

# It starts when the network has been seen to, so that neither address nor page comes later because of it.
GUEST = f"""#!/bin/sh
# Serves commands, files and connections on the guest channel, if the machine has its port.
/sbin/port {PORT_NAME} || exit 0
while :; do
    python3 -S -E -c {shlex.quote(start_code("/" + GUEST_PROGRAM, PORT_PATH))} >/run/guest.log 2>&1
    sleep 1
done
"""

# Package files of the SSH server, and where the guest has them.
SSH_PROGRAMS = {
    "usr/sbin/dropbear": "usr/lib/dropbear/dropbear",
    "usr/bin/dropbearkey": "usr/lib/dropbear/dropbearkey",
    "usr/lib/sftp-server": "usr/lib/sftp-server",
}

# It is started for each connection, by `nc` in init and by the guest program. Its files stay on the disk until then: in
# the initramfs they would take memory from every guest.
DROPBEAR = r"""#!/bin/sh
/sbin/ssh-setup >>/run/ssh.log 2>&1 || exit 1
exec /usr/lib/dropbear/dropbear "$@"
"""

SSH_SETUP = r"""#!/bin/sh
# Unpacks the SSH server from the disk's second partition, makes the host key of this boot, and lets in the node's key,
# which is in the seed's vendor data, and those of the user data. The first caller does it, others wait.
until mkdir /run/ssh.lock 2>/dev/null; do
    [ -f /run/ssh.ready ] && exit 0
    sleep 0.1
done
umask 077
for part in /dev/vd?2 /dev/sd?2; do
    [ -b "$part" ] && (cd / && zcat "$part" | cpio -idu) && break
done
mkdir -p /etc/dropbear /etc/ssh /root/.ssh
/usr/lib/dropbear/dropbearkey -t ed25519 -f /etc/dropbear/dropbear_ed25519_host_key |
    grep ^ssh- >/etc/ssh/ssh_host_ed25519_key.pub || { rmdir /run/ssh.lock; exit 1; }
sed -n "s/^KEY='\(.*\)'\$/\1/p" /seed/vendor-data >>/root/.ssh/authorized_keys
if [ -f /seed/user-data ]; then
    # YAML folds long keys into lines.
    awk '/^ *- / { print key; sub(/^ *- */, ""); key = $0; next }
        /^ +[^ -]/ { sub(/^ +/, " "); key = key $0; next }
        { print key; key = "" }
        END { print key }' /seed/user-data | tr -d "\"'" | grep -E '^(ssh|ecdsa|sk)-' >>/root/.ssh/authorized_keys
fi
: >/run/ssh.ready
"""

# Also what the guest agent calls; acpid calls it for the power button.
SHUTDOWN = r"""#!/bin/sh
sync
case "$*" in
*-r*) reboot -f ;;
*-H*) halt -f ;;
*) poweroff -f ;;
esac
"""

ISSUE = "\ntiny, a guest for demonstrations and tests: log in as root, no password.\n\n\\n login on \\l\n"

SCRIPTS = {
    "init": INIT,
    "sbin/network": NETWORK,
    "sbin/lease": LEASE,
    "sbin/port": PORT,
    "sbin/agent": AGENT,
    "sbin/guest": GUEST,
    "sbin/shutdown": SHUTDOWN,
    "etc/acpi/PWRF/00000080": SHUTDOWN,
}

SSH_SCRIPTS = {"usr/sbin/dropbear": DROPBEAR, "sbin/ssh-setup": SSH_SETUP}

TEXTS = {
    "etc/passwd": "root::0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/profile": "export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root PS1='\\h# '\n",
    "etc/issue": ISSUE,
    "etc/shells": "/bin/sh\n",
}

FOLDERS = ("dev", "proc", "sys", "run", "tmp", "root", "seed", "www", "bin", "sbin", "etc", "usr/sbin", "lib/modules")

# edd=off: no probing of disks by BIOS calls. nokaslr: moving the kernel costs emulation a second.
COMMAND_LINE = "console=tty0 console=ttyS0,115200 quiet panic=-1 edd=off nokaslr mitigations=off"

#!/bin/busybox sh
# The guest: an agent, and an application that never stops writing.
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/sbin
mount -t tmpfs tmpfs /run
echo boot >> /data/boots
sync
# The only port; which number its device has depends on the others.
qemu-ga -m virtio-serial -p /dev/vport*p1 -f /run/qga.pid -t /run > /run/qga.log 2>&1 &
# Records that are on the disk before the next one is written; the last one that certainly is stands in /run/acked.
(
    record=0
    while :; do
        record=$((record + 1))
        echo "record $record of boot $(wc -l < /data/boots)" >> /data/app.log
        sync /data/app.log
        echo "record $record of boot $(wc -l < /data/boots)" > /run/acked.new
        mv /run/acked.new /run/acked
        usleep 50000
    done
) &
echo "GUEST-READY $(cut -d ' ' -f 1 /proc/uptime)" > /dev/console
exec sleep 1000000

#!/bin/busybox sh
# The first program: finds the disk and hands over to it.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
# In the order of their dependencies.
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "insmod $module failed"
done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do
    usleep 50000
    tries=$((tries + 1))
done
mount -t ext4 /dev/vda /newroot || echo GUEST-NO-ROOT
mount --move /dev /newroot/dev
mount --move /proc /newroot/proc
mount --move /sys /newroot/sys
exec switch_root /newroot /sbin/init

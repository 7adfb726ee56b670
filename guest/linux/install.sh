#!/bin/sh
# Installs e3-hooks and e3-guest-check into this guest. What is configured stays as it is.
#
#   sh install.sh              install
#   sh install.sh --remove     remove the two programs; /etc/e3 stays
set -eu
umask 022

here=$(dirname "$0")
root=${DESTDIR-}
sbin=$root/usr/local/sbin

case ${1-} in
    --remove)
        rm -f "$sbin/e3-hooks" "$sbin/e3-guest-check"
        echo "Removed. /etc/e3 is still there."
        exit 0
        ;;
    '') ;;
    *) sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

mkdir -p "$sbin" "$root/etc/e3/hooks.d"
for program in e3-hooks e3-guest-check; do
    # Into place in one step: a backup may run the old one at this moment.
    cp "$here/$program" "$sbin/$program.new"
    chmod 755 "$sbin/$program.new"
    mv "$sbin/$program.new" "$sbin/$program"
done
chmod 755 "$root/etc/e3" "$root/etc/e3/hooks.d"
if [ ! -e "$root/etc/e3/hooks.conf" ]; then
    cp "$here/hooks.conf" "$root/etc/e3/hooks.conf"
fi
echo "Installed. Put executable hooks into /etc/e3/hooks.d, and run: e3-guest-check"

#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Installs what an operator has in hand: sysgenctl with its manual pages and completions, the hooks, and the units. The
# daemon goes along where it has been built. Build first:
#
#   SYSGENCTL_ASSETS=$PWD/target/assets cargo build --release -p sysgenctl [-p sysgenidd]
#
# From the environment:
#   DESTDIR  put before all paths, to make a package; nothing if not given
#   BUILD    where cargo has put the programs, target/release if not given
#   ASSETS   what SYSGENCTL_ASSETS was, target/assets if not given
#
# The paths are those that the units name, so there is no prefix to choose. Nothing is started: whoever installs into
# the running system goes on with
#
#   systemd-sysusers && udevadm control --reload && systemctl daemon-reload
#   systemctl enable --now sysgenid-hooks
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
: "${DESTDIR:=}"
: "${BUILD:=$root/target/release}"
: "${ASSETS:=$root/target/assets}"

for file in "$BUILD/sysgenctl" "$ASSETS/man/sysgenctl.1"; do
    if ! [ -f "$file" ]; then
        echo "$0: there is no $file: run" >&2
        echo "    SYSGENCTL_ASSETS=$ASSETS cargo build --release -p sysgenctl" >&2
        exit 1
    fi
done
if [ -f "$BUILD/sysgenidd" ] && ! [ -f "$ASSETS/man/sysgenidd.8" ]; then
    echo "$0: there is no $ASSETS/man/sysgenidd.8: run" >&2
    echo "    SYSGENCTL_ASSETS=$ASSETS cargo build --release -p sysgenidd" >&2
    exit 1
fi

# Usage: put MODE FOLDER FILE...
put() {
    mode=$1 folder=$DESTDIR$2
    shift 2
    install -d "$folder"
    install -m "$mode" -t "$folder" "$@"
}

put 755 /usr/bin "$BUILD/sysgenctl"
put 644 /usr/share/man/man1 "$ASSETS"/man/*.1
put 644 /usr/share/bash-completion/completions "$ASSETS/completions/sysgenctl.bash"
mv "$DESTDIR/usr/share/bash-completion/completions/sysgenctl.bash" \
    "$DESTDIR/usr/share/bash-completion/completions/sysgenctl"
put 644 /usr/share/zsh/vendor-completions "$ASSETS/completions/_sysgenctl"
put 644 /usr/share/fish/vendor_completions.d "$ASSETS/completions/sysgenctl.fish"

put 755 /usr/share/sysgenid/hooks "$root"/packaging/hooks/available/*
put 755 /usr/lib/sysgenid/hooks.d "$root"/packaging/hooks/enabled/*
install -d "$DESTDIR/etc/sysgenid/hooks.d"

units=/usr/lib/systemd/system
put 644 $units "$root"/packaging/systemd/sysgenid-*
put 644 /usr/lib/sysusers.d "$root/packaging/sysusers.d/sysgenid.conf"
put 644 /usr/lib/udev/rules.d "$root/packaging/udev/60-sysgenid.rules"

if [ -f "$BUILD/sysgenidd" ]; then
    put 755 /usr/sbin "$BUILD/sysgenidd"
    put 644 /usr/share/man/man8 "$ASSETS/man/sysgenidd.8"
    put 644 $units "$root"/packaging/systemd/sysgenidd*
fi

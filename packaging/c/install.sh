#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Installs libsysgenid for C programs: the shared and the static library, the header, and what pkg-config reads.
# Build it first: cargo build --release -p sysgenid-c
#
# From the environment:
#   PREFIX   where it will be used, /usr/local if not given
#   LIBDIR   where libraries are there, $PREFIX/lib if not given; Debian has /usr/lib/x86_64-linux-gnu
#   DESTDIR  put before both, to make a package; nothing if not given
#   BUILD    where cargo has put the libraries, target/release if not given
#
# Whoever installs into the running system calls ldconfig afterwards.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
: "${PREFIX:=/usr/local}"
: "${LIBDIR:=$PREFIX/lib}"
: "${DESTDIR:=}"
: "${BUILD:=$root/target/release}"

# The version of the workspace, which is that of all its crates.
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml" | head -n 1)
major=${version%%.*}

for library in libsysgenid_c.so libsysgenid_c.a; do
    if ! [ -f "$BUILD/$library" ]; then
        echo "$0: there is no $BUILD/$library: run cargo build --release -p sysgenid-c first" >&2
        exit 1
    fi
done

install -d "$DESTDIR$LIBDIR/pkgconfig" "$DESTDIR$PREFIX/include"
install -m 644 "$BUILD/libsysgenid_c.so" "$DESTDIR$LIBDIR/libsysgenid.so.$version"
ln -sf "libsysgenid.so.$version" "$DESTDIR$LIBDIR/libsysgenid.so.$major"
ln -sf "libsysgenid.so.$major" "$DESTDIR$LIBDIR/libsysgenid.so"
install -m 644 "$BUILD/libsysgenid_c.a" "$DESTDIR$LIBDIR/libsysgenid.a"
install -m 644 "$root/include/sysgenid.h" "$DESTDIR$PREFIX/include/sysgenid.h"

sed -e "s|@PREFIX@|$PREFIX|" -e "s|@LIBDIR@|$LIBDIR|" -e "s|@VERSION@|$version|" \
    "$root/packaging/c/sysgenid.pc.in" >"$DESTDIR$LIBDIR/pkgconfig/sysgenid.pc"
chmod 644 "$DESTDIR$LIBDIR/pkgconfig/sysgenid.pc"

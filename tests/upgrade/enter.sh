#!/bin/sh
# enter.sh ROOT UMASK DIRECTORY [NAME=VALUE]... COMMAND [ARGUMENT]...
#
# Runs a command in the node whose tree is ROOT, with that environment and no
# other. Started by unshare(1) in mount and PID namespaces of its own, so that
# whatever the command mounts or leaves running ends with it.
set -e
root=$1 mask=$2 directory=$3
shift 3

mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/run"

umask "$mask"
# Not exec: this shell is the namespace's init and has to reap what the
# command's children leave behind.
rc=0
chroot "$root" env -i --chdir="$directory" "$@" || rc=$?
exit "$rc"

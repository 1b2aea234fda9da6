#!/bin/sh
# Runs a command in a root of its own, as a container does: layers.sh FOLDER STAGE COMMAND..., in a mount namespace.
# The root is this machine's files under those of FOLDER/STAGE. Of the stage `build` everything can be written, and what
# is written comes into that folder; any other is read-only but for FOLDER/data and FOLDER/tmp.
set -eu
folder=$1 stage=$2
shift 2
root=$folder/root

mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/$stage,workdir=$folder/work" "$root"
mount --bind "$folder/tmp" "$root/tmp"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
if [ "$stage" != build ]; then
  mount --bind "$folder/data" "$root/var/lib/cortex"
  mount -o remount,ro,bind "$root"
fi
exec chroot "$root" "$@"

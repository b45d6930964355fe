#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The machine's first process: builds the throw-away root and hands over to its init.
# /conf sets modules (in order), lib_modules, release, scratch, set_up_failed, and the
# arguments: the init.

fail() {
    echo "$set_up_failed$1" >/dev/console
    poweroff -f
}

step() {
    what=$1
    shift
    "$@" || fail "$what"
}

copy_files() {
    # tar and not cp: it replaces a link of the host's instead of writing through it
    tar -C /files -cf - . | tar -C /new -xf -
}

/bin/busybox mkdir -p /proc /dev /sys /host /upper /new
/bin/busybox --install -s /bin
export PATH=/bin
. /conf

step "mount /proc" mount -t proc -o nosuid,nodev,noexec proc /proc
step "mount /dev" mount -t devtmpfs -o nosuid,mode=755 dev /dev
for module in $modules; do
    step "load $module" insmod "/modules/$module.ko"
done

step "mount the host's files" mount -t 9p \
    -o ro,cache=loose,trans=virtio,version=9p2000.L,msize=512000,access=any root /host
step "mount the upper layer" mount -t tmpfs -o mode=755,size=75% upper /upper
mkdir /upper/data /upper/work
step "mount the overlay" mount -t overlay \
    -o lowerdir=/host,upperdir=/upper/data,workdir=/upper/work root /new

# A Docker host marks its root so, and systemd would believe itself in a container.
rm -f /new/.dockerenv
mkdir -p /new/usr/lib/modules "/new$scratch"
rm -rf "/new/usr/lib/modules/$release"
step "link the modules" ln -s "$lib_modules" "/new/usr/lib/modules/$release"
step "copy the machine's own files" copy_files

# The overlay keeps its layers; nothing else may reach them.
umount /host /upper
step "move /proc" mount --move /proc /new/proc
step "move /dev" mount --move /dev /new/dev
exec switch_root /new "$@"

# Functions and settings for hooks: source it as `. common.sh`, from the OS directory, which is where hooks run.
# It changes nothing. It needs bash.

CLEANUP=( )

log_error() {
  echo "$@" >&2
}

# Runs what is in CLEANUP, last first.
cleanup() {
  local i
  for (( i = ${#CLEANUP[@]} - 1; i >= 0; i-- )); do
    ${CLEANUP[i]}
  done
}
trap cleanup EXIT

# map_disk0 DISK: prints the device of the first partition. While hooks run the partitions of the instance's disk
# exist as nodes already; those of another disk are made with kpartx.
map_disk0() {
  local disk=$1 name
  if [ "$disk" = "$DISK_0_PATH" ] && [ -b "$BLOCKDEV" ]; then
    disk=$BLOCKDEV
  fi
  # A name that ends in a digit gets a p before the partition's number.
  case $disk in *[0-9]) name=${disk}p1;; *) name=${disk}1;; esac
  if [ ! -b "$name" ]; then
    kpartx -a -s -p-part "$disk" >&2 || { log_error "kpartx cannot map the partitions of $disk"; exit 1; }
    name=/dev/mapper/${disk##*/}-part1
  fi
  echo "$name"
}

# unmap_disk0 DISK: undoes map_disk0.
unmap_disk0() {
  if [ -b "/dev/mapper/${1##*/}-part1" ]; then
    kpartx -d -p-part "$1"
  fi
}

# format_disk0 DISK: one active partition on the whole disk.
format_disk0() {
  sfdisk --no-reread --quiet "$1" <<EOF
${PARTITION_ALIGNMENT:-2048},,L,*
EOF
}

VOL_ID="/sbin/blkid -o value -s UUID"
VOL_TYPE="/sbin/blkid -o value -s TYPE"
SCRIPT_NAME=${0##*/}

# The settings of this installation, and instance, blockdev and filesystem_dev.
if [ -n "$TARGET" ] && [ -f "${TARGET%/*}/settings.sh" ]; then
  . "${TARGET%/*}/settings.sh"
fi

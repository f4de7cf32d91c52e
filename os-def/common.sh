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

# map_disk0 DISK: prints the device of the first partition. While hooks run the disk's partitions exist as nodes
# already; for any other disk they are made with kpartx.
map_disk0() {
  if [ -b "${1}p1" ]; then
    echo "${1}p1"
  elif [ -b "${1}1" ]; then
    echo "${1}1"
  else
    kpartx -a -s -p-part "$1" >&2 || { log_error "kpartx cannot map the partitions of $1"; exit 1; }
    echo "/dev/mapper/$(basename "$1")-part1"
  fi
}

# unmap_disk0 DISK: undoes map_disk0.
unmap_disk0() {
  if [ -b "/dev/mapper/$(basename "$1")-part1" ]; then
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

# Evaluates the predecessor's shell settings, in its order: the defaults file, the built-in defaults for what is
# still unset, the node's config.toml, the variant's file.
#
# $1 defaults file, or empty    $2 the verb    $3 number of defaults
# then the defaults as NAME=VALUE, then config.toml's values as NAME=VALUE.
# Its stdout carries records to the program; what the settings print themselves goes to the log.
exec {__out}>&1 1>&2
PS4=$'+\x01${BASH_SOURCE}\x01${LINENO}\x01'
BASH_XTRACEFD=$__out
__legacy=$1 SCRIPT_NAME=$2 __defaults=$3
shift 3
__names=
for __pair in "${@:1:$__defaults}"; do __names+=" ${__pair%%=*}"; done

__snapshot() {
  local name
  printf '\x02%s\0' "$1" >&"$__out"
  for name in $__names; do
    [[ ! -v $name ]] || printf '%s=%s\0' "$name" "${!name}" >&"$__out"
  done
  printf '\x03' >&"$__out"
}

CLEANUP=( )
log_error() { echo "$@" >&2; }

set -e
# Which line it was: bash itself says nothing where a command simply fails.
trap '__failed "${BASH_SOURCE[0]}" "$LINENO" "$BASH_COMMAND"' ERR
__failed() {
  if [ -n "$1" ]; then
    log_error "$1:$2: failed: $3"
  else
    log_error "$__file: its last command failed"
  fi
}
__names_before="
$(compgen -v)
$(compgen -A function)
__file
__name
PIPESTATUS
BASH_LINENO
"
if [ -n "$__legacy" ]; then
  __file=$__legacy
  set -x
  . "$__legacy"
  { set +xu; } 2>/dev/null
fi
__snapshot legacy
for __pair in "${@:1:$__defaults}"; do
  __name=${__pair%%=*}
  # CLEAN_CACHE="" is documented to mean never; any other empty value means the default.
  if [ "$__name" = CLEAN_CACHE ] && [[ -v CLEAN_CACHE ]]; then continue; fi
  [ -n "${!__name}" ] || printf -v "$__name" %s "${__pair#*=}"
done
for __pair in "${@:$__defaults+1}"; do
  printf -v "${__pair%%=*}" %s "${__pair#*=}"
done
instance=$INSTANCE_NAME blockdev=$DISK_0_PATH old_name=$OLD_INSTANCE_NAME
__snapshot before
if [ -n "$OS_VARIANT" ] && [ -f "$VARIANTS_DIR/$OS_VARIANT.conf" ]; then
  __file=$VARIANTS_DIR/$OS_VARIANT.conf
  set -x
  . "$__file"
  { set +xu; } 2>/dev/null
fi
__snapshot variant
# What else the files set: a hook that sources common.sh finds it, as it did when that sourced the files itself.
printf '\x02shell\0' >&"$__out"
for __name in $(compgen -v); do
  case $__names_before in *$'\n'"$__name"$'\n'*) ;; *) declare -p "$__name" >&"$__out";; esac
done
for __name in $(compgen -A function); do
  case $__names_before in *$'\n'"$__name"$'\n'*) ;; *) declare -f "$__name" >&"$__out";; esac
done
printf '\x03' >&"$__out"
printf '\x02env\0' >&"$__out"
/usr/bin/env -0 >&"$__out"
printf '\x03' >&"$__out"

# Evaluates the predecessor's shell settings in its order: the defaults file, the built-in defaults
# for what is still unset, the node's config.toml, the variant's file. A template: script.rs fills
# in what stands in double braces.
#
# A file may leave anything in this shell: IFS, options, traps, readonly variables, functions with
# the names of builtins. So the top level has only keywords, assignments and what the predecessor
# itself ran. All else runs in functions that are subshells and begin with {{ID}}_builtins.
# {{ID}} is random and new in each run: no file and no value holds it.
#
# The outer braces make bash read all of this before a file can define an alias.
{
# Makes `builtin` the builtin again, in a subshell. In POSIX mode bash finds the builtins `unset`
# and `exit` before functions of these names. Output is redirected to the report only after this,
# because a trap of a file may print.
{{ID}}_builtins() {
  if [[ -o posix ]]; then
    unset -f builtin || exit
  else
    POSIXLY_CORRECT=y
    unset -f builtin || exit
    builtin set +o posix
  fi
  builtin set +x
  builtin trap - DEBUG ERR RETURN
}

# NAME: a section of the report with the value of each variable that counts, and a mark in the trace.
{{ID}}_settings() (
  {{ID}}_builtins
  builtin printf '%s\0' {{ID}} "$1" {{VALUES}} >&{{REPORT}} || builtin exit
  # A file may have closed the trace: then only the lines of assignments are lost.
  { builtin printf '\n{{ID}}\1%s\n' "$1" >&{{TRACE}}; } 2>/dev/null || [[ 1 ]]
)

# The names of all variables.
{{ID}}_names() (
  {{ID}}_builtins
  builtin printf '%s\0' {{ID}} names {{NAMES}} >&{{REPORT}}
)

# All variables with their declarations.
{{ID}}_variables() (
  {{ID}}_builtins
  {
    builtin printf '%s\0' {{ID}} variables
    builtin set -- {{NAMES}}
    while (($#)); do
      builtin printf '%s\0' "$1"
      builtin declare -p "$1" || builtin exit
      builtin printf '\0'
      builtin shift
    done
  } >&{{REPORT}}
)

# All functions. One called builtin comes last, because {{ID}}_builtins removes it.
{{ID}}_functions() (
  (
    {{ID}}_builtins
    builtin unset -f {{FUNCTIONS}}
    { builtin printf '%s\0' {{ID}} functions && builtin declare -f; } >&{{REPORT}}
  ) && (
    [[ -o posix ]] || POSIXLY_CORRECT=y
    trap - DEBUG ERR RETURN
    unset -f declare && declare -f builtin >&{{REPORT}} || [[ 1 ]]
  ) && (
    {{ID}}_builtins
    builtin printf '\0' >&{{REPORT}}
  )
)

# The environment of a program that this shell starts.
{{ID}}_environment() (
  {{ID}}_builtins
  builtin printf '%s\0' {{ID}} environment >&{{REPORT}} && builtin exec /usr/bin/env -0 >&{{REPORT}}
)

{{ID}}_done() (
  {{ID}}_builtins
  builtin printf '%s\0' {{ID}} done >&{{REPORT}}
)

# Ends with the status that stands for an incomplete report.
{{ID}}_incomplete() (
  [[ -o posix ]] || POSIXLY_CORRECT=y
  exit {{INCOMPLETE}}
)

{{ID}}_is_function() (
  {{ID}}_builtins
  builtin declare -F "$1" >/dev/null
)

# FILE LINE COMMAND: says where a command failed, because bash does not. The command itself may hold a password.
{{ID}}_failed() (
  {{ID}}_builtins
  if [[ -n $1 ]]; then
    builtin printf '%s:%s: this command failed\n' "$1" "$2" >&2
  elif [[ $3 == '. '* && -v VARIANT_CONFIG ]]; then
    builtin printf '%s: its last command failed\n' "$VARIANT_CONFIG" >&2
  elif [[ $3 == '. '* ]]; then
    builtin printf '%s: its last command failed\n' {{DEFAULTS_FILE}} >&2
  fi
)

SCRIPT_NAME={{VERB}}
CLEANUP=( )
log_error() { echo "$@" >&2; }
{{ID}}_names

PS4=$'+{{ID}}\001${BASH_SOURCE-}\001${LINENO-}\001'
BASH_XTRACEFD={{TRACE}}
trap '{{ID}}_failed "${BASH_SOURCE-}" "${LINENO-}" "$BASH_COMMAND"' ERR
set -ex
{{SOURCE_DEFAULTS}}
{{ID}}_settings defaults || [[ 1 ]]
{{DEFAULTS}}
{{CONFIG}}
CACHE_DIR={{CACHE_DIR}}
SCRIPT_NAME={{VERB}}
instance=${INSTANCE_NAME-} blockdev=${DISK_0_PATH-} old_name=${OLD_INSTANCE_NAME-}
{{ID}}_settings before || [[ 1 ]]
if [[ -n ${OS_VARIANT-} ]]; then
  VARIANT_CONFIG=$VARIANTS_DIR/$OS_VARIANT.conf
  # Another file was not looked at: who could have written it is not known.
  if [[ -f $VARIANT_CONFIG && $VARIANT_CONFIG == {{VARIANT_FILE}} ]]; then
    if [[ $- != *x* ]] && ! {{ID}}_is_function set; then set -x; fi
    . "$VARIANT_CONFIG"
  fi
fi
{{ID}}_settings variant && {{ID}}_variables && {{ID}}_functions && {{ID}}_environment && {{ID}}_done || {{ID}}_incomplete
}

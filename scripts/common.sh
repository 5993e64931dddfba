# Shared by the scripts here (sourced, not run): moves to the repository's root and defines `say` and `quietly`.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
jobs=$(nproc)

# One line to stderr; stdout belongs to what a command is for.
say() { echo "$*" >&2; }

# quietly LOG COMMAND...: runs the command with its output in the file LOG, which is shown only if the command fails.
quietly() {
  local log=$1
  shift
  mkdir -p "$(dirname "$log")"
  "$@" >"$log" 2>&1 && return
  local status=$?
  cat "$log" >&2
  say "failed ($status): $*"
  return "$status"
}

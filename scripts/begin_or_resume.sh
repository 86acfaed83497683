#!/usr/bin/env bash
# Begins a search in a run folder, or goes on with the one in it.
#
#   begin_or_resume.sh RUN WORDS...
#
# WORDS are those of `evomerge search`. When the run is gone on with, those of them that say where (evaluator=...,
# evaluator.*) count again; the others are in the run's configuration. Called again after every interruption, it ends
# with the same run; the exit status is that of evomerge: 0 finished, 130 or 143 interrupted.
set -euo pipefail

run=${1:?usage: begin_or_resume.sh RUN WORDS...}
shift

# --trust: the words are the user's own, and so is what they name.
if [[ -s $run/ledger.jsonl ]]; then
  where=()
  for word in "$@"; do
    if [[ $word == evaluator=* || $word == evaluator.* ]]; then
      where+=("$word")
    fi
  done
  exec evomerge resume --trust "$run" ${where[@]+"${where[@]}"}
fi
if [[ -n $(ls -A -- "$run" 2>/dev/null) ]]; then
  mv -- "$run" "$run.not-begun-$(date +%s)" # it ended before its first line: nothing was evaluated
fi
exec evomerge search --trust "$@" "run_dir='$run'"

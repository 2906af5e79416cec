#!/usr/bin/env bash
# The whole path through Xylem on the embedded world: text to tokenizer, shards, plan, a pretraining
# run that is interrupted and resumed, evaluation, export with its gate, generation, report.
#
#   bash scripts/quickstart.sh [KEY=VALUE ...]      settings for every verb, for example run.steps=60
#
#   XYLEM_QUICKSTART_ROOT   where world and run are put (default runs)
#   XYLEM_QUICKSTART_SIZE   factor on the amount of text (default 1.0)
#
# Needs Python 3.11 or newer and nothing else. A second run begins afresh and keeps the one before it
# in runs/quickstart.old.
set -euo pipefail

settings=(experiment=quickstart "run.root=${XYLEM_QUICKSTART_ROOT:-runs}" "$@")
titles=() times=() pretraining=''
stage_began=$SECONDS

stage() {
    close_stage
    titles+=("$1")
    stage_began=$SECONDS
    printf '\n=== %d. %s\n' "${#titles[@]}" "$1"
}
close_stage() {
    if [ "${#titles[@]}" -gt "${#times[@]}" ]; then times+=($((SECONDS - stage_began))); fi
}
show() { # a command as the user would type it, then what it does
    printf '$ %s\n' "$*"
    "$@"
}
leave() { # however the script ends
    local code=$?
    if [ -n "$pretraining" ]; then kill "$pretraining" 2>/dev/null || true; fi
    if [ "$code" -ne 0 ]; then
        echo "quickstart: stopped with exit code $code in stage ${#titles[@]}" \
            "(${titles[*]: -1}); what was written lies in ${run:-runs}" >&2
    fi
    exit "$code"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

stage "Environment: Python packages in a folder of their own"
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$XYLEM_ROOT"
echo "using $XYLEM_VENV"

# Mistakes in the settings end here, before anything is written.
described=$(
    python - "${settings[@]}" <<'PY'
import sys

from xylem.train.compose import compose_config
from xylem.train.errors import MISTAKES
from xylem.train.run_folder import run_folder

try:
    config = compose_config(sys.argv[1:])
except MISTAKES as mistake:
    sys.exit(f"quickstart: {mistake}")
print(config.run.steps, run_folder(config))
PY
) || exit 2
steps=${described%% *} run=${described#* }
interrupt_at=$(((steps + 2) / 3))

newest_step() { # nothing while there is no file yet
    [ ! -e "$run/metrics.jsonl" ] ||
        sed -n 's/.*"kind": *"train", *"step": *\([0-9]*\).*/\1/p' "$run/metrics.jsonl" |
        tail -n 1
}

stage "World: facts stated in many languages, written as text"
if [ -e "$run" ]; then
    rm -rf "$run.old"
    mv "$run" "$run.old"
    echo "kept the run before this one as $run.old"
fi
world=$(dirname "$run")/world
if [ -e "$world/world.json" ]; then
    echo "using the world that is in $world (remove it to make another)"
else
    show python -m xylem.scripts.make_world "$world" --size "${XYLEM_QUICKSTART_SIZE:-1.0}"
fi

stage "Prepare: text to tokenizer, shards and manifest"
show xylem prepare "${settings[@]}"

stage "Tokenizer: is it fair to every language?"
show xylem tokenizer "${settings[@]}"

stage "Plan: what the run will cost, before it starts"
show xylem plan "${settings[@]}"

stage "Pretrain: interrupted by a signal at step $interrupt_at of $steps"
printf '$ %s\n' "xylem pretrain ${settings[*]}"
xylem pretrain "${settings[@]}" </dev/null &
pretraining=$!
first_loss=''
while kill -0 "$pretraining" 2>/dev/null; do
    at=$(newest_step)
    if [ -n "$at" ] && [ -z "$first_loss" ]; then first_loss=$((SECONDS - stage_began)); fi
    if [ "${at:-0}" -ge "$interrupt_at" ]; then
        echo "quickstart: sending SIGUSR1, as Slurm does ahead of a time limit"
        kill -USR1 "$pretraining"
        break
    fi
    sleep 0.2
done
code=0
wait "$pretraining" || code=$?
pretraining=''
if [ "$code" -ne 75 ]; then
    echo "quickstart: expected exit code 75 (saved, start me again), got $code" >&2
    exit 1
fi
echo "quickstart: it ended with exit code 75, saved as $(cat "$run/checkpoints/latest")"

stage "Pretrain: the same command resumes and finishes"
show xylem pretrain "${settings[@]}"

stage "Evaluate: bits per byte on held-out documents, accuracy on facts"
show xylem evaluate "$run"

stage "Export: every family as a plain dense Qwen3 model, proved equal"
show xylem export "$run"
exported=$run/export/$(cat "$run/checkpoints/latest")

stage "Generate: plain transformers continue text from the exported folders"
show python -m xylem.scripts.generate "$exported"

stage "Report: one page with curves, tables and samples"
show xylem report "$run"

close_stage
total=0
printf '\n=== What was done\n'
for i in "${!titles[@]}"; do
    printf '%4d s  %d. %s\n' "${times[$i]}" $((i + 1)) "${titles[$i]}"
    total=$((total + times[i]))
done
cat <<END
$(printf '%4d s' "$total")  in all; the first loss came ${first_loss:-?} s after the pretraining command

=== Where to look
$run/report.html        curves, bits per byte, samples, config: open it in a browser
$run/samples/           text written while training, a file a step
$exported/   a Hugging Face folder per family, each with its gate.json and model card
$run/metrics.jsonl      every number of the run
$world/corpus/            the corpus, in the form your own should have
Your own text: xylem prepare data=default data.corpus=FOLDER data.prepared=FOLDER; README.md goes on.
END

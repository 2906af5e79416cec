#!/usr/bin/env bash
# Makes the environment if needed and runs the whole test suite; more arguments go to pytest:
#
#   bash scripts/test.sh                     everything, two workers
#   bash scripts/test.sh -k tokenizer -x     some of it
#
#   XYLEM_TEST_WORKERS   pytest workers (default 2)
set -euo pipefail
# shellcheck source=scripts/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$XYLEM_ROOT"
# One thread a process: several run at once, and sums then come in one order.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
# loadfile keeps a file's tests on one worker: what they share, such as started processes, is made
# once.
exec python -m pytest -n "${XYLEM_TEST_WORKERS:-2}" --dist loadfile --durations=10 "$@"

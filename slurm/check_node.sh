#!/usr/bin/env bash
# Looks at one node before a run starts on it: srun --ntasks-per-node=1 bash slurm/check_node.sh RUN_FOLDER
#
# Tells all that is wrong, each in a line that begins with the node's name, and ends with 1.
#   XYLEM_SCRATCH        folder for temporary files (default: TMPDIR, else the system's)
#   XYLEM_MIN_FREE_GIB   free space wanted there and at the run folder (default 2)
#   XYLEM_MAX_SKEW_S     how far the node's clock may be from the first node's (default: not asked)
set -u
run_folder=${1:?name the run folder}
scratch=${XYLEM_SCRATCH:-$(dirname "$(mktemp -u)")}
node=${SLURMD_NODENAME:-$(hostname)}
wanted=${XYLEM_MIN_FREE_GIB:-2}
wrong=0
bad() {
    echo "node $node: $*" >&2
    wrong=1
}

command -v xylem >/dev/null && python -c 'import xylem' 2>/dev/null ||
    bad "cannot import xylem with $(command -v python || echo 'no python'): does the node see $PATH?"

# Slurm counts what it was told of, the driver what is there.
gpus=${SLURM_GPUS_ON_NODE:-0}
if [ "$gpus" -gt 0 ]; then
    seen=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU')
    [ "$seen" -ge "$gpus" ] || bad "Slurm gave $gpus GPUs, nvidia-smi sees $seen"
fi

for folder in "$run_folder" "$scratch"; do
    if ! mkdir -p "$folder" 2>/dev/null || ! probe=$(mktemp "$folder/.check-$node-XXXXXX" 2>/dev/null); then
        bad "cannot write to $folder"
        continue
    fi
    rm -f "$probe"
    free=$(($(df -Pk "$folder" | awk 'NR == 2 { print $4 }') / 1048576))
    [ "$free" -ge "$wanted" ] ||
        bad "$folder has $free GiB free, wanted XYLEM_MIN_FREE_GIB=$wanted"
done

if [ -n "${XYLEM_MAX_SKEW_S:-}" ] && [ -n "${XYLEM_LAUNCHED:-}" ]; then
    # Includes the time srun needed to get here, so a limit of a few seconds is as sharp as it gets.
    skew=$(($(date +%s) - XYLEM_LAUNCHED))
    [ "${skew#-}" -le "$XYLEM_MAX_SKEW_S" ] ||
        bad "its clock is ${skew} s from the first node's, allowed XYLEM_MAX_SKEW_S=$XYLEM_MAX_SKEW_S"
fi
exit "$wrong"

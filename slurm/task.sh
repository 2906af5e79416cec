#!/usr/bin/env bash
# One process of a job: srun starts it once a task, pretrain.sbatch says why it is needed.
#
#   srun bash slurm/task.sh xylem pretrain experiment=quickstart
#
# Names the process as torch.distributed expects, and ends as srun should see it: 0 where the
# command left with 75 (saved, requeue me), else as the command did.
set -u
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
trap '' USR1 # inherited: kills nothing before xylem listens; pretrain.sbatch sends it again
trap : TERM  # not inherited: xylem decides, this shell stays to tell how it ended
code=0
"$@" || code=$?
if [ "$RANK" -eq 0 ] && [ -n "${XYLEM_EXIT_FILE:-}" ]; then echo "$code" >"$XYLEM_EXIT_FILE"; fi
case $code in
0 | 75) exit 0 ;;
*)
    echo "process $RANK of $WORLD_SIZE on $(hostname): exit code $code" >&2
    # srun kills the others as soon as this one is gone. Most faults are everybody's: they get the
    # time to end with their own code, so that the job's is not that of a kill.
    if [ "$code" -lt 128 ]; then sleep "${XYLEM_FAULT_GRACE_S:-3}"; fi
    exit "$code"
    ;;
esac

#!/usr/bin/env bash
# A search on a Ray cluster within a SLURM job, which is requeued when its time is up or its nodes are taken away.
#
#   sbatch --nodes=4 --gpus-per-node=8 scripts/slurm.sh runs/NAME experiment=small_24gb evaluator.gpus_per_worker=1
#
# The run folder, the models and the tasks lie on a disk that all nodes share; evomerge and ray are on the PATH of the
# job (activate the environment before sbatch, or set EVOMERGE_SETUP to a file that does).
#SBATCH --job-name=evomerge
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

run=${1:?usage: sbatch slurm.sh RUN WORDS...}
shift
# SLURM runs a copy of this file, so the folder of the others is that of submission unless it is said.
scripts=${EVOMERGE_SCRIPTS:-${SLURM_SUBMIT_DIR:-.}/scripts}
if [[ -n ${EVOMERGE_SETUP:-} ]]; then
  # shellcheck disable=SC1090
  source "$EVOMERGE_SETUP"
fi

# SLURM signals this shell alone (B:). Before the search has begun there is nothing to end in order.
again() {
  echo "slurm.sh: interrupted; the job is requeued and will go on with $run" >&2
  scontrol requeue "$SLURM_JOB_ID"
}
trap 'again; exit 143' TERM USR1

# One token for head, workers and driver. Without RAY_AUTH_MODE each of them would decide for itself: a head asks for a
# token when there is one in the home folder, a worker never offers it.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
# Not `hostname --ip-address`, which is 127.0.1.1 on some systems. Where the first network is not the right one, say it.
address=${EVOMERGE_HEAD_ADDRESS:-$(srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" hostname -I | awk '{print $1; exit}')}
port=$((20000 + SLURM_JOB_ID % 20000))
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}

finish() {
  # shellcheck disable=SC2046,SC2317
  kill $(jobs -p) 2>/dev/null || true
}
trap finish EXIT

# ray_node NODES OPTIONS...: Ray on so many nodes, for as long as the job lasts.
ray_node() {
  local count=$1
  shift
  srun --nodes="$count" --ntasks="$count" --overlap "${where[@]}" \
    ray start "$@" --num-cpus="$cpus" --num-gpus="$gpus" --disable-usage-stats --block &
}
where=(--nodelist="$head")
ray_node 1 --head --node-ip-address="$address" --port="$port" --include-dashboard=false
tries=0
# The head answers before its node has joined: what counts is that a driver can connect.
connects() { python -c 'import ray, sys; ray.init(sys.argv[1], log_to_driver=False)' "$address:$port"; }
until ray health-check --address "$address:$port" >/dev/null 2>&1 && connects >/dev/null 2>&1; do
  if ((++tries > ${EVOMERGE_RAY_TRIES:-60})); then
    echo "slurm.sh: Ray did not start on $head" >&2
    exit 1
  fi
  sleep 1
done
if ((${#nodes[@]} > 1)); then
  where=(--exclude="$head")
  ray_node $((${#nodes[@]} - 1)) --address="$address:$port"
fi

export RAY_ADDRESS=$address:$port
bash "$scripts/begin_or_resume.sh" "$run" "$@" evaluator=ray evaluator.address=auto evaluator.workers=auto &
search=$!

# The workers live while the search ends in order.
ended=
trap 'ended=1; kill -TERM "$search" 2>/dev/null || true' TERM USR1
status=0
while :; do
  status=0
  wait "$search" || status=$?
  kill -0 "$search" 2>/dev/null || break # otherwise it was the signal that ended the waiting
done
if [[ -n $ended && $status -ge 128 ]]; then # ended by the signal, in whatever way
  again
fi
exit "$status"

#!/usr/bin/env bash
# Train on several cards of this machine with MindSpore's launcher, msrun.
#   ./run_distributed.sh CARDS [options of train.py]
#   ./run_distributed.sh 8 --config configs/skipvit_small_imagenet.yaml --data.path /data/imagenet
# Every process writes its log to logs/worker_N.log (LOG_DIR changes the folder, MASTER_PORT the port); the first one's is shown.
set -euo pipefail

usage() {
    sed -n '2,5s/^# \{0,1\}//p' "$0"
}

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    usage
    exit 0
fi
if [[ ! ${1:-} =~ ^[1-9][0-9]*$ ]]; then
    echo "error: the first argument is the number of cards, got '${1:-}' (see $0 --help)" >&2
    exit 2
fi
cards=$1
shift
if ! command -v msrun >/dev/null; then
    echo "error: msrun is not on the PATH; activate the environment in which mindspore is installed" >&2
    exit 2
fi

log_dir=${LOG_DIR:-logs}
mkdir -p "$log_dir"
rm -f "$log_dir"/worker_*.log "$log_dir"/scheduler.log "$log_dir"/launcher.log
# A first look at the options in one process, so that a wrong key is one line here and not one in every log.
python "$(dirname "$0")/train.py" "$@" --check

status=0
msrun --worker_num="$cards" --local_worker_num="$cards" --master_port="${MASTER_PORT:-8118}" --log_dir="$log_dir" \
    --join=True --tail_worker_log=0 "$(dirname "$0")/train.py" "$@" 2>"$log_dir/launcher.log" || status=$?
if [[ $status -ne 0 ]]; then
    reason=$(grep -h '^error: ' "$log_dir"/worker_*.log 2>/dev/null | head -n 1 || true)
    echo "${reason:-error: a process failed; its log is in $log_dir}" >&2
fi
exit "$status"

#!/usr/bin/env bash
# Train on several cards of this machine with MindSpore's launcher, msrun.
#   ./run_distributed.sh CARDS [options of train.py]
#   ./run_distributed.sh 8 --config configs/skipvit_small_imagenet.yaml --data.path /data/imagenet
# Ctrl-C and SIGTERM save a checkpoint and end with exit code 3; a second one stops at once.
# Every process writes its log to logs/worker_N.log (LOG_DIR changes the folder, MASTER_PORT the port); the first one's is shown.
set -euo pipefail

usage() {
    sed -n '2,6s/^# \{0,1\}//p' "$0"
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

# msrun neither hands signals on nor waits for processes that save: it runs apart, and a stop goes to the workers themselves.
setsid msrun --worker_num="$cards" --local_worker_num="$cards" --master_port="${MASTER_PORT:-8118}" --log_dir="$log_dir" \
    --join=True --tail_worker_log=0 "$(dirname "$0")/train.py" "$@" 2>"$log_dir/launcher.log" &
launcher=$!
asked=0
stop_workers() {
    asked=$((asked + 1))
    for child in $(ps -o pid= --ppid "$launcher"); do
        if [[ $asked -gt 1 ]]; then
            kill -KILL "$child" 2>/dev/null || true
        elif tr '\0' '\n' <"/proc/$child/environ" 2>/dev/null | grep -qx 'MS_ROLE=MS_WORKER'; then
            kill -TERM "$child" 2>/dev/null || true
        fi
    done
}
trap stop_workers INT TERM

status=0
while kill -0 "$launcher" 2>/dev/null; do
    status=0
    wait "$launcher" || status=$? # a signal ends the wait, not the run
done
if [[ $asked -gt 0 ]] && grep -qs '^stopped after' "$log_dir"/worker_0.log; then
    grep '^stopped after' "$log_dir"/worker_0.log >&2
    exit 3
fi
if [[ $status -ne 0 ]]; then
    reason=$(grep -h '^error: ' "$log_dir"/worker_*.log 2>/dev/null | head -n 1 || true)
    echo "${reason:-error: a process failed; its log is in $log_dir}" >&2
fi
exit "$status"

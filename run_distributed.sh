#!/usr/bin/env bash
# Train or evaluate on several devices: ./run_distributed.sh DEVICES [options of train.py]; ./run_distributed.sh --help says more.
set -euo pipefail
if ! python -c 'from importlib.util import find_spec as find; raise SystemExit(not find("skipvit"))' 2>/dev/null; then
    echo "error: the python on the PATH has no skipvit; activate the environment in which requirements.txt was installed" >&2
    exit 2
fi
exec python -m skipvit launch "$@"

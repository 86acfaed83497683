#!/usr/bin/env bash
# An environment of its own with fusion_bench, for scripts/parity_fusion_bench.py: `scripts/fusion_bench_environment.sh FOLDER`.
# It is no dependency of evomerge, and imports nothing with transformers 5.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
"${PYTHON:-python3}" -m venv "$1"
torch=$(sed -n 's/^torch==/torch==/p' "$(dirname "$0")/../constraints.txt")
"$1/bin/python" -m pip install --quiet --disable-pip-version-check "$torch"
"$1/bin/python" -m pip install --quiet --disable-pip-version-check fusion_bench==0.2.33 'transformers<5' 'datasets<4.6'
echo "python scripts/parity_fusion_bench.py --python $1/bin/python"

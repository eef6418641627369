#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU is asked for, in one call without network; bench/gpu.py says what and how.
#
#   bench/gpu.sh [FOLDER [PART ...]] [--seconds N]
#
# WHEELS   a folder of wheels for what the package needs and the machine lacks; they go to a folder of their own
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$(command -v python3)}
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
exec "$python" -m bench.gpu "$@"

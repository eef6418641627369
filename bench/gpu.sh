#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU is asked for, in one call of at most nine minutes, without network:
#
#   bench/gpu.sh [FOLDER [PART ...]]
#
# FOLDER   where small JSON and text files go: $OUT if that is set, else runs/gpu
# PARTS    environment tests operators steps budgets profiles sanitizer; all of them if none is given, in this order.
#          Others on request: tune (launch tables), accept (make these results the committed ones)
#
# WHEELS   a folder of wheels for what the package needs and the machine lacks (zstandard, say); they go to a folder of their own
#
# Each part has a box of seconds and leaves what it had when that is over. SECONDS_IN_ALL (530) shrinks or stretches the boxes;
# what a part did not reach can be had by a further call that names it. Benches write their lines as they go, and a later call
# with the same FOLDER adds to them.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:-${OUT:-runs/gpu}}
shift || true
if [ $# -gt 0 ]; then parts=("$@"); else parts=(environment tests operators steps budgets profiles sanitizer); fi
python=${PYTHON:-$(command -v python3)}
all=${SECONDS_IN_ALL:-530}
mkdir -p "$folder"
failed=()
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --target "$site" "$WHEELS"/*.whl || exit 1
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi

declare -A box=([environment]=10 [tests]=90 [operators]=150 [steps]=150 [budgets]=60 [profiles]=30 [sanitizer]=40 [tune]=240 [accept]=20)
asked=0
for part in "${parts[@]}"; do
    [ -n "${box[$part]:-}" ] || { echo "error: no part $part; there are ${!box[*]}" >&2; exit 2; }
    asked=$((asked + box[$part]))
done

# bench SECONDS ARGUMENTS...: stops by itself shortly before its box is over, so that its table is written
bench() {
    local seconds=$1
    shift
    "$python" -m pytest -q -p no:cacheprovider --benchmark --benchmark-each 0.5 --benchmark-stop $((seconds * 3 / 4)) \
        --benchmark-into "$folder" --benchmark-add "$@"
}
part_environment() { "$python" -m bench.environment | tee "$folder/environment.txt"; }
part_tests() { "$python" -m pytest -q -p no:cacheprovider tests/kernels/gpu --durations=5; }
# compiling a whole step takes a minute or two: the two presets that say most, and test-time training
part_steps() { bench "$1" bench/test_training.py -k "pr688 or pr745 or adapters and pr549"; }
part_operators() { bench "$1" bench/test_operators.py; }
part_budgets() { bench "$1" bench/test_budgets.py -k "pr688 or pr745"; }
part_sanitizer() {
    command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not there"; return 0; }
    local tool
    for tool in memcheck racecheck; do
        compute-sanitizer --tool "$tool" --error-exitcode 3 "$python" -m bench.once || return
    done
}
part_profiles() {
    PYTHON=$python PROFILER=torch bench/profile.sh pr688 training "${TMPDIR:-/tmp}/profiles" &&
        PYTHON=$python PROFILER=torch bench/profile.sh pr688 adapters "${TMPDIR:-/tmp}/profiles"
}
part_tune() { "$python" -m bench.tune --seconds 12 --json "$folder/tuned.json"; }
part_accept() { "$python" -m bench.accept "$folder"; }

begun=$SECONDS
for part in "${parts[@]}"; do
    left=$((all - (SECONDS - begun)))
    seconds=$((box[$part] * all / (asked > all ? asked : all)))
    # one part alone may have all of the time
    [ ${#parts[@]} -gt 1 ] || seconds=$all
    [ "$seconds" -le "$left" ] || seconds=$left
    if [ "$seconds" -lt 5 ]; then
        echo "== $part: not begun, the time is over" | tee -a "$folder/log.txt"
        failed+=("$part")
        continue
    fi
    echo "== $part, at most $seconds s" | tee -a "$folder/log.txt"
    started=$SECONDS
    export -f bench "part_$part"
    export folder python
    timeout --kill-after 10 "$seconds" bash -c "set -uo pipefail; part_$part $seconds" 2>&1 | tee -a "$folder/log.txt"
    code=${PIPESTATUS[0]}
    [ "$code" -eq 0 ] || failed+=("$part")
    echo "== $part: exit $code after $((SECONDS - started)) s$([ "$code" -ne 124 ] || echo ', cut off')" | tee -a "$folder/log.txt"
done
echo "== all: $((SECONDS - begun)) s; ${failed[*]:-no part} failed" | tee -a "$folder/log.txt"
[ ${#failed[@]} -eq 0 ]

#!/usr/bin/env bash
# Profile a few warm steps of a preset and print its top kernels, with their share and their fraction of the floor:
#
#   bench/profile.sh PRESET [training|adapters|scoring] [FOLDER]
#
# nsys where it is there, else ncu, else torch's own profiler (also wherever there is no GPU). PROFILER=torch|ncu|nsys chooses
# one. Reports are kept in FOLDER (runs/profile): open them in Nsight or in https://ui.perfetto.dev.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
preset=$1 what=${2:-training} folder=${3:-runs/profile}
python=${PYTHON:-python}
mkdir -p "$folder"
report=$folder/$preset-$what
export PGOLF_NVTX=1

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    [ "${PROFILER:-torch}" = torch ] || { echo "error: $PROFILER looks at a GPU, and torch sees none here" >&2; exit 1; }
    PROFILER=torch
fi
by_nsys() {
    nsys profile --trace cuda,nvtx --capture-range cudaProfilerApi --capture-range-end stop --force-overwrite true \
        --output "$report" "$python" -m bench.profiling "$preset" --what "$what" --by range &&
        nsys stats --report cuda_gpu_kern_sum --format csv --output - "$report.nsys-rep" >"$report.csv"
}
by_ncu() {
    # one step: every kernel is run several times over for its counters. Clocks are left alone.
    ncu --profile-from-start off --clock-control none --nvtx --set none --metrics gpu__time_duration.sum --csv \
        --log-file "$report.csv" "$python" -m bench.profiling "$preset" --what "$what" --by range --steps 1
}
for tool in ${PROFILER:-nsys ncu torch}; do
    if [ "$tool" = torch ]; then
        exec "$python" -m bench.profiling "$preset" --what "$what" --trace "$report.json"
    fi
    # a tool can be there and still not be allowed to look: then the next one tries
    if command -v "$tool" >/dev/null && "by_$tool"; then
        exec "$python" -m bench.profiling "$preset" --what "$what" --report "$report.csv"
    fi
    echo "$tool is not there or could not profile" >&2
    [ -z "${PROFILER:-}" ] || exit 1
done

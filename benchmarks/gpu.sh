#!/usr/bin/env bash
# What a CUDA device is needed for, in at most ten minutes, from the top of the repository:
#
#     bash benchmarks/gpu.sh [OUT] [CIFAR]
#
# OUT: folder for the results (benchmarks/results/gpu). CIFAR: the published CIFAR-10 files, or a
# folder or archive of its pictures by class; without it that step is left out.
#
#   tests         pytest -m gpu                                                      tests.json
#   unroll-ipc1   an iteration of the published size for 1 image per class           unroll-ipc1.json
#   unroll-ipc10  ... for 10, in batches of 50                                       unroll-ipc10.json
#   experts       an expert epoch                                                    experts.json
#   cifar         CIFAR-10, 1 image per class, in the time that is left              cifar.json
#
# Each step has a time limit of its own; a step that fails or is ended loses no other, and keeps what
# it had measured. summary.json has the command, exit code and seconds of each, log.txt all output.
# Neither a network nor an installation of the package is needed, nor tyro; PYTHONPATH may name a
# folder with packages that PYTHON lacks.
#
# PYTHON=python3   DEVICE=cuda   TOTAL=580 (seconds)   STEPS="tests cifar" (these alone)
# DEVICE=cpu QUICK=1: tiny sizes, to see that the script runs; no result.
set -uo pipefail

PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
QUICK=${QUICK:-}
TOTAL=${TOTAL:-580}
STEPS=${STEPS:-tests unroll-ipc1 unroll-ipc10 experts cifar}
OUT=$(realpath -m "${1:-benchmarks/results/gpu}")
CIFAR=${2:+$(realpath -m "$2")}

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
mkdir -p "$OUT" || exit 1
WORK=$(mktemp -d) || exit 1
trap 'rm -rf "$WORK"' EXIT
LOG=$OUT/log.txt
: >"$LOG"
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}:$WORK"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

short=() quick=() cifar_limit=$TOTAL
if [[ -n $QUICK ]]; then
    short=(--quick --repeats 1 --warmup 1)
    quick=(--quick) cifar_limit=60
fi

say() { echo "$*" | tee -a "$LOG"; }

record() { "$PYTHON" -m benchmarks.gpu_run record --out "$OUT" "$@"; }

# step NAME LIMIT COMMAND...: run for at most LIMIT seconds, and no longer than TOTAL allows.
step() {
    local name=$1 limit=$2 left=$((TOTAL - SECONDS)) code=0 began
    shift 2
    [[ " $STEPS " == *" $name "* ]] || return 0
    if ((left < 20)); then
        skip "$name" "no time is left"
        return
    fi
    ((limit < left)) || limit=$left
    say "== $name, at most $limit s: $*"
    began=$(date +%s.%N)
    rm -f "$OUT/$name.json" # of an earlier run
    # Into a file and not a pipe, which a process left over would keep open.
    STEP_SECONDS=$limit timeout --kill-after=5 "$limit" "$@" >"$WORK/step.log" 2>&1 || code=$?
    cat "$WORK/step.log" >>"$LOG"
    tail -n 45 "$WORK/step.log"
    local result=()
    [[ -f $OUT/$name.json ]] && result=(--result "$name.json")
    record --step "$name" --exit "$code" "${result[@]}" \
        --seconds "$("$PYTHON" -c "import time; print(round(time.time() - $began, 1))")" -- "$@"
    say "== $name: exit $code"
}

# skip NAME REASON
skip() {
    [[ " $STEPS " == *" $1 "* ]] || return 0
    say "== $1: not run, $2"
    record --step "$1" --reason "$2"
}

"$PYTHON" -m benchmarks.gpu_run check --device "$DEVICE" --work "$WORK" --out "$OUT" \
    "${quick[@]}" || exit 1

step tests 160 "$PYTHON" -m benchmarks.gpu_run tests --device "$DEVICE" "${quick[@]}" \
    --out "$OUT/tests.json"
for case in ipc1 ipc10; do
    step "unroll-$case" 130 "$PYTHON" -m benchmarks.unroll --device "$DEVICE" --cases "$case" \
        --methods auto reverse --precision bf16 tf32 float32 --repeats 5 --least 3 \
        --no-memory --no-profile "${short[@]}" --out "$OUT/unroll-$case.json"
done
step experts 70 "$PYTHON" -m benchmarks.experts --device "$DEVICE" --precision bf16 tf32 float32 \
    --repeats 3 --no-memory "${short[@]}" --out "$OUT/experts.json"
if [[ -z $CIFAR ]]; then
    skip cifar "no path to CIFAR-10 is given"
elif [[ ! -e $CIFAR ]]; then
    skip cifar "there is no $CIFAR"
else
    step cifar "$cifar_limit" "$PYTHON" -m benchmarks.gpu_run cifar --data "$CIFAR" --device "$DEVICE" \
        --work "$WORK" "${quick[@]}" --out "$OUT/cifar.json"
fi

"$PYTHON" -m benchmarks.gpu_run show --out "$OUT" | tee -a "$LOG"
exit "${PIPESTATUS[0]}"

#!/usr/bin/env bash
# Run a fuzzer for some CPU seconds and print executions, coverage and findings; ends with 1 if there are any.
#
#   tools/fuzz.sh [raw|structured|differential|bounds|c|c-fast] SECONDS [SEED]
#
# raw, structured: the Python reader under atheris (pip install atheris).
# differential:    the same frames through all decoders.
# bounds:          as differential, with Numba's bounds checks compiled in (slow to start).
# c:               the C decoder under libFuzzer and sanitizers (needs clang).
# c-fast:          the C decoder alone, without an engine: nine tenths of the time at -O2, one under sanitizers.
# What is found stays in fuzz-findings/. Seconds are those of a core, so a busy machine or nice do not shorten a run.
set -euo pipefail
cd "$(dirname "$0")/.."
mode="${1:-}" seconds="${2:-60}" seed="${3:-$RANDOM}"
findings="fuzz-findings/$mode"
mkdir -p "$findings"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
status=0

# SECONDS COMMAND...: libFuzzer, again and again on the corpus that grows, until it has had a core for so long.
libfuzzer() {
    local left="$1" turn=0 TIMEFORMAT='%U %S'
    shift
    while [ "$left" -gt 0 ] && [ "$status" -eq 0 ]; do
        {
            time "$@" -max_total_time="$((left > 10 ? left : 10))" -seed="$((seed + turn))" -print_final_stats=1 \
                -artifact_prefix="$findings/" >>"$work/log" 2>&1 || status=1
        } 2>"$work/used"
        left=$((left - $(awk '{ print int($1 + $2 + 1) }' "$work/used")))
        turn=$((turn + 1))
    done
    [ "$status" -eq 0 ] || tail -20 "$work/log"
    awk '/number_of_executed_units/ { n += $2 } /DONE/ { last = $0 } END { print n " executions; last:", last }' "$work/log"
    : >"$work/log"
}

case "$mode" in
raw | structured)
    mkdir "$work/corpus"
    if [ "$mode" = raw ]; then
        cp tests/fuzz/corpus/*.dcz "$work/corpus/"
    else # choices to begin with: otherwise it stays with a few bytes for minutes
        python - "$seed" "$work/corpus" <<'END'
import pathlib, random, sys
dice = random.Random(sys.argv[1])
for number in range(64):
    pathlib.Path(sys.argv[2], str(number)).write_bytes(dice.randbytes(96))
END
    fi
    libfuzzer "$seconds" python -m tests.fuzz.fuzz_decode "$mode" "$work/corpus"
    ;;
differential)
    python -m tests.fuzz.fuzz_differential --seconds "$seconds" --seed "$seed" --save "$findings" || status=1
    ;;
bounds)
    NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR="$work" python -m tests.fuzz.fuzz_differential --seconds "$seconds" \
        --seed "$seed" --spec 0 --save "$findings" || status=1
    ;;
c) # half of the time with checksums mended, half of it with their comparison left out
    mkdir "$work/corpus"
    for define in DCZ_MENDED DCZ_NO_CHECKSUMS; do
        clang -std=c99 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined "-D$define" \
            -I spec/reference tests/fuzz/fuzz_reference.c -o "$work/fuzz"
        libfuzzer "$((seconds / 2))" "$work/fuzz" -max_len=65536 \
            "$work/corpus" tests/fuzz/corpus fixtures/valid fixtures/invalid
    done
    ;;
c-fast)
    cc="${CC:-cc} -std=c99 -I spec/reference tests/fuzz/fuzz_fast.c"
    frames=(fixtures/valid/*.dcz fixtures/invalid/*.dcz tests/fuzz/corpus/*.dcz)
    $cc -O2 -o "$work/plain"
    $cc -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -o "$work/sanitized"
    export ASAN_OPTIONS=abort_on_error=1:handle_abort=0 UBSAN_OPTIONS=abort_on_error=1:print_stacktrace=1
    "$work/plain" "$((seconds * 9 / 10))" "$seed" "$findings/plain-$seed.dcz" "${frames[@]}" || status=1
    "$work/sanitized" "$((seconds / 10))" "$((seed + 1))" "$findings/sanitized-$seed.dcz" "${frames[@]}" || status=1
    ;;
*)
    sed -n '2,12p' "$0"
    exit 2
    ;;
esac
n_findings="$(find "$findings" -type f | wc -l)"
echo "$mode: seed $seed, $n_findings findings in $findings"
[ "$n_findings" -eq 0 ] || status=1
exit "$status"

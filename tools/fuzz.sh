#!/usr/bin/env bash
# Run a fuzzer for some seconds and print executions, coverage and findings; ends with 1 if there are any.
#
#   tools/fuzz.sh [raw|structured|differential|bounds|c|c-fast] SECONDS [SEED]
#
# raw, structured: the Python reader under atheris (pip install atheris).
# differential:    the same frames through all decoders.
# bounds:          as differential, with Numba's bounds checks compiled in (slow to start).
# c:               the C decoder under libFuzzer and sanitizers (needs clang).
# c-fast:          the C decoder alone, without an engine: nine tenths of the time at -O2, one under sanitizers.
# What is found stays in fuzz-findings/.
set -euo pipefail
cd "$(dirname "$0")/.."
mode="${1:-}" seconds="${2:-60}" seed="${3:-$RANDOM}"
findings="fuzz-findings/$mode"
mkdir -p "$findings"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
status=0

case "$mode" in
raw | structured)
    mkdir "$work/corpus"
    if [ "$mode" = raw ]; then cp tests/fuzz/corpus/*.dcz "$work/corpus/"; fi
    python -m tests.fuzz.fuzz_decode "$mode" -max_total_time="$seconds" -seed="$seed" -print_final_stats=1 \
        -artifact_prefix="$findings/" "$work/corpus" 2>"$work/log" || status=1
    grep -E 'DONE|Error|Exception|number_of_executed_units|peak_rss|Test unit' "$work/log" | tail -20
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
        "$work/fuzz" -max_total_time="$((seconds / 2))" -seed="$seed" -print_final_stats=1 -max_len=65536 \
            -artifact_prefix="$findings/" "$work/corpus" tests/fuzz/corpus fixtures/valid fixtures/invalid \
            2>"$work/log" || status=1
        grep -E 'DONE|ERROR|runtime error|number_of_executed_units|peak_rss|Test unit' "$work/log" | tail -20
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

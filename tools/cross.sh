#!/bin/sh
# Build the C decoder for other devices, run it there over all vectors, and print its size on a Cortex-M4.
#   apt-get install gcc-arm-linux-gnueabihf gcc-aarch64-linux-gnu gcc-s390x-linux-gnu qemu-user gcc-arm-none-eabi libnewlib-arm-none-eabi
#   tools/cross.sh [MORE FRAMES ...]
# What dcz-read says about a file, and the words it writes, must be what the machine at hand says and writes.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
reference=$root/spec/reference
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags="-std=c99 -Wall -Wextra -Wconversion -Wshadow -Werror -pedantic -O2 -I$reference"

answers() { # answers PROGRAM...: exit code, message and digest for every frame
    for file in "$root"/fixtures/examples/*.dcz "$root"/fixtures/valid/*.dcz "$root"/fixtures/invalid/*.dcz $more; do
        rm -rf "$work/out" && mkdir "$work/out"
        code=0
        "$@" write "$file" -o "$work/out" 2>"$work/message" || code=$?
        # shellcheck disable=SC2012
        printf '%s %s %s %s\n' "$(basename "$file")" "$code" "$(sed 's/.*rule //' "$work/message")" \
            "$(cd "$work/out" && ls | sort -V | xargs cat | sha256sum)"
    done
}

more=$*
# shellcheck disable=SC2086
cc $flags "$reference/main.c" "$reference/dcz_decode.c" -o "$work/here"
answers "$work/here" >"$work/expected"
for target in arm-linux-gnueabihf:arm aarch64-linux-gnu:aarch64 s390x-linux-gnu:s390x; do
    # shellcheck disable=SC2086
    "${target%%:*}-gcc" $flags -static "$reference/main.c" "$reference/dcz_decode.c" -o "$work/there"
    answers "qemu-${target##*:}" "$work/there" >"$work/found"
    cmp "$work/expected" "$work/found"
    echo "${target%%:*}: the same for $(wc -l <"$work/expected") frames"
done
for options in "" "-DDCZ_NO_TEXT" "-DDCZ_BASELINE -DDCZ_NO_TEXT"; do
    # shellcheck disable=SC2086
    (cd "$work" && arm-none-eabi-gcc -std=c99 -mcpu=cortex-m4 -mthumb -Os -fstack-usage $options \
        -c "$reference/dcz_decode.c" -o m4.o)
    echo "Cortex-M4 -Os $options: $(arm-none-eabi-size "$work/m4.o" | awk 'NR == 2 { print $1 " bytes of code and constants" }')," \
        "largest stack frames: $(sort -t"$(printf '\t')" -k2 -nr "$work"/*.su | head -4 | awk -F'[:\t]' '{ printf "%s %s; ", $4, $5 }')"
done

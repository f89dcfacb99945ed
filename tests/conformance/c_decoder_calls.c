/* The table set that a decoder keeps between tensors: never one that is not there any more.
 *
 * Decodes every ordered pair of the tensors of a frame one after the other, with the workspace overwritten between
 * after a call that failed, and compares with tensors decoded alone.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "dcz_decode.h"

#include <stdio.h>

enum { ROOM = 1 << 20, MAX_TENSORS = 32 };

static uint8_t data[ROOM], workspace[ROOM], expected[MAX_TENSORS][ROOM / 4], out[ROOM / 4];

static dcz_code decode(dcz_decoder *d, const dcz_frame *frame, const dcz_tensor *t, uint8_t *to, size_t room) {
    return dcz_decode(d, frame, t, to, ROOM / 4, workspace, room, NULL);
}

int main(int argc, char **argv) {
    static dcz_tensor tensors[MAX_TENSORS];
    dcz_frame frame;
    dcz_decoder d;
    unsigned n = 0, n_wrong = 0, n_pairs = 0, n_kept = 0;
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (file == NULL) {
        return 2;
    }
    const size_t size = fread(data, 1, sizeof data, file);
    if (fclose(file) != 0 || dcz_open(&frame, data, size, NULL, workspace, sizeof workspace, NULL) != DCZ_OK) {
        return 2;
    }
    dcz_code code = dcz_tensor_at(&frame, 0, &tensors[0], NULL, 0);
    while (code == DCZ_OK && n + 1 < MAX_TENSORS) {
        dcz_init(&d);
        if (decode(&d, &frame, &tensors[n], expected[n], sizeof workspace) != DCZ_OK) {
            return 2;
        }
        n++;
        tensors[n] = tensors[n - 1];
        code = dcz_next_tensor(&frame, &tensors[n]);
    }
    for (unsigned first = 0; first < n; first++) {
        for (unsigned second = 0; second < n; second++) {
            for (unsigned failure = 0; failure < 4; failure++) {
                const size_t offset = (size_t)tensors[second].offset;
                dcz_init(&d);
                n_wrong += decode(&d, &frame, &tensors[first], out, sizeof workspace) != DCZ_OK ? 1 : 0;
                const uint32_t kept = d.set.number;
                if (failure == 1) { /* too little memory; the caller uses it for something else */
                    n_wrong += decode(&d, &frame, &tensors[second], out, 64) != DCZ_NEED_WORKSPACE ? 1 : 0;
                    memset(workspace, 0xFF, sizeof workspace);
                } else if (failure == 2) { /* a broken chunk, likewise */
                    data[offset] = (uint8_t)(data[offset] ^ 1);
                    n_wrong += decode(&d, &frame, &tensors[second], out, sizeof workspace) != DCZ_CHK_01 ? 1 : 0;
                    data[offset] = (uint8_t)(data[offset] ^ 1);
                    memset(workspace, 0xFF, sizeof workspace);
                } else if (failure == 3) { /* another room: the set would be moved from where it is not */
                    n_wrong += decode(&d, &frame, &tensors[second], out, sizeof workspace - 4096) != DCZ_OK ? 1 : 0;
                }
                n_wrong += decode(&d, &frame, &tensors[second], out, sizeof workspace) != DCZ_OK ? 1 : 0;
                n_wrong += memcmp(out, expected[second], (size_t)tensors[second].n_bytes) != 0 ? 1 : 0;
                n_kept += kept != DCZ_NO_TENSOR && failure == 0 && d.set.number == kept ? 1 : 0;
                n_pairs++;
            }
        }
    }
    printf("%u tensors, %u sequences, %u with a set kept, %u wrong\n", n, n_pairs, n_kept, n_wrong);
    return n_wrong == 0 && n_kept > 0 ? 0 : 1;
}

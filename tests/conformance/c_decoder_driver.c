/* Every truncation and every single flipped bit of the frames that are given: counts those that the decoder takes.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "dcz_decode.h"

#include <stdio.h>
#include <stdlib.h>

enum { ROOM = 1 << 20 };

static uint8_t data[ROOM], out[ROOM], workspace[4 * ROOM];

static int is_taken(const uint8_t *bytes, size_t size) {
    dcz_frame frame;
    dcz_tensor t;
    dcz_decoder d;
    dcz_section section;
    if (dcz_open(&frame, bytes, size, NULL, workspace, sizeof workspace, NULL) != DCZ_OK) {
        return 0;
    }
    dcz_init(&d);
    dcz_code code = dcz_tensor_at(&frame, 0, &t, NULL, 0);
    for (; code == DCZ_OK; code = dcz_next_tensor(&frame, &t)) {
        if (t.alias_of == DCZ_NO_TENSOR &&
            dcz_decode(&d, &frame, &t, out, sizeof out, workspace, sizeof workspace, NULL) != DCZ_OK) {
            return 0;
        }
    }
    for (uint32_t i = 0; i < frame.n_table_sets; i++) {
        if (dcz_check_table_set(&frame, i, workspace, sizeof workspace, NULL) != DCZ_OK) {
            return 0;
        }
    }
    memset(&section, 0, sizeof section);
    while (dcz_next_section(&frame, &section) == DCZ_OK) {
        if (dcz_check_section(&frame, &section, workspace, sizeof workspace, NULL) != DCZ_OK) {
            return 0;
        }
    }
    return code == DCZ_END;
}

int main(int argc, char **argv) {
    unsigned long n_frames = 0, n_cut = 0, n_flipped = 0, n_silent = 0;
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (file == NULL) {
            return 1;
        }
        const size_t size = fread(data, 1, sizeof data, file);
        if (fclose(file) != 0 || size == sizeof data || !is_taken(data, size)) {
            printf("%s: not taken\n", argv[i]);
            return 1;
        }
        n_frames++;
        for (size_t cut = 0; cut < size; cut++, n_cut++) {
            uint8_t *copy = malloc(cut + 1); /* of its own, so that a sanitizer sees a step beyond */
            if (copy == NULL) {
                return 1;
            }
            memcpy(copy, data, cut);
            n_silent += is_taken(copy, cut) ? 1 : 0;
            free(copy);
        }
        for (size_t bit = 0; bit < 8 * size; bit++, n_flipped++) {
            data[bit >> 3] = (uint8_t)(data[bit >> 3] ^ 1u << (bit & 7));
            n_silent += is_taken(data, size) ? 1 : 0;
            data[bit >> 3] = (uint8_t)(data[bit >> 3] ^ 1u << (bit & 7));
        }
    }
    printf("%lu frames, %lu truncations, %lu flips, %lu silent\n", n_frames, n_cut, n_flipped, n_silent);
    return n_silent == 0 ? 0 : 1;
}

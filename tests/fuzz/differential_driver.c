/* Reads frames from stdin, each behind its size (4 bytes, little-endian), and answers with a line: "ok " and a
 * fingerprint of all tensors (tests/fuzz/frames.py says which), or the rule that is broken.
 *
 *   cc -O2 -I spec/reference tests/fuzz/differential_driver.c spec/reference/dcz_decode.c -o driver
 *   driver MAX_OUTPUT_BYTES MAX_DIRECTORY_BYTES MAX_TENSORS MAX_RANK
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "dcz_decode.h"

#include <stdio.h>
#include <stdlib.h>

static uint32_t crc_table[256];

static void crc_start(void)
{
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t c = n;
        for (int k = 0; k < 8; k++)
            c = (c & 1) ? 0xEDB88320u ^ (c >> 1) : c >> 1;
        crc_table[n] = c;
    }
}

static uint32_t crc_more(uint32_t crc, const void *data, size_t size)
{
    const unsigned char *bytes = data;
    crc = ~crc;
    for (size_t i = 0; i < size; i++)
        crc = crc_table[(crc ^ bytes[i]) & 255] ^ (crc >> 8);
    return ~crc;
}

static uint32_t crc_number(uint32_t crc, uint64_t value, unsigned n_bytes)
{
    unsigned char bytes[8];
    for (unsigned i = 0; i < n_bytes; i++)
        bytes[i] = (unsigned char)(value >> (8 * i));
    return crc_more(crc, bytes, n_bytes);
}

/* Memory that is exactly as large as it is said to be, so that a sanitizer sees every step beyond. */
static void *exactly(void *memory, size_t size)
{
    free(memory);
    memory = malloc(size ? size : 1);
    if (!memory)
        exit(3);
    return memory;
}

static dcz_code decode_frame(const uint8_t *data, size_t size, const dcz_limits *limits, uint32_t *crc)
{
    static uint8_t *workspace, *out;
    static size_t room;
    dcz_frame frame;
    dcz_tensor tensor, target;
    dcz_decoder decoder;
    dcz_error error;
    char *name = NULL;
    dcz_code code;

    if (!workspace)
        workspace = exactly(NULL, room = 1 << 16);
    code = dcz_open(&frame, data, size, limits, workspace, room, &error);
    if (code)
        return code;
    code = dcz_check_output(&frame, &error);
    if (code)
        return code;
    name = exactly(NULL, (size_t)frame.longest_name + 1);
    dcz_init(&decoder);
    *crc = 0;
    for (uint32_t number = 0; number < frame.n_tensors && !code; number++) {
        code = dcz_tensor_at(&frame, number, &tensor, name, (size_t)frame.longest_name + 1);
        if (code)
            break;
        target = tensor;
        target.name = NULL;
        target.name_room = 0;
        code = dcz_alias_target(&frame, &target);
        if (code)
            break;
        out = exactly(out, (size_t)target.n_bytes);
        code = dcz_decode(&decoder, &frame, &target, out, (size_t)target.n_bytes, workspace, room, &error);
        while (code == DCZ_NEED_WORKSPACE) {
            room = (size_t)(error.needed > room ? error.needed : room + 1);
            workspace = exactly(workspace, room);
            dcz_init(&decoder);
            code = dcz_decode(&decoder, &frame, &target, out, (size_t)target.n_bytes, workspace, room, &error);
        }
        *crc = crc_number(*crc, tensor.name_size, 4);
        *crc = crc_more(*crc, name, tensor.name_size);
        *crc = crc_number(*crc, target.dtype, 1);
        *crc = crc_number(*crc, target.rank, 4);
        for (uint32_t i = 0; i < target.rank; i++)
            *crc = crc_number(*crc, target.shape[i], 8);
        *crc = crc_more(*crc, out, (size_t)target.n_bytes);
    }
    free(name);
    return code;
}

int main(int argc, char **argv)
{
    dcz_limits limits = dcz_default_limits();
    unsigned char head[4];
    uint8_t *data = NULL;

    if (argc != 5)
        return 2;
    limits.max_output_bytes = strtoull(argv[1], NULL, 10);
    limits.max_directory_bytes = (uint32_t)strtoul(argv[2], NULL, 10);
    limits.max_tensors = (uint32_t)strtoul(argv[3], NULL, 10);
    limits.max_rank = (uint32_t)strtoul(argv[4], NULL, 10);
    crc_start();
    while (fread(head, 1, 4, stdin) == 4) {
        size_t size = (size_t)head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
        uint32_t crc = 0;
        data = exactly(data, size);
        if (fread(data, 1, size, stdin) != size)
            return 1;
        dcz_code code = decode_frame(data, size, &limits, &crc);
        if (code == DCZ_OK)
            printf("ok %08lx\n", (unsigned long)crc);
        else
            printf("%s\n", dcz_rule(code)[0] ? dcz_rule(code) : dcz_error_text(code));
        fflush(stdout);
    }
    return 0;
}

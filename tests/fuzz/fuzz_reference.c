/* libFuzzer harness of the reference decoder: opens the bytes, decodes every tensor in four ways (in memory and
 * streamed, with the least memory and with enough), all in memory of exactly the size that was asked for, and
 * stops if they disagree.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -I spec/reference tests/fuzz/fuzz_reference.c -o fuzz
 *   fuzz CORPUS fixtures/valid fixtures/invalid
 *
 * -DDCZ_NO_CHECKSUMS skips the comparison of checksums, so that plain mutation gets deep. Without it, the mutator
 * works on the parts of a frame (directory, table sets, tables, bodies, lanes) and mends sizes, checksums and digests.
 * -DDCZ_REPLAY makes a program without an engine that replays the files that it is given: any compiler does.
 * fuzz_fast.c takes its parts (DCZ_PARTS) for a fuzzer without an engine.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "dcz_decode.c"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_OUTPUT = 1 << 18, MAX_PARTS = 256 };

typedef struct part { /* a table set, chunk or section */
    size_t size_at, size_bytes, checksum_at; /* in the frame */
    size_t offset, size;
    int has_tables;
    unsigned coder; /* DCZ_RAW for what is no chunk */
    uint64_t n_words;
} part;

typedef struct digest_place {
    uint32_t tensor;
    size_t at;
} digest_place;

typedef struct layout {
    part parts[MAX_PARTS];
    digest_place digests[MAX_PARTS];
    unsigned n_parts, n_digests;
} layout;

static void *checked_malloc(size_t size) {
    void *memory = malloc(size > 0 ? size : 1);
    if (memory == NULL) {
        abort();
    }
    return memory;
}

static dcz_limits fuzz_limits(void) {
    dcz_limits limits = dcz_default_limits();
    limits.max_output_bytes = MAX_OUTPUT;
    limits.max_tensors = 512;
    limits.max_directory_bytes = 65536;
    limits.max_section_bytes = 65536;
    return limits;
}

typedef struct source {
    const uint8_t *data;
    size_t size;
} source;

static int read_source(void *context, uint64_t offset, void *bytes, size_t size) {
    const source *from = context;
    if (offset > from->size || size > from->size - offset) {
        abort(); /* the decoder never asks for more than there is */
    }
    memcpy(bytes, from->data + offset, size);
    return 0;
}

/* Decode a tensor into `out`; `fast`: with the memory that makes it fast. */
static dcz_code decode_one(dcz_decoder *d, const dcz_frame *frame, const dcz_tensor *t, uint8_t *out, int fast) {
    dcz_error error;
    void *workspace = NULL;
    uint64_t room = 0, asked = 0;
    dcz_code code = DCZ_OK;
    for (int turn = 0;; turn++) {
        free(workspace);
        room = asked;
        workspace = room > 0 ? checked_malloc((size_t)room) : NULL;
        dcz_init(d);
        code = dcz_decode(d, frame, t, out, (size_t)t->n_bytes, workspace, (size_t)room, &error);
        if (code == DCZ_NEED_WORKSPACE) {
            asked = fast ? error.fast : error.needed;
        } else if (fast && d->fast + 14 > room) { /* it was not asked before all tables were known */
            asked = (uint64_t)d->fast + 14;
        } else {
            break;
        }
        if (turn == 8 || asked <= room || asked > (uint64_t)64 << 20) {
            abort(); /* it does not say how much it needs, or needs too much */
        }
    }
    free(workspace);
    return code;
}

static dcz_code open_any(dcz_frame *frame, source *from, int streamed, void **workspace) {
    const dcz_limits limits = fuzz_limits();
    dcz_error error;
    size_t room = 0;
    *workspace = NULL;
    for (int turn = 0; turn < 3; turn++) {
        const dcz_code code =
            streamed ? dcz_open_stream(frame, read_source, from, from->size, &limits, *workspace, room, &error)
                     : dcz_open(frame, from->data, from->size, &limits, *workspace, room, &error);
        if (code != DCZ_NEED_WORKSPACE) {
            return code;
        }
        free(*workspace);
        room = (size_t)(streamed ? error.needed : error.fast);
        *workspace = checked_malloc(room);
    }
    abort();
}

static void expect(int condition) {
    if (!condition) {
        abort();
    }
}

static void walk_rest(const dcz_frame *frame) {
    dcz_metadata metadata;
    dcz_section section;
    uint8_t workspace[64];
    memset(&metadata, 0, sizeof metadata);
    memset(&section, 0, sizeof section);
    while (dcz_next_metadata(frame, &metadata) == DCZ_OK) {
        expect(metadata.key_size <= frame->directory_size);
    }
    while (dcz_next_section(frame, &section) == DCZ_OK) {
        (void)dcz_check_section(frame, &section, workspace, sizeof workspace, NULL);
    }
    void *enough = checked_malloc(131072);
    for (uint32_t i = 0; i < frame->n_table_sets && i < 4; i++) {
        (void)dcz_check_table_set(frame, i, enough, 131072, NULL);
    }
    free(enough);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    source from = {data, size};
    dcz_frame frame, streamed;
    void *workspace, *directory;
    const dcz_code code = open_any(&frame, &from, 0, &workspace);
    const dcz_code streamed_code = open_any(&streamed, &from, 1, &directory);
    free(workspace);
    expect(code == streamed_code);
    if (code == DCZ_OK && dcz_check_output(&frame, NULL) == DCZ_OK) {
        char *name = checked_malloc((size_t)frame.longest_name + 1);
        uint64_t left = MAX_OUTPUT;
        dcz_tensor t;
        dcz_decoder d;
        dcz_code next = dcz_tensor_at(&frame, 0, &t, name, (size_t)frame.longest_name + 1);
        for (; next == DCZ_OK; next = dcz_next_tensor(&frame, &t)) {
            if (t.alias_of != DCZ_NO_TENSOR || t.n_bytes > left) {
                continue;
            }
            left -= t.n_bytes;
            uint8_t *first = checked_malloc((size_t)t.n_bytes), *second = checked_malloc((size_t)t.n_bytes);
            memset(first, 0xAA, (size_t)t.n_bytes);
            memset(second, 0x55, (size_t)t.n_bytes);
            const dcz_code least = decode_one(&d, &frame, &t, first, 0);
            expect(decode_one(&d, &frame, &t, second, 1) == least);
            expect(least != DCZ_OK || memcmp(first, second, (size_t)t.n_bytes) == 0);
            memset(second, 0x33, (size_t)t.n_bytes);
            expect(decode_one(&d, &streamed, &t, second, (int)(t.number & 1)) == least);
            expect(least != DCZ_OK || memcmp(first, second, (size_t)t.n_bytes) == 0);
            free(first);
            free(second);
        }
        expect(next == DCZ_END);
        free(name);
        walk_rest(&frame);
        walk_rest(&streamed);
    }
    free(directory);
    return 0;
}

/* ---- The mutator ---- */

static part *add_part(layout *l, size_t size_at, const cursor *c, size_t *offset, uint64_t size) {
    static part unused;
    part *p = l->n_parts < MAX_PARTS ? &l->parts[l->n_parts++] : &unused;
    p->size_at = 20 + size_at;
    p->checksum_at = 20 + c->at - 4;
    p->size_bytes = c->at - 4 - size_at;
    p->offset = *offset;
    p->size = (size_t)size;
    p->has_tables = 0;
    p->coder = DCZ_RAW;
    p->n_words = 0;
    *offset += (size_t)size;
    return p;
}

/* Find the parts of a frame, as far as its directory makes sense. */
static void find_parts(layout *l, const uint8_t *data, size_t size) {
    cursor c;
    dcz_tensor t;
    dcz_frame frame;
    l->n_parts = l->n_digests = 0;
    if (size < 20 || load_u32(data + 12) > size - 20) {
        return;
    }
    memset(&frame, 0, sizeof frame);
    frame.limits = fuzz_limits();
    frame.directory = data + 20;
    frame.directory_size = load_u32(data + 12);
    c = directory_from(&frame, 0);
    size_t offset = 20 + (size_t)frame.directory_size;
    for (uint64_t n = get_varint(&c, 1024); n > 0 && c.error == DCZ_OK; n--) {
        const size_t at = c.at;
        const uint64_t part_size = get_varint(&c, size);
        (void)get_number(&c, 4);
        if (c.error != DCZ_OK || part_size > size - offset) {
            return;
        }
        (void)add_part(l, at, &c, &offset, part_size);
    }
    uint64_t n = get_varint(&c, 512);
    frame.tensors_at = (uint32_t)c.at;
    start_walk(&frame, &t, NULL, 0);
    t.next_offset = offset;
    for (; n > 0 && c.error == DCZ_OK; n--) {
        if (read_name(&frame, &c, &t) != DCZ_OK || read_record(&frame, &c, &t, NULL) != DCZ_OK) {
            return;
        }
        cursor records = directory_from(&frame, t.chunks_at);
        for (uint64_t i = 0; i < t.n_chunks; i++) {
            const size_t at = records.at;
            const uint64_t part_size = get_varint(&records, size);
            (void)get_number(&records, 4);
            if (records.error != DCZ_OK || part_size > size - offset) {
                return;
            }
            part *p = add_part(l, at, &records, &offset, part_size);
            p->has_tables = i == 0 && t.coder != DCZ_RAW;
            p->coder = t.coder;
            p->n_words = i + 1 < t.n_chunks ? t.chunk_words : t.n_words - i * t.chunk_words;
        }
        if (t.n_chunks > 0 && t.coder != DCZ_RAW && l->n_digests < MAX_PARTS) {
            l->digests[l->n_digests].tensor = t.number;
            l->digests[l->n_digests++].at = 20 + c.at - 4;
        }
    }
}

static void put_u32(uint8_t *to, uint32_t value) { store_word(to, value, 4); }

static void mend_head(uint8_t *data, size_t size) {
    const size_t directory_size = load_u32(data + 12) <= size - 20 ? load_u32(data + 12) : size - 20;
    put_u32(data + 16, fold(sum_words(data, 16, 0) + sum_words(data + 20, directory_size, 4)));
}

#ifndef DCZ_PARTS
/* Write what the checksums should be, and the digests of the tensors that decode. */
static void mend(uint8_t *data, size_t size) {
    layout l;
    if (size < 20) {
        return;
    }
    find_parts(&l, data, size);
    for (unsigned i = 0; i < l.n_parts; i++) {
        put_u32(data + l.parts[i].checksum_at, fold(sum_words(data + l.parts[i].offset, l.parts[i].size, 0)));
    }
    mend_head(data, size);
    source from = {data, size};
    dcz_frame frame;
    void *workspace;
    const dcz_code code = open_any(&frame, &from, 0, &workspace);
    free(workspace);
    for (unsigned i = 0; code == DCZ_OK && i < l.n_digests; i++) {
        dcz_tensor t;
        dcz_decoder d;
        if (dcz_tensor_at(&frame, l.digests[i].tensor, &t, NULL, 0) != DCZ_OK || t.n_bytes > MAX_OUTPUT) {
            continue;
        }
        uint8_t *out = checked_malloc((size_t)t.n_bytes);
        if (decode_one(&d, &frame, &t, out, 0) == DCZ_DIG_01) {
            put_u32(data + l.digests[i].at, fold(d.digest));
        }
        free(out);
    }
    mend_head(data, size);
}
#endif

static size_t put_varint(uint8_t *to, uint64_t value) {
    size_t n = 0;
    for (; value > 127; value >>= 7) {
        to[n++] = (uint8_t)(value | 128);
    }
    to[n++] = (uint8_t)value;
    return n;
}

#ifndef DCZ_REPLAY

/* ---- Lanes: sizes that fit the bytes, and bytes that do not fit the symbols ---- */

static uint64_t dice;

static uint64_t roll(void) { /* splitmix64 */
    uint64_t x = dice += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

static size_t below(size_t n) { return n > 0 ? (size_t)(roll() % n) : 0; }

typedef struct lane_layout {
    unsigned n, n_advances;
    size_t head, data; /* where the sizes stand, and the lanes */
    uint64_t size[4], advance[4];
} lane_layout;

static int read_lane_layout(lane_layout *l, const uint8_t *body, size_t size, size_t at, unsigned n, unsigned n_advances) {
    cursor c = cursor_of(body, size);
    uint64_t sum = 0;
    c.at = l->head = at;
    l->n = n;
    l->n_advances = n_advances;
    for (unsigned i = 0; i < n; i++) {
        sum += l->size[i] = get_varint(&c, size);
    }
    for (unsigned i = 0; i < n_advances; i++) {
        l->advance[i] = get_varint(&c, UINT64_MAX);
    }
    l->data = c.at;
    return c.error == DCZ_OK && sum <= size - c.at;
}

/* Find some lanes of a body, behind its tables; says whether there are any. */
static int find_lanes(lane_layout *l, const uint8_t *body, size_t size, const part *p) {
    cursor c = cursor_of(body, size);
    const unsigned n_lanes = p->n_words < 1024 ? 1 : 4;
    if (p->coder == DCZ_LABELS) { /* a symbol may be a block of them */
        return (n_lanes == 4 && read_lane_layout(l, body, size, 0, 4, 0)) || read_lane_layout(l, body, size, 0, 1, 0);
    }
    if (p->coder == DCZ_ZERO_RUN || p->coder == DCZ_SPLIT_RUN) {
        const unsigned n = get_varint(&c, UINT64_MAX) < 1024 ? 1 : 4;
        return read_lane_layout(l, body, size, c.at, n, n - 1);
    }
    if (p->coder != DCZ_PLANES) {
        return 0;
    }
    for (size_t n_raw = below(8); n_raw > 0 && p->n_words < size - c.at; n_raw--) {
        c.at += (size_t)p->n_words;
    }
    int found = 0;
    lane_layout one;
    while (read_lane_layout(&one, body, size, c.at, n_lanes, 0) && (!found || below(2))) {
        *l = one;
        found = 1;
        c.at = l->data;
        for (unsigned i = 0; i < n_lanes; i++) {
            c.at += (size_t)l->size[i];
        }
    }
    return found;
}

static size_t some_bytes(void) { return 1 + below(below(2) ? 4 : below(2) ? 20 : 72); }

/* More bytes of some kind: zeros, ones, any, or those before. */
static void put_more(uint8_t *to, size_t n, const uint8_t *before, size_t n_before) {
    const size_t kind = below(4);
    for (size_t i = 0; i < n; i++) {
        to[i] = (uint8_t)(kind == 0 ? 0 : kind == 1 ? 255 : kind == 2 || n_before == 0 ? roll() : before[i % n_before]);
    }
}

/* The words that lanes share, and their states. */
static size_t change_shared_words(const uint8_t *body, size_t size, const part *p, uint8_t *made) {
    size_t n_lanes = p->n_words >= 16384 ? 8 : p->n_words >= 4096 ? 4 : p->n_words >= 2048 ? 2 : 1, n = 2 * some_bytes();
    n_lanes = below(4) ? n_lanes : 1 + below(8);
    if (size < 4 * n_lanes) {
        return 0;
    }
    uint8_t *lane = made + 4 * below(n_lanes), *other = made + 4 * below(n_lanes);
    const size_t at = below(2) ? size : below(2) ? 4 * n_lanes : 4 * n_lanes + below(size - 4 * n_lanes + 1);
    memcpy(made, body, size);
    switch (below(6)) {
        case 0:
        case 1: /* some more */
            memmove(made + at + n, made + at, size - at);
            put_more(made + at, n, body, at);
            return size + n;
        case 2: /* some less */
            n = n < size - 4 * n_lanes ? n : size - 4 * n_lanes;
            return size - n;
        case 3: put_u32(lane, 65536 + (uint32_t)below(3)); return size;
        case 4: put_u32(lane, (uint32_t)roll()); return size;
        default: put_u32(lane, load_u32(other)); return size;
    }
}

enum { LANE_ROOM = 8 * 72 + 64 };

/* Let lanes be longer, shorter, or one at the cost of another, with sizes that say so: bytes that are left over when all
 * symbols have been read, or missing. `made` has LANE_ROOM bytes more than the body. Returns the size, or 0: no lanes. */
static size_t change_lanes(const uint8_t *body, size_t size, const part *p, uint8_t *made) {
    lane_layout l;
    if (p->coder == DCZ_CONTEXT) {
        return change_shared_words(body, size, p, made);
    }
    if (!find_lanes(&l, body, size, p)) {
        return 0;
    }
    const uint8_t *from[4];
    size_t at = l.data, more[4] = {0, 0, 0, 0}, k = some_bytes();
    for (unsigned i = 0; i < l.n; i++) {
        from[i] = body + at;
        at += (size_t)l.size[i];
    }
    const size_t rest = at, way = below(l.n_advances > 0 ? 9 : 8), lane = below(l.n), mask = 1 + below(15);
    const size_t other = (lane + 1) % l.n;
    switch (way) {
        case 0:
        case 1:
        case 2:
        case 3: /* all longer, or some */
            for (unsigned i = 0; i < l.n; i++) {
                more[i] = way < 2 || (mask >> i & 1) ? k : 0;
                k = below(4) ? k : some_bytes();
            }
            break;
        case 4: /* one shorter */
            l.size[lane] -= k < l.size[lane] ? k : l.size[lane];
            break;
        case 5: { /* one longer at the cost of another, whose bytes move along */
            const size_t taken = below(8) && k < l.size[other] ? k : (size_t)l.size[other];
            l.size[lane] += taken;
            l.size[other] -= taken;
            at = l.data;
            for (unsigned i = 0; i < l.n; i++) {
                from[i] = body + at;
                at += (size_t)l.size[i];
            }
            break;
        }
        case 6: { /* change places */
            const uint8_t *was = from[lane];
            const uint64_t was_size = l.size[lane];
            from[lane] = from[other];
            l.size[lane] = l.size[other];
            from[other] = was;
            l.size[other] = was_size;
            break;
        }
        case 7: /* one longer, another as much shorter */
            more[lane] = k < l.size[other] ? k : (size_t)l.size[other];
            l.size[other] -= more[lane];
            break;
        default: { /* starts of lanes that are not where lanes end */
            const uint64_t step = below(2) ? k : l.advance[lane % l.n_advances];
            l.advance[lane % l.n_advances] += below(2) ? step : 0 - step;
            l.advance[other % l.n_advances] -= below(2) ? step : 0;
            break;
        }
    }
    size_t n = l.head;
    memcpy(made, body, n);
    for (unsigned i = 0; i < l.n; i++) {
        n += put_varint(made + n, l.size[i] + more[i]);
    }
    for (unsigned i = 0; i < l.n_advances; i++) {
        n += put_varint(made + n, l.advance[i]);
    }
    for (unsigned i = 0; i < l.n; i++) {
        memcpy(made + n, from[i], (size_t)l.size[i]);
        n += (size_t)l.size[i];
        put_more(made + n, more[i], from[i], (size_t)l.size[i]);
        n += more[i];
    }
    memcpy(made + n, body + rest, size - rest);
    return n + size - rest;
}

/* Where the body of a chunk begins: behind its tables, if it has any. */
static size_t body_of(const part *p, const uint8_t *data) {
    cursor c = cursor_of(data + p->offset, p->size);
    const uint64_t tables = p->has_tables ? get_varint(&c, p->size) : 0;
    return c.error == DCZ_OK && tables <= p->size - c.at ? p->offset + c.at + (size_t)tables : p->offset;
}
#endif

#if !defined(DCZ_REPLAY) && !defined(DCZ_PARTS)
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

/* Put other bytes in the place of some of a part, and say its new size in the directory. */
static size_t replace_part(uint8_t *data, size_t size, size_t max_size, const part *p, size_t from, size_t count,
                           const uint8_t *bytes, size_t new_count) {
    memmove(data + from + new_count, data + from + count, size - from - count);
    memcpy(data + from, bytes, new_count);
    size = size - count + new_count;
    uint8_t number[10];
    const size_t number_bytes = put_varint(number, p->size - count + new_count);
    if (size - p->size_bytes + number_bytes > max_size) {
        return size;
    }
    memmove(data + p->size_at + number_bytes, data + p->size_at + p->size_bytes, size - p->size_at - p->size_bytes);
    memcpy(data + p->size_at, number, number_bytes);
    put_u32(data + 12, (uint32_t)(load_u32(data + 12) + number_bytes - p->size_bytes));
    return size - p->size_bytes + number_bytes;
}

static size_t mutate_part(uint8_t *data, size_t size, size_t max_size, const part *p, size_t from, size_t count) {
    const size_t room = max_size - size > 64 ? 64 : max_size - size;
    uint8_t *bytes = checked_malloc(count + room + 1);
    memcpy(bytes, data + from, count);
    const size_t new_count = LLVMFuzzerMutate(bytes, count, count + room);
    size = replace_part(data, size, max_size, p, from, count, bytes, new_count);
    free(bytes);
    return size;
}

/* The lanes of one of the parts that have lanes. */
static size_t mutate_lanes(uint8_t *data, size_t size, size_t max_size, const layout *l) {
    size_t at = below(l->n_parts), made_size = 0;
    for (unsigned tries = 0; tries < l->n_parts && made_size == 0; tries++, at = (at + 1) % l->n_parts) {
        const part *p = &l->parts[at];
        const size_t from = body_of(p, data), count = p->offset + p->size - from;
        uint8_t *made = checked_malloc(count + LANE_ROOM);
        made_size = change_lanes(data + from, count, p, made);
        if (made_size > 0 && size - count + made_size <= max_size) {
            size = replace_part(data, size, max_size, p, from, count, made, made_size);
        }
        free(made);
    }
    return size;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    layout l;
    find_parts(&l, data, size);
    dice = seed;
    if (seed % 8 > 5 && l.n_parts > 0) {
        size = mutate_lanes(data, size, max_size, &l);
    } else if (seed % 8 == 0 || l.n_parts == 0) {
        size = LLVMFuzzerMutate(data, size, max_size);
    } else if (seed % 8 == 1) { /* the directory, size unchanged */
        (void)LLVMFuzzerMutate(data + 20, load_u32(data + 12), load_u32(data + 12));
    } else {
        const part *p = &l.parts[seed / 8 % l.n_parts];
        size_t from = p->offset, count = p->size;
        cursor c = {data + p->offset, p->size, 0, DCZ_OK};
        if (p->has_tables && get_varint(&c, p->size) <= p->size - c.at && c.error == DCZ_OK) {
            const size_t tables = (size_t)(data[p->offset] & 127); /* most are short; a longer one is only cut */
            if (seed % 2 == 0 && c.at == 1) {
                const size_t new_size = mutate_part(data, size, max_size, p, from + 1, tables);
                const size_t new_tables = tables + new_size - size;
                if (new_tables < 128 && new_size == size - tables + new_tables) {
                    find_parts(&l, data, new_size);
                    const unsigned i = seed / 8 % (l.n_parts > 0 ? l.n_parts : 1);
                    if (l.n_parts > 0) {
                        data[l.parts[i].offset] = (uint8_t)new_tables;
                    }
                }
                mend(data, new_size);
                return new_size;
            }
            from += c.at + (c.at == 1 ? tables : 0);
            count = p->offset + p->size - from;
        }
        size = mutate_part(data, size, max_size, p, from, count);
    }
    mend(data, size);
    return size;
}
#elif defined(DCZ_REPLAY)
int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (file == NULL || fseek(file, 0, SEEK_END) != 0) {
            return 1;
        }
        const size_t size = (size_t)ftell(file);
        uint8_t *data = checked_malloc(size);
        rewind(file);
        if (fread(data, 1, size, file) != size || fclose(file) != 0) {
            return 1;
        }
        (void)LLVMFuzzerTestOneInput(data, size);
        mend(data, size); /* and once more with all checksums right */
        (void)LLVMFuzzerTestOneInput(data, size);
        free(data);
    }
    printf("%d files\n", argc - 1);
    (void)put_varint;
    return 0;
}
#endif

/* dcz_decode.c: reads `.dcz` frames, format version 1. See dcz_decode.h for its use, spec/dcz-1.md for the format.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 * In the order of the specification, written from it alone. Section numbers are those of spec/dcz-1.md, and every
 * rule is named where it is checked. C99; no allocation, no global state, no floating-point arithmetic; works on
 * hosts of either byte order, without unaligned access, with size_t of 32 or 64 bits.
 *
 * Compile-time switches: DCZ_BASELINE reads the baseline profile only (section 13). DCZ_SMALL leaves out the fast
 * loops (on by itself under -Os). DCZ_NO_TEXT leaves out the sentences of dcz_error_text(). DCZ_NO_CHECKSUMS accepts
 * any checksum: for fuzzing, never for use.
 */
#include "dcz_decode.h"

#if !defined(DCZ_SMALL) && defined(__OPTIMIZE_SIZE__)
#define DCZ_SMALL
#endif

#if defined(__SSE2__) && !defined(DCZ_SMALL) /* of the compiler, for the checksums */
#include <emmintrin.h>
#define HAS_SSE2 1
#endif

/* Lanes are independent numbers in registers; gcc -O3 would gather them into vectors, and be slower by half.
 * A function that is called once or is short need not be smaller inlined: only those are that say so. */
#if defined(__GNUC__) && !defined(__clang__)
#ifdef DCZ_SMALL
#pragma GCC optimize("no-inline", "no-thread-jumps", "no-tree-dominator-opts", "no-move-loop-invariants")
#pragma GCC optimize("no-caller-saves", "no-tree-sra", "no-tree-loop-im")
#else
#pragma GCC optimize("no-tree-slp-vectorize")
#endif
#endif

#if defined(__BYTE_ORDER__) && defined(__ORDER_LITTLE_ENDIAN__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define LITTLE_ENDIAN_HOST 1
#else
#define LITTLE_ENDIAN_HOST 0 /* or not known: the portable way is right on all */
#endif

#if defined(__GNUC__)
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)
#else
#define UNLIKELY(condition) (condition)
#endif
#if defined(__GNUC__) && !defined(DCZ_SMALL) /* into every caller: arguments that are constants make loops of their own */
#define INLINE static inline __attribute__((always_inline))
#elif defined(__GNUC__)
#define INLINE static __attribute__((noinline))
#else
#define INLINE static inline
#endif
#if defined(__GNUC__) /* shorter than a call */
#define TINY static inline __attribute__((always_inline))
#else
#define TINY static inline
#endif
#if defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) /* lanes of contexts are at known places then */
#define UNROLLED _Pragma("GCC unroll 8")
#else
#define UNROLLED
#endif
#ifdef DCZ_SMALL /* smaller in its place than apart */
#define ONCE TINY
#else
#define ONCE static
#endif

/* Return the code of a call that failed. */
#define TRY(call)                              \
    do {                                       \
        const dcz_code code_of_call = (call);  \
        if (code_of_call != DCZ_OK) {          \
            return code_of_call;               \
        }                                      \
    } while (0)

/* What is kept for a slot of a table: the symbol, and where room is no matter also its
 * frequency << 12 and the offset of the slot in it. */
#ifdef DCZ_SMALL
typedef uint8_t dcz_slot;
enum { SYMBOL_SHIFT = 0 };
#else
typedef dcz_u32 dcz_slot;
enum { SYMBOL_SHIFT = 25 };
#endif

enum { N_SIDE_CONTEXTS = 2288, MAX_SYMBOLS = 4096, TABLE_SYMBOLS = 87, TABLE_STRIDE = 88, N_PAIRS = 25 };

#ifdef DCZ_BASELINE
enum { MAX_TABLES = 64 };
#else
enum { MAX_TABLES = 127 };
#endif

/* ---- 4.3 Numbers of the directory and of bodies ---- */

typedef struct cursor {
    const uint8_t *data;
    size_t size, at;
    dcz_code error; /* the first one; what is read after it is 0 */
} cursor;

static cursor cursor_of(const uint8_t *data, size_t size) {
    cursor c;
    c.data = data;
    c.size = size;
    c.at = 0;
    c.error = DCZ_OK;
    return c;
}

static uint64_t fail_cursor(cursor *c, dcz_code code) {
    if (c->error == DCZ_OK) {
        c->error = code;
    }
    c->at = c->size;
    return 0;
}

static uint64_t get_number(cursor *c, unsigned n_bytes) {
    uint64_t value = 0;
    if (n_bytes > c->size - c->at) {
        return fail_cursor(c, DCZ_FRM_01);
    }
    for (unsigned place = 0; place < n_bytes; place++) {
        value |= (uint64_t)c->data[c->at++] << (8 * place);
    }
    return value;
}

static uint64_t get_varint(cursor *c, uint64_t limit) {
    uint64_t value = 0;
    for (unsigned place = 0; place < 10; place++) {
        if (c->at == c->size) {
            return fail_cursor(c, DCZ_FRM_01);
        }
        const uint8_t byte = c->data[c->at++];
        if (place == 9 && byte > 1) {
            break;
        }
        value |= (uint64_t)(byte & 127u) << (7 * place);
        if (byte < 128) {
            if (byte == 0 && place > 0) {
                break;
            }
            return value > limit ? fail_cursor(c, DCZ_NUM_02) : value;
        }
    }
    return fail_cursor(c, DCZ_NUM_01);
}

static const uint8_t *take(cursor *c, uint64_t n_bytes) {
    if (n_bytes > c->size - c->at) {
        (void)fail_cursor(c, DCZ_FRM_01);
        return NULL;
    }
    c->at += (size_t)n_bytes;
    return c->data + (c->at - (size_t)n_bytes);
}

TINY uint32_t load_u16(const uint8_t *p) { return (uint32_t)(p[0] | p[1] << 8); }

TINY uint32_t load_u32(const uint8_t *p) {
#if LITTLE_ENDIAN_HOST
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
#else
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
#endif
}

INLINE void store_word(uint8_t *p, uint64_t word, unsigned word_bytes) {
    for (unsigned place = 0; place < word_bytes; place++) {
        p[place] = (uint8_t)(word >> (8 * place));
    }
}

/* ---- 4.4 Bit streams ---- */

typedef struct bits {
    const uint8_t *data;
    size_t size;
    uint64_t at, end; /* in bits */
} bits;

/* The next 17 bits or more, left-aligned, filled up with zeros. */
INLINE uint32_t peek(const bits *b) {
    const size_t byte = (size_t)(b->at >> 3);
    const size_t left = b->size - byte;
    uint32_t value = 0;
    if (left >= 4) {
        const uint8_t *p = b->data + byte;
        value = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
    } else {
        for (size_t i = 0; i < left; i++) {
            value |= (uint32_t)b->data[byte + i] << (24 - 8 * i);
        }
    }
    return value << (b->at & 7);
}

INLINE dcz_code skip_bits(bits *b, uint32_t n) {
    if (n > b->end - b->at) {
        return DCZ_STR_01;
    }
    b->at += n;
    return DCZ_OK;
}

static dcz_code finish_bits(const bits *b) {
    const uint64_t left = b->end - b->at;
    if (left >= 8) {
        return DCZ_STR_02;
    }
    return left > 0 && peek(b) != 0 ? DCZ_STR_03 : DCZ_OK;
}

static bits bits_of(const uint8_t *data, size_t size) {
    bits b;
    b.data = data;
    b.size = size;
    b.at = 0;
    b.end = 8 * (uint64_t)size;
    return b;
}

/* ---- Checksums are defined in section 12, errors in 14.6 ---- */

static uint64_t sum_words(const uint8_t *data, size_t n_bytes, uint64_t place);
ONCE uint32_t fold(uint64_t sum);
ONCE int checksum_differs(uint32_t left, uint32_t right);

static dcz_code report(dcz_error *error, dcz_code code, uint32_t tensor, uint64_t offset) {
    if (error != NULL) {
        error->code = code;
        error->tensor = tensor;
        error->offset = offset;
        error->needed = error->fast = 0;
    }
    return code;
}

static dcz_code report_need(dcz_error *error, dcz_code code, uint32_t tensor, uint64_t needed, uint64_t fast) {
    (void)report(error, code, tensor, 0);
    if (error != NULL) {
        error->needed = needed;
        error->fast = fast > needed ? fast : needed;
    }
    return code;
}

/* ---- 6 Frame ---- */

ONCE dcz_code read_directory(dcz_frame *frame, uint8_t *workspace, size_t room, dcz_error *error);

ONCE dcz_code need(dcz_error *error, uint64_t needed, uint64_t fast) {
    error->needed = needed;
    error->fast = fast > needed ? fast : needed;
    return DCZ_NEED_WORKSPACE;
}

ONCE dcz_code open_frame(dcz_frame *frame, uint8_t *workspace, size_t room, dcz_error *error) {
    static const uint8_t signature[8] = {0x89, 0x44, 0x43, 0x5A, 0x0D, 0x0A, 0x1A, 0x0A};
    uint8_t preamble[20];
    const size_t known = frame->size < 20 ? (size_t)frame->size : 20;
    if (frame->data != NULL) {
        memcpy(preamble, frame->data, known);
    } else if (known > 0 && frame->read(frame->context, 0, preamble, known) != 0) {
        return DCZ_READ_FAILED;
    }
    if (known == 0 || memcmp(preamble, signature, known < 8 ? known : 8) != 0) {
        return DCZ_FRM_02;
    }
    error->offset = frame->size;
    if (known < 20) {
        return DCZ_FRM_01;
    }
    const uint32_t directory_size = load_u32(preamble + 12);
    const int is_cut = directory_size > frame->size - 20;
    frame->minor_version = preamble[9];
    frame->directory_size = directory_size;
    error->offset = is_cut ? frame->size : 8;
    if (preamble[8] != 1) {
        return DCZ_FRM_03;
    }
    if (load_u16(preamble + 10) != 0) {
        return DCZ_FRM_04;
    }
    if (directory_size > frame->limits.max_directory_bytes) {
        return DCZ_LIM_01;
    }
    if (is_cut) {
        return DCZ_FRM_01;
    }
    if (frame->data != NULL) {
        frame->directory = frame->data + 20;
    } else {
        if (room < directory_size) {
            return need(error, (uint64_t)directory_size + 2048, 0);
        }
        if (directory_size > 0 && frame->read(frame->context, 20, workspace, directory_size) != 0) {
            return DCZ_READ_FAILED;
        }
        frame->directory = workspace;
        workspace += directory_size;
        room -= directory_size;
    }
    const uint64_t sum = sum_words(preamble, 16, 0) + sum_words(frame->directory, directory_size, 4);
    if (checksum_differs(fold(sum), load_u32(preamble + 16))) {
        return DCZ_FRM_05;
    }
    return read_directory(frame, workspace, room, error);
}

static dcz_code open_common(dcz_frame *frame, const uint8_t *data, uint64_t size, const dcz_limits *limits, void *workspace,
                         size_t room, dcz_error *error) {
    dcz_error unused;
    error = error != NULL ? error : &unused;
    (void)report(error, DCZ_OK, DCZ_NO_TENSOR, 0);
    frame->data = data;
    frame->size = size;
    frame->limits = limits != NULL ? *limits : dcz_default_limits();
    if (frame->limits.max_rank > DCZ_MAX_RANK) {
        frame->limits.max_rank = DCZ_MAX_RANK;
    }
    error->code = open_frame(frame, workspace != NULL ? workspace : (void *)frame, workspace != NULL ? room : 0, error);
    return error->code;
}

dcz_code dcz_open(dcz_frame *frame, const uint8_t *data, size_t size, const dcz_limits *limits, void *workspace,
                  size_t room, dcz_error *error) {
    static const uint8_t nothing[1] = {0};
    memset(frame, 0, sizeof *frame);
    return open_common(frame, data != NULL ? data : nothing, data != NULL ? size : 0, limits, workspace, room, error);
}

dcz_code dcz_open_stream(dcz_frame *frame, dcz_read read, void *context, uint64_t size, const dcz_limits *limits,
                         void *workspace, size_t room, dcz_error *error) {
    memset(frame, 0, sizeof *frame);
    frame->read = read;
    frame->context = context;
    return open_common(frame, NULL, size, limits, workspace, room, error);
}

/* Return bytes of the frame: where they are, or read into `buffer`. */
static const uint8_t *bytes_at(const dcz_frame *frame, uint64_t offset, size_t size, uint8_t *buffer) {
    if (frame->data != NULL) {
        return frame->data + (size_t)offset; /* in memory, so it fits */
    }
    if (size == 0) {
        return frame->directory;
    }
    return frame->read(frame->context, offset, buffer, size) == 0 ? buffer : NULL;
}

/* ---- 8 Directory ---- */

/* By dtype: kind, bytes of a word, words of an element (section 14.1). */
static const uint8_t dtypes[23][3] = {
    {0, 0, 0}, {0, 1, 1}, {0, 1, 1}, {1, 1, 1}, {0, 2, 1}, {1, 2, 1}, {0, 4, 1}, {1, 4, 1},
    {0, 8, 1}, {1, 8, 1}, {2, 2, 1}, {2, 2, 1}, {2, 4, 1}, {2, 8, 1}, {2, 1, 1}, {2, 1, 1},
    {2, 1, 1}, {2, 1, 1}, {0, 1, 1}, {0, 1, 1}, {2, 2, 2}, {2, 4, 2}, {2, 8, 2},
};
enum { FLOAT16 = 10, BFLOAT16 = 11, FLOAT32 = 12 };

static int is_utf8(const uint8_t *p, size_t size) {
    size_t at = 0;
    while (at < size) {
        const uint8_t lead = p[at++];
        size_t more = 1;
        uint8_t low = 0x80, high = 0xBF; /* of the second byte: no overlong forms, no surrogates, 0x10FFFF at most */
        if (lead < 0x80) {
            continue;
        }
        if (lead < 0xC2 || lead > 0xF4) {
            return 0;
        }
        if (lead >= 0xF0) {
            more = 3;
            low = lead == 0xF0 ? 0x90 : low;
            high = lead == 0xF4 ? 0x8F : high;
        } else if (lead >= 0xE0) {
            more = 2;
            low = lead == 0xE0 ? 0xA0 : low;
            high = lead == 0xED ? 0x9F : high;
        }
        if (more > size - at || p[at] < low || p[at] > high) {
            return 0;
        }
        for (size_t i = 1; i < more; i++) {
            if ((p[at + i] & 0xC0) != 0x80) {
                return 0;
            }
        }
        at += more;
    }
    return 1;
}

static cursor directory_from(const dcz_frame *frame, uint32_t at) {
    cursor c = cursor_of(frame->directory, frame->directory_size);
    c.at = at;
    return c;
}

/* Rows, columns of a row, positions of a column (section 9.7). */
ONCE void matrix(const dcz_tensor *t, uint64_t *rows, uint64_t *columns, uint64_t *positions) {
    *rows = t->rank < 2 ? 1 : t->shape[0];
    *columns = t->rank < 2 ? t->n_words : t->shape[1];
    *positions = t->n_words / (*rows * *columns);
}

static void start_walk(const dcz_frame *frame, dcz_tensor *t, char *name, size_t name_room) {
    memset(t, 0, sizeof *t);
    t->name = name;
    t->name_room = name_room;
    t->number = DCZ_NO_TENSOR;
    t->at = frame->tensors_at;
    t->next_offset = frame->chunks_offset;
    if (name_room > 0 && name != NULL) {
        name[0] = 0;
    }
}

static dcz_code read_name(const dcz_frame *frame, cursor *c, dcz_tensor *t) {
    const uint64_t shared_prefix = get_varint(c, UINT64_MAX);
    TRY(c->error);
    if (shared_prefix > t->name_size) {
        return DCZ_DIR_02;
    }
    const uint64_t rest_size = get_varint(c, UINT64_MAX);
    TRY(c->error);
    if (shared_prefix > frame->limits.max_name_bytes || rest_size > frame->limits.max_name_bytes - shared_prefix) {
        return DCZ_LIM_04;
    }
    t->names_bytes += shared_prefix + rest_size;
    if (t->names_bytes > frame->limits.max_names_bytes) {
        return DCZ_LIM_07;
    }
    const uint8_t *rest = take(c, rest_size);
    TRY(c->error);
    t->name_size = (uint32_t)(shared_prefix + rest_size);
    if (t->name != NULL) {
        if (t->name_size >= t->name_room) {
            return DCZ_BAD_CALL;
        }
        if (rest_size > 0) {
            memcpy(t->name + shared_prefix, rest, (size_t)rest_size);
        }
        t->name[t->name_size] = 0;
    }
    t->number++;
    return DCZ_OK;
}

ONCE dcz_code read_chunk_layout(cursor *c, dcz_tensor *t) {
    t->chunk_words = t->n_words;
    t->n_chunks = 1;
    if (t->chunk_shift > 0) {
        uint64_t rows = t->n_words, columns, positions;
        if (t->coder == DCZ_CONTEXT) {
            matrix(t, &rows, &columns, &positions);
        }
        const uint64_t unit_words = t->n_words / rows;
        if (t->chunk_shift < 2 || t->chunk_shift > 40 || unit_words > (t->n_words - 1) >> t->chunk_shift) {
            return DCZ_DIR_09;
        }
        t->chunk_words = unit_words << t->chunk_shift;
        t->n_chunks = t->n_words / t->chunk_words + (t->n_words % t->chunk_words > 0 ? 1 : 0);
        if (t->n_chunks > (c->size - c->at) / 5) {
            return DCZ_DIR_10;
        }
    }
#ifdef DCZ_BASELINE
    if (t->chunk_words > 16384) {
        return DCZ_LIM_08;
    }
#endif
    return DCZ_OK;
}

/* What follows the name. `aliases`: a bit for each tensor, to be checked and filled; NULL once that is done. */
static dcz_code read_record(const dcz_frame *frame, cursor *c, dcz_tensor *t, uint8_t *aliases) {
    const uint64_t start = t->next_offset;
    t->alias_of = DCZ_NO_TENSOR;
    t->rank = 0;
    t->n_words = t->n_bytes = t->n_kept = t->chunk_words = t->n_chunks = t->largest_chunk = t->stored_bytes = 0;
    t->n_labels = t->digest = 0;
    t->kind = t->word_bytes = t->words_per_element = t->coder = t->chunk_shift = 0;
    t->offset = start;
    t->dtype = (uint8_t)get_number(c, 1);
    TRY(c->error);
    if (t->dtype == 0) {
        const uint64_t target = get_varint(c, UINT64_MAX);
        TRY(c->error);
        if (target >= t->number || (aliases != NULL && aliases[target >> 3] >> (target & 7) & 1)) {
            return DCZ_DIR_04;
        }
        t->alias_of = (uint32_t)target;
        if (aliases != NULL) {
            aliases[t->number >> 3] = (uint8_t)(aliases[t->number >> 3] | 1u << (t->number & 7));
        }
        t->at = (uint32_t)c->at;
        return DCZ_OK;
    }
    if (t->dtype >= sizeof dtypes / sizeof dtypes[0]) {
        return DCZ_DIR_05;
    }
    t->kind = dtypes[t->dtype][0];
    t->word_bytes = dtypes[t->dtype][1];
    t->words_per_element = dtypes[t->dtype][2];
    const uint64_t rank = get_varint(c, UINT64_MAX);
    TRY(c->error);
    if (rank > frame->limits.max_rank) {
        return DCZ_LIM_03;
    }
    t->rank = (uint32_t)rank;
    int empty = 0;
    for (uint32_t i = 0; i < t->rank; i++) {
        t->shape[i] = get_varint(c, UINT64_MAX);
    }
    TRY(c->error);
    uint64_t n_bytes = (uint64_t)t->word_bytes * t->words_per_element;
    for (uint32_t i = 0; i < t->rank; i++) {
        if (t->shape[i] == 0) {
            empty = 1;
        } else if (t->shape[i] > (UINT64_MAX >> 1) / n_bytes) {
            return DCZ_DIR_06;
        } else {
            n_bytes *= t->shape[i];
        }
    }
    if (empty) {
        t->at = (uint32_t)c->at;
        return DCZ_OK;
    }
    t->n_bytes = n_bytes;
    t->n_words = n_bytes / t->word_bytes;
    t->coder = (uint8_t)get_number(c, 1);
    TRY(c->error);
    if (t->coder > DCZ_CONTEXT) {
        return DCZ_DIR_07;
    }
    const uint64_t n_labels = t->coder >= DCZ_FIXED ? get_varint(c, UINT64_MAX) : 1;
    t->n_kept = t->coder == DCZ_ZERO_RUN || t->coder == DCZ_SPLIT_RUN ? get_varint(c, UINT64_MAX) : t->n_words;
    TRY(c->error);
    if (n_labels < 1 || n_labels > 4096) {
        return DCZ_DIR_08;
    }
#ifdef DCZ_BASELINE
    if (n_labels > 256) {
        return DCZ_LIM_08;
    }
#endif
    t->n_labels = t->coder >= DCZ_FIXED ? (uint32_t)n_labels : 0;
    if (t->n_kept > t->n_words) {
        return DCZ_DIR_11;
    }
    t->chunk_shift = (uint8_t)get_number(c, 1);
    TRY(c->error);
    TRY(read_chunk_layout(c, t));
    t->chunks_at = (uint32_t)c->at;
    uint64_t at = start;
    for (uint64_t number = 0; number < t->n_chunks; number++) {
        const uint64_t size = get_varint(c, (UINT64_MAX >> 1) - at);
        (void)get_number(c, 4);
        TRY(c->error);
        at += size;
        t->largest_chunk = size > t->largest_chunk ? size : t->largest_chunk;
    }
    t->digest = t->coder == DCZ_RAW ? 0 : (uint32_t)get_number(c, 4);
    TRY(c->error);
    t->stored_bytes = at - start;
    t->next_offset = at;
    t->at = (uint32_t)c->at;
    return DCZ_OK;
}

dcz_code dcz_next_tensor(const dcz_frame *frame, dcz_tensor *t) {
    if (t->number != DCZ_NO_TENSOR ? t->number + 1 >= frame->n_tensors : frame->n_tensors == 0) {
        return DCZ_END;
    }
    cursor c = directory_from(frame, t->at);
    TRY(read_name(frame, &c, t));
    return read_record(frame, &c, t, NULL);
}

dcz_code dcz_tensor_at(const dcz_frame *frame, uint32_t number, dcz_tensor *t, char *name, size_t name_room) {
    start_walk(frame, t, name, name_room);
    do {
        TRY(dcz_next_tensor(frame, t));
    } while (t->number < number);
    return DCZ_OK;
}

dcz_code dcz_find_tensor(const dcz_frame *frame, const char *name, size_t name_size, dcz_tensor *t, char *buffer,
                         size_t buffer_room) {
    start_walk(frame, t, buffer, buffer_room);
    if (buffer == NULL) {
        return DCZ_BAD_CALL;
    }
    do {
        TRY(dcz_next_tensor(frame, t));
    } while (t->name_size != name_size || memcmp(t->name, name, name_size) != 0);
    return DCZ_OK;
}

dcz_code dcz_alias_target(const dcz_frame *frame, dcz_tensor *t) {
    if (t->alias_of == DCZ_NO_TENSOR) {
        return DCZ_OK;
    }
    TRY(dcz_tensor_at(frame, t->alias_of, t, NULL, 0));
    return t->alias_of == DCZ_NO_TENSOR ? DCZ_OK : DCZ_DIR_04;
}

dcz_code dcz_next_metadata(const dcz_frame *frame, dcz_metadata *m) {
    if (m->at == 0) {
        m->at = frame->metadata_at;
        m->number = 0;
    }
    if (m->number >= frame->n_metadata) {
        return DCZ_END;
    }
    cursor c = directory_from(frame, m->at);
    const uint64_t key_size = get_varint(&c, UINT64_MAX);
    TRY(c.error);
    if (key_size > frame->limits.max_name_bytes) {
        return DCZ_LIM_04;
    }
    m->key = (const char *)take(&c, key_size);
    m->key_size = (uint32_t)key_size;
    m->number++;
    const uint64_t value_size = get_varint(&c, UINT64_MAX);
    m->value = (const char *)take(&c, value_size);
    m->value_size = (uint32_t)value_size;
    m->at = (uint32_t)c.at;
    return c.error;
}

dcz_code dcz_next_section(const dcz_frame *frame, dcz_section *s) {
    if (s->at == 0) {
        s->at = frame->sections_at;
        s->number = 0;
        s->offset = frame->sections_offset;
        s->size = 0;
    }
    if (s->number >= frame->n_sections) {
        return DCZ_END;
    }
    cursor c = directory_from(frame, s->at);
    s->offset += s->size;
    s->kind = get_varint(&c, UINT64_MAX);
    s->size = get_varint(&c, (UINT64_MAX >> 1) - s->offset);
    s->checksum = (uint32_t)get_number(&c, 4);
    TRY(c.error);
    s->at = (uint32_t)c.at;
    s->number++;
    return DCZ_OK;
}

/* 8.6 */
ONCE dcz_code table_set_record(const dcz_frame *frame, uint32_t number, uint64_t *offset, uint32_t *size,
                                 uint32_t *stored_checksum) {
    cursor c = directory_from(frame, 0);
    (void)get_varint(&c, UINT64_MAX);
    *offset = 20 + (uint64_t)frame->directory_size;
    *size = 0;
    for (uint32_t i = 0; i <= number; i++) {
        *offset += *size;
        *size = (uint32_t)get_varint(&c, 65536);
        *stored_checksum = (uint32_t)get_number(&c, 4);
    }
    return c.error;
}

/* No name and no key stands twice (DIR-03, DIR-12), without memory for them all: hash all names, sort the hashes, and
 * compare the names of equal ones. If the hashes do not fit, in several passes, each for a share of them. */

typedef struct names {
    dcz_frame frame; /* that has no more tensors or keys than have been read */
    int are_keys;
    dcz_tensor *tensor;
    dcz_metadata metadata;
    const uint8_t *name; /* the last one read */
    size_t size;
} names;

static void rewind_names(names *walk, char *buffer, size_t room) {
    memset(&walk->metadata, 0, sizeof walk->metadata);
    start_walk(&walk->frame, walk->tensor, buffer, room);
}

/* What follows the last name may be what is broken. */
static int next_name(names *walk) {
    if (walk->are_keys) {
        const dcz_code code = dcz_next_metadata(&walk->frame, &walk->metadata);
        walk->name = (const uint8_t *)walk->metadata.key;
        walk->size = walk->metadata.key_size;
        return code == DCZ_OK || (code != DCZ_END && walk->metadata.number == walk->frame.n_metadata);
    }
    const dcz_code code = dcz_next_tensor(&walk->frame, walk->tensor);
    walk->name = (const uint8_t *)walk->tensor->name;
    walk->size = walk->tensor->name_size;
    return code == DCZ_OK || (code != DCZ_END && walk->tensor->number + 1 == walk->frame.n_tensors);
}

#define ROTATED(x, n) ((x) << (n) | (x) >> (64 - (n)))

static void sip_round(uint64_t v[4]) {
    v[0] += v[1];
    v[1] = ROTATED(v[1], 13) ^ v[0];
    v[0] = ROTATED(v[0], 32);
    v[2] += v[3];
    v[3] = ROTATED(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = ROTATED(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = ROTATED(v[1], 17) ^ v[2];
    v[2] = ROTATED(v[2], 32);
}

static void absorb(uint64_t v[4], uint64_t word) {
    v[3] ^= word;
    sip_round(v);
    sip_round(v);
    v[0] ^= word;
}

/* As SipHash-2-4 with a fixed key, but the size comes first: names of equal hash are too hard to find in numbers to
 * slow a reader down. */
static uint64_t hash_of(const uint8_t *name, size_t size) {
    uint64_t v[4] = {0x736f6d6570736575u, 0x646f72616e646f6du, 0x6c7967656e657261u, 0x7465646279746573u};
    uint64_t word = 0;
    absorb(v, size);
    for (size_t at = 0; at < size; at++) {
        word = word << 8 | name[at];
        if ((at & 7) == 7 || at + 1 == size) {
            absorb(v, word);
            word = 0;
        }
    }
    absorb(v, 255);
    absorb(v, 255);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static void sift(dcz_u64 *heap, size_t n, size_t at) {
    for (size_t child = 2 * at + 1; child < n; at = child, child = 2 * at + 1) {
        child += child + 1 < n && heap[child + 1] > heap[child] ? 1 : 0;
        if (heap[at] >= heap[child]) {
            return;
        }
        const uint64_t moved = heap[at];
        heap[at] = heap[child];
        heap[child] = moved;
    }
}

static void heap_sort(dcz_u64 *heap, size_t n) {
    for (size_t at = n / 2; at > 0; at--) {
        sift(heap, n, at - 1);
    }
    for (size_t left = n; left > 1; left--) {
        const uint64_t largest = heap[0];
        heap[0] = heap[left - 1];
        heap[left - 1] = largest;
        sift(heap, left - 1, 0);
    }
}

/* Whether two of the names of this hash are equal; the walk then stands at the second one. */
static int is_repeated(names *walk, uint64_t hash, char *first, char *buffer, size_t room) {
    for (uint32_t skipped = 0;; skipped++) {
        uint32_t seen = 0;
        size_t size = 0;
        rewind_names(walk, buffer, room);
        while (next_name(walk)) {
            if (hash_of(walk->name, walk->size) != hash) {
                continue;
            }
            if (seen++ == skipped) {
                size = walk->size;
                memcpy(first, walk->name, size);
            } else if (seen > skipped + 1 && walk->size == size && memcmp(first, walk->name, size) == 0) {
                return 1;
            }
        }
        if (seen <= skipped + 1) {
            return 0;
        }
    }
}

static dcz_code find_repeated(names *walk, char *buffers, size_t name_room, dcz_u64 *hashes, size_t room) {
    const uint32_t n_names = walk->are_keys ? walk->frame.n_metadata : walk->frame.n_tensors;
    int doublings = 0; /* names can be made to fall into one pass: then all of their hashes need room */
    uint32_t n_passes = n_names <= room ? 1 : (uint32_t)(2 * (uint64_t)n_names / room) + 1;
    for (uint32_t pass = 0; pass < n_passes; pass++) {
        size_t n = 0;
        int full = 0;
        rewind_names(walk, buffers, name_room);
        while (next_name(walk)) {
            const uint64_t hash = hash_of(walk->name, walk->size);
            if (n_passes > 1 && hash % n_passes != pass) {
                continue;
            }
            if (n == room) {
                full = 1;
                break;
            }
            hashes[n++] = hash;
        }
        heap_sort(hashes, n);
        for (size_t i = 1; i < n; i++) {
            if (hashes[i] == hashes[i - 1] && (i == 1 || hashes[i] != hashes[i - 2]) &&
                is_repeated(walk, hashes[i], buffers + name_room, buffers, name_room)) {
                return walk->are_keys ? DCZ_DIR_12 : DCZ_DIR_03;
            }
        }
        if (full) { /* more of them than chance would have it: all passes again, with smaller shares */
            if (++doublings > 2) {
                return DCZ_NEED_WORKSPACE;
            }
            n_passes *= 2;
            pass = UINT32_MAX;
        }
    }
    return DCZ_OK;
}

static dcz_code read_tensors(dcz_frame *frame, cursor *c, names *walk, uint8_t *aliases) {
    dcz_tensor *t = walk->tensor;
    uint64_t output_bytes = 0;
    for (uint32_t number = 0; number < frame->n_tensors; number++) {
        TRY(read_name(frame, c, t));
        if (!is_utf8((const uint8_t *)t->name, t->name_size)) {
            return DCZ_DIR_13;
        }
        walk->frame.n_tensors = number + 1;
        frame->longest_name = t->name_size > frame->longest_name ? t->name_size : frame->longest_name;
        TRY(read_record(frame, c, t, aliases));
        output_bytes = t->n_bytes > UINT64_MAX - output_bytes ? UINT64_MAX : output_bytes + t->n_bytes;
    }
    frame->output_bytes = output_bytes;
    frame->sections_offset = t->next_offset;
    return DCZ_OK;
}

static dcz_code read_metadata(dcz_frame *frame, cursor *c, names *walk) {
    const uint64_t n = get_varint(c, c->size - c->at);
    walk->frame.metadata_at = frame->metadata_at = (uint32_t)c->at;
    for (uint64_t i = 0; i < 2 * n; i++) { /* keys and values */
        const uint64_t size = get_varint(c, UINT64_MAX);
        if (i % 2 == 0 && size > frame->limits.max_name_bytes) {
            return DCZ_LIM_04;
        }
        const uint8_t *text = take(c, size);
        TRY(c->error);
        if (!is_utf8(text, (size_t)size)) {
            return DCZ_DIR_13;
        }
        walk->frame.n_metadata = (uint32_t)(i / 2) + 1;
    }
    frame->n_metadata = (uint32_t)n;
    return c->error;
}

static dcz_code read_sections(dcz_frame *frame, cursor *c) {
    const uint64_t n = get_varint(c, c->size - c->at);
    frame->sections_at = (uint32_t)c->at;
    uint64_t at = frame->sections_offset;
    for (uint64_t i = 0; i < n && c->error == DCZ_OK; i++) {
        (void)get_varint(c, UINT64_MAX);
        at += get_varint(c, (UINT64_MAX >> 1) - at);
        (void)get_number(c, 4);
    }
    frame->n_sections = (uint32_t)n;
    TRY(c->error);
    if (c->at < c->size) {
        return DCZ_DIR_01;
    }
    if (frame->size < at) {
        return DCZ_FRM_01;
    }
    return frame->size > at ? DCZ_FRM_06 : DCZ_OK;
}

/* 8.6 */
static dcz_code read_set_sizes(dcz_frame *frame, cursor *c) {
    const uint64_t n_table_sets = get_varint(c, UINT64_MAX);
    if (n_table_sets > 1024) {
        return DCZ_DIR_14;
    }
#ifdef DCZ_BASELINE
    if (n_table_sets > 16) {
        return DCZ_LIM_08;
    }
#endif
    frame->n_table_sets = (uint32_t)n_table_sets;
    frame->chunks_offset = 20 + (uint64_t)frame->directory_size;
    for (uint64_t i = 0; i < n_table_sets; i++) {
        const uint64_t size = get_varint(c, UINT64_MAX);
        (void)get_number(c, 4);
        if (size > 65536) {
            return DCZ_DIR_14;
        }
        TRY(c->error);
#ifdef DCZ_BASELINE
        if (size > 8192) {
            return DCZ_LIM_08;
        }
#endif
        frame->chunks_offset += size;
    }
    return c->error;
}

ONCE dcz_code read_parts(dcz_frame *frame, cursor *c, uint8_t *workspace, size_t room, dcz_error *error) {
    TRY(read_set_sizes(frame, c));
    const uint64_t n_tensors = get_varint(c, UINT64_MAX);
    TRY(c->error);
    if (n_tensors > frame->limits.max_tensors) {
        return DCZ_LIM_02;
    }
    frame->tensors_at = (uint32_t)c->at;

    /* A tensor record has at least 4 bytes, a name no more than the directory. */
    const uint64_t left = c->size - c->at;
    const uint64_t n_likely = n_tensors < left / 4 ? n_tensors : left / 4;
    const size_t longest = frame->limits.max_name_bytes < frame->directory_size ? frame->limits.max_name_bytes
                                                                               : frame->directory_size;
    const size_t name_room = longest + 1;
    const size_t alias_bytes = (size_t)(n_likely / 8) + 1;
    /* Room for an eighth of the hashes: some seventeen passes over the names are enough. */
    const uint64_t n_hashes = n_likely / 8 > 64 ? n_likely / 8 : 64;
    const uint64_t least = 2 * (uint64_t)name_room + alias_bytes + 15 + 8 * n_hashes;
    const uint64_t read_whole = frame->data == NULL ? frame->directory_size : 0;
    const uint64_t most = least + read_whole + 8 * (left / 2);
    if (room < least) {
        return need(error, least + read_whole, most);
    }
    char *buffers = (char *)workspace;
    uint8_t *aliases = workspace + 2 * name_room;
    uint8_t *rest = aliases + alias_bytes;
    const size_t skipped = (size_t)(8 - ((uintptr_t)rest & 7)) & 7;
    void *aligned = rest + skipped;
    const size_t hash_room = (size_t)(workspace + room - (rest + skipped)) / 8;
    memset(aliases, 0, alias_bytes);

    dcz_tensor t;
    names walk;
    memset(&walk, 0, sizeof walk);
    walk.tensor = &t;
    walk.frame = *frame;
    /* If the records cannot all be there, FRM-01 comes before a bit of `aliases` is missing. */
    frame->n_tensors = (uint32_t)(n_tensors > n_likely ? n_likely + 1 : n_tensors);
    start_walk(frame, &t, buffers, name_room);
    for (; walk.are_keys < 2; walk.are_keys++) { /* a name that stands twice comes before what is broken behind it */
        const dcz_code code = walk.are_keys ? read_metadata(frame, c, &walk) : read_tensors(frame, c, &walk, aliases);
        error->tensor = code != DCZ_OK && !walk.are_keys ? t.number : DCZ_NO_TENSOR;
        const dcz_code repeated = find_repeated(&walk, buffers, name_room, aligned, hash_room);
        if (repeated == DCZ_NEED_WORKSPACE) {
            return need(error, most, most);
        }
        if (repeated != DCZ_OK) {
            error->tensor = walk.are_keys ? DCZ_NO_TENSOR : t.number;
            return repeated;
        }
        TRY(code);
    }
    return read_sections(frame, c);
}

ONCE dcz_code read_directory(dcz_frame *frame, uint8_t *workspace, size_t room, dcz_error *error) {
    cursor c = directory_from(frame, 0);
    const dcz_code code = read_parts(frame, &c, workspace, room, error);
    error->offset = code == DCZ_NEED_WORKSPACE ? 0 : 20 + (uint64_t)c.at;
    return code;
}

/* ---- 9 Coders ---- */

/* The codebook of the group of a word: `word` and all until `group_end` have it. */
typedef struct group {
    const uint8_t *row;
    uint64_t begin, end;
} group;

INLINE void copy_word(uint8_t *out, const uint8_t *word, size_t word_bytes) {
#ifdef DCZ_SMALL
    while (word_bytes-- > 0) {
        *out++ = *word++;
    }
#else
    switch (word_bytes) {
        case 1: out[0] = word[0]; break;
        case 2: memcpy(out, word, 2); break;
        case 4: memcpy(out, word, 4); break;
        default: memcpy(out, word, 8); break;
    }
#endif
}

/* Write the word of a label; `at` counts from the start of the chunk. */
static void put_label(const dcz_decoder *d, group *g, uint8_t *out, uint64_t at, uint32_t label) {
    const size_t word_bytes = d->tensor.word_bytes;
    const uint64_t word = d->first + at;
    if (word < g->begin || word >= g->end) {
        const uint64_t number = word / d->stretch;
        g->begin = number * d->stretch;
        g->end = g->begin + d->stretch;
        g->row = d->codebook + (size_t)number * d->row_words * word_bytes;
    }
    if (d->zero_apart) {
        if (label == 0) {
            memset(out + (size_t)at * word_bytes, 0, word_bytes);
            return;
        }
        label--;
    }
    copy_word(out + (size_t)at * word_bytes, g->row + label * word_bytes, word_bytes);
}

static group no_group(void) {
    group g;
    g.row = NULL;
    g.begin = g.end = 0;
    return g;
}

/* 10.5, defined below */
typedef struct lanes {
    bits lane[4];
    uint64_t count[4];
    uint64_t advance[4];
    unsigned n;
} lanes;

ONCE void lane_counts(lanes *l, uint64_t n_symbols);
static dcz_code read_lanes(cursor *c, lanes *l, uint64_t n_symbols, int with_advances);
static dcz_code read_symbol(bits *b, const dcz_huffman *code, uint32_t *symbol);

/* What many symbols at once can do; returns how many of each lane it has done. */
#ifdef DCZ_SMALL
#define fast_stream(l, code, units, unit_bytes, out, stride) 0
#define fast_runs(d, l, out, n, position, n_kept) 0
#define fast_fixed(d, b, width, out, n, code) 0
#else
static uint64_t fast_stream(lanes *l, const dcz_huffman *code, const uint8_t *units, size_t unit_bytes, uint8_t *out,
                            size_t stride);
static uint64_t fast_runs(const dcz_decoder *d, lanes *l, uint8_t *out, uint64_t n, uint64_t position[4],
                          uint64_t *n_kept);
static uint64_t fast_fixed(const dcz_decoder *d, bits *b, unsigned width, uint8_t *out, uint64_t n, dcz_code *code);
#endif

/* 9.1 */
static dcz_code decode_raw(const dcz_decoder *d, const uint8_t *body, size_t size, uint8_t *out, uint64_t n) {
    if (size != n * d->tensor.word_bytes) {
        return DCZ_RAW_01;
    }
    memcpy(out, body, size);
    return DCZ_OK;
}

ONCE void put_block(const dcz_decoder *d, group *g, uint8_t *out, uint64_t at, uint64_t n, uint32_t symbol);

/* The symbols of lanes, from number `done` of each on: bytes of a plane, or blocks of labels if there is no stride. */
static dcz_code decode_lanes(const dcz_decoder *d, lanes *l, const dcz_huffman *code, uint8_t *out, size_t stride,
                             uint64_t n, uint64_t done) {
    group g = no_group();
    uint64_t at = 0;
    for (unsigned i = 0; i < l->n; at += l->count[i], i++) {
        for (uint64_t k = done; k < l->count[i]; k++) {
            uint32_t symbol;
            TRY(read_symbol(&l->lane[i], code, &symbol));
            if (stride > 0) {
                out[(size_t)(at + k) * stride] = (uint8_t)symbol;
            } else {
                put_block(d, &g, out, (at + k) * d->block, n, symbol);
            }
        }
        TRY(finish_bits(&l->lane[i]));
    }
    return DCZ_OK;
}

/* 9.2 */
static dcz_code decode_plane(cursor *c, const dcz_huffman *code, uint8_t *out, size_t stride, uint64_t n) {
    lanes l;
    TRY(read_lanes(c, &l, n, 0));
    return decode_lanes(NULL, &l, code, out, stride, n, fast_stream(&l, code, NULL, 1, out, stride));
}

/* Put planes together. A step of 0 repeats a constant. */
TINY void merge_words(const uint8_t *const planes[8], const size_t steps[8], uint8_t *out, size_t n,
                        unsigned word_bytes, int turned) {
    for (size_t i = 0; i < n; i++) {
        uint64_t word = 0;
        for (unsigned place = 0; place < word_bytes; place++) {
            word |= (uint64_t)planes[place][i * steps[place]] << (8 * place);
        }
        if (turned) {
            word = word >> 1 | (word & 1) << (8 * word_bytes - 1);
        }
        store_word(out + i * word_bytes, word, word_bytes);
    }
}

#ifndef DCZ_SMALL
/* The same for planes without steps of 0, where a compiler finds vectors. */
static void merge_2(const uint8_t *restrict p0, const uint8_t *restrict p1, uint8_t *restrict out, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const uint32_t word = (uint32_t)p0[i] | (uint32_t)p1[i] << 8;
        const uint16_t turned = (uint16_t)(word >> 1 | (word & 1) << 15);
        memcpy(out + 2 * i, &turned, 2);
    }
}

static void merge_4(const uint8_t *restrict p0, const uint8_t *restrict p1, const uint8_t *restrict p2,
                    const uint8_t *restrict p3, uint8_t *restrict out, size_t n) {
    for (size_t i = 0; i < n; i++) {
        const uint32_t word = (uint32_t)p0[i] | (uint32_t)p1[i] << 8 | (uint32_t)p2[i] << 16 | (uint32_t)p3[i] << 24;
        const uint32_t turned = word >> 1 | word << 31;
        memcpy(out + 4 * i, &turned, 4);
    }
}
#endif

static dcz_code decode_planes(const dcz_decoder *d, const uint8_t *body, size_t size, uint8_t *out, uint64_t n) {
    const unsigned word_bytes = d->tensor.word_bytes;
    const int turned = d->tensor.kind == DCZ_FLOAT;
    const size_t n_words = (size_t)n;
    uint8_t *room = d->units; /* for the planes that are decoded; without it they are decoded into place */
    const uint8_t *planes[8];
    size_t steps[8];
    cursor c = cursor_of(body, size);
    for (unsigned place = 0; place < word_bytes; place++) {
        const dcz_plane *plane = &d->planes[place];
        steps[place] = 1;
        if (plane->mode == 0) {
            planes[place] = &plane->constant;
            steps[place] = 0;
        } else if (plane->mode == 1) {
            planes[place] = take(&c, n);
            TRY(c.error);
        } else if (room != NULL) {
            TRY(decode_plane(&c, &plane->code, room, 1, n));
            planes[place] = room;
            room += n_words;
        } else {
            TRY(decode_plane(&c, &plane->code, out + place, word_bytes, n));
            planes[place] = out + place;
            steps[place] = word_bytes;
        }
    }
    if (c.at < c.size) {
        return DCZ_PLN_03;
    }
#ifndef DCZ_SMALL
    unsigned plain = LITTLE_ENDIAN_HOST && turned ? word_bytes : 0;
    for (unsigned place = 0; place < word_bytes; place++) {
        plain = steps[place] == 1 ? plain : 0;
    }
    if (plain == 2) {
        merge_2(planes[0], planes[1], out, n_words);
        return DCZ_OK;
    }
    if (plain == 4) {
        merge_4(planes[0], planes[1], planes[2], planes[3], out, n_words);
        return DCZ_OK;
    }
#endif
    merge_words(planes, steps, out, n_words, word_bytes, turned);
    return DCZ_OK;
}

/* 9.3 */
static unsigned bit_length(uint64_t number) {
    unsigned n = 0;
    for (; number > 0; number >>= 1) {
        n++;
    }
    return n;
}

static dcz_code decode_fixed(const dcz_decoder *d, const uint8_t *body, size_t size, uint8_t *out, uint64_t n) {
    const unsigned bits_of_label = bit_length(d->tensor.n_labels - 1);
    const unsigned width = bits_of_label > 0 ? bits_of_label : 1;
    const uint64_t n_bytes = n / 8 * width + (n % 8 * width + 7) / 8;
    bits b = bits_of(body, size);
    group g = no_group();
    dcz_code code = DCZ_OK;
    if (size != n_bytes) {
        return DCZ_FIX_01;
    }
    for (uint64_t i = fast_fixed(d, &b, width, out, n, &code); i < n; i++) {
        const uint32_t label = peek(&b) >> (32 - width);
        b.at += width;
        if (label >= d->tensor.n_labels) {
            code = DCZ_FIX_03;
        } else {
            put_label(d, &g, out, i, label);
        }
    }
    if (b.at < b.end && peek(&b) != 0) {
        return DCZ_FIX_02;
    }
    return code;
}

/* 9.4 */
ONCE void put_block(const dcz_decoder *d, group *g, uint8_t *out, uint64_t at, uint64_t n, uint32_t symbol) {
    for (uint32_t place = d->block; place-- > 0; symbol /= d->tensor.n_labels) {
        if (at + place < n) {
            put_label(d, g, out, at + place, symbol % d->tensor.n_labels);
        }
    }
}

static dcz_code decode_labels(const dcz_decoder *d, const uint8_t *body, size_t size, uint8_t *out, uint64_t n) {
    const uint64_t n_symbols = n / d->block + (n % d->block > 0 ? 1 : 0);
    lanes l;
    cursor c = cursor_of(body, size);
    uint64_t done = 0;
    if (d->code.longest == 0) { /* no lanes */
        l.n = 1;
        l.count[0] = n_symbols;
        l.lane[0] = bits_of(body, 0);
    } else {
        TRY(read_lanes(&c, &l, n_symbols, 0));
    }
#ifndef DCZ_SMALL
    if (d->units != NULL) { /* the last symbol may stand for words beyond the chunk, so it waits */
        const uint64_t last = l.count[l.n - 1], held = last - 1;
        l.count[l.n - 1] = held;
        done = held > 0 ? fast_stream(&l, &d->code, d->units, d->unit_bytes, out, d->unit_bytes) : 0;
        l.count[l.n - 1] = last;
    }
#endif
    TRY(decode_lanes(d, &l, &d->code, out, 0, n, done));
    return c.at < c.size ? DCZ_LBL_01 : DCZ_OK;
}

/* 9.5, 9.6 */
ONCE dcz_code read_entry(const dcz_decoder *d, bits *b, uint64_t *run, uint32_t *label) {
    uint32_t bucket, symbol;
    TRY(read_symbol(b, &d->code, &symbol));
    if (d->tensor.coder == DCZ_ZERO_RUN) {
        const uint32_t n_values = d->tensor.n_labels - 1;
        bucket = symbol / n_values;
        *label = 1 + symbol % n_values;
        if (bucket == d->n_buckets) {
            bucket = d->n_buckets - 1;
            *label = 0;
        }
    } else {
        bucket = symbol;
    }
    *run = (uint64_t)bucket << d->raw_bits;
    if (d->raw_bits > 0) {
        *run |= peek(b) >> (32 - d->raw_bits);
        TRY(skip_bits(b, d->raw_bits));
    }
    return d->tensor.coder == DCZ_ZERO_RUN ? DCZ_OK : read_symbol(b, &d->label_code, label);
}

static dcz_code decode_runs(dcz_decoder *d, const uint8_t *body, size_t size, uint8_t *out, uint64_t n) {
    group g = no_group();
    lanes l;
    cursor c = cursor_of(body, size);
    const uint64_t n_entries = get_varint(&c, n);
    TRY(c.error);
    TRY(read_lanes(&c, &l, n_entries, 1));
    if (c.at < c.size) {
        return DCZ_RUN_03;
    }
    uint64_t start[4], position[4], at = 0;
    dcz_code code = DCZ_OK;
    for (unsigned i = 0; i < l.n; i++) {
        if (i > 0 && l.advance[i] > n - at) {
            code = DCZ_RUN_01; /* found where the lane starts: an earlier lane may break another rule before */
            l.n = i;
            break;
        }
        at += i > 0 ? l.advance[i] : 0;
        start[i] = position[i] = at;
    }
    memset(out, 0, (size_t)n * d->tensor.word_bytes);
    const uint64_t done = l.n == 4 ? fast_runs(d, &l, out, n, position, &d->n_kept) : 0;
    at = 0;
    for (unsigned i = 0; i < l.n; i++) {
        if (start[i] != at) {
            return DCZ_RUN_01;
        }
        at = position[i];
        for (uint64_t k = done; k < l.count[i]; k++) {
            uint64_t run = 0;
            uint32_t label = 0;
            TRY(read_entry(d, &l.lane[i], &run, &label));
            if (run >= n - at) {
                return DCZ_RUN_01;
            }
            at += run;
            if (label > 0) {
                put_label(d, &g, out, at, label);
                d->n_kept++;
            }
            at++;
        }
        TRY(finish_bits(&l.lane[i]));
    }
    return code;
}

/* 9.7 */

/* Of a pair of levels, (left + 3) x 7 + far + 3: twice the number of the pair (section 11.6), and 1 if mirrored. */
static const uint8_t pair_of[49] = {
    49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9,  7,  5,  3, 0,
    2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42, 44, 46, 48,
};

static const uint8_t trellises[8][2] = {{0, 0}, {2, 1}, {5, 2}, {9, 2}, {18, 4}, {33, 10}, {78, 43}, {166, 121}};

/* Raw bits and smallest magnitude of the bucket of a symbol. */
TINY uint32_t raw_bits_of(uint32_t symbol) { return symbol < 15 ? 0 : ((symbol + 1) >> 3) - 1; }

TINY uint32_t smallest_of(uint32_t symbol) {
    const uint32_t bucket = (symbol + 1) >> 1;
    return bucket < 8 ? bucket : (4 + bucket % 4) << raw_bits_of(symbol);
}

typedef struct context_lane {
    uint32_t state;
    uint32_t trellis_state;
    uint32_t left; /* level of the word to the left, plus 3 */
    int32_t row_class;
    uint8_t *out; /* the next word */
} context_lane;

typedef struct context_words {
    const uint8_t *at, *end;
} context_words;

TINY int refill(context_words *w, uint32_t *state, const int careful) {
    if (careful && *state < 65536 && w->at == w->end) {
        return 0;
    }
    if (careful) {
        if (*state < 65536) {
            *state = *state << 16 | load_u16(w->at);
            w->at += 2;
        }
    } else {
        const uint32_t shift = (uint32_t)(*state < 65536) << 4; /* without a jump: it would be guessed wrong often */
        *state = *state << shift | (load_u16(w->at) & (0u - (shift >> 4)));
        w->at += shift >> 3;
    }
    return 1;
}

#ifdef DCZ_SMALL
typedef dcz_decoder context_model;
#else
enum { LOWEST_SUM = -384, N_SUMS = 512, N_NEXT = 512 }; /* of make_contexts() */

typedef struct context_model { /* what a word takes, apart from the rest */
    const dcz_u32 *entries; /* of a symbol: smallest magnitude << 8 | raw bits << 3 | level */
    const dcz_slot *slots;
    const uint8_t *codebook;
    const dcz_u32 *outcomes;
    dcz_table_set set;
    const uint8_t *next, *contexts; /* make_contexts(); those of the sum 0 */
    uint32_t mask, n_labels, a, b, origin;
} context_model;
#endif

/* The symbol of a slot of a table. */
TINY uint32_t symbol_of(const context_model *m, const dcz_u16 *cumulative, uint32_t table, uint32_t slot) {
    if (m->slots != NULL) {
        return (uint32_t)((const dcz_slot *)m->slots)[(table << m->set.precision) + slot] >> SYMBOL_SHIFT;
    }
    uint32_t symbol = 0;
    while (slot >= cumulative[symbol + 1]) {
        symbol++;
    }
    return symbol;
}

/* Decode a word of a lane. Returns what is wrong: 1 for CTX-04, 2 for CTX-07, 0 for nothing. */
INLINE uint32_t decode_place(const context_model *m, context_words *w, context_lane *lane, int32_t column_class,
                             uint32_t far, uint8_t *level, const size_t word_bytes, const int has_trellis,
                             const int careful) {
    const uint32_t pair = pair_of[lane->left * 7 + far];
    const uint32_t quantiser = has_trellis ? lane->trellis_state & 1 : 0;
    int32_t word_class = lane->row_class + column_class;
    word_class = word_class < 0 ? 0 : word_class;
    word_class = word_class >= (int32_t)m->set.n_classes ? (int32_t)m->set.n_classes - 1 : word_class;
    const uint32_t table = m->set.choice[(quantiser * N_PAIRS + (pair >> 1)) * m->set.n_classes + (uint32_t)word_class];
    uint32_t state = lane->state;
    const dcz_u16 *cumulative = m->set.cumulative + table * TABLE_STRIDE;
    const uint32_t slot = state & m->mask;
    const uint32_t symbol = symbol_of(m, cumulative, table, slot);
    const uint32_t before = cumulative[symbol], frequency = cumulative[symbol + 1] - before;
    state = frequency * (state >> m->set.precision) + slot - before;
    if (!refill(w, &state, careful)) {
        return 1;
    }
    const uint32_t entry = m->entries[symbol];
    const uint32_t raw_bits = entry >> 3 & 31;
    uint32_t magnitude = entry >> 8;
    if (raw_bits > 0) {
        magnitude += state & (((uint32_t)1 << raw_bits) - 1);
        state >>= raw_bits;
        if (!refill(w, &state, careful)) {
            return 1;
        }
    }
    lane->state = state;
    /* symbol 0 is level 0 and magnitude 0, so its sign does not matter */
    const uint32_t negative = (pair & 1) ^ (~symbol & 1);
    const uint32_t new_level = 3 + (((entry & 7) ^ (0u - negative)) + negative);
    lane->left = new_level;
    *level = (uint8_t)new_level;
    if (has_trellis) {
        const uint32_t old = lane->trellis_state;
        lane->trellis_state = old >> 1 ^ ((0u - (old & 1)) & m->a) ^ ((0u - (magnitude & 1)) & m->b);
        magnitude = 2 * magnitude - (quantiser & (uint32_t)(magnitude > 0));
    }
    const uint32_t place = m->origin + ((magnitude ^ (0u - negative)) + negative);
    const uint32_t is_wrong = (uint32_t)(place >= m->n_labels);
    copy_word(lane->out, m->codebook + (place & (is_wrong - 1)) * word_bytes, word_bytes);
    lane->out += word_bytes;
    return is_wrong << 1;
}

#ifndef DCZ_SMALL
/* The same with what a context, a slot and a symbol come to looked up at once, when two words are there for it. */
INLINE uint32_t decode_quickly(const context_model *m, context_words *w, context_lane *lane, int32_t column_class,
                               uint32_t far, uint8_t *level, const size_t word_bytes, const int has_trellis,
                               const uint32_t precision) {
    const uint32_t quantiser = has_trellis ? lane->trellis_state & 1 : 0;
    const uint8_t *const contexts = m->contexts + (ptrdiff_t)(lane->row_class + column_class) * 64;
    const uint32_t context = contexts[quantiser * N_SUMS * 64 + (lane->left << 3) + far];
    uint32_t state = lane->state;
    const uint32_t slot = m->slots[((context & 127) << precision) + (state & (((uint32_t)1 << precision) - 1))];
    state = (slot >> 12 & 0x1FFF) * (state >> precision) + (slot & 0xFFF);
    (void)refill(w, &state, 0);
    const uint32_t outcome = m->outcomes[quantiser << 8 | (context & 128) | slot >> 25];
    const uint32_t new_level = outcome & 7;
    uint32_t is_odd = outcome >> 4 & 1; /* the magnitude */
    uint32_t place = outcome >> 8, wrong = outcome;
    if (UNLIKELY(outcome & 8)) {
        const uint32_t entry = m->entries[slot >> 25];
        const uint32_t raw_bits = entry >> 3 & 31;
        const uint32_t magnitude = (entry >> 8) + (state & (((uint32_t)1 << raw_bits) - 1));
        state >>= raw_bits;
        (void)refill(w, &state, 0);
        const uint32_t negative = (uint32_t)(new_level < 3 || (new_level == 3 && ((context >> 7 ^ ~slot >> 25) & 1) != 0));
        const uint32_t distance = has_trellis ? 2 * magnitude - quantiser : magnitude;
        is_odd = magnitude & 1;
        place = m->origin + ((distance ^ (0u - negative)) + negative);
        wrong |= (uint32_t)(place >= m->n_labels) << 5;
        place &= (uint32_t)(place >= m->n_labels) - 1;
    }
    lane->state = state;
    lane->left = new_level;
    *level = (uint8_t)new_level;
    if (has_trellis) {
        lane->trellis_state = m->next[lane->trellis_state << 1 | is_odd];
    }
    copy_word(lane->out, m->codebook + place * word_bytes, word_bytes);
    lane->out += word_bytes;
    return wrong;
}
#endif

/* Decode the rows that take turns, and return what is wrong with them. */
INLINE uint32_t decode_turn(const dcz_decoder *d, const context_model *model, context_words *words, context_lane *lanes_of_turn,
                            const unsigned n_lanes, const size_t word_bytes, const int has_trellis,
                            const uint32_t precision) {
#ifdef DCZ_SMALL
    (void)precision;
    const context_model *const m = model;
    context_words *const w = words;
    context_lane *const coders = lanes_of_turn;
#else /* copies, so that a compiler sees that no word written changes them */
    const context_model copy = *model, *const m = &copy;
    context_words at = *words, *const w = &at;
    context_lane coders[8];
    memcpy(coders, lanes_of_turn, n_lanes * sizeof coders[0]);
#endif
    const size_t width = (size_t)d->width, distance = d->distance;
    const uint64_t n_positions = d->n_positions;
    const int8_t *const column_classes = d->columns, *const position_classes = d->positions;
    uint8_t *const all_levels = d->levels;
    static const uint8_t none[8] = {3, 3, 3, 3, 3, 3, 3, 3};
    uint8_t unused[8];
    uint32_t wrong = 0, seen = 0;
    size_t column = 0, position = 0, ring = 0;
    for (size_t x = 0; x < width; x++) {
        int32_t column_class = column_classes != NULL ? column_classes[column] : 0;
        column_class += position_classes != NULL ? position_classes[position] : 0;
        if (++position == n_positions) {
            position = 0;
            column++;
        }
        uint8_t *levels = distance > 0 ? all_levels + 8 * ring : unused; /* here until it is replaced: those of `far` */
        const uint8_t *far = distance > 0 && x >= distance ? levels : none;
        ring = ring + 1 == distance ? 0 : ring + 1;
#ifndef DCZ_SMALL
        if (m->contexts != NULL && (size_t)(w->end - w->at) >= 4 * n_lanes) { /* two words for each: enough (section 15) */
            UNROLLED
            for (unsigned i = 0; i < n_lanes; i++) {
                seen |= decode_quickly(m, w, &coders[i], column_class, far[i], &levels[i], word_bytes, has_trellis,
                                        precision);
            }
        } else
#endif
        {
            for (unsigned i = 0; i < n_lanes; i++) {
                wrong |= decode_place(m, w, &coders[i], column_class, far[i], &levels[i], word_bytes, has_trellis, 1);
                if (wrong & 1) {
                    return wrong | (seen >> 4 & 2);
                }
            }
        }
    }
#ifndef DCZ_SMALL
    memcpy(lanes_of_turn, coders, n_lanes * sizeof coders[0]);
    *words = at;
#endif
    return wrong | (seen >> 4 & 2);
}

#ifndef DCZ_SMALL
static uint32_t decode_turn_fast(const dcz_decoder *d, const context_model *m, context_words *w, context_lane *coders,
                                 unsigned n_turns) {
    const size_t word_bytes = d->tensor.word_bytes;
    const uint32_t precision = m->set.precision;
#define TURN(n, bytes, bits_of_slot)                                                 \
    (d->trellis == 0 ? decode_turn(d, m, w, coders, n, bytes, 0, bits_of_slot)       \
                     : decode_turn(d, m, w, coders, n, bytes, 1, bits_of_slot))
    if (n_turns == 8 && precision == 12 && word_bytes == 4) { /* these are frequent */
        return TURN(8, 4, 12);
    }
    if (n_turns == 8 && precision == 12 && word_bytes == 2) {
        return TURN(8, 2, 12);
    }
    return TURN(n_turns, word_bytes, precision);
}
#endif

static dcz_code decode_context(const dcz_decoder *d, const uint8_t *body, size_t size, uint8_t *out, uint64_t n) {
    const size_t word_bytes = d->tensor.word_bytes;
    const size_t row_bytes = (size_t)d->width * word_bytes;
    const uint64_t n_rows = n / d->width, first_row = d->first / d->width;
    unsigned n_lanes = n >= 16384 ? 8 : n >= 4096 ? 4 : n >= 2048 ? 2 : 1;
    n_lanes = n_lanes > n_rows ? (unsigned)n_rows : n_lanes;
    if (size % 2 != 0 || size < 4 * (size_t)n_lanes) {
        return DCZ_CTX_04;
    }
    context_lane coders[8];
    context_words w;
    memset(coders, 0, sizeof coders);
    for (unsigned i = 0; i < n_lanes; i++) {
        coders[i].state = load_u32(body + 4 * i);
        if (coders[i].state < 65536) {
            return DCZ_CTX_06;
        }
    }
    w.at = body + 4 * n_lanes;
    w.end = body + size;
#ifndef DCZ_SMALL
    context_model m;
    m.entries = d->entries;
    m.slots = d->slots;
    m.outcomes = d->outcomes;
    m.next = d->contexts;
    m.contexts = d->contexts != NULL ? d->contexts + N_NEXT - LOWEST_SUM * 64 : NULL;
    m.set = d->set;
    m.codebook = d->codebook;
    m.mask = d->mask;
    m.n_labels = d->n_labels;
    m.origin = d->origin;
    m.a = d->a;
    m.b = d->b;
#endif
    for (uint64_t top = 0; top < n_rows; top += n_lanes) {
        const unsigned n_turns = n_rows - top < n_lanes ? (unsigned)(n_rows - top) : n_lanes;
        for (unsigned i = 0; i < n_turns; i++) {
            coders[i].left = 3;
            coders[i].row_class = d->rows[(size_t)(first_row + top + i)];
            coders[i].out = out + (size_t)(top + i) * row_bytes;
        }
#ifdef DCZ_SMALL
        const uint32_t wrong = decode_turn(d, d, &w, coders, n_turns, word_bytes, d->trellis > 0, 0);
#else
        const uint32_t wrong = decode_turn_fast(d, &m, &w, coders, n_turns);
#endif
        if (wrong != 0) {
            return wrong & 2 ? DCZ_CTX_07 : DCZ_CTX_04;
        }
    }
    if (w.at < w.end) {
        return DCZ_CTX_05;
    }
    for (unsigned i = 0; i < n_lanes; i++) {
        if (coders[i].state != 65536) {
            return DCZ_CTX_06;
        }
    }
    return DCZ_OK;
}

/* ---- 10 Canonical Huffman codes ---- */

/* 10.1, 10.2 */
ONCE dcz_code check_code(const uint8_t *lengths, uint32_t n_symbols) {
    uint32_t n_used = 0, sum = 0, last = 0;
    for (uint32_t symbol = 0; symbol < n_symbols; symbol++) {
        if (lengths[symbol] > 15) {
            return DCZ_HUF_03;
        }
        if (lengths[symbol] > 0) {
            n_used++;
            last = lengths[symbol];
            sum += (uint32_t)1 << (15 - last);
        }
    }
    if (n_used == 0) {
        return DCZ_HUF_01;
    }
    if (n_used == 1) {
        return last == 1 ? DCZ_OK : DCZ_HUF_04;
    }
    return sum == (uint32_t)1 << 15 ? DCZ_OK : DCZ_HUF_02;
}

ONCE uint32_t count_used(const uint8_t *lengths, uint32_t n_symbols) {
    uint32_t n_used = 0;
    for (uint32_t symbol = 0; symbol < n_symbols; symbol++) {
        n_used += lengths[symbol] > 0 ? 1 : 0;
    }
    return n_used;
}

/* 10.3, 10.4: the symbols in the order of their codes, and where each length starts */
ONCE void assign_codes(dcz_huffman *code, dcz_u16 *symbols, const uint8_t *lengths, uint32_t n_symbols) {
    uint32_t n_before = 0, above = 0;
    memset(code, 0, sizeof *code);
    code->symbols = symbols;
    for (uint32_t length = 1; length <= 15; length++) {
        code->offset[length] = (uint16_t)n_before;
        for (uint32_t symbol = 0; symbol < n_symbols; symbol++) {
            if (lengths[symbol] == length) {
                symbols[n_before++] = (uint16_t)symbol;
                above += (uint32_t)1 << (15 - length);
                code->longest = (uint8_t)length;
            }
        }
        code->limit[length] = (uint16_t)above;
    }
    if (n_before == 1) {
        code->longest = 0;
    }
}

/* Return symbol << 4 | length of the code that the 15 bits start with. */
INLINE uint32_t find_code(const dcz_huffman *code, uint32_t bits15) {
    uint32_t length = 1;
    while (bits15 >= code->limit[length]) {
        length++;
    }
    const uint32_t number = code->offset[length] + ((bits15 - code->limit[length - 1]) >> (15 - length));
    return (uint32_t)code->symbols[number] << 4 | length;
}

static dcz_code read_symbol(bits *b, const dcz_huffman *code, uint32_t *symbol) {
    if (code->longest == 0) {
        *symbol = code->symbols[0];
        return DCZ_OK;
    }
    const uint32_t next = peek(b) >> 17;
    uint32_t found = code->root != NULL ? code->root[next >> (15 - code->root_bits)] : 0;
    if (found == 0) {
        found = find_code(code, next);
    }
    *symbol = found >> 4;
    return skip_bits(b, found & 15);
}

/* 10.5 */
ONCE void lane_counts(lanes *l, uint64_t n_symbols) {
    const uint64_t share = n_symbols / 4 + (n_symbols % 4 > 0 ? 1 : 0);
    l->n = n_symbols < 1024 ? 1 : 4;
    l->count[0] = n_symbols;
    if (l->n == 4) {
        l->count[0] = l->count[1] = l->count[2] = share;
        l->count[3] = n_symbols - 3 * share;
    }
}

static dcz_code read_lanes(cursor *c, lanes *l, uint64_t n_symbols, int with_advances) {
    uint64_t sizes[4];
    lane_counts(l, n_symbols);
    for (unsigned i = 0; i < l->n; i++) {
        sizes[i] = get_varint(c, c->size - c->at);
    }
    for (unsigned i = 1; i < l->n && with_advances; i++) {
        l->advance[i] = get_varint(c, UINT64_MAX);
    }
    for (unsigned i = 0; i < l->n; i++) {
        const uint8_t *data = take(c, sizes[i]);
        TRY(c->error);
        l->lane[i] = bits_of(data, (size_t)sizes[i]);
    }
    return DCZ_OK;
}

#ifndef DCZ_SMALL

INLINE uint64_t load_bits(const uint8_t *p, uint64_t at) {
    const uint8_t *q = p + (at >> 3);
    const uint64_t value = (uint64_t)q[0] << 56 | (uint64_t)q[1] << 48 | (uint64_t)q[2] << 40 | (uint64_t)q[3] << 32 |
                           (uint64_t)q[4] << 24 | (uint64_t)q[5] << 16 | (uint64_t)q[6] << 8 | q[7];
    return value << (at & 7);
}

/* Copy a unit of a fixed number of bytes, or the byte of a symbol if there are no units. */
INLINE void put_unit(uint8_t *out, const uint8_t *units, uint32_t symbol, const size_t unit_bytes) {
    if (units == NULL) {
        *out = (uint8_t)symbol;
    } else {
        memcpy(out, units + symbol * unit_bytes, unit_bytes);
    }
}

/* As many symbols of each lane as can be read without looking for its end; return their number. */
INLINE uint64_t stream_loop(lanes *l, const dcz_huffman *code, const uint8_t *units, const size_t unit_bytes,
                            uint8_t *out, const size_t stride, const unsigned n_lanes, const unsigned per_load) {
    const dcz_u16 *const root = code->root;
    const unsigned shift = 64u - code->root_bits;
    uint64_t done = 0;
    uint64_t at[4], safe[4];
    const uint8_t *data[4];
    uint8_t *to[4];
    uint64_t start = 0;
    for (unsigned i = 0; i < n_lanes; i++) {
        at[i] = 0;
        data[i] = l->lane[i].data;
        safe[i] = l->lane[i].size > 8 ? 8 * (uint64_t)(l->lane[i].size - 8) : 0;
        to[i] = out + (size_t)start * stride;
        start += l->count[i];
    }
    const uint64_t n = l->count[n_lanes - 1]; /* the shortest */
    while (done + per_load <= n) {
        int inside = 1;
        for (unsigned i = 0; i < n_lanes; i++) {
            inside &= at[i] < safe[i];
        }
        if (!inside) {
            break;
        }
        uint64_t next[4];
        for (unsigned i = 0; i < n_lanes; i++) {
            next[i] = load_bits(data[i], at[i]);
        }
        for (unsigned k = 0; k < per_load; k++) {
            for (unsigned i = 0; i < n_lanes; i++) {
                uint32_t found = root[next[i] >> shift];
                if (UNLIKELY(found == 0)) {
                    found = find_code(code, (uint32_t)(next[i] >> 49));
                }
                put_unit(to[i] + k * stride, units, found >> 4, unit_bytes);
                next[i] <<= found & 15;
                at[i] += found & 15;
            }
        }
        for (unsigned i = 0; i < n_lanes; i++) {
            to[i] += per_load * stride;
        }
        done += per_load;
    }
    for (unsigned i = 0; i < n_lanes; i++) {
        l->lane[i].at = at[i];
    }
    return done;
}

static uint64_t fast_stream(lanes *l, const dcz_huffman *code, const uint8_t *units, size_t unit_bytes, uint8_t *out,
                            size_t stride) {
    if (code->root == NULL || l->n != 4) {
        return 0;
    }
    const unsigned some = 56u / code->longest;
#define STREAM(unit, step)                                                            \
    (code->longest <= 11 ? stream_loop(l, code, units, unit, out, step, 4, 5)         \
                         : stream_loop(l, code, units, unit, out, step, 4, some))
    if (units == NULL) {
        return stride == 1 ? STREAM(1, 1) : stream_loop(l, code, units, 1, out, stride, 4, some);
    }
    switch (unit_bytes) {
        case 2: return stream_loop(l, code, units, 2, out, 2, 4, some);
        case 4: return STREAM(4, 4);
        case 8: return STREAM(8, 8);
        case 16: return STREAM(16, 16);
        default: return stream_loop(l, code, units, unit_bytes, out, unit_bytes, 4, some);
    }
}

/* bucket << 16 | label << 4 | length, from symbol << 4 | length; of split_run without the label */
static uint32_t run_entry(const dcz_decoder *d, uint32_t found, uint32_t n_values) {
    const uint32_t symbol = found >> 4;
    if (d->tensor.coder == DCZ_SPLIT_RUN) {
        return symbol << 16 | (found & 15);
    }
    if (symbol == d->n_buckets * n_values) {
        return (d->n_buckets - 1) << 16 | (found & 15);
    }
    return symbol / n_values << 16 | (1 + symbol % n_values) << 4 | (found & 15);
}

INLINE uint64_t runs_loop(const dcz_decoder *d, lanes *l, uint8_t *out, uint64_t n, uint64_t position[4],
                          uint64_t *n_kept, const size_t word_bytes, const int is_split, const int has_raw,
                          const unsigned per_load) {
    const dcz_u32 *const entries = d->entries;
    const unsigned shift = 64u - d->code.root_bits;
    const uint32_t raw_bits = d->raw_bits;
    const dcz_u16 *const root = d->label_code.root;
    const unsigned label_shift = 64u - d->label_code.root_bits;
    const uint8_t *const codebook = d->codebook;
    uint64_t done = 0, kept = 0, at[4], place[4], safe[4];
    for (unsigned i = 0; i < 4; i++) {
        at[i] = 0;
        place[i] = position[i];
        safe[i] = l->lane[i].size > 8 ? 8 * (uint64_t)(l->lane[i].size - 8) : 0;
    }
    uint64_t beyond = 0;
    while (done + per_load <= l->count[3]) {
        if (!((at[0] < safe[0]) & (at[1] < safe[1]) & (at[2] < safe[2]) & (at[3] < safe[3]))) {
            break;
        }
        uint64_t next[4];
        for (unsigned i = 0; i < 4; i++) {
            next[i] = load_bits(l->lane[i].data, at[i]);
        }
        for (unsigned k = 0; k < per_load; k++) {
            for (unsigned i = 0; i < 4; i++) {
                uint32_t entry = entries[next[i] >> shift];
                if (UNLIKELY((entry & 15) == 0)) {
                    entry = run_entry(d, find_code(&d->code, (uint32_t)(next[i] >> 49)), d->tensor.n_labels - 1);
                }
                uint32_t used = entry & 15;
                uint64_t run = entry >> 16;
                uint32_t label = entry >> 4 & 4095;
                next[i] <<= used;
                if (has_raw || is_split) {
                    run = run << raw_bits | (raw_bits > 0 ? next[i] >> (64 - raw_bits) : 0);
                    next[i] <<= raw_bits;
                    used += raw_bits;
                }
                if (is_split) {
                    uint32_t found = root[next[i] >> label_shift];
                    if (UNLIKELY(found == 0)) {
                        found = find_code(&d->label_code, (uint32_t)(next[i] >> 49));
                    }
                    label = found >> 4;
                    next[i] <<= found & 15;
                    used += found & 15;
                }
                at[i] += used;
                place[i] += run;
                if (UNLIKELY(place[i] >= n)) {
                    beyond = 1;
                    place[i] = 0;
                }
                kept += label > 0 ? 1 : 0;
                copy_word(out + (size_t)place[i] * word_bytes, codebook + label * word_bytes, word_bytes);
                place[i]++;
            }
        }
        if (UNLIKELY(beyond)) {
            break;
        }
        done += per_load;
    }
    if (beyond) { /* the slow loop says what is wrong, in the order of the entries */
        return 0;
    }
    for (unsigned i = 0; i < 4; i++) {
        l->lane[i].at = at[i];
        position[i] = place[i];
    }
    *n_kept += kept;
    return done;
}

static uint64_t fast_runs(const dcz_decoder *d, lanes *l, uint8_t *out, uint64_t n, uint64_t position[4],
                          uint64_t *n_kept) {
    const int is_split = d->tensor.coder == DCZ_SPLIT_RUN;
    if (d->entries == NULL || d->n_groups > 1 || (is_split && d->label_code.root == NULL)) {
        return 0;
    }
    const unsigned longest = d->code.longest + d->raw_bits + (is_split ? d->label_code.longest : 0u);
    const unsigned some = 56 / longest;
#define RUNS(bytes)                                                                                          \
    (is_split                          ? runs_loop(d, l, out, n, position, n_kept, bytes, 1, 1, some)        \
     : d->raw_bits > 0 || longest > 14 ? runs_loop(d, l, out, n, position, n_kept, bytes, 0, 1, some)        \
                                       : runs_loop(d, l, out, n, position, n_kept, bytes, 0, 0, 4))
    switch (d->tensor.word_bytes) {
        case 2: return RUNS(2);
        case 4: return RUNS(4);
        default: return RUNS(d->tensor.word_bytes);
    }
}

INLINE uint64_t fixed_loop(const dcz_decoder *d, bits *b, const unsigned width, uint8_t *out, uint64_t n,
                           dcz_code *code, const size_t word_bytes) {
    const uint8_t *const codebook = d->codebook;
    const uint32_t n_labels = d->tensor.n_labels;
    const uint64_t safe = b->size > 8 ? 8 * (uint64_t)(b->size - 8) : 0;
    const unsigned per_load = 56 / width < 8 ? 56 / width : 8;
    uint64_t done = 0;
    uint32_t wrong = 0;
    while (done + per_load <= n && b->at < safe) {
        uint64_t next = load_bits(b->data, b->at);
        for (unsigned k = 0; k < per_load; k++) {
            uint32_t label = (uint32_t)(next >> (64 - width));
            next <<= width;
            wrong |= label >= n_labels;
            label = label >= n_labels ? 0 : label;
            copy_word(out + (size_t)(done + k) * word_bytes, codebook + label * word_bytes, word_bytes);
        }
        b->at += per_load * width;
        done += per_load;
    }
    *code = wrong ? DCZ_FIX_03 : *code;
    return done;
}

static uint64_t fast_fixed(const dcz_decoder *d, bits *b, unsigned width, uint8_t *out, uint64_t n, dcz_code *code) {
    if (d->n_groups > 1) {
        return 0;
    }
    switch (d->tensor.word_bytes) {
        case 2: return fixed_loop(d, b, width, out, n, code, 2);
        case 4: return fixed_loop(d, b, width, out, n, code, 4);
        default: return fixed_loop(d, b, width, out, n, code, d->tensor.word_bytes);
    }
}

#endif

/* ---- 11 Side information ---- */

/* 11.1 */
typedef struct side {
    const uint8_t *data;
    size_t size, at;
    uint32_t range, code;
    dcz_u16 *contexts; /* chance << 4 | seen */
    dcz_code error;     /* the first one; what is read after it is 0 */
} side;

static uint32_t next_byte(side *s) {
    const uint32_t byte = s->at < s->size ? s->data[s->at] : 0;
    s->at++;
    return byte;
}

static void reset_contexts(dcz_u16 *contexts) {
    for (unsigned i = 0; i < N_SIDE_CONTEXTS; i++) {
        contexts[i] = 2048 << 4;
    }
}

static void start_side(side *s, const uint8_t *data, size_t size, dcz_u16 *contexts) {
    s->data = data;
    s->size = size;
    s->at = 0;
    s->range = 0xFFFFFFFF;
    s->code = 0;
    s->contexts = contexts;
    s->error = DCZ_OK;
    reset_contexts(contexts);
    for (int i = 0; i < 4; i++) {
        s->code = s->code << 8 | next_byte(s);
    }
}

static void normalise(side *s) {
    if (s->range < (uint32_t)1 << 24) {
        s->range <<= 8;
        s->code = s->code << 8 | next_byte(s);
    }
}

static uint32_t side_bit(side *s, uint32_t context) {
    static const uint8_t shifts[13] = {1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 5};
    uint32_t chance = (uint32_t)s->contexts[context] >> 4, seen = s->contexts[context] & 15u, value;
    const uint32_t bound = (s->range >> 12) * chance;
    if (s->code < bound) {
        value = 0;
        s->range = bound;
        chance += (4096 - chance) >> shifts[seen];
        chance = chance > 4064 ? 4064 : chance;
    } else {
        value = 1;
        s->code -= bound;
        s->range -= bound;
        chance -= chance >> shifts[seen];
        chance = chance < 32 ? 32 : chance;
    }
    normalise(s);
    seen += seen < 12 ? 1 : 0;
    s->contexts[context] = (uint16_t)(chance << 4 | seen);
    return value;
}

static uint64_t side_raw(side *s, uint32_t n_bits) {
    uint64_t value = 0;
    while (n_bits > 0) {
        const uint32_t step = n_bits < 8 ? n_bits : 8;
        n_bits -= step;
        s->range >>= step;
        uint32_t part = s->code / s->range;
        part = part >> step != 0 ? ((uint32_t)1 << step) - 1 : part;
        s->code -= s->range * part;
        normalise(s);
        value = value << step | part;
    }
    return value;
}

/* 11.2 */
ONCE uint64_t fail_side(side *s, dcz_code code) {
    if (s->error == DCZ_OK) {
        s->error = code;
    }
    return 0;
}

static uint64_t side_number(side *s, uint32_t kind, uint64_t limit) {
    uint32_t n_bits = 0;
    while (n_bits < 64 && side_bit(s, 64 * kind + n_bits)) {
        n_bits++;
    }
    const uint64_t value = n_bits > 0 ? (uint64_t)1 << (n_bits - 1) | side_raw(s, n_bits - 1) : 0;
    return value > limit ? fail_side(s, DCZ_TAB_01) : value;
}

static uint32_t side_unary(side *s, uint32_t first, uint32_t n_contexts, uint32_t limit) {
    uint32_t value = 0;
    while (side_bit(s, first + (value < n_contexts ? value : n_contexts - 1))) {
        value++;
        if (value > limit) {
            return (uint32_t)fail_side(s, DCZ_TAB_01);
        }
    }
    return value;
}

ONCE int32_t unfold(uint64_t number) {
    const int32_t half = (int32_t)(number >> 1);
    return number & 1 ? -half - 1 : half;
}

static dcz_code finish_side(side *s) {
    TRY(s->error);
    return s->size > s->at || (s->size > 0 && s->data[s->size - 1] == 0) ? DCZ_TAB_02 : DCZ_OK;
}

/* Memory of the caller: what the tensor keeps grows from the bottom; `bottom` counts on when there is no more, so
 * that it says how much there should be. */
static void *keep(dcz_decoder *d, uint64_t n_bytes) {
    const size_t room = d->top > d->bottom ? d->top - d->bottom : 0;
    uint8_t *memory = d->workspace + (d->bottom <= d->top ? d->bottom : d->top);
    if (n_bytes > SIZE_MAX / 4 || d->bottom > SIZE_MAX / 2) {
        d->bottom = SIZE_MAX / 2 + 1;
        return NULL;
    }
    const size_t rounded = ((size_t)n_bytes + 7) & ~(size_t)7;
    d->bottom += rounded;
    return rounded <= room ? memory : NULL;
}

/* 11.3 */
static void put_value(const dcz_decoder *d, uint8_t *row, uint64_t at, uint64_t word) {
    if (row != NULL) {
        store_word(row + (size_t)at * d->tensor.word_bytes, word, d->tensor.word_bytes);
    }
}

/* Return whether the word 0 is among the values. */
static int read_codebook(const dcz_decoder *d, side *s, uint8_t *row, uint32_t n_values) {
    const uint32_t n_bits = 8u * d->tensor.word_bytes;
    const uint8_t kind = d->tensor.kind;
    const uint32_t magnitude_bits = kind == DCZ_UNSIGNED ? n_bits : n_bits - 1;
    const uint64_t ones = UINT64_MAX >> (64 - n_bits);
    const uint32_t n_negative = (uint32_t)side_number(s, 0, kind == DCZ_UNSIGNED ? 0 : n_values);
    const uint32_t n_dropped = (uint32_t)side_number(s, 0, magnitude_bits);
    const uint64_t largest = n_dropped == magnitude_bits ? 0 : (UINT64_MAX >> (64 - magnitude_bits)) >> n_dropped;
    int32_t last_bits = 0;
    uint64_t previous = 0;
    int has_zero = 0;
    for (uint32_t i = 0; i < n_values && s->error == DCZ_OK; i++) {
        const int is_negative = i < n_negative;
        const int is_first = i == 0 || i == n_negative;
        last_bits += unfold(side_number(s, 1, 128));
        if (s->error != DCZ_OK || last_bits < 0 || last_bits > 64) {
            (void)fail_side(s, DCZ_TAB_03);
            return 0;
        }
        const uint32_t rest_bits = last_bits > 0 ? (uint32_t)last_bits - 1 : 0;
        const uint64_t gap = last_bits > 0 ? (uint64_t)1 << rest_bits | side_raw(s, rest_bits) : 0;
        if (is_first ? gap > largest : previous == largest || gap > largest - previous - 1) {
            (void)fail_side(s, DCZ_TAB_03);
            return 0;
        }
        previous = is_first ? gap : previous + gap + 1;
        const uint64_t magnitude = n_dropped < 64 ? previous << n_dropped : 0;
        uint64_t word = magnitude;
        if (is_negative) {
            word = kind == DCZ_FLOAT ? magnitude | (uint64_t)1 << (n_bits - 1) : magnitude ^ ones;
        }
        has_zero |= word == 0;
        put_value(d, row, is_negative ? n_negative - 1 - i : i, word);
    }
    return has_zero;
}

/* Bits of magnitude x 2**exponent as a float. The magnitude is less than 2**37, the exponent at least -149. */
ONCE uint32_t round_float(uint64_t magnitude, int32_t exponent, int32_t fraction_bits, int32_t exponent_bits) {
    const int32_t lowest = 2 - (1 << (exponent_bits - 1)) - fraction_bits;
    const int32_t excess = (int32_t)bit_length(magnitude) - fraction_bits - 1;
    const int32_t shift = excess > lowest - exponent ? excess : lowest - exponent;
    if (shift > 40) {
        magnitude = 0;
    } else if (shift > 0) {
        const uint64_t half = (uint64_t)1 << (shift - 1), rest = magnitude & (2 * half - 1);
        magnitude >>= shift;
        magnitude += rest > half || (rest == half && (magnitude & 1)) ? 1 : 0;
    } else {
        magnitude <<= -shift;
    }
    const uint64_t result = ((uint64_t)(exponent + shift - lowest) << fraction_bits) + magnitude;
    const uint64_t infinity = (((uint64_t)1 << exponent_bits) - 1) << fraction_bits;
    return (uint32_t)(result < infinity ? result : infinity);
}

static uint32_t even_value(uint32_t step, int32_t multiple, unsigned dtype) {
    const int32_t fraction_bits = dtype == FLOAT16 ? 10 : dtype == BFLOAT16 ? 7 : 23;
    const int32_t exponent_bits = dtype == FLOAT16 ? 5 : 8;
    uint64_t times = (uint64_t)(multiple < 0 ? -multiple : multiple);
    for (int turn = 0; turn < 2; turn++) {
        const int32_t exponent = (int32_t)(step >> 23);
        const uint64_t fraction = (step & 0x7FFFFF) + (exponent > 0 ? (uint64_t)1 << 23 : 0);
        step = round_float(times * fraction, (exponent > 1 ? exponent : 1) - 150, turn == 0 ? 23 : fraction_bits,
                           turn == 0 ? 8 : exponent_bits);
        times = 1;
    }
    return multiple > 0 ? step : step + ((uint32_t)1 << (fraction_bits + exponent_bits));
}

static int read_even(const dcz_decoder *d, side *s, uint8_t *row, uint32_t n_values) {
    const uint32_t step = (uint32_t)side_raw(s, 32);
    const uint32_t n_negative = (uint32_t)side_number(s, 0, n_values);
    uint32_t before = 0;
    int has_zero = 0;
    if (step == 0 || step >= 0x7F800000) {
        (void)fail_side(s, DCZ_CBK_04);
    }
    for (uint32_t i = 0; i < n_values && s->error == DCZ_OK; i++) {
        const int32_t multiple = (int32_t)i - (int32_t)n_negative + (i < n_negative ? 0 : 1);
        const uint32_t word = even_value(step, multiple, d->tensor.dtype);
        if (i > 0 && word == before) { /* rounding keeps the order, so equal words are neighbours */
            (void)fail_side(s, DCZ_CBK_04);
        }
        before = word;
        has_zero |= word == 0;
        put_value(d, row, i, word);
    }
    return has_zero;
}

static dcz_code read_codebooks(dcz_decoder *d, side *s) {
    const dcz_tensor *t = &d->tensor;
    const uint64_t n_more = side_number(s, 2, t->n_words);
    TRY(s->error);
    if (t->n_words % (n_more + 1) != 0) {
        return DCZ_CBK_01;
    }
    d->n_groups = n_more + 1;
    d->stretch = t->n_words / d->n_groups;
    d->has_zero = (uint32_t)side_raw(s, 1);
    const uint32_t n_values = t->n_labels - d->has_zero;
    const uint64_t most = d->n_groups == 1 || t->n_words > 65536 ? 65536 : t->n_words;
    const uint64_t n_all = d->n_groups > 65536 ? UINT64_MAX : d->n_groups * (n_values > 0 ? n_values : 1);
    if (n_all > most) {
        return DCZ_CBK_02;
    }
#ifdef DCZ_BASELINE
    if (n_all > 4096) {
        return DCZ_LIM_08;
    }
#endif
    d->zero_apart = d->has_zero && d->n_groups > 1; /* groups can be many, so their rows do without the word 0 */
    d->row_words = d->zero_apart ? n_values : t->n_labels;
    const size_t row_bytes = (size_t)d->row_words * t->word_bytes;
    uint8_t *row = keep(d, d->n_groups * row_bytes);
    d->codebook = row;
    int is_even = 0;
    if (t->dtype >= FLOAT16 && t->dtype <= FLOAT32 && d->n_groups == 1 && d->has_zero && n_values > 0) {
        is_even = (int)side_raw(s, 1);
    }
    int finds_zero = 0;
    for (uint64_t i = 0; i < d->n_groups && s->error == DCZ_OK; i++) {
        uint8_t *values = row;
        if (d->has_zero && !d->zero_apart && row != NULL) {
            memset(row, 0, t->word_bytes);
            values += t->word_bytes;
        }
        finds_zero |= is_even ? read_even(d, s, values, n_values) : read_codebook(d, s, values, n_values);
        row = row == NULL ? NULL : row + row_bytes;
    }
    TRY(s->error);
    return d->has_zero && finds_zero ? DCZ_CBK_03 : DCZ_OK;
}

/* 11.4: `lengths` has room for 4,096 */
ONCE dcz_code read_lengths(side *s, uint8_t *lengths, uint64_t n_symbols, uint32_t n_columns) {
    if (n_symbols < 1 || n_symbols > MAX_SYMBOLS) {
        return DCZ_HUF_01;
    }
    for (uint32_t place = 0, column = 0; place < n_symbols; place++, column++) {
        column = column == n_columns ? 0 : column;
        const int32_t left = column > 0 ? lengths[place - 1] : 0;
        const int32_t up = place >= n_columns ? lengths[place - n_columns] : 0;
        const uint32_t used = (left > 0 ? 1u : 0u) + (up > 0 ? 2u : 0u);
        int32_t guess = left + up;
        if (used == 3) {
            const int32_t corner = lengths[place - n_columns - 1];
            const int32_t low = left < up ? left : up, high = left < up ? up : left;
            guess = (left + up + 1) / 2;
            if (corner > 0) {
                guess = left + up - corner;
                guess = guess < low ? low : guess > high ? high : guess;
            }
        }
        int32_t length = 0;
        if (side_bit(s, 1984 + used)) {
            length = guess;
            if (side_bit(s, 1988 + used)) {
                const int down = guess > 0 && side_bit(s, 1992 + used);
                int32_t size = 1;
                while (side_bit(s, (guess > 0 ? 2003u : 1996u) + (uint32_t)(size < 6 ? size : 6))) {
                    if (++size > 15) {
                        return DCZ_HUF_03;
                    }
                }
                length = down ? guess - size : guess + size;
            }
            if (length < 1 || length > 15) {
                return DCZ_HUF_03;
            }
        }
        lengths[place] = (uint8_t)length;
    }
    return check_code(lengths, (uint32_t)n_symbols);
}

static uint8_t *lengths_of(const dcz_decoder *d) { return d->scratch + 2 * N_SIDE_CONTEXTS; }

static dcz_code read_code(dcz_decoder *d, side *s, dcz_huffman *code, uint64_t n_symbols, uint32_t n_columns) {
    uint8_t *lengths = lengths_of(d);
    TRY(read_lengths(s, lengths, n_symbols, n_columns));
    const uint32_t n_used = count_used(lengths, (uint32_t)n_symbols);
    dcz_u16 *symbols = keep(d, 2 * (uint64_t)n_used);
    if (symbols != NULL) {
        assign_codes(code, symbols, lengths, (uint32_t)n_symbols);
        return DCZ_OK;
    }
    /* too little memory: only what is asked about the code later */
    memset(code, 0, sizeof *code);
    for (uint32_t symbol = 0; symbol < n_symbols && n_used > 1; symbol++) {
        code->longest = lengths[symbol] > code->longest ? lengths[symbol] : code->longest;
    }
    return DCZ_OK;
}

/* 11.6 */
static uint32_t read_table(side *s, uint8_t *tables, uint32_t number) {
    uint8_t *lengths = tables + number * TABLE_SYMBOLS;
    const uint32_t back = (uint32_t)side_number(s, 9, number);
    const uint8_t *parent = back > 0 ? lengths - back * TABLE_SYMBOLS : NULL;
    uint32_t n_expected = 0;
    while (parent != NULL && n_expected < TABLE_SYMBOLS && parent[n_expected] < 64) {
        n_expected++;
    }
    const int32_t largest = (int32_t)(n_expected / 2) + unfold(side_number(s, 10, 88));
    if (s->error != DCZ_OK || largest < 0 || largest > 43) {
        return (uint32_t)fail_side(s, DCZ_SET_01);
    }
    const uint32_t n_symbols = 2 * (uint32_t)largest + 1;
    uint32_t last = 0;
    for (uint32_t symbol = 0; symbol < TABLE_SYMBOLS; symbol++) {
        if (symbol >= n_symbols) {
            lengths[symbol] = 64; /* not there */
            continue;
        }
        const uint32_t contexts = 2208 + 16 * (last < 2 ? last : 2);
        last = side_unary(s, contexts, 15, 63);
        const int is_less = last > 0 && side_bit(s, contexts + 15);
        const uint32_t guess = symbol < n_expected ? parent[symbol] : symbol > 2 ? lengths[symbol - 2] : 24;
        if (s->error != DCZ_OK || (is_less ? last > guess : guess + last > 63)) {
            return (uint32_t)fail_side(s, DCZ_SET_01);
        }
        lengths[symbol] = (uint8_t)(is_less ? guess - last : guess + last);
    }
    return n_symbols;
}

/* Slots before each symbol, from the lengths. `cumulative` may be NULL: then only SET-03 is checked. */
static dcz_code read_frequencies(const uint8_t *lengths, uint32_t precision, dcz_u16 *cumulative) {
    static const uint32_t weights[4] = {65536, 55109, 46341, 38968};
    uint64_t weight_of_all = 0;
    uint32_t sum = 0, largest = 0, most = 0, n_symbols = 0;
    for (; n_symbols < TABLE_SYMBOLS && lengths[n_symbols] < 64; n_symbols++) {
        weight_of_all += weights[lengths[n_symbols] & 3] >> (lengths[n_symbols] >> 2);
    }
    for (uint32_t turn = 0; turn < 2; turn++) {
        const int32_t lack = ((int32_t)1 << precision) - (int32_t)sum;
        uint32_t before = 0;
        if (turn > 0 && (int32_t)most + lack < 1) {
            return DCZ_SET_03;
        }
        for (uint32_t symbol = 0; symbol < n_symbols; symbol++) {
            const uint32_t weight = weights[lengths[symbol] & 3] >> (lengths[symbol] >> 2);
            uint32_t frequency = (uint32_t)(((uint64_t)weight << precision) / weight_of_all);
            frequency = frequency > 0 ? frequency : 1;
            if (turn == 0) {
                sum += frequency;
                largest = frequency > most ? symbol : largest;
                most = frequency > most ? frequency : most;
            } else if (cumulative != NULL) {
                cumulative[symbol] = (uint16_t)before;
                before += symbol == largest ? (uint32_t)((int32_t)frequency + lack) : frequency;
            }
        }
    }
    for (uint32_t symbol = n_symbols; symbol < TABLE_STRIDE && cumulative != NULL; symbol++) {
        cumulative[symbol] = (uint16_t)(1u << precision);
    }
    return DCZ_OK;
}

static dcz_code read_choice(side *s, dcz_table_set *set, uint8_t *choice) {
    for (uint32_t quantiser = 0; quantiser < set->n_quantisers; quantiser++) {
        int32_t above = 0, table = 0;
        for (uint32_t pair = 0; pair < N_PAIRS; pair++) {
            for (uint32_t i = 0; i < set->n_classes; i++) {
                table = i > 0 ? table : above;
                table += unfold(side_unary(s, i > 0 ? 2256 : 2272, 16, 254));
                if (s->error != DCZ_OK || table < 0 || table >= (int32_t)set->n_tables) {
                    (void)fail_side(s, DCZ_SET_02);
                    return s->error;
                }
                above = i > 0 ? above : table;
                if (choice != NULL) {
                    *choice++ = (uint8_t)table;
                }
            }
        }
    }
    return DCZ_OK;
}

/* Uses the contexts of the scratch memory: a tensor asks for its table set when it has none in use that it needs
 * again, so they are as new before and after. */
static dcz_code read_table_set(dcz_decoder *d, const uint8_t *data, size_t size) {
    dcz_table_set *set = &d->set;
    uint8_t *tables = lengths_of(d);
    side s;
    start_side(&s, data, size, (dcz_u16 *)(void *)d->scratch);
    set->precision = 10 + (uint32_t)side_number(&s, 8, 2);
    set->n_quantisers = 1 + (uint32_t)side_number(&s, 8, 1);
    set->n_classes = 1 + (uint32_t)side_number(&s, 8, 63);
    set->n_tables = 1 + (uint32_t)side_number(&s, 8, 126);
    TRY(s.error);
#ifdef DCZ_BASELINE
    if (set->n_tables > 64) {
        return DCZ_LIM_08;
    }
#endif
    const size_t bottom = d->bottom;
    uint8_t *choice = keep(d, (uint64_t)set->n_quantisers * N_PAIRS * set->n_classes);
    dcz_u16 *cumulative = keep(d, (uint64_t)set->n_tables * 2 * TABLE_STRIDE);
    choice = cumulative == NULL ? NULL : choice;
    set->n_bytes = (uint32_t)(d->bottom - bottom);
    for (uint32_t number = 0; number < set->n_tables; number++) {
        (void)read_table(&s, tables, number);
        TRY(s.error);
    }
    TRY(read_choice(&s, set, choice));
    TRY(finish_side(&s));
    for (uint32_t number = 0; number < set->n_tables; number++) {
        dcz_u16 *of_table = cumulative == NULL ? NULL : cumulative + number * TABLE_STRIDE;
        TRY(read_frequencies(tables + number * TABLE_SYMBOLS, set->precision, of_table));
    }
    set->choice = choice;
    set->cumulative = cumulative;
    reset_contexts((dcz_u16 *)(void *)d->scratch);
    return DCZ_OK;
}

/* Read the table set of a number into `d->set`, if it is not there already. */
static dcz_code load_table_set(dcz_decoder *d, uint32_t number) {
    uint64_t offset;
    uint32_t size, stored_checksum;
    if (d->set.number == number) {
        return DCZ_OK;
    }
    d->set.number = DCZ_NO_TENSOR;
    TRY(table_set_record(d->frame, number, &offset, &size, &stored_checksum));
    uint8_t *buffer = NULL;
    const size_t bottom = d->bottom;
    if (d->frame->data == NULL) {
        /* only until it is read: taken from the end of what is left, next to the scratch memory */
        if (d->bottom > d->top || size > d->top - d->bottom) {
            d->bottom += size;
            return DCZ_NEED_WORKSPACE;
        }
        d->top -= size;
        buffer = d->workspace + d->top;
    }
    const uint8_t *data = bytes_at(d->frame, offset, size, buffer);
    dcz_code code = data == NULL ? DCZ_READ_FAILED : DCZ_OK;
    if (code == DCZ_OK && checksum_differs(fold(sum_words(data, size, 0)), stored_checksum)) {
        code = DCZ_CHK_01;
    }
    code = code == DCZ_OK ? read_table_set(d, data, size) : code;
    if (d->frame->data == NULL) {
        d->top += size;
        if (code == DCZ_OK && d->bottom + size > d->least) {
            d->least = d->bottom + size;
        }
    }
    if (code != DCZ_OK) {
        d->bottom = bottom;
        d->body_offset = offset;
        return code;
    }
    d->set.number = d->set.choice != NULL ? number : DCZ_NO_TENSOR;
    return DCZ_OK;
}

/* 11.5 */
static dcz_code read_classes(side *s, uint32_t kind, int8_t *classes, uint64_t count, uint32_t base) {
    uint32_t last = 0;
    int is_wrong = 0;
    for (uint64_t i = 0; i < count; i++) {
        last = side_unary(s, 2016 + 64 * kind + 16 * (last < 3 ? last : 3), 16, 63);
        TRY(s->error);
        const int32_t word_class = last > 0 ? unfold(last - 1) + (int32_t)base : -128;
        is_wrong |= kind == 0 && last > 0 && (word_class < 0 || word_class > 63);
        if (classes != NULL) {
            classes[i] = (int8_t)word_class;
        }
    }
    return is_wrong ? DCZ_CTX_02 : DCZ_OK;
}

ONCE dcz_code read_side_classes(dcz_decoder *d, side *s, uint32_t kind, uint64_t count, uint64_t *allowed,
                                  int8_t **classes) {
    *classes = NULL;
    if (count <= 1 || side_raw(s, 1) == 0) {
        return DCZ_OK;
    }
    if (count > *allowed) {
        return DCZ_CTX_08;
    }
#ifdef DCZ_BASELINE
    if (count > 16384) {
        return DCZ_LIM_08;
    }
#endif
    *allowed -= count;
    *classes = keep(d, count);
    return read_classes(s, kind, *classes, count, 0);
}

static dcz_code read_context(dcz_decoder *d, side *s) {
    const dcz_tensor *t = &d->tensor;
    matrix(t, &d->n_rows, &d->n_columns, &d->n_positions);
    d->width = t->n_words / d->n_rows;
    if (d->n_groups > 1 || t->n_labels > 4095 || d->width > 4194304) {
        return DCZ_CTX_01;
    }
#ifdef DCZ_BASELINE
    if (d->width > 4096) {
        return DCZ_LIM_08;
    }
#endif
    const uint32_t n_sets = d->frame->n_table_sets;
    const uint32_t number = (uint32_t)side_number(s, 16, n_sets > 0 ? n_sets - 1 : 0);
    TRY(s->error);
    if (n_sets == 0) {
        return DCZ_CTX_01;
    }
    TRY(load_table_set(d, number)); /* no context that was used until here is used again */
    d->trellis = (uint32_t)side_number(s, 17, 7);
    TRY(s->error);
    if (d->trellis > 0 && d->set.n_quantisers < 2) {
        return DCZ_CTX_03;
    }
    if (!d->has_zero) {
        d->origin = (uint32_t)side_number(s, 20, t->n_labels - 1);
    } else if (d->codebook != NULL) { /* sort the word 0 in: labels become places */
        const uint32_t word_bytes = t->word_bytes;
        d->origin = 0;
        while (t->kind != DCZ_UNSIGNED && d->origin + 1 < t->n_labels &&
               d->codebook[(d->origin + 2) * word_bytes - 1] >= 128) {
            d->origin++;
        }
        memmove(d->codebook, d->codebook + word_bytes, (size_t)d->origin * word_bytes);
        memset(d->codebook + d->origin * word_bytes, 0, word_bytes);
    }
    d->distance = (uint32_t)side_number(s, 18, d->width - 1);
    uint32_t threshold = 0;
    for (unsigned i = 0; i < 3; i++) {
        threshold += (uint32_t)side_number(s, 19, 4095);
        d->thresholds[i] = threshold;
    }
    TRY(s->error);
    uint64_t allowed = t->stored_bytes > UINT64_MAX / 16 ? UINT64_MAX : 16 * t->stored_bytes;
    TRY(read_side_classes(d, s, 1, d->n_columns, &allowed, &d->columns));
    TRY(read_side_classes(d, s, 2, d->n_positions, &allowed, &d->positions));
    const uint32_t base = (uint32_t)side_number(s, 20, 63);
    TRY(s->error);
    if (d->n_rows > allowed) {
        return DCZ_CTX_08;
    }
#ifdef DCZ_BASELINE
    if (d->n_rows + (d->columns != NULL ? d->n_columns : 0) + (d->positions != NULL ? d->n_positions : 0) > 16384) {
        return DCZ_LIM_08;
    }
#endif
    d->rows = keep(d, d->n_rows);
    return read_classes(s, 0, d->rows, d->n_rows, base);
}

static dcz_code read_planes(dcz_decoder *d, side *s) {
    const uint32_t word_bytes = d->tensor.word_bytes;
    dcz_plane *planes = keep(d, word_bytes * sizeof(dcz_plane));
    dcz_plane unused;
    d->planes = planes;
    for (uint32_t place = 0; place < word_bytes; place++) {
        dcz_plane *plane = planes != NULL ? &planes[place] : &unused;
        memset(plane, 0, sizeof *plane);
        plane->mode = (uint8_t)side_raw(s, 2);
        if (plane->mode > 2) {
            return DCZ_PLN_01;
        }
        if (plane->mode == 0) {
            plane->constant = (uint8_t)side_raw(s, 8);
        } else if (plane->mode == 2) {
            TRY(read_code(d, s, &plane->code, 256, 16));
            d->n_coded++;
            if (plane->code.longest == 0) {
                return DCZ_PLN_02;
            }
        }
    }
    return DCZ_OK;
}

static dcz_code read_tables(dcz_decoder *d, const uint8_t *data, size_t size) {
    const dcz_tensor *t = &d->tensor;
    side s;
    start_side(&s, data, size, (dcz_u16 *)(void *)d->scratch);
    if (t->coder == DCZ_PLANES) {
        TRY(read_planes(d, &s));
        return finish_side(&s);
    }
    TRY(read_codebooks(d, &s));
    if (t->coder == DCZ_CONTEXT) {
        TRY(read_context(d, &s));
    }
    if (t->coder == DCZ_LABELS) {
        d->block = (uint32_t)side_number(&s, 3, 13) + 1;
        uint64_t n_symbols = 1;
        for (uint32_t i = 0; i < d->block && n_symbols <= MAX_SYMBOLS; i++) {
            n_symbols *= t->n_labels;
        }
        TRY(s.error);
        TRY(read_code(d, &s, &d->code, n_symbols, t->n_labels));
    }
    if (t->coder == DCZ_ZERO_RUN || t->coder == DCZ_SPLIT_RUN) {
        if (!d->has_zero || t->n_labels < 2) {
            return DCZ_RUN_02;
        }
        d->n_buckets = (uint32_t)side_number(&s, 4, 4096) + 1;
        d->raw_bits = (uint32_t)side_number(&s, 5, 12);
        TRY(s.error);
        if (t->coder == DCZ_ZERO_RUN) {
            const uint32_t n_values = t->n_labels - 1;
            TRY(read_code(d, &s, &d->code, (uint64_t)d->n_buckets * n_values + 1, n_values));
        } else {
            TRY(read_code(d, &s, &d->code, d->n_buckets, d->n_buckets));
            TRY(read_code(d, &s, &d->label_code, t->n_labels, t->n_labels));
        }
        if (d->code.longest == 0 && d->label_code.longest == 0 && d->raw_bits == 0) {
            return DCZ_RUN_04;
        }
    }
    return finish_side(&s);
}

/* ---- 11.7 Decoding procedure ---- */

static uint64_t most_output(const dcz_frame *frame) {
    const uint64_t small = (uint64_t)1 << 32;
    const uint64_t usual = frame->size > UINT64_MAX / 4096 ? UINT64_MAX : 4096 * frame->size;
    if (frame->limits.max_output_bytes != 0) {
        return frame->limits.max_output_bytes;
    }
    return usual > small ? usual : small;
}

dcz_code dcz_check_output(const dcz_frame *frame, dcz_error *error) {
    const dcz_code code = frame->output_bytes > most_output(frame) ? DCZ_LIM_05 : DCZ_OK;
    return report(error, code, DCZ_NO_TENSOR, 0);
}

/* Read the record of the next chunk, and the chunk; verify it. */
static dcz_code load_chunk(dcz_decoder *d) {
    cursor c = directory_from(d->frame, d->record_at);
    const uint64_t size = get_varint(&c, UINT64_MAX);
    const uint32_t stored_checksum = (uint32_t)get_number(&c, 4);
    TRY(c.error);
    if (size > d->tensor.largest_chunk || size > SIZE_MAX) {
        return DCZ_BAD_CALL;
    }
    d->body_offset = d->offset;
    d->body_size = (size_t)size;
    d->body = bytes_at(d->frame, d->offset, (size_t)size, d->chunk_buffer);
    if (d->body == NULL) {
        return DCZ_READ_FAILED;
    }
    d->record_at = (uint32_t)c.at;
    d->offset += size;
    if (checksum_differs(fold(sum_words(d->body, (size_t)size, 0)), stored_checksum)) {
        return DCZ_CHK_01;
    }
    if (d->chunk == 0 && d->tensor.coder != DCZ_RAW) { /* the tables come first */
        c = cursor_of(d->body, d->body_size);
        d->tables_size = (size_t)get_varint(&c, d->body_size - c.at);
        d->tables = take(&c, d->tables_size);
        d->body += c.at;
        d->body_size -= c.at;
    }
    return c.error;
}

static void set_chunk_bytes(dcz_decoder *d) {
    const uint64_t left = d->tensor.n_words - d->first;
    d->chunk_bytes = (left < d->tensor.chunk_words ? left : d->tensor.chunk_words) * d->tensor.word_bytes;
}

/* The first bits of all codes, in memory that may be left over. Whether it is or not, d->fast says what it takes. */
static void *keep_fast(dcz_decoder *d, uint64_t n_bytes) {
    const uint64_t rounded = (n_bytes + 7) & ~(uint64_t)7;
    d->fast = rounded > SIZE_MAX / 2 - d->fast ? SIZE_MAX / 2 : d->fast + (size_t)rounded;
    if (d->bottom > d->top || rounded > d->top - d->bottom) {
        return NULL;
    }
    d->bottom += (size_t)rounded;
    return d->workspace + d->bottom - (size_t)rounded;
}

ONCE unsigned root_bits_of(const dcz_decoder *d, const dcz_huffman *code) {
    const unsigned most = d->tensor.n_words < 262144 ? 12 : 14;
    unsigned n_bits = code->longest < most ? code->longest : most;
    while (n_bits > 1 && (uint64_t)1 << n_bits > d->tensor.n_words) { /* a small tensor is not worth a large table */
        n_bits--;
    }
    return n_bits;
}

static void make_root(dcz_decoder *d, dcz_huffman *code) {
    const unsigned n_bits = root_bits_of(d, code);
    if (code->longest == 0) {
        return;
    }
    dcz_u16 *root = keep_fast(d, (uint64_t)2 << n_bits);
    if (root == NULL) {
        return;
    }
    for (uint32_t first = 0; first < (uint32_t)1 << n_bits; first++) {
        const uint32_t found = find_code(code, first << (15 - n_bits));
        root[first] = (uint16_t)((found & 15) <= n_bits ? found : 0);
    }
    code->root = root;
    code->root_bits = (uint8_t)n_bits;
}

#ifndef DCZ_SMALL
static void make_run_entries(dcz_decoder *d) {
    const unsigned n_bits = root_bits_of(d, &d->code);
    const uint32_t n_values = d->tensor.n_labels - 1;
    if (d->code.longest == 0) {
        return;
    }
    dcz_u32 *entries = keep_fast(d, (uint64_t)4 << n_bits);
    if (entries == NULL) {
        return;
    }
    for (uint32_t first = 0; first < (uint32_t)1 << n_bits; first++) {
        const uint32_t found = find_code(&d->code, first << (15 - n_bits));
        entries[first] = (found & 15) <= n_bits ? run_entry(d, found, n_values) : 0;
    }
    d->entries = entries;
    d->code.root_bits = (uint8_t)n_bits;
}

static void make_units(dcz_decoder *d) {
    uint64_t n_symbols = 1;
    for (uint32_t i = 0; i < d->block; i++) {
        n_symbols *= d->tensor.n_labels;
    }
    const uint32_t word_bytes = d->tensor.word_bytes;
    if (d->n_groups > 1 || d->code.longest == 0 || d->tensor.n_words < 2 * n_symbols) {
        return;
    }
    d->unit_bytes = d->block * word_bytes;
    uint8_t *units = keep_fast(d, n_symbols * d->unit_bytes);
    for (uint32_t symbol = 0; units != NULL && symbol < n_symbols; symbol++) {
        uint32_t rest = symbol;
        for (uint32_t place = d->block; place-- > 0; rest /= d->tensor.n_labels) {
            memcpy(units + symbol * d->unit_bytes + place * word_bytes,
                   d->codebook + rest % d->tensor.n_labels * word_bytes, word_bytes);
        }
    }
    d->units = units;
}
#endif

#ifndef DCZ_SMALL
/* By quantiser, whether mirrored, and symbol: place << 8, whether that is wrong << 5, lowest bit of the magnitude << 4,
 * whether there are raw bits << 3, and the level. */
static void make_outcomes(dcz_decoder *d) {
    dcz_u32 *outcomes = keep_fast(d, (uint64_t)4 << 9);
    for (uint32_t i = 0; outcomes != NULL && i < (uint32_t)1 << 9; i++) {
        const uint32_t symbol = (i & 127) < TABLE_SYMBOLS ? i & 127 : 0, quantiser = i >> 8;
        const uint32_t entry = d->entries[symbol], magnitude = entry >> 8;
        const uint32_t negative = (i >> 7 & 1) ^ (~symbol & 1);
        const uint32_t distance = d->trellis > 0 ? 2 * magnitude - (quantiser & (uint32_t)(magnitude > 0)) : magnitude;
        const uint32_t place = d->origin + ((distance ^ (0u - negative)) + negative);
        outcomes[i] = (place < d->n_labels ? place << 8 : 32) | (magnitude & 1) << 4 |
                      (uint32_t)((entry >> 3 & 31) > 0) << 3 | (3 + (((entry & 7) ^ (0u - negative)) + negative));
    }
    d->outcomes = outcomes;
}
#endif

#ifndef DCZ_SMALL
/* By state of the trellis and lowest bit of the magnitude: the next state. Behind them by quantiser, sum of classes
 * (three may be -128), level to the left and far level, 8 of each: the table, + 128 if mirrored. */
static void make_contexts(dcz_decoder *d) {
    const uint32_t n_classes = d->set.n_classes, n_quantisers = d->trellis > 0 ? 2 : 1;
    uint8_t *contexts = keep_fast(d, N_NEXT + n_quantisers * N_SUMS * 64);
    d->contexts = contexts;
    if (contexts == NULL) {
        return;
    }
    for (uint32_t i = 0; i < N_NEXT; i++) {
        *contexts++ = (uint8_t)(i >> 2 ^ ((0u - (i >> 1 & 1)) & d->a) ^ ((0u - (i & 1)) & d->b));
    }
    for (uint32_t i = 0; i < n_quantisers * N_SUMS; i++, contexts += 64) {
        const int32_t sum = (int32_t)(i % N_SUMS) + LOWEST_SUM;
        if (i % N_SUMS > 0 && (sum <= 0 || sum >= (int32_t)n_classes)) { /* as the one before */
            memcpy(contexts, contexts - 64, 64);
            continue;
        }
        const uint8_t *choice = d->set.choice + i / N_SUMS * N_PAIRS * n_classes + (sum > 0 ? sum : 0);
        for (uint32_t k = 0; k < 64; k++) {
            const uint32_t pair = k < 56 && k % 8 < 7 ? pair_of[k / 8 * 7 + k % 8] : 0;
            contexts[k] = (uint8_t)(choice[(pair >> 1) * n_classes] | (pair & 1) << 7);
        }
    }
}
#endif

static void make_slots(dcz_decoder *d) {
    const uint32_t n_slots = d->set.n_tables << d->set.precision;
    if (d->tensor.n_words < n_slots / 8) {
        return;
    }
    dcz_slot *slots = keep_fast(d, n_slots * sizeof(dcz_slot));
    for (uint32_t table = 0; slots != NULL && table < d->set.n_tables; table++) {
        const dcz_u16 *cumulative = d->set.cumulative + table * TABLE_STRIDE;
        dcz_slot *slot = slots + (table << d->set.precision);
        for (uint32_t symbol = 0; symbol < TABLE_SYMBOLS; symbol++) {
            const uint32_t frequency = (uint32_t)(cumulative[symbol + 1] - cumulative[symbol]);
#ifdef DCZ_SMALL
            memset(slot, (int)symbol, frequency);
#else
            for (uint32_t offset = 0; offset < frequency; offset++) {
                slot[offset] = symbol << SYMBOL_SHIFT | frequency << 12 | offset;
            }
#endif
            slot += frequency;
        }
    }
    d->slots = slots;
#ifndef DCZ_SMALL
    if (slots != NULL) {
        make_outcomes(d);
    }
    if (d->outcomes != NULL) {
        make_contexts(d);
    }
#endif
}

/* What makes it fast, as far as the memory goes. */
static void make_fast(dcz_decoder *d) {
    switch (d->tensor.coder) {
        case DCZ_PLANES:
            for (unsigned place = 0; place < d->tensor.word_bytes && d->planes != NULL; place++) {
                make_root(d, &d->planes[place].code);
            }
            d->fast += d->planes != NULL ? 0 : d->n_coded * 8192; /* about */
#ifndef DCZ_SMALL
            if (d->n_coded > 0 && d->tensor.chunk_words < UINT32_MAX) {
                d->units = keep_fast(d, d->n_coded * d->tensor.chunk_words);
            }
#endif
            break;
        case DCZ_LABELS:
            make_root(d, &d->code);
#ifndef DCZ_SMALL
            make_units(d);
#endif
            break;
        case DCZ_ZERO_RUN:
        case DCZ_SPLIT_RUN:
#ifndef DCZ_SMALL
            if (d->n_groups == 1) {
                make_run_entries(d);
            } else
#endif
            {
                make_root(d, &d->code);
            }
            if (d->tensor.coder == DCZ_SPLIT_RUN) {
                make_root(d, &d->label_code);
            }
            break;
        case DCZ_CONTEXT:
            make_slots(d);
            break;
        default:
            break;
    }
}

ONCE void make_context_entries(dcz_decoder *d) {
    dcz_u32 *entries = keep(d, 4 * TABLE_STRIDE);
    for (uint32_t symbol = 0; entries != NULL && symbol < TABLE_SYMBOLS; symbol++) {
        const uint32_t smallest = smallest_of(symbol);
        uint32_t level = 0;
        for (unsigned i = 0; i < 3; i++) {
            level += smallest > d->thresholds[i] ? 1 : 0;
        }
        entries[symbol] = smallest << 8 | raw_bits_of(symbol) << 3 | level;
    }
    d->entries = entries;
    d->levels = keep(d, 8 * (uint64_t)d->distance);
    d->mask = ((uint32_t)1 << d->set.precision) - 1;
    d->n_labels = d->tensor.n_labels;
    d->a = trellises[d->trellis][0];
    d->b = trellises[d->trellis][1];
}

/* Memory that is needed while the tables are read: contexts, and code lengths or the tables of a table set. */
ONCE size_t scratch_bytes(const dcz_tensor *t) {
    const size_t of_context = MAX_TABLES * TABLE_SYMBOLS;
    if (t->coder == DCZ_RAW) {
        return 0;
    }
    return 2 * N_SIDE_CONTEXTS + (((t->coder == DCZ_CONTEXT ? of_context : MAX_SYMBOLS) + 7) & ~(size_t)7);
}

static dcz_code begin_tensor(dcz_decoder *d) {
    const dcz_tensor *t = &d->tensor;
    const size_t scratch = scratch_bytes(t);
    const size_t room = d->top;
    if (d->frame->data == NULL) {
        d->chunk_buffer = keep(d, t->largest_chunk);
    }
    if (d->bottom > room || scratch > room - d->bottom) {
        d->least = d->bottom + scratch;
        return DCZ_NEED_WORKSPACE;
    }
    d->top = room - scratch;
    d->scratch = d->workspace + d->top;
    TRY(load_chunk(d));
    if (t->coder == DCZ_RAW) {
        return DCZ_OK;
    }
    const dcz_code code = read_tables(d, d->tables, d->tables_size);
    d->least = d->bottom > d->least ? d->bottom : d->least;
    d->least += scratch;
    TRY(code);
    d->top = room;
    if (t->coder == DCZ_CONTEXT) {
        make_context_entries(d);
        d->least = d->bottom > d->least ? d->bottom : d->least;
    }
    d->fast = d->bottom;
    if (d->least > room) {
        d->bottom = d->top; /* count only */
    }
    if (d->least <= room || t->coder != DCZ_CONTEXT) {
        make_fast(d);
    }
    d->fast = d->fast > d->least ? d->fast : d->least;
    return d->least > room ? DCZ_NEED_WORKSPACE : DCZ_OK;
}

void dcz_init(dcz_decoder *d) {
    memset(d, 0, sizeof *d);
    d->set.number = DCZ_NO_TENSOR;
}

/* A decoder anew, with memory of the caller. */
static void start_decoder(dcz_decoder *d, const dcz_frame *frame, void *workspace, size_t room) {
    const size_t skipped = (size_t)(8 - ((uintptr_t)workspace & 7)) & 7;
    const int is_there = workspace != NULL && room > skipped;
    dcz_init(d);
    d->frame = frame;
    d->workspace = is_there ? (uint8_t *)workspace + skipped : (uint8_t *)d; /* none of it is used then */
    d->room = d->top = is_there ? (room - skipped) & ~(size_t)7 : 0;
}

dcz_code dcz_begin(dcz_decoder *d, const dcz_frame *frame, const dcz_tensor *tensor, void *workspace, size_t room,
                   dcz_error *error) {
    const dcz_frame *frame_before = d->frame;
    const uint8_t *workspace_before = d->workspace;
    const size_t room_before = d->room;
    const dcz_table_set set = d->set;
    dcz_code code = DCZ_OK;
    start_decoder(d, frame, workspace, room);
    d->tensor = *tensor;
    d->record_at = tensor->chunks_at;
    d->offset = d->body_offset = tensor->offset;
    d->n_groups = 1;
    d->in_order = 1;
    if (tensor->alias_of != DCZ_NO_TENSOR) {
        code = DCZ_BAD_CALL;
    } else if (tensor->n_bytes > most_output(frame)) {
        code = DCZ_LIM_05;
    } else if (tensor->n_words > 0) {
        const int has_set = set.number != DCZ_NO_TENSOR && frame_before == frame && workspace_before == d->workspace &&
                            room_before == d->room && d->room > set.n_bytes;
        if (has_set) { /* the table set of the tensor before moves to the end */
            d->top -= set.n_bytes;
            d->set = set;
            d->set.choice = d->workspace + d->top;
            d->set.cumulative = (const dcz_u16 *)(const void *)(d->set.choice + ((const uint8_t *)set.cumulative - set.choice));
            memmove(d->workspace + d->top, set.choice, set.n_bytes);
        }
        code = begin_tensor(d);
        if (code == DCZ_NEED_WORKSPACE && has_set) { /* without it, then */
            dcz_init(d);
            return dcz_begin(d, frame, tensor, workspace, room, error);
        }
        set_chunk_bytes(d);
    }
    if (code != DCZ_OK) { /* the caller may well give the workspace away now */
        d->set.number = DCZ_NO_TENSOR;
    }
    if (code == DCZ_NEED_WORKSPACE) {
        return report_need(error, code, tensor->number, (uint64_t)d->least + 7 + 7, (uint64_t)d->fast + 7 + 7);
    }
    return report(error, code, tensor->number, d->body_offset);
}

static dcz_code decode_body(dcz_decoder *d, uint8_t *out, uint64_t n) {
    switch (d->tensor.coder) {
        case DCZ_RAW: return decode_raw(d, d->body, d->body_size, out, n);
        case DCZ_PLANES: return decode_planes(d, d->body, d->body_size, out, n);
        case DCZ_FIXED: return decode_fixed(d, d->body, d->body_size, out, n);
        case DCZ_LABELS: return decode_labels(d, d->body, d->body_size, out, n);
        case DCZ_CONTEXT: return decode_context(d, d->body, d->body_size, out, n);
        default: return decode_runs(d, d->body, d->body_size, out, n);
    }
}

dcz_code dcz_next_chunk(dcz_decoder *d, void *out, size_t out_room, dcz_error *error) {
    const uint32_t tensor = d->tensor.number;
    if (d->chunk == d->tensor.n_chunks) {
        return report(error, DCZ_END, tensor, 0);
    }
    if (out == NULL || out_room < d->chunk_bytes) {
        return report_need(error, DCZ_NEED_OUTPUT, tensor, d->chunk_bytes, 0);
    }
    const uint64_t n_bytes = d->chunk_bytes;
    const uint64_t n = n_bytes / d->tensor.word_bytes;
    dcz_code code = d->body != NULL ? DCZ_OK : load_chunk(d);
    code = code == DCZ_OK ? decode_body(d, out, n) : code;
    if (code != DCZ_OK) {
        d->in_order = 0;
        d->tensor.n_chunks = d->chunk; /* it has to begin anew */
    } else {
        if (d->tensor.coder != DCZ_RAW && d->in_order) {
            d->digest += sum_words(out, (size_t)n_bytes, d->first * d->tensor.word_bytes / 4);
        }
        d->body = NULL;
        d->chunk++;
        d->first += n;
        set_chunk_bytes(d);
    }
    return report(error, code, tensor, d->body_offset);
}

dcz_code dcz_seek_chunk(dcz_decoder *d, uint64_t chunk, dcz_error *error) {
    cursor c = directory_from(d->frame, d->tensor.chunks_at);
    uint64_t offset = d->tensor.offset;
    if (chunk >= d->tensor.n_chunks) {
        return report(error, DCZ_BAD_CALL, d->tensor.number, 0);
    }
    if (chunk != d->chunk) {
        for (uint64_t i = 0; i < chunk; i++) {
            offset += get_varint(&c, UINT64_MAX);
            (void)get_number(&c, 4);
        }
        d->in_order = 0;
        d->chunk = chunk;
        d->first = chunk * d->tensor.chunk_words;
        d->record_at = (uint32_t)c.at;
        d->offset = offset;
        d->body = NULL;
        set_chunk_bytes(d);
    }
    return report(error, DCZ_OK, d->tensor.number, offset);
}

dcz_code dcz_end(dcz_decoder *d, dcz_error *error) {
    const dcz_tensor *t = &d->tensor;
    dcz_code code = DCZ_OK;
    if (d->in_order && d->chunk < t->n_chunks) {
        code = DCZ_BAD_CALL;
    } else if (d->in_order && t->n_words > 0 && t->coder != DCZ_RAW) {
        if (checksum_differs(fold(d->digest), t->digest)) {
            code = DCZ_DIG_01;
        } else if ((t->coder == DCZ_ZERO_RUN || t->coder == DCZ_SPLIT_RUN) && d->n_kept != t->n_kept) {
            code = DCZ_DIG_02;
        }
    }
    return report(error, code, t->number, t->offset);
}

dcz_code dcz_decode(dcz_decoder *d, const dcz_frame *frame, const dcz_tensor *tensor, void *out, size_t out_room,
                    void *workspace, size_t room, dcz_error *error) {
    uint8_t *at = out;
    if (tensor->n_bytes > (out != NULL ? out_room : 0) && tensor->n_bytes <= most_output(frame)) {
        return report_need(error, DCZ_NEED_OUTPUT, tensor->number, tensor->n_bytes, 0);
    }
    TRY(dcz_begin(d, frame, tensor, workspace, room, error));
    while (d->chunk < tensor->n_chunks) {
        const size_t n_bytes = (size_t)d->chunk_bytes;
        TRY(dcz_next_chunk(d, at, n_bytes, error));
        at += n_bytes;
    }
    return dcz_end(d, error);
}

dcz_code dcz_check_table_set(const dcz_frame *frame, uint32_t number, void *workspace, size_t room,
                             dcz_error *error) {
    const size_t scratch = 2 * N_SIDE_CONTEXTS + ((MAX_TABLES * TABLE_SYMBOLS + 7) & ~(size_t)7);
    dcz_decoder d;
    dcz_code code = DCZ_NEED_WORKSPACE;
    start_decoder(&d, frame, workspace, room);
    if (number >= frame->n_table_sets) {
        return report(error, DCZ_BAD_CALL, DCZ_NO_TENSOR, 0);
    }
    if (d.top >= scratch) {
        d.top -= scratch;
        d.scratch = d.workspace + d.top;
        code = load_table_set(&d, number);
    }
    return code == DCZ_NEED_WORKSPACE ? report_need(error, code, DCZ_NO_TENSOR, d.bottom + scratch + 14, 0)
                                      : report(error, code, DCZ_NO_TENSOR, d.body_offset);
}

dcz_code dcz_check_section(const dcz_frame *frame, const dcz_section *section, void *workspace, size_t room,
                           dcz_error *error) {
    const size_t piece = frame->data != NULL ? INT32_MAX & ~3 : workspace != NULL ? room & ~(size_t)3 : 0;
    dcz_code code = section->size > frame->limits.max_section_bytes ? DCZ_LIM_06 : DCZ_OK;
    uint64_t sum = 0;
    for (uint64_t at = 0; code == DCZ_OK && at < section->size; at += piece) {
        const uint64_t left = section->size - at;
        const size_t n = left < piece ? (size_t)left : piece;
        if (piece < 64) {
            return report_need(error, DCZ_NEED_WORKSPACE, DCZ_NO_TENSOR, 64, 0);
        }
        const uint8_t *data = bytes_at(frame, section->offset + at, n, workspace);
        if (data == NULL) {
            code = DCZ_READ_FAILED;
        } else {
            sum += sum_words(data, n, at / 4);
        }
    }
    if (code == DCZ_OK && checksum_differs(fold(sum), section->checksum)) {
        code = DCZ_SEC_01;
    }
    return report(error, code, DCZ_NO_TENSOR, section->offset);
}

/* ---- 12 Checksums ---- */

TINY uint32_t multiplier(uint32_t x) { return x ^ x >> 15; }

/* The sum of a stretch whose first word is number `place`. */
static uint64_t sum_words(const uint8_t *data, size_t n_bytes, uint64_t place) {
    const uint32_t step = 0x9E3779B1;
    uint32_t x = (uint32_t)(place + 1) * step;
    uint64_t sum = 0;
#ifdef HAS_SSE2
    __m128i places = _mm_set_epi32((int)(x + 3 * step), (int)(x + 2 * step), (int)(x + step), (int)x);
    const __m128i steps = _mm_set1_epi32((int)(4 * step));
    __m128i sums = _mm_setzero_si128(), odd_sums = sums;
    for (; n_bytes >= 16; n_bytes -= 16, data += 16, x += 4 * step) {
        const __m128i words = _mm_loadu_si128((const __m128i *)(const void *)data);
        const __m128i times = _mm_xor_si128(places, _mm_srli_epi32(places, 15));
        sums = _mm_add_epi64(sums, _mm_mul_epu32(words, times));
        odd_sums = _mm_add_epi64(odd_sums, _mm_mul_epu32(_mm_srli_epi64(words, 32), _mm_srli_epi64(times, 32)));
        places = _mm_add_epi32(places, steps);
    }
    uint64_t halves[2];
    sums = _mm_add_epi64(sums, odd_sums);
    memcpy(halves, &sums, 16);
    sum = halves[0] + halves[1];
#elif !defined(DCZ_SMALL)
    uint64_t sum_1 = 0, sum_2 = 0, sum_3 = 0;
    for (; n_bytes >= 16; n_bytes -= 16, data += 16, x += 4 * step) {
        sum += (uint64_t)load_u32(data) * multiplier(x);
        sum_1 += (uint64_t)load_u32(data + 4) * multiplier(x + step);
        sum_2 += (uint64_t)load_u32(data + 8) * multiplier(x + 2 * step);
        sum_3 += (uint64_t)load_u32(data + 12) * multiplier(x + 3 * step);
    }
    sum += sum_1 + sum_2 + sum_3;
#endif
    for (; n_bytes >= 4; n_bytes -= 4, data += 4, x += step) {
        sum += (uint64_t)load_u32(data) * multiplier(x);
    }
    if (n_bytes > 0) {
        uint8_t last[4] = {0, 0, 0, 0};
        memcpy(last, data, n_bytes);
        sum += (uint64_t)load_u32(last) * multiplier(x);
    }
    return sum;
}

ONCE uint32_t fold(uint64_t sum) { return (uint32_t)(sum + (sum >> 32)); }

ONCE int checksum_differs(uint32_t left, uint32_t right) {
#ifdef DCZ_NO_CHECKSUMS
    (void)left, (void)right;
    return 0;
#else
    return left != right;
#endif
}

/* ---- 13 Limits ---- */

dcz_limits dcz_default_limits(void) {
    dcz_limits limits;
    limits.max_output_bytes = 0;
    limits.max_section_bytes = 67108864;
#ifdef DCZ_BASELINE
    limits.max_names_bytes = 1048576;
    limits.max_directory_bytes = 1048576;
    limits.max_tensors = 16384;
    limits.max_name_bytes = 255;
    limits.max_rank = 8;
#else
    limits.max_names_bytes = 16777216;
    limits.max_directory_bytes = 268435456;
    limits.max_tensors = 1048576;
    limits.max_name_bytes = 65536;
    limits.max_rank = 64;
#endif
    return limits;
}

/* ---- 14 Names of element types, coders and rules ---- */

const char *dcz_dtype_name(unsigned dtype) {
    static const char names_of[23][17] = {
        "alias",   "bool",    "uint8",   "int8",   "uint16",   "int16",   "uint32",  "int32",
        "uint64",  "int64",   "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2",
        "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2", "complex32", "complex64", "complex128",
    };
    return dtype < 23 ? names_of[dtype] : NULL;
}

const char *dcz_coder_name(unsigned coder) {
    static const char names_of[7][12] = {"raw", "planes", "fixed", "labels", "zero_run", "split_run", "context"};
    return coder < 7 ? names_of[coder] : NULL;
}

dcz_class dcz_error_class(dcz_code code) {
    static const uint8_t classes[] = {
        DCZ_CLASS_NONE,
#define DCZ_CLASS_OF(group_of_rule, number, class_of_rule, text) DCZ_CLASS_##class_of_rule,
        DCZ_RULES(DCZ_CLASS_OF)
    };
    return (unsigned)code < sizeof classes ? (dcz_class)classes[code] : DCZ_CLASS_NONE;
}

const char *dcz_rule(dcz_code code) {
    static const char rules[][7] = {
        "",
#define DCZ_ID_OF(group_of_rule, number, class_of_rule, text) #group_of_rule "-" #number,
        DCZ_RULES(DCZ_ID_OF)
    };
    return (unsigned)code < sizeof rules / sizeof rules[0] ? rules[code] : "";
}

const char *dcz_error_text(dcz_code code) {
    static const char *const others[] = {"no more of them", "the workspace is too small", "the output is too small",
                                         "the frame cannot be read", "wrong use of this function"};
#ifndef DCZ_NO_TEXT
    static const char *const texts[] = {
        "no error",
#define DCZ_TEXT_OF(group_of_rule, number, class_of_rule, text) text,
        DCZ_RULES(DCZ_TEXT_OF)
    };
    if ((unsigned)code < DCZ_END) {
        return texts[code];
    }
#endif
    return (unsigned)code >= DCZ_END && code <= DCZ_BAD_CALL ? others[code - DCZ_END] : dcz_rule(code);
}

void dcz_native_words(void *words, size_t n_bytes, unsigned word_bytes) {
    const uint16_t one = 1;
    uint8_t *p = words;
    uint8_t lowest;
    memcpy(&lowest, &one, 1);
    if (lowest == 1 || word_bytes < 2) {
        return;
    }
    for (size_t at = 0; at + word_bytes <= n_bytes; at += word_bytes) {
        for (unsigned i = 0; i < word_bytes / 2; i++) {
            const uint8_t moved = p[at + i];
            p[at + i] = p[at + word_bytes - 1 - i];
            p[at + word_bytes - 1 - i] = moved;
        }
    }
}

/* Fuzzes the reference decoder alone, without an engine, tens of thousands of frames a second: takes frames apart,
 * changes fields, tables, bodies, lanes, table sets or any bytes, mends sizes, checksums and (for half of those that need
 * it) digests, and decodes in memory or streamed, with the least memory or with much.
 *
 *   gcc -std=c99 -O2 -I spec/reference tests/fuzz/fuzz_fast.c -o fuzz
 *   fuzz SECONDS SEED FINDING fixtures/valid/?*.dcz tests/fuzz/corpus/?*.dcz
 *
 * Needs POSIX (signals, clocks, timers). SECONDS are those of a core. A frame that stops it, or takes 20 of them, is written
 * to the file FINDING. Under sanitizers (with abort_on_error=1) every buffer is memory of its own; otherwise marks behind
 * the buffers are looked at.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#define _XOPEN_SOURCE 700
#define DCZ_PARTS
#include "fuzz_reference.c"

#include <fcntl.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define OWN_MEMORY 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define OWN_MEMORY 1
#endif
#endif
#ifndef OWN_MEMORY
#define OWN_MEMORY 0
#endif

enum { MAX_FRAME = 32768, MAX_FIELDS = 512, MAX_SEEDS = 2048, N_BRED = 512, MAX_BRED = 2048, MOST = 1 << 17, MARK = 64 };

typedef struct seed {
    uint8_t *data;
    size_t size;
    uint64_t cost;
} seed;

typedef struct verdict {
    dcz_code code; /* the first that is not DCZ_OK */
    unsigned n_digests;
    uint32_t tensors[8], digests[8]; /* what DIG_01 should have been */
} verdict;

static seed seeds[MAX_SEEDS];
static unsigned n_seeds, n_first;
static uint8_t frame_bytes[MAX_FRAME], out_bytes[2][MOST + MARK];
static uint64_t workspace_words[(1 << 20) / 8 + MARK];
static size_t frame_size;
static uint64_t n_decoded[2][DCZ_CONTEXT + 1]; /* tensors that were refused, and that were not, by coder */
static const char *finding;

static void save_finding(int number) {
    const int file = open(finding, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (file >= 0 && write(file, frame_bytes, frame_size) >= 0) {
        (void)close(file);
    }
    (void)signal(number, SIG_DFL);
    (void)raise(number);
}

static double now(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); /* a busy machine does not shorten a run */
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- Decoding ---- */

static void *lend(void *usual, size_t size) {
    if (OWN_MEMORY) {
        return checked_malloc(size);
    }
    memset((uint8_t *)usual + size, 0xA5, MARK);
    return usual;
}

static void take_back(void *memory, size_t size) {
    if (OWN_MEMORY) {
        free(memory);
        return;
    }
    for (size_t i = 0; i < MARK; i++) {
        expect(((const uint8_t *)memory)[size + i] == 0xA5);
    }
}

static dcz_code decode_with(dcz_decoder *d, const dcz_frame *frame, const dcz_tensor *t, uint8_t *out, int least) {
    size_t room = least ? below(64) : sizeof workspace_words - 8 * MARK;
    for (int turn = 0;; turn++) {
        dcz_error error;
        void *workspace = lend(workspace_words, room);
        if (least) {
            dcz_init(d);
        }
        const dcz_code code = dcz_decode(d, frame, t, out, (size_t)t->n_bytes, workspace, room, &error);
        take_back(workspace, room);
        if (code != DCZ_NEED_WORKSPACE) {
            return code;
        }
        if (OWN_MEMORY || error.needed <= sizeof workspace_words - 8 * MARK) {
            expect(turn < 3 && error.needed > room);
        } else {
            return code;
        }
        room = (size_t)error.needed;
    }
}

static void examine(verdict *v, source *from, int streamed, int least, uint64_t *sum) {
    static uint8_t directory[1 << 18], names_room[1 << 17];
    dcz_limits limits = fuzz_limits();
    dcz_frame frame;
    dcz_tensor t;
    dcz_decoder d;
    dcz_section section;
    limits.max_names_bytes = 4096;
    limits.max_section_bytes = 1024;
    v->n_digests = 0;
    v->code = streamed ? dcz_open_stream(&frame, read_source, from, from->size, &limits, directory, sizeof directory, NULL)
                       : dcz_open(&frame, from->data, from->size, &limits, directory, sizeof directory, NULL);
    expect(v->code < DCZ_END);
    v->code = v->code == DCZ_OK ? dcz_check_output(&frame, NULL) : v->code;
    if (v->code != DCZ_OK) {
        return;
    }
    dcz_init(&d);
    uint64_t left = MOST;
    dcz_code next = dcz_tensor_at(&frame, 0, &t, (char *)names_room, sizeof names_room);
    for (; next == DCZ_OK; next = dcz_next_tensor(&frame, &t)) {
        if (t.alias_of != DCZ_NO_TENSOR || t.n_bytes > left) {
            continue;
        }
        left -= t.n_bytes;
        uint8_t *out = lend(out_bytes[0], (size_t)t.n_bytes);
        const dcz_code code = decode_with(&d, &frame, &t, out, least);
        if (code == DCZ_OK) {
            *sum = *sum * 31 + sum_words(out, (size_t)t.n_bytes, 0);
        } else {
            *sum = *sum * 31 + (uint64_t)code;
        }
        take_back(out, (size_t)t.n_bytes);
        n_decoded[code == DCZ_OK][t.coder]++;
        if (code == DCZ_DIG_01 && v->n_digests < 8) {
            v->tensors[v->n_digests] = t.number;
            v->digests[v->n_digests++] = fold(d.digest);
        }
        v->code = v->code == DCZ_OK ? code : v->code;
    }
    expect(next == DCZ_END);
    memset(&section, 0, sizeof section);
    while (dcz_next_section(&frame, &section) == DCZ_OK) {
        const dcz_code code = dcz_check_section(&frame, &section, workspace_words, 128, NULL);
        v->code = v->code == DCZ_OK ? code : v->code;
    }
    for (uint32_t i = 0; i < frame.n_table_sets && i < 2 && v->code == DCZ_OK; i++) {
        v->code = dcz_check_table_set(&frame, i, workspace_words, sizeof workspace_words, NULL);
    }
}

/* ---- Changing frames ---- */

typedef struct field {
    size_t at, n_bytes;
} field;

static field fields[MAX_FIELDS];
static unsigned n_fields;

static uint64_t note_number(cursor *c) {
    const size_t at = c->at;
    const uint64_t value = get_varint(c, UINT64_MAX);
    if (n_fields < MAX_FIELDS && c->error == DCZ_OK) {
        fields[n_fields].at = 20 + at;
        fields[n_fields++].n_bytes = c->at - at;
    }
    return value;
}

/* Where the numbers of the directory stand (one byte or more), but for the sizes of chunks. */
static void find_fields(void) {
    dcz_frame frame;
    dcz_tensor t;
    n_fields = 0;
    if (frame_size < 20 || load_u32(frame_bytes + 12) > frame_size - 20) {
        return;
    }
    memset(&frame, 0, sizeof frame);
    frame.limits = fuzz_limits();
    frame.directory = frame_bytes + 20;
    frame.directory_size = load_u32(frame_bytes + 12);
    cursor c = directory_from(&frame, 0);
    for (uint64_t n = note_number(&c); n > 0 && c.error == DCZ_OK; n--) {
        (void)note_number(&c);
        (void)get_number(&c, 4);
    }
    const uint64_t n_tensors = note_number(&c);
    start_walk(&frame, &t, NULL, 0);
    for (uint64_t i = 0; i < n_tensors && c.error == DCZ_OK; i++) {
        (void)note_number(&c);
        (void)take(&c, note_number(&c));
        cursor record = c;
        uint64_t empty = 0;
        if (note_number(&c) != 0) { /* an element type is a byte below 128 */
            for (uint64_t rank = note_number(&c); rank > 0 && c.error == DCZ_OK; rank--) {
                empty |= note_number(&c) == 0 ? 1 : 0;
            }
            const uint64_t coder = empty ? 0 : note_number(&c);
            for (unsigned k = 0; k < (empty ? 0 : coder < DCZ_FIXED ? 1u : coder == DCZ_ZERO_RUN || coder == DCZ_SPLIT_RUN ? 3 : 2); k++) {
                (void)note_number(&c);
            }
        } else {
            (void)note_number(&c);
        }
        t.number = (uint32_t)i;
        if (read_record(&frame, &record, &t, NULL) != DCZ_OK) {
            return;
        }
        c = record;
    }
    for (int turn = 0; turn < 2; turn++) {
        for (uint64_t n = note_number(&c); n > 0 && c.error == DCZ_OK; n--) {
            (void)(turn == 0 ? (uint64_t)(take(&c, note_number(&c)) != NULL) : note_number(&c));
            (void)(turn == 0 ? (uint64_t)(take(&c, note_number(&c)) != NULL) : note_number(&c) + get_number(&c, 4));
        }
    }
}

/* Put `n_new` bytes in the place of `n_old`; says whether there was room. */
static int replace(size_t at, size_t n_old, const uint8_t *bytes, size_t n_new) {
    if (at + n_old > frame_size || frame_size - n_old + n_new > MAX_FRAME) {
        return 0;
    }
    memmove(frame_bytes + at + n_new, frame_bytes + at + n_old, frame_size - at - n_old);
    if (n_new > 0) {
        memcpy(frame_bytes + at, bytes, n_new);
    }
    frame_size = frame_size - n_old + n_new;
    return 1;
}

static int replace_number(size_t at, size_t n_bytes, uint64_t value) {
    uint8_t number[11];
    size_t n = put_varint(number, value);
    if (below(64) == 0 && n < 10) { /* not as short as possible */
        number[n - 1] |= 128;
        number[n++] = 0;
    }
    if (!replace(at, n_bytes, number, n)) {
        return 0;
    }
    put_u32(frame_bytes + 12, (uint32_t)(load_u32(frame_bytes + 12) + n - n_bytes));
    return 1;
}

static uint64_t other_value(uint64_t value) {
    const uint64_t power = (uint64_t)1 << below(below(4) ? 16 : 64);
    switch (below(8)) {
        case 0: return value + 1;
        case 1: return value - 1;
        case 2: return power;
        case 3: return power - 1 + 2 * below(2);
        case 4: return value * 2;
        case 5: return value / 2;
        case 6: return below(256);
        default: return value ^ (uint64_t)1 << below(12);
    }
}

static const seed *some_seed(void) {
    const unsigned n = below(2) ? n_first : n_seeds;
    const seed *a = &seeds[below(n)], *b = &seeds[below(n)];
    return (a->cost < b->cost) == (below(8) > 2) ? a : b;
}

/* Change bytes from `at` on; returns how many they are then. */
static size_t change_bytes(size_t at, size_t count) {
    uint8_t bytes[64];
    const size_t place = at + below(count), left = at + count - place;
    const size_t some = 1 + below(below(4) ? 4 : 48);
    const seed *from;
    switch (count == 0 ? 7 : below(12)) {
        case 0:
        case 1:
        case 2: frame_bytes[place] ^= (uint8_t)(1u << below(8)); break;
        case 3: frame_bytes[place] = (uint8_t)roll(); break;
        case 4: frame_bytes[place] = (uint8_t)(below(2) ? 0 : 255); break;
        case 5: frame_bytes[place] = (uint8_t)(frame_bytes[place] + below(9) + 252); break;
        case 6: /* away with some */
            return replace(place, some < left ? some : left, NULL, 0) ? count - (some < left ? some : left) : count;
        case 7:
        case 8: /* some more */
            for (size_t i = 0; i < some; i++) {
                bytes[i] = (uint8_t)roll();
            }
            return replace(place, 0, bytes, some) ? count + some : count;
        case 9: /* some again */
            if (some <= left) {
                memcpy(bytes, frame_bytes + place, some);
                return replace(at + below(count), 0, bytes, some) ? count + some : count;
            }
            break;
        case 10: /* as in another frame */
            from = some_seed();
            if (some < from->size) {
                memcpy(frame_bytes + place, from->data + below(from->size - some), some < left ? some : left);
            }
            break;
        default:
            if (place > at) {
                const uint8_t moved = frame_bytes[place];
                frame_bytes[place] = frame_bytes[at];
                frame_bytes[at] = moved;
            }
    }
    return count;
}

/* Change the tables or body of a chunk, a table set or a section, and what the directory says of its size. */
static void change_part(const layout *l) {
    part p = l->parts[below(l->n_parts)];
    size_t from = p.offset, count = p.size;
    cursor c = {frame_bytes + p.offset, p.size, 0, DCZ_OK};
    size_t tables = 0;
    const int has_tables = p.has_tables && below(8) > 0;
    if (has_tables) {
        tables = (size_t)get_varint(&c, p.size);
        if (c.error != DCZ_OK || tables > p.size - c.at) {
            tables = 0;
            c.at = 0;
        }
    }
    size_t n_new;
    if (tables > 0 && below(3) > 0) {
        n_new = change_bytes(from + c.at, tables);
        uint8_t number[10];
        const size_t n = put_varint(number, n_new);
        count = p.size - tables + n_new;
        if (replace(from, c.at, number, n)) {
            count = count - c.at + n;
        }
    } else {
        from += c.at + tables;
        n_new = change_bytes(from, count - c.at - tables);
        count = c.at + tables + n_new;
    }
    if (count != p.size) {
        (void)replace_number(p.size_at, p.size_bytes, count);
    }
}

/* Change the lanes of one of the parts that have lanes; says whether there is one. */
static int change_some_lanes(const layout *l) {
    static uint8_t made[MAX_FRAME + LANE_ROOM];
    size_t at = below(l->n_parts);
    for (unsigned tries = 0; tries < l->n_parts; tries++, at = (at + 1) % l->n_parts) {
        const part *p = &l->parts[at];
        const size_t from = body_of(p, frame_bytes), count = p->offset + p->size - from;
        const size_t n = change_lanes(frame_bytes + from, count, p, made);
        if (n > 0) {
            if (replace(from, count, made, n)) {
                (void)replace_number(p->size_at, p->size_bytes, p->size - count + n);
            }
            return 1;
        }
    }
    return 0;
}

static void mend_sums(void) {
    layout l;
    find_parts(&l, frame_bytes, frame_size);
    for (unsigned i = 0; i < l.n_parts; i++) {
        put_u32(frame_bytes + l.parts[i].checksum_at, fold(sum_words(frame_bytes + l.parts[i].offset, l.parts[i].size, 0)));
    }
    if (frame_size >= 20) {
        mend_head(frame_bytes, frame_size);
    }
}

static void mend_digests(const verdict *v) {
    layout l;
    find_parts(&l, frame_bytes, frame_size);
    for (unsigned i = 0; i < v->n_digests; i++) {
        for (unsigned k = 0; k < l.n_digests; k++) {
            if (l.digests[k].tensor == v->tensors[i]) {
                put_u32(frame_bytes + l.digests[k].at, v->digests[i]);
            }
        }
    }
    mend_head(frame_bytes, frame_size);
}

static void change_frame(void) {
    static layout l;
    const int raw = below(16) == 0;
    for (size_t turns = 1 + (below(2) ? 0 : below(4)); turns > 0; turns--) {
        find_parts(&l, frame_bytes, frame_size);
        const size_t way = below(16);
        if (raw || frame_size < 20) {
            frame_size = below(4) ? change_bytes(0, frame_size) : below(frame_size + 1);
        } else if (way < 4) {
            find_fields();
            if (n_fields > 0) {
                const field f = fields[below(n_fields)];
                cursor c = {frame_bytes + f.at, f.n_bytes, 0, DCZ_OK};
                (void)replace_number(f.at, f.n_bytes, other_value(get_varint(&c, UINT64_MAX)));
            }
        } else if (way < 5 || l.n_parts == 0) {
            const size_t size = load_u32(frame_bytes + 12);
            if (size <= frame_size - 20) {
                put_u32(frame_bytes + 12, (uint32_t)change_bytes(20, size));
            }
        } else if (way < 12 || !change_some_lanes(&l)) {
            change_part(&l);
        }
    }
    if (!raw) {
        mend_sums();
    }
}

/* ---- The run ---- */

static void add_seed(const uint8_t *data, size_t size, unsigned place) {
    seed *s = &seeds[place];
    dcz_frame frame;
    free(s->data);
    s->data = checked_malloc(size);
    s->size = size;
    memcpy(s->data, data, size);
    const dcz_limits limits = fuzz_limits();
    const dcz_code code = dcz_open(&frame, data, size, &limits, workspace_words, sizeof workspace_words, NULL);
    s->cost = size + (code == DCZ_OK && frame.output_bytes < MOST ? frame.output_bytes / 4 : 0);
}

static int load_seeds(char **paths, int n) {
    for (int i = 0; i < n && n_seeds < MAX_SEEDS - N_BRED; i++) {
        FILE *file = fopen(paths[i], "rb");
        if (file == NULL) {
            return 1;
        }
        frame_size = fread(frame_bytes, 1, MAX_FRAME, file);
        if (frame_size < MAX_FRAME) {
            add_seed(frame_bytes, frame_size, n_seeds++);
        }
        (void)fclose(file);
    }
    n_first = n_seeds;
    return n_seeds == 0;
}

int main(int argc, char **argv) {
    static uint64_t counts[DCZ_BAD_CALL + 1];
    if (argc < 5 || load_seeds(argv + 4, argc - 4) != 0) {
        (void)fputs("fuzz SECONDS SEED FINDING FRAMES...\n", stderr);
        return 2;
    }
    const double start = now(), end = start + atof(argv[1]);
    double slowest = 0, before = start;
    uint64_t n_executions = 0, n_mended = 0, n_compared = 0;
    dice = strtoull(argv[2], NULL, 0);
    finding = argv[3];
    const struct itimerval too_long = {{0, 0}, {20, 0}};
    const int signals[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGPROF};
    for (unsigned i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        (void)signal(signals[i], save_finding);
    }
    while (before < end) {
        const seed *from = some_seed();
        frame_size = from->size;
        memcpy(frame_bytes, from->data, frame_size);
        change_frame();
        (void)setitimer(ITIMER_PROF, &too_long, NULL);
        verdict v, second;
        uint64_t sum = 0, sum_2 = 0;
        uint8_t *data = OWN_MEMORY ? checked_malloc(frame_size) : frame_bytes;
        memmove(data, frame_bytes, frame_size);
        source bytes = {data, frame_size};
        const size_t way = below(16);
        examine(&v, &bytes, way % 4 == 0, way % 8 < 2, &sum);
        n_executions++;
        if (below(32) == 0) { /* the other way: the same */
            examine(&second, &bytes, way % 4 != 0, way % 8 >= 2, &sum_2);
            expect(v.code == second.code && sum == sum_2);
            n_executions++;
            n_compared++;
        }
        if (v.n_digests > 0 && below(2)) {
            const verdict was = v;
            mend_digests(&was);
            memmove(data, frame_bytes, frame_size);
            examine(&v, &bytes, 0, way % 8 < 2, &sum);
            expect(v.code != DCZ_DIG_01 || was.n_digests == 8);
            n_executions++;
            n_mended++;
        }
        if (OWN_MEMORY) {
            free(data);
        }
        const int is_coded = load_u32(frame_bytes + 12) + 20 < frame_size; /* it has chunks or sets */
        const int is_new = counts[v.code]++ == 0;
        if (frame_size <= MAX_BRED && (is_new || (v.code == DCZ_OK && is_coded && below(8) == 0))) {
            const unsigned place = n_seeds < n_first + N_BRED ? n_seeds++ : n_first + (unsigned)below(N_BRED);
            add_seed(frame_bytes, frame_size, place);
        }
        const double after = now();
        slowest = after - before > slowest ? after - before : slowest;
        before = after;
    }
    unsigned n_rules = 0;
    for (int code = 1; code < DCZ_END; code++) {
        n_rules += counts[code] > 0 ? 1 : 0;
    }
    printf("%llu executions in %.0f s (%.0f/s), %llu accepted, %llu digests mended, %llu compared, %u of %u rules, slowest %.1f ms\n",
           (unsigned long long)n_executions, before - start, (double)n_executions / (before - start),
           (unsigned long long)counts[DCZ_OK], (unsigned long long)n_mended, (unsigned long long)n_compared, n_rules,
           (unsigned)DCZ_END - 1, 1e3 * slowest);
    for (int code = 1; code < DCZ_END; code++) {
        printf("%s%s %llu", code > 1 ? ", " : "", dcz_rule((dcz_code)code), (unsigned long long)counts[code]);
    }
    for (unsigned coder = 0; coder <= DCZ_CONTEXT; coder++) {
        printf("%s%s %llu/%llu", coder > 0 ? ", " : "\ntensors accepted/refused: ", dcz_coder_name(coder),
               (unsigned long long)n_decoded[1][coder], (unsigned long long)n_decoded[0][coder]);
    }
    printf("\n");
    return 0;
}

/* main.c: dcz-read, lists, verifies and writes the tensors of a `.dcz` frame with dcz_decode.c.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include "dcz_decode.h"

#include <stdio.h>
#include <stdlib.h>

enum { IO_ERROR = 1, USAGE_ERROR = 2, CORRUPT = 3, UNSUPPORTED = 4, OVER_LIMIT = 5 };

static const char usage[] =
    "usage: dcz-read list FILE            name, element type, shape, coder and bytes of every tensor\n"
    "       dcz-read verify FILE          decode everything, check every checksum and digest\n"
    "       dcz-read write FILE TENSOR    its words to stdout, little-endian\n"
    "       dcz-read write FILE -o DIR    every tensor to DIR/NUMBER.bin, and what they are to DIR/tensors.txt\n"
    "options: -s reads the file piece by piece; -m uses the least memory that does\n"
    "         -M BYTES allows so many bytes of decoded tensors; -L NAME=NUMBER sets another limit:\n"
    "         directory_bytes, tensors, rank, name_bytes, names_bytes, section_bytes\n"
    "exit codes: 0 success, 1 input or output failed, 2 wrong usage, 3 damaged file, 4 unsupported, 5 over a limit\n";

typedef struct input {
    FILE *file;
    uint8_t *data;
    uint64_t size;
} input;

typedef struct session {
    const char *path, *folder, *tensor;
    int is_streamed, is_least;
    input in;
    dcz_frame frame;
    dcz_error error;
    void *workspace, *kept;
    size_t room;
    char *name;
    uint8_t *out;
} session;

static int exit_code_of(dcz_code code) {
    switch (dcz_error_class(code)) {
        case DCZ_CLASS_NONE: return IO_ERROR;
        case DCZ_CLASS_UNSUPPORTED: return UNSUPPORTED;
        case DCZ_CLASS_LIMIT: return OVER_LIMIT;
        default: return CORRUPT;
    }
}

/* Names are untrusted text: nothing in them reaches a terminal as a control character. */
static void print_text(FILE *to, const char *text, size_t size) {
    for (size_t i = 0; i < size; i++) {
        const unsigned char c = (unsigned char)text[i];
        if (c < 32 || c >= 127 || c == '\\') {
            (void)fprintf(to, "\\x%02x", c);
        } else {
            (void)fputc(c, to);
        }
    }
}

static int fail(const session *s) {
    const dcz_error *e = &s->error;
    (void)fprintf(stderr, "dcz-read: %s: %s", s->path, dcz_error_text(e->code));
    if (e->tensor != DCZ_NO_TENSOR) {
        (void)fprintf(stderr, ", tensor %lu", (unsigned long)e->tensor);
    }
    if (dcz_rule(e->code)[0] != 0) {
        (void)fprintf(stderr, ", offset %llu, rule %s", (unsigned long long)e->offset, dcz_rule(e->code));
    }
    (void)fputc('\n', stderr);
    return exit_code_of(e->code);
}

static int fail_io(const session *s, const char *what) {
    (void)fprintf(stderr, "dcz-read: %s: %s\n", s->path, what);
    return IO_ERROR;
}

static int read_piece(void *context, uint64_t offset, void *bytes, size_t size) {
    input *in = context;
    if (offset > (uint64_t)LONG_MAX || fseek(in->file, (long)offset, SEEK_SET) != 0) {
        return 1;
    }
    return fread(bytes, 1, size, in->file) == size ? 0 : 1;
}

static int read_input(session *s) {
    s->in.file = fopen(s->path, "rb");
    if (s->in.file == NULL || fseek(s->in.file, 0, SEEK_END) != 0) {
        return fail_io(s, "cannot be opened");
    }
    const long size = ftell(s->in.file);
    if (size < 0 || size == LONG_MAX || (unsigned long)size > SIZE_MAX - 1) { /* LONG_MAX: a folder */
        return fail_io(s, "is no plain file, or too large");
    }
    s->in.size = (uint64_t)size;
    if (s->is_streamed) {
        return 0;
    }
    s->in.data = malloc((size_t)size + 1);
    if (s->in.data == NULL) {
        return fail_io(s, "does not fit into memory");
    }
    return read_piece(&s->in, 0, s->in.data, (size_t)size) == 0 ? 0 : fail_io(s, "cannot be read");
}

/* Get memory for what the last call asked for; its figures are bounded by the format, not by the file. */
static int grow(session *s, uint64_t n_bytes) {
    free(s->workspace);
    s->room = 0;
    s->workspace = n_bytes < SIZE_MAX ? malloc((size_t)n_bytes) : NULL;
    if (s->workspace == NULL) {
        return fail_io(s, "needs more memory than there is");
    }
    s->room = (size_t)n_bytes;
    return 0;
}

static int open_input(session *s, const dcz_limits *limits) {
    int problem = read_input(s);
    while (problem == 0) {
        const dcz_code code =
            s->is_streamed
                ? dcz_open_stream(&s->frame, read_piece, &s->in, s->in.size, limits, s->workspace, s->room, &s->error)
                : dcz_open(&s->frame, s->in.data, (size_t)s->in.size, limits, s->workspace, s->room, &s->error);
        if (code == DCZ_OK) {
            break;
        }
        if (code != DCZ_NEED_WORKSPACE) {
            return fail(s);
        }
        problem = grow(s, s->is_least ? s->error.needed : s->error.fast);
    }
    if (problem == 0 && s->is_streamed) { /* the directory lives there */
        s->kept = s->workspace;
        s->workspace = NULL;
        s->room = 0;
    }
    s->name = malloc((size_t)s->frame.longest_name + 1);
    return problem == 0 && s->name == NULL ? fail_io(s, "needs more memory than there is") : problem;
}

static void print_shape(FILE *to, const dcz_tensor *t) {
    if (t->rank == 0) {
        (void)fputc('-', to);
    }
    for (uint32_t i = 0; i < t->rank; i++) {
        (void)fprintf(to, i > 0 ? "x%llu" : "%llu", (unsigned long long)t->shape[i]);
    }
}

static int list(session *s) {
    dcz_tensor t;
    dcz_code code = dcz_tensor_at(&s->frame, 0, &t, s->name, (size_t)s->frame.longest_name + 1);
    for (; code == DCZ_OK; code = dcz_next_tensor(&s->frame, &t)) {
        print_text(stdout, t.name, t.name_size);
        if (t.alias_of != DCZ_NO_TENSOR) {
            (void)printf("  alias of tensor %lu\n", (unsigned long)t.alias_of);
            continue;
        }
        (void)printf("  %s  ", dcz_dtype_name(t.dtype));
        print_shape(stdout, &t);
        (void)printf("  %s  %llu chunks  %llu -> %llu bytes\n", t.n_words > 0 ? dcz_coder_name(t.coder) : "empty",
                     (unsigned long long)t.n_chunks, (unsigned long long)t.stored_bytes,
                     (unsigned long long)t.n_bytes);
    }
    dcz_metadata metadata;
    memset(&metadata, 0, sizeof metadata);
    while (dcz_next_metadata(&s->frame, &metadata) == DCZ_OK) {
        (void)printf("metadata  ");
        print_text(stdout, metadata.key, metadata.key_size);
        (void)printf(" = ");
        print_text(stdout, metadata.value, metadata.value_size);
        (void)printf("\n");
    }
    dcz_section section;
    memset(&section, 0, sizeof section);
    while (dcz_next_section(&s->frame, &section) == DCZ_OK) {
        (void)printf("section  kind %llu  offset %llu  %llu bytes\n", (unsigned long long)section.kind,
                     (unsigned long long)section.offset, (unsigned long long)section.size);
    }
    return 0;
}

/* Decode chunk by chunk; `to` may be NULL. Memory: a chunk, beside the workspace. */
static int decode(session *s, dcz_decoder *d, const dcz_tensor *t, FILE *to) {
    int problem = 0;
    while (problem == 0) {
        const dcz_code code = dcz_begin(d, &s->frame, t, s->workspace, s->room, &s->error);
        if (code == DCZ_OK) {
            break;
        }
        if (code != DCZ_NEED_WORKSPACE) {
            return fail(s);
        }
#ifdef DCZ_BASELINE
        if (!s->is_streamed && s->error.needed > DCZ_BASELINE_WORKSPACE) {
            return fail_io(s, "needs more workspace than a baseline tensor may");
        }
#endif
        problem = grow(s, s->is_least ? s->error.needed : s->error.fast);
        dcz_init(d);
    }
    /* Where the least memory is asked for, the same tensor could also live in the memory of the fast one. */
    if (problem == 0 && !s->is_least && d->fast + 14 > s->room) {
        problem = grow(s, (uint64_t)d->fast + 14);
        dcz_init(d);
        if (problem == 0 && dcz_begin(d, &s->frame, t, s->workspace, s->room, &s->error) != DCZ_OK) {
            return fail(s);
        }
    }
    size_t room = 0;
    while (problem == 0 && d->chunk < t->n_chunks) {
        if (d->chunk_bytes > room) {
            free(s->out);
            room = (size_t)d->chunk_bytes;
            s->out = room == d->chunk_bytes ? malloc(room) : NULL;
            if (s->out == NULL) {
                return fail_io(s, "needs more memory than there is");
            }
        }
        const size_t n_bytes = (size_t)d->chunk_bytes;
        if (dcz_next_chunk(d, s->out, room, &s->error) != DCZ_OK) {
            return fail(s);
        }
        if (to != NULL && fwrite(s->out, 1, n_bytes, to) != n_bytes) {
            return fail_io(s, "its tensors cannot be written");
        }
    }
    return problem != 0 || dcz_end(d, &s->error) == DCZ_OK ? problem : fail(s);
}

static int verify(session *s) {
    dcz_tensor t;
    dcz_decoder d;
    dcz_init(&d);
    if (dcz_check_output(&s->frame, &s->error) != DCZ_OK) {
        return fail(s);
    }
    dcz_code code = dcz_tensor_at(&s->frame, 0, &t, NULL, 0);
    int problem = 0;
    for (; code == DCZ_OK && problem == 0; code = dcz_next_tensor(&s->frame, &t)) {
        problem = t.alias_of == DCZ_NO_TENSOR ? decode(s, &d, &t, NULL) : 0;
    }
    for (uint32_t i = 0; i < s->frame.n_table_sets && problem == 0; i++) {
        while (problem == 0 && dcz_check_table_set(&s->frame, i, s->workspace, s->room, &s->error) != DCZ_OK) {
            problem = s->error.code == DCZ_NEED_WORKSPACE ? grow(s, s->error.needed) : fail(s);
        }
    }
    dcz_section section;
    int seen[3] = {0, 0, 0};
    memset(&section, 0, sizeof section);
    while (problem == 0 && dcz_next_section(&s->frame, &section) == DCZ_OK) {
        if (section.kind < 1 || section.kind > 2 || seen[section.kind]) { /* unknown, or not the first: skipped */
            continue;
        }
        seen[section.kind] = 1;
        while (problem == 0 &&
               dcz_check_section(&s->frame, &section, s->workspace, s->room, &s->error) != DCZ_OK) {
            problem = s->error.code == DCZ_NEED_WORKSPACE ? grow(s, 65536) : fail(s);
        }
    }
    if (problem == 0) {
        (void)printf("%s: %lu tensors, %llu bytes: sound\n", s->path, (unsigned long)s->frame.n_tensors,
                     (unsigned long long)s->frame.output_bytes);
    }
    return problem;
}

static int write_one(session *s) {
    dcz_tensor t;
    dcz_decoder d;
    dcz_init(&d);
    if (dcz_find_tensor(&s->frame, s->tensor, strlen(s->tensor), &t, s->name, (size_t)s->frame.longest_name + 1) !=
        DCZ_OK) {
        (void)fprintf(stderr, "dcz-read: %s: no tensor of this name\n", s->path);
        return USAGE_ERROR;
    }
    if (dcz_alias_target(&s->frame, &t) != DCZ_OK) {
        return CORRUPT;
    }
    const int problem = decode(s, &d, &t, stdout);
    return problem == 0 && fflush(stdout) != 0 ? fail_io(s, "stdout cannot be written") : problem;
}

enum { PATH_ROOM = 4096 };

/* Whether a name in the folder fits into PATH_ROOM bytes. */
static int join_path(const session *s, const char *name, char *path) {
    const int size = snprintf(path, PATH_ROOM, "%s/%s", s->folder, name);
    return size > 0 && size < PATH_ROOM;
}

static FILE *create(const session *s, const char *name) {
    char path[PATH_ROOM];
    return join_path(s, name, path) ? fopen(path, "wb") : NULL;
}

static void discard(const session *s, const char *name) {
    char path[PATH_ROOM];
    if (join_path(s, name, path)) {
        (void)remove(path);
    }
}

/* A line of tensors.txt: number, element type, shape, coder, the number of the tensor that has the data, name. */
static int write_all(session *s) {
    dcz_tensor t;
    dcz_decoder d;
    dcz_init(&d);
    if (dcz_check_output(&s->frame, &s->error) != DCZ_OK) {
        return fail(s);
    }
    FILE *contents = create(s, "tensors.txt");
    if (contents == NULL) {
        return fail_io(s, "the folder cannot be written to");
    }
    int problem = 0;
    dcz_code code = dcz_tensor_at(&s->frame, 0, &t, s->name, (size_t)s->frame.longest_name + 1);
    for (; code == DCZ_OK && problem == 0; code = dcz_next_tensor(&s->frame, &t)) {
        const uint32_t source = t.alias_of == DCZ_NO_TENSOR ? t.number : t.alias_of;
        (void)fprintf(contents, "%lu\t%s\t", (unsigned long)t.number, dcz_dtype_name(t.dtype));
        print_shape(contents, &t);
        (void)fprintf(contents, "\t%s\t%lu\t", t.n_words > 0 ? dcz_coder_name(t.coder) : "-", (unsigned long)source);
        print_text(contents, t.name, t.name_size);
        (void)fprintf(contents, "\n");
        if (t.alias_of == DCZ_NO_TENSOR) {
            char name[32];
            (void)snprintf(name, sizeof name, "%lu.bin", (unsigned long)t.number);
            FILE *to = create(s, name);
            problem = to == NULL ? fail_io(s, "the folder cannot be written to") : decode(s, &d, &t, to);
            if (to != NULL && fclose(to) != 0 && problem == 0) {
                problem = fail_io(s, "its tensors cannot be written");
            }
            if (problem != 0) {
                discard(s, name);
            }
        }
    }
    problem = fclose(contents) != 0 && problem == 0 ? fail_io(s, "the folder cannot be written to") : problem;
    if (problem != 0) { /* a list of what is there, or none */
        discard(s, "tensors.txt");
    }
    return problem;
}

/* A number of bytes or things, in digits alone. */
static int read_count(const char *text, uint64_t *value) {
    char *end = NULL;
    *value = strtoull(text, &end, 10);
    return text[0] >= '0' && text[0] <= '9' && *end == '\0';
}

static int set_limit(dcz_limits *limits, const char *text) {
    const char *number = strchr(text, '=');
    uint32_t *narrow[4];
    static const char *const names[4] = {"directory_bytes=", "tensors=", "rank=", "name_bytes="};
    narrow[0] = &limits->max_directory_bytes;
    narrow[1] = &limits->max_tensors;
    narrow[2] = &limits->max_rank;
    narrow[3] = &limits->max_name_bytes;
    uint64_t value = 0;
    if (number == NULL || !read_count(number + 1, &value)) {
        return 0;
    }
    for (int i = 0; i < 4; i++) {
        if (strncmp(text, names[i], strlen(names[i])) == 0) {
            *narrow[i] = value < UINT32_MAX ? (uint32_t)value : UINT32_MAX;
            return 1;
        }
    }
    if (strncmp(text, "names_bytes=", 12) == 0) {
        limits->max_names_bytes = value;
        return 1;
    }
    limits->max_section_bytes = value;
    return strncmp(text, "section_bytes=", 14) == 0;
}

int main(int argc, char **argv) {
    session s;
    dcz_limits limits = dcz_default_limits();
    int at = 1, n_names = 0;
    const char *names[3] = {NULL, NULL, NULL};
    memset(&s, 0, sizeof s);
    for (; at < argc; at++) {
        if (strcmp(argv[at], "-s") == 0) {
            s.is_streamed = 1;
        } else if (strcmp(argv[at], "-m") == 0) {
            s.is_least = 1;
        } else if (strcmp(argv[at], "-M") == 0 && at + 1 < argc && read_count(argv[at + 1], &limits.max_output_bytes)) {
            at++;
        } else if (strcmp(argv[at], "-L") == 0 && at + 1 < argc && set_limit(&limits, argv[at + 1])) {
            at++;
        } else if (strcmp(argv[at], "-o") == 0 && at + 1 < argc) {
            s.folder = argv[++at];
        } else if (strcmp(argv[at], "--") == 0 && at + 1 < argc && n_names < 3) {
            names[n_names++] = argv[++at];
        } else if (n_names < 3 && (argv[at][0] != '-' || n_names == 2)) {
            names[n_names++] = argv[at];
        } else {
            (void)fputs(usage, stderr);
            return USAGE_ERROR;
        }
    }
    s.path = names[1];
    s.tensor = names[2];
    int (*command)(session *) = NULL;
    if (s.path != NULL && strcmp(names[0], "write") == 0 && (s.folder != NULL) != (s.tensor != NULL)) {
        command = s.folder != NULL ? write_all : write_one;
    } else if (s.path != NULL && s.tensor == NULL && s.folder == NULL) {
        command = strcmp(names[0], "list") == 0 ? list : strcmp(names[0], "verify") == 0 ? verify : NULL;
    }
    if (command == NULL) {
        (void)fputs(usage, stderr);
        return USAGE_ERROR;
    }
    int code = open_input(&s, &limits);
    code = code == 0 ? command(&s) : code;
    if (code == 0 && fflush(stdout) != 0) {
        code = fail_io(&s, "stdout cannot be written");
    }
    free(s.workspace);
    free(s.kept);
    free(s.in.data);
    free(s.name);
    free(s.out);
    if (s.in.file != NULL) {
        (void)fclose(s.in.file);
    }
    return code;
}

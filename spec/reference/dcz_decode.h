/* dcz_decode.h: reads `.dcz` frames, format version 1 (spec/dcz-1.md). C99, no allocation, no global state.
 *
 * SPDX-License-Identifier: Apache-2.0
 *
 *   dcz_open()            checks the directory of a frame in memory (dcz_open_stream(): of one that is read in pieces)
 *   dcz_tensor_at(), dcz_next_tensor(), dcz_find_tensor(), dcz_alias_target()         what tensors there are
 *   dcz_begin()           reads the tables of a tensor; with too little memory it says how much it needs
 *   dcz_next_chunk()      decodes a chunk into the caller's memory        dcz_end()      checks the digest
 *   dcz_decode()          these three in one, for a whole tensor
 *
 * Decoded words are little-endian bytes on every machine, as in the file: on a big-endian one, dcz_native_words()
 * turns them. Every function returns DCZ_OK or a code, and fills a dcz_error where it is given one (NULL is fine).
 * `workspace` is memory of the caller that the decoder may use until the call returns; the functions that say so
 * keep it longer. It needs no alignment. Functions on different objects can run in threads of their own.
 */
#ifndef DCZ_DECODE_H
#define DCZ_DECODE_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Compile with DCZ_BASELINE to read frames of the baseline profile only (section 13). */
#ifdef DCZ_BASELINE
#define DCZ_MAX_RANK 8
#else
#define DCZ_MAX_RANK 64
#endif

/* Every rule of section 14.6 that a decoder can check, with its class. SEC-02 is about the contents of sections. */
#define DCZ_RULES(RULE)                                                                                  \
    RULE(NUM, 01, CORRUPT, "a number is not written as short as possible")                                \
    RULE(NUM, 02, CORRUPT, "a number exceeds the limit of its field")                                     \
    RULE(FRM, 01, TRUNCATED, "the frame ends too early")                                                  \
    RULE(FRM, 02, NOT_DCZ, "not a .dcz frame")                                                            \
    RULE(FRM, 03, UNSUPPORTED, "another major version of the format")                                     \
    RULE(FRM, 04, UNSUPPORTED, "the frame needs a feature that this reader does not know")                \
    RULE(FRM, 05, CHECKSUM, "the directory does not match its checksum")                                  \
    RULE(FRM, 06, CORRUPT, "bytes follow the end of the frame")                                           \
    RULE(DIR, 01, CORRUPT, "bytes follow the last record of the directory")                               \
    RULE(DIR, 02, CORRUPT, "a name shares more than the name before has")                                 \
    RULE(DIR, 03, CORRUPT, "a tensor name stands twice")                                                  \
    RULE(DIR, 04, CORRUPT, "an alias of a tensor that is not an earlier one, or an alias itself")         \
    RULE(DIR, 05, UNSUPPORTED, "unknown element type")                                                    \
    RULE(DIR, 06, CORRUPT, "a tensor is too large")                                                       \
    RULE(DIR, 07, UNSUPPORTED, "unknown coder")                                                           \
    RULE(DIR, 08, CORRUPT, "the number of labels is not 1 to 4,096")                                      \
    RULE(DIR, 09, CORRUPT, "the size of the chunks is not allowed")                                       \
    RULE(DIR, 10, CORRUPT, "the directory has no room for the records of all chunks")                     \
    RULE(DIR, 11, CORRUPT, "more kept words than words")                                                  \
    RULE(DIR, 12, CORRUPT, "a metadata key stands twice")                                                 \
    RULE(DIR, 13, CORRUPT, "a name, key or value is not UTF-8")                                           \
    RULE(DIR, 14, CORRUPT, "too many table sets, or too large a one")                                     \
    RULE(LIM, 01, LIMIT, "the directory is larger than the limit")                                        \
    RULE(LIM, 02, LIMIT, "more tensors than the limit")                                                   \
    RULE(LIM, 03, LIMIT, "more dimensions than the limit")                                                \
    RULE(LIM, 04, LIMIT, "a name is longer than the limit")                                               \
    RULE(LIM, 05, LIMIT, "the decoded tensors are larger than the limit")                                 \
    RULE(LIM, 06, LIMIT, "a section is larger than the limit")                                            \
    RULE(LIM, 07, LIMIT, "all names together are longer than the limit")                                  \
    RULE(LIM, 08, UNSUPPORTED, "the frame is not of the baseline profile")                                \
    RULE(CHK, 01, CHECKSUM, "a chunk or table set does not match its checksum")                           \
    RULE(DIG, 01, CHECKSUM, "the decoded words do not match their digest")                                \
    RULE(DIG, 02, CORRUPT, "the number of kept words is wrong")                                           \
    RULE(SEC, 01, CHECKSUM, "a section does not match its checksum")                                      \
    RULE(RAW, 01, CORRUPT, "a raw chunk has not the size of its words")                                   \
    RULE(PLN, 01, CORRUPT, "unknown plane mode")                                                          \
    RULE(PLN, 02, CORRUPT, "the code of a plane has fewer than two symbols")                              \
    RULE(PLN, 03, CORRUPT, "bytes follow the last plane")                                                 \
    RULE(FIX, 01, CORRUPT, "a fixed chunk has not the size of its labels")                                \
    RULE(FIX, 02, CORRUPT, "the last bits of a fixed chunk are not 0")                                    \
    RULE(FIX, 03, CORRUPT, "a label is not in the codebook")                                              \
    RULE(LBL, 01, CORRUPT, "bytes follow the stream of labels")                                           \
    RULE(RUN, 01, CORRUPT, "an entry leaves its chunk, or a lane starts at the wrong word")               \
    RULE(RUN, 02, CORRUPT, "a run coder without the word 0, or without other words")                      \
    RULE(RUN, 03, CORRUPT, "bytes follow the lanes of runs")                                              \
    RULE(RUN, 04, CORRUPT, "an entry would take no bits")                                                 \
    RULE(CTX, 01, CORRUPT, "groups, labels or rows that contexts do not allow, or no table set")          \
    RULE(CTX, 02, CORRUPT, "the class of a row is not 0 to 63")                                           \
    RULE(CTX, 03, CORRUPT, "a trellis without two quantisers")                                            \
    RULE(CTX, 04, CORRUPT, "a context chunk ends too early, or within a word")                            \
    RULE(CTX, 05, CORRUPT, "words are left over in a context chunk")                                      \
    RULE(CTX, 06, CORRUPT, "a lane starts or ends in a state that it cannot have")                        \
    RULE(CTX, 07, CORRUPT, "a place is not that of a label")                                              \
    RULE(CTX, 08, CORRUPT, "more classes than 16 times the bytes of the chunks")                          \
    RULE(SET, 01, CORRUPT, "a table of a table set has a bucket or length that is out of range")          \
    RULE(SET, 02, CORRUPT, "a context has a table that is not there")                                     \
    RULE(SET, 03, CORRUPT, "a symbol of a table set has no frequency")                                    \
    RULE(CBK, 01, CORRUPT, "the groups do not divide the words")                                          \
    RULE(CBK, 02, CORRUPT, "the codebook has too many values")                                            \
    RULE(CBK, 03, CORRUPT, "the word 0 stands in the codebook twice")                                     \
    RULE(CBK, 04, CORRUPT, "the step of an even codebook is not usable")                                  \
    RULE(HUF, 01, CORRUPT, "a code has no symbols, or too many")                                          \
    RULE(HUF, 02, CORRUPT, "the lengths of a code are not complete")                                      \
    RULE(HUF, 03, CORRUPT, "a code length is not 1 to 15")                                                \
    RULE(HUF, 04, CORRUPT, "the code length of a lone symbol is not 1")                                   \
    RULE(STR, 01, CORRUPT, "a stream has fewer bits than its symbols take")                               \
    RULE(STR, 02, CORRUPT, "a stream has more bytes than its symbols take")                               \
    RULE(STR, 03, CORRUPT, "the last bits of a stream are not 0")                                         \
    RULE(TAB, 01, CORRUPT, "a number of the tables exceeds its limit")                                    \
    RULE(TAB, 02, CORRUPT, "the tables have bytes that are not read, or end in 0")                        \
    RULE(TAB, 03, CORRUPT, "a value of the codebook does not fit its word")

typedef enum dcz_code {
    DCZ_OK = 0,
#define DCZ_ENUM(group_of_rule, number, class_of_rule, text) DCZ_##group_of_rule##_##number,
    DCZ_RULES(DCZ_ENUM)
#undef DCZ_ENUM
    DCZ_END,            /* no more tensors, chunks, metadata or sections; no tensor of this name */
    DCZ_NEED_WORKSPACE, /* dcz_error.needed: bytes with which it works; .fast: bytes with which it works fast */
    DCZ_NEED_OUTPUT,    /* dcz_error.needed: bytes of the decoded words */
    DCZ_READ_FAILED,    /* the caller's read function gave up */
    DCZ_BAD_CALL        /* not what this function takes */
} dcz_code;

/* The classes of section 14.6. */
typedef enum dcz_class {
    DCZ_CLASS_NONE, /* DCZ_OK, DCZ_END, and what is about the call rather than the frame */
    DCZ_CLASS_CORRUPT,
    DCZ_CLASS_CHECKSUM,
    DCZ_CLASS_TRUNCATED,
    DCZ_CLASS_NOT_DCZ,
    DCZ_CLASS_UNSUPPORTED,
    DCZ_CLASS_LIMIT
} dcz_class;

#define DCZ_NO_TENSOR UINT32_MAX

typedef struct dcz_error {
    dcz_code code;
    uint32_t tensor; /* number in the directory, or DCZ_NO_TENSOR */
    uint64_t offset; /* where in the frame the broken structure is */
    uint64_t needed, fast;
} dcz_error;

typedef struct dcz_limits {
    uint64_t max_output_bytes; /* 0: the larger of 4 GiB and 4,096 times the frame; of all tensors, and of each */
    uint64_t max_section_bytes;
    uint64_t max_names_bytes;
    uint32_t max_directory_bytes, max_tensors, max_name_bytes, max_rank;
} dcz_limits;

/* Copies `size` bytes from `offset` of the frame; returns 0 if that worked. The frame has these bytes. */
typedef int (*dcz_read)(void *context, uint64_t offset, void *bytes, size_t size);

/* A frame whose directory has been checked. Fields up to `longest_name` are for the caller to read. */
typedef struct dcz_frame {
    uint64_t size;
    uint64_t output_bytes; /* of all tensors, aliases not counted; UINT64_MAX if it is more */
    uint32_t n_table_sets, n_tensors, n_metadata, n_sections;
    uint32_t longest_name; /* bytes, without an end mark */
    uint8_t minor_version;
    const uint8_t *data, *directory;
    dcz_read read;
    void *context;
    uint32_t directory_size, tensors_at, metadata_at, sections_at;
    uint64_t chunks_offset, sections_offset;
    dcz_limits limits;
} dcz_frame;

enum { DCZ_RAW, DCZ_PLANES, DCZ_FIXED, DCZ_LABELS, DCZ_ZERO_RUN, DCZ_SPLIT_RUN, DCZ_CONTEXT };
enum { DCZ_UNSIGNED, DCZ_SIGNED, DCZ_FLOAT };

typedef struct dcz_tensor {
    char *name;       /* the caller's buffer, or NULL; with an end mark, but a name may hold NUL itself */
    size_t name_room; /* its size */
    uint32_t name_size;
    uint32_t number;   /* in the directory */
    uint32_t alias_of; /* DCZ_NO_TENSOR, or the number of the tensor that has the data; dtype is 0 then */
    uint8_t dtype, kind, word_bytes, words_per_element, coder, chunk_shift;
    uint64_t n_words, n_bytes, n_kept, chunk_words, n_chunks, largest_chunk, stored_bytes;
    uint32_t n_labels, digest;
    uint64_t offset;    /* of the first chunk in the frame */
    uint32_t chunks_at; /* of its record in the directory; `at` is where the next tensor's record starts */
    uint32_t at;
    uint64_t next_offset, names_bytes;
    uint32_t rank;
    uint64_t shape[DCZ_MAX_RANK];
} dcz_tensor;

typedef struct dcz_metadata {
    const char *key, *value; /* in the directory, without end marks */
    uint32_t key_size, value_size;
    uint32_t number, at;
} dcz_metadata;

typedef struct dcz_section {
    uint64_t kind, offset, size;
    uint32_t checksum, number, at;
} dcz_section;

#if defined(__GNUC__) /* so that the workspace may be declared as an array of any type */
#define DCZ_MAY_ALIAS __attribute__((may_alias))
#else
#define DCZ_MAY_ALIAS
#endif
typedef uint16_t DCZ_MAY_ALIAS dcz_u16;
typedef uint32_t DCZ_MAY_ALIAS dcz_u32;
typedef uint64_t DCZ_MAY_ALIAS dcz_u64;

/* What follows is the decoder's own business, and stands here so that callers can make room for it. */
typedef struct DCZ_MAY_ALIAS dcz_huffman {
    const dcz_u16 *symbols; /* in the order of their codes */
    const dcz_u16 *root;    /* by the first bits: symbol << 4 | length; 0 for longer codes; or NULL */
    uint16_t limit[16];      /* first 15 bits of a code above those of this length */
    uint16_t offset[16];     /* number of symbols with shorter codes */
    uint8_t longest, root_bits; /* longest 0: a lone symbol */
} dcz_huffman;

typedef struct DCZ_MAY_ALIAS dcz_plane {
    uint8_t mode, constant;
    dcz_huffman code;
} dcz_plane;

typedef struct dcz_table_set {
    const uint8_t *choice;      /* table by quantiser, pair of levels and class */
    const dcz_u16 *cumulative; /* 88 for each table: slots before a symbol */
    uint32_t number;            /* DCZ_NO_TENSOR: none */
    uint32_t n_tables, n_classes, n_quantisers, precision, n_bytes;
} dcz_table_set;

/* A tensor that is being decoded. Start with dcz_init(); the workspace belongs to it until the next dcz_begin(). */
typedef struct dcz_decoder {
    uint64_t chunk;       /* number of the next chunk */
    uint64_t chunk_bytes; /* decoded bytes of the next chunk: what dcz_next_chunk() will write */
    uint64_t first;       /* its first word */
    const dcz_frame *frame;
    uint8_t *workspace, *scratch, *codebook;
    size_t bottom, top, least, fast;
    const uint8_t *body;
    size_t body_size;
    uint64_t n_groups;
    uint32_t has_zero, record_at;
    uint64_t offset;
    uint64_t stretch, body_offset;
    const uint8_t *tables;
    size_t tables_size, room;
    uint64_t digest, n_kept;
    uint8_t *chunk_buffer;
    uint32_t row_words, zero_apart;
    uint32_t block, n_buckets, raw_bits;
    dcz_plane *planes;
    uint32_t n_coded; /* planes that have a code */
    dcz_table_set set;
    uint32_t trellis, origin, distance, thresholds[3], n_labels, mask, a, b;
    int8_t *rows, *columns, *positions;
    uint64_t n_rows, n_columns, n_positions, width;
    uint8_t *levels;
    const void *slots;
    const dcz_u32 *entries, *outcomes;
    uint8_t *units, *contexts;
    uint32_t unit_bytes;
    uint8_t in_order;
    dcz_huffman code, label_code;
    dcz_tensor tensor;
} dcz_decoder;

/* Bytes with which dcz_begin() can always say how much it needs, beside the largest chunk (and, for `context`, the
 * table set of up to 65,536 bytes) where the frame is streamed. */
#define DCZ_QUERY_WORKSPACE 17408u

#ifdef DCZ_BASELINE
/* Bytes with which every baseline tensor in memory can be decoded; the largest chunk and a table set of up to 8,192
 * bytes are to be added where the frame is streamed. The greatest of these:
 * zero_run, labels: codebook 4,096 x 8 bytes, symbols of a code 4,096 x 2, side coder 4,576, code lengths 4,096;
 * context: codebook 256 x 8, classes 16,384, table set 3,200 + 64 x 176, then levels of 8 rows of 4,096. */
#define DCZ_BASELINE_WORKSPACE 67584u
#endif

/* Text of a code, its rule ("HUF-02", "" if it is none), and the class of the rule. */
const char *dcz_error_text(dcz_code code);
const char *dcz_rule(dcz_code code);
dcz_class dcz_error_class(dcz_code code);

/* The limits that section 13 names: of the dcompress package, or of the baseline profile. */
dcz_limits dcz_default_limits(void);

/* Open a frame of `size` bytes in memory that stays as it is while the frame is used. The workspace is needed only
 * while this runs: about 8 bytes for each tensor, and two longest names; with less it takes longer. limits: or NULL. */
dcz_code dcz_open(dcz_frame *frame, const uint8_t *data, size_t size, const dcz_limits *limits, void *workspace,
                  size_t room, dcz_error *error);

/* Open a frame that a function reads. The first directory_size bytes of the workspace (aligned or not) are kept by
 * the frame, the rest is free again. */
dcz_code dcz_open_stream(dcz_frame *frame, dcz_read read, void *context, uint64_t size, const dcz_limits *limits,
                         void *workspace, size_t room, dcz_error *error);

/* LIM-05 for all tensors together: ask before all are decoded. */
dcz_code dcz_check_output(const dcz_frame *frame, dcz_error *error);

/* Fill `tensor` with a record, from the first one on. name: room for frame->longest_name + 1 bytes, or NULL. */
dcz_code dcz_tensor_at(const dcz_frame *frame, uint32_t number, dcz_tensor *tensor, char *name, size_t name_room);
dcz_code dcz_next_tensor(const dcz_frame *frame, dcz_tensor *tensor);
dcz_code dcz_find_tensor(const dcz_frame *frame, const char *name, size_t name_size, dcz_tensor *tensor, char *buffer,
                         size_t buffer_room);

/* Replace an alias by the tensor that has its data (without a name); leave others alone. */
dcz_code dcz_alias_target(const dcz_frame *frame, dcz_tensor *tensor);

/* The name of an element type (safetensors' long form, "float32"); NULL if there is none. */
const char *dcz_dtype_name(unsigned dtype);
const char *dcz_coder_name(unsigned coder);

/* Walk the metadata and the sections: start with a zeroed struct, until DCZ_END. */
dcz_code dcz_next_metadata(const dcz_frame *frame, dcz_metadata *metadata);
dcz_code dcz_next_section(const dcz_frame *frame, dcz_section *section);

/* LIM-06 and SEC-01. A streamed frame needs some workspace, of any size from 64 bytes. */
dcz_code dcz_check_section(const dcz_frame *frame, const dcz_section *section, void *workspace, size_t room,
                           dcz_error *error);

/* Read a table set only to see whether it is sound (sections 7, 8.6, 11.6). */
dcz_code dcz_check_table_set(const dcz_frame *frame, uint32_t number, void *workspace, size_t room, dcz_error *error);

/* Prepare a decoder: once, and whenever its workspace was used for something else, or freed. Between tensors it keeps
 * the table set there, as long as workspace and frame are the same. */
void dcz_init(dcz_decoder *decoder);

/* Start a tensor that is no alias: read its tables. If the workspace is too small, error->needed and error->fast
 * say how many bytes it takes, at least and to be fast; with less than DCZ_QUERY_WORKSPACE, `needed` may grow once.
 * What the caller gives must not overlap: decoder, frame and its bytes, tensor, workspace, `out` and error are six
 * stretches of memory. Above all, `tensor` is not &decoder->tensor, which is cleared before it is read. */
dcz_code dcz_begin(dcz_decoder *decoder, const dcz_frame *frame, const dcz_tensor *tensor, void *workspace, size_t room,
                   dcz_error *error);

/* Decode the next chunk: decoder->chunk_bytes bytes. DCZ_END after the last one. After an error, `out` is undefined
 * and the decoder has to begin anew. */
dcz_code dcz_next_chunk(dcz_decoder *decoder, void *out, size_t out_room, dcz_error *error);

/* Go to a chunk; dcz_end() can then not check the digest, and does not. */
dcz_code dcz_seek_chunk(dcz_decoder *decoder, uint64_t chunk, dcz_error *error);

/* DIG-01 and DIG-02. Do not use the tensor before this says DCZ_OK. */
dcz_code dcz_end(dcz_decoder *decoder, dcz_error *error);

/* A whole tensor: tensor->n_bytes bytes into `out`. With out NULL: DCZ_NEED_OUTPUT, and its size. */
dcz_code dcz_decode(dcz_decoder *decoder, const dcz_frame *frame, const dcz_tensor *tensor, void *out, size_t out_room,
                    void *workspace, size_t room, dcz_error *error);

/* Turn little-endian words into words of this machine, or back: does nothing on a little-endian one. */
void dcz_native_words(void *words, size_t n_bytes, unsigned word_bytes);

#ifdef __cplusplus
}
#endif
#endif

/* Adds adapters to the outputs of base layers on a CPU, in bfloat16: one pass over what is used.
 *
 * Called by native.py. A member is an adapter with its rows: its pages are multiplied with these alone,
 * where they lie, so nothing is gathered, padded or put back. Sums are kept in float32. Threads are
 * those of the process's own OpenMP runtime: this library brings none along (hatch_build.py), or two
 * would share the cores.
 *
 * Legend: P pages of the slab, G slices, R ranks of a page, I features in, o features out of one slice,
 * M members, N pages and n rows of all members, q pages of one.
 */
#include <stdint.h>
#include <string.h>

#define R 16
#define CHUNK 256

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif

typedef struct {
    int64_t first_row, num_rows;   /* In rows_n. */
    int64_t first_page, num_pages; /* In pages_N. */
    int64_t first_product;         /* In h: [num_rows, num_pages, G, R]. */
} Member;

typedef struct {
    const uint16_t *b_PRo;
    int64_t start, width; /* Columns of the output. */
} Slice;

typedef struct {
    const uint16_t *a_PGRI;
    int64_t in_features, num_slices;
    Slice slices[];
} Slab;

_Static_assert(sizeof(void *) == sizeof(int64_t), "addresses come as int64");

static inline float widen(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

/* To the nearest, ties to even; what is no number stays none. */
static inline uint16_t narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

FOR_EACH_CPU
static float dot(const uint16_t *a_I, const uint16_t *x_I, int64_t in_features) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < in_features; i++)
        sum += widen(a_I[i]) * widen(x_I[i]);
    return sum;
}

/* Adds h_qGR @ b_qRo, of one slice, to the first `width` columns that are given. */
FOR_EACH_CPU
static void expand(const float *h_qGR, int64_t ranks, const uint16_t *b_PRo, const int64_t *pages_q, int64_t num_pages,
                   int64_t stride, int64_t width, uint16_t *out) {
    float sum[CHUNK];
#pragma omp simd
    for (int64_t j = 0; j < width; j++)
        sum[j] = widen(out[j]);
    for (int64_t q = 0; q < num_pages; q++) {
        for (int64_t r = 0; r < R; r++) {
            const float h = h_qGR[q * ranks + r];
            const uint16_t *b_o = b_PRo + (pages_q[q] * R + r) * stride;
#pragma omp simd
            for (int64_t j = 0; j < width; j++)
                sum[j] += h * widen(b_o[j]);
        }
    }
#pragma omp simd
    for (int64_t j = 0; j < width; j++)
        out[j] = narrow(sum[j]);
}

static inline int64_t num_chunks(const Slice *slice) { return (slice->width + CHUNK - 1) / CHUNK; }

void graft_lora_add(const Slab *slab, const Member *members_M, const int64_t *pages_N, const int64_t *owners_N,
                    int64_t total_pages, int64_t num_members, const int64_t *rows_n, const uint16_t *x,
                    int64_t x_stride, uint16_t *out, int64_t out_stride, float *h) {
    const int64_t in_features = slab->in_features, ranks = slab->num_slices * R;
    int64_t chunks = 0;
    for (int64_t g = 0; g < slab->num_slices; g++)
        chunks += num_chunks(slab->slices + g);
#pragma omp parallel
    {
        /* A rank of a page is read once, and meets all rows of its adapter. */
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < total_pages * ranks; unit++) {
            const int64_t at = unit / ranks, rank = unit % ranks;
            const Member *member = members_M + owners_N[at];
            const uint16_t *a_I = slab->a_PGRI + (pages_N[at] * ranks + rank) * in_features;
            float *product = h + (member->first_product + at - member->first_page) * ranks + rank;
            for (int64_t row = 0; row < member->num_rows; row++)
                product[row * member->num_pages * ranks] =
                    dot(a_I, x + rows_n[member->first_row + row] * x_stride, in_features);
        }
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < chunks; chunk++) {
            const Slice *slice = slab->slices;
            int64_t at = chunk;
            for (; at >= num_chunks(slice); slice++)
                at -= num_chunks(slice);
            const int64_t begin = at * CHUNK, g = slice - slab->slices;
            const int64_t width = slice->width - begin < CHUNK ? slice->width - begin : CHUNK;
            for (int64_t m = 0; m < num_members; m++) {
                const Member *member = members_M + m;
                for (int64_t row = 0; row < member->num_rows; row++)
                    expand(h + (member->first_product + row * member->num_pages) * ranks + g * R, ranks,
                           slice->b_PRo + begin, pages_N + member->first_page, member->num_pages, slice->width,
                           width, out + rows_n[member->first_row + row] * out_stride + slice->start + begin);
            }
        }
    }
}

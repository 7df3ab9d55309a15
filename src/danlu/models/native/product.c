/* Products of prepared rows with packed weights: panels of 64 outputs that lie as they are read.
 *
 * Each output is one sum in one order, whatever else is computed beside it: an answer does not depend on its batch.
 */
#include "danlu.h"

#define MOST_AT_ONCE 6 /* tokens whose 24 sums, with 4 weights and a token's numbers, fill the registers */
#define FEW 40         /* tokens whose sums and numbers fit in the nearest cache beside a group of weights */
#define GROUP_BYTES (OUTS * GROUP + OUTS * 2)
#define AHEAD 2        /* groups from the one that is read to the one that is fetched */

/* Tiles of at most so many tokens, as even as can be: six and two are slower than four and four. */
static int64_t tiles_of(int64_t num_tokens) { return (num_tokens + MOST_AT_ONCE - 1) / MOST_AT_ONCE; }

/* Sums of ROWS tokens, `stride` bytes apart, with a panel: (ROWS, OUTS) floats. Written out by macro, and the empty
 * assembly says that they end in registers: GCC 12 keeps them in memory otherwise, which halves the speed. */
#define ADD_UP(ROWS, KIND, FIRST, LAST, MEANWHILE)                                                                     \
    _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)                                                             \
        _Pragma("GCC unroll 8") for (int j = 0; j < LANES; j++) sums[r][j] = _mm512_setzero_si512();                   \
    for (int64_t k = FIRST; k < LAST; k++, w += OUTS * 4) {                                                            \
        __m512i a[LANES];                                                                                              \
        MEANWHILE                                                                                                      \
        _Pragma("GCC unroll 8") for (int j = 0; j < LANES; j++) a[j] = _mm512_load_si512(w + 64 * j);                  \
        _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++) {                                                       \
            int32_t four;                                                                                              \
            memcpy(&four, x + r * stride + k * 4, 4);                                                                  \
            __m512i v = _mm512_set1_epi32(four);                                                                       \
            _Pragma("GCC unroll 8") for (int j = 0; j < LANES; j++) sums[r][j] = dot(sums[r][j], v, a[j], KIND);       \
        }                                                                                                              \
    }                                                                                                                  \
    _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)                                                             \
        _Pragma("GCC unroll 8") for (int j = 0; j < LANES; j++) __asm__("" : "+v"(sums[r][j]));

#define PLAIN_SUMS(NAME, KIND, ROWS)                                                                                   \
    static void NAME##ROWS(                                                                                            \
        const uint8_t *w, const uint8_t *x, int64_t stride, int64_t steps, float *found) {                             \
        __m512i sums[ROWS][LANES];                                                                                     \
        ADD_UP(ROWS, KIND, 0, steps, )                                                                                 \
        _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++)                                                         \
            _Pragma("GCC unroll 8") for (int j = 0; j < LANES; j++)                                                    \
                _mm512_store_ps(found + r * OUTS + 16 * j, _mm512_castsi512_ps(sums[r][j]));                           \
    }

/* What lies `ahead`, `pace` bytes a step: two lines at most. */
#define FETCH                                                                                                          \
    _mm_prefetch((const char *)(ahead + k * pace), _MM_HINT_T0);                                                       \
    _mm_prefetch((const char *)(ahead + k * pace + pace / 2), _MM_HINT_T0);

/* Of 8-bit numbers each group is added up exactly, then scaled. After a group's weights stand their sums, 16 bits. Steps
 * from `begin` to `end` only, which are whole groups; after the first ones they are added to what was found. */
#define BYTE_SUMS(ROWS)                                                                                                \
    static void bytes##ROWS(                                                                                           \
        const uint8_t *w, const uint8_t *x, int64_t stride, int64_t begin, int64_t end, const uint8_t *ahead,          \
        int64_t pace, const float *scalings, int64_t more, float *found) {                                             \
        __m512i sums[ROWS][LANES];                                                                                     \
        ahead -= begin * pace;                                                                                         \
        for (int64_t first = begin; first < end; first += GROUP / 4, w += OUTS * 2, scalings += 2) {                   \
            int64_t last = first + GROUP / 4 < end ? first + GROUP / 4 : end;                                          \
            ADD_UP(ROWS, BYTES, first, last, FETCH)                                                                    \
            _Pragma("GCC unroll 8") for (int j = 0; j < LANES; j++) {                                                  \
                __m256i narrow = _mm256_load_si256((const __m256i *)(w + 32 * j));                                     \
                __m512 whole = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(narrow));                                      \
                _Pragma("GCC unroll 8") for (int r = 0; r < ROWS; r++) {                                               \
                    float *y = found + r * OUTS + 16 * j;                                                              \
                    __m512 v = _mm512_mul_ps(whole, _mm512_set1_ps(scalings[r * more + 1]));                           \
                    v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][j]), _mm512_set1_ps(scalings[r * more]), v);        \
                    _mm512_store_ps(y, first ? _mm512_add_ps(v, _mm512_load_ps(y)) : v);                               \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }

#define PLAIN(NAME, KIND)                                                                                              \
    PLAIN_SUMS(NAME, KIND, 1) PLAIN_SUMS(NAME, KIND, 2) PLAIN_SUMS(NAME, KIND, 3)                                      \
    PLAIN_SUMS(NAME, KIND, 4) PLAIN_SUMS(NAME, KIND, 5) PLAIN_SUMS(NAME, KIND, 6)
PLAIN(halves, HALVES)
PLAIN(floats, FLOATS)
BYTE_SUMS(1) BYTE_SUMS(2) BYTE_SUMS(3) BYTE_SUMS(4) BYTE_SUMS(5) BYTE_SUMS(6)

typedef void (*PlainSums)(const uint8_t *, const uint8_t *, int64_t, int64_t, float *);
typedef void (*ByteSums)(
    const uint8_t *, const uint8_t *, int64_t, int64_t, int64_t, const uint8_t *, int64_t, const float *, int64_t, float *);
static const PlainSums HALF_KINDS[] = {0, halves1, halves2, halves3, halves4, halves5, halves6};
static const PlainSums FLOAT_KINDS[] = {0, floats1, floats2, floats3, floats4, floats5, floats6};
static const ByteSums BYTE_KINDS[] = {0, bytes1, bytes2, bytes3, bytes4, bytes5, bytes6};

/* Sums of one token become its outputs. */
static void finish(const Op *op, const Pass *pass, const float *sums, int64_t t, int64_t panel) {
    float *y = pass->buffers[op->target] + t * pass->strides[op->target] + op->target_first + panel * OUTS;
    for (int j = 0; j < LANES; j++, y += 16) {
        int64_t out = panel * OUTS + 16 * j;
        __mmask16 m = tail(op->width - out);
        if (!m) return;
        __m512 v = _mm512_load_ps(sums + 16 * j);
        if (op->kind == BYTES) v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, op->scales + out));
        if (op->bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(m, op->bias + out));
        if (op->adds) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(m, y));
        _mm512_mask_storeu_ps(y, m, v);
    }
}

/* What adapters add to a panel: the second half of what lower.c began, several tokens of one adapter at once. */
static void lift(const Op *op, const Pass *pass, int64_t panel, int64_t start, int64_t end) {
    float sums[MOST_AT_ONCE * OUTS] __attribute__((aligned(64)));
    const int32_t *slots = pass->slots[op->of_outs];
    for (int64_t t = start, next; t < end; t = next) {
        next = t + 1;
        if (slots[t] < 0) continue;
        const Adapter *adapter = pass->adapters + (int64_t)slots[t] * pass->num_products + op->product;
        if (!adapter->rank || !adapter->panels[3 * panel + 1]) continue;
        while (next < end && next - t < MOST_AT_ONCE && slots[next] == slots[t]) next++;
        const int32_t *panels = adapter->panels + 3 * panel; /* first step, steps, where they lie */
        const uint8_t *x = (const uint8_t *)(pass->lowered + t * MOST_RANK + panels[0]);
        const uint8_t *w = adapter->up + (int64_t)panels[2] * OUTS * 4;
        (adapter->is_half ? HALF_KINDS : FLOAT_KINDS)[next - t](w, x, MOST_RANK * 4, panels[1], sums);
        for (int64_t i = t; i < next; i++) {
            float *y = pass->buffers[op->target] + i * pass->strides[op->target] + op->target_first + panel * OUTS;
            for (int j = 0; j < LANES; j++) {
                __mmask16 m = tail(op->width - panel * OUTS - 16 * j);
                __m512 v = _mm512_add_ps(_mm512_maskz_loadu_ps(m, y + 16 * j), _mm512_load_ps(sums + (i - t) * OUTS + 16 * j));
                _mm512_mask_storeu_ps(y + 16 * j, m, v);
            }
        }
    }
}

/* One panel of 8-bit weights. Few tokens go through it group by group, so that each tile finds the group in the nearest
 * cache and fetches its share of one that comes later: memory works while the core does. */
static void add_up_bytes(const Op *op, const Pass *pass, const uint8_t *w, int64_t start, int64_t end, float *sums) {
    const int64_t num_tokens = end - start, num_tiles = tiles_of(num_tokens), stride = row_bytes(op), steps = stride / 4;
    const int64_t more = groups_of(op) * 2, by_group = num_tiles > 1 && num_tokens <= FEW;
    const int64_t chunk = by_group ? GROUP / 4 : steps, pace = by_group ? GROUP_BYTES / num_tiles / (GROUP / 4) + 1 : 0;
    for (int64_t k = 0; k < steps; k += chunk, w += GROUP_BYTES) {
        int64_t last = k + chunk < steps ? k + chunk : steps;
        for (int64_t i = 0; i < num_tiles; i++) {
            int64_t from = num_tokens * i / num_tiles, to = num_tokens * (i + 1) / num_tiles;
            BYTE_KINDS[to - from](
                w, pass->prepared + (start + from) * stride, stride, k, last, w + AHEAD * GROUP_BYTES + i * (GROUP / 4) * pace, pace,
                pass->steps + (start + from) * more + k / (GROUP / 4) * 2, more, sums + from * OUTS);
        }
    }
}

void danlu_product(const Op *op, const Pass *pass, int64_t panel, int64_t panel_end, int64_t start, int64_t end) {
    int64_t bytes = row_bytes(op), stride = bytes;
    const uint8_t *x = pass->prepared;
    if (op->kind == FLOATS) {
        stride = (int64_t)pass->strides[op->source] * 4;
        x = (const uint8_t *)(pass->buffers[op->source] + op->first);
    }
    float sums[FEW * OUTS] __attribute__((aligned(64)));
    for (; panel < panel_end; panel++) {
        const uint8_t *w = (const uint8_t *)op->weight + panel * panel_bytes(op);
        int64_t num_parts = op->kind == BYTES && end - start <= FEW ? 1 : tiles_of(end - start);
        for (int64_t i = 0; i < num_parts; i++) {
            int64_t from = start + (end - start) * i / num_parts, to = start + (end - start) * (i + 1) / num_parts;
            if (op->kind == BYTES) add_up_bytes(op, pass, w, from, to, sums);
            else (op->kind == HALVES ? HALF_KINDS : FLOAT_KINDS)[to - from](w, x + from * stride, stride, bytes / 4, sums);
            for (int64_t t = from; t < to; t++) finish(op, pass, sums + (t - from) * OUTS, t, panel);
        }
        if (pass->adapters && op->product >= 0) lift(op, pass, panel, start, end);
    }
}

/* Rows of weights, `bytes` each -> panels of 64 outputs, by steps of four bytes; 8-bit ones with the sums of each group
 * after it. All of `packed` is written. */
void danlu_pack(const uint8_t *weight, uint8_t *packed, int64_t outputs, int64_t bytes, int32_t kind) {
    int64_t steps = (bytes + 3) / 4, group = kind == BYTES ? GROUP / 4 : steps;
    for (int64_t first = 0; first < outputs; first += OUTS)
        for (int64_t start = 0; start < steps; start += group) {
            int64_t end = start + group < steps ? start + group : steps;
            int16_t sums[OUTS] = {0};
            for (int64_t k = start; k < end; k++, packed += OUTS * 4) {
                memset(packed, 0, OUTS * 4);
                for (int64_t o = first; o < outputs && o < first + OUTS; o++) {
                    const uint8_t *four = weight + o * bytes + k * 4;
                    int64_t count = bytes - k * 4 < 4 ? bytes - k * 4 : 4;
                    memcpy(packed + (o - first) * 4, four, (size_t)count);
                    for (int64_t i = 0; kind == BYTES && i < count; i++) sums[o - first] += (int8_t)four[i];
                }
            }
            if (kind != BYTES) continue;
            memcpy(packed, sums, sizeof(sums));
            packed += sizeof(sums);
        }
}

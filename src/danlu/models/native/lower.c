/* The first half of low-rank adapters: what each token's own adapter makes of it before a product, few numbers each.
 *
 * Like a product, but with panels of 16 to 64 outputs, since ranks are small. The second half is in product.c.
 */
#include "danlu.h"

#define STEPS 128 /* of four bytes: numbers of a token that are made ready at a time */

/* Ranks 64 · panel on of ROWS tokens with one adapter. Few vectors take turns with several sums each, or they would wait
 * for one another; which numbers meet in which sum does not depend on the tokens beside. */
INLINE void lower_panel(
    const Op *op, const Pass *pass, const Adapter *adapter, int64_t t, int panel, const int rows, const int vectors, const int kind) {
    const int chains = vectors > 2 ? 1 : 4 / vectors, size = kind == HALVES ? 2 : 1; /* size: numbers of a step */
    const int64_t steps = (op->count + 4 * size - 1) / (4 * size) * 4, stride = pass->strides[op->source];
    const uint8_t *w = adapter->down + panel * steps * LANES * 64;
    const float *x = pass->buffers[op->source] + t * stride + op->first;
    int32_t ready[4][STEPS] __attribute__((aligned(64)));
    __m512i sums[4][4];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int j = 0; j < chains * vectors; j++) sums[r][j] = _mm512_setzero_si512();
    for (int64_t first = 0; first < steps; first += STEPS) {
        int64_t count = steps - first < STEPS ? steps - first : STEPS;
        for (int r = 0; r < rows; r++)
            for (int64_t i = 0; i < count; i += 16 / size) {
                int64_t at = (first + i) * size;
                __m512 v = _mm512_maskz_loadu_ps(tail(op->count - at), x + r * stride + at);
                if (kind == HALVES) _mm256_store_si256((__m256i *)(ready[r] + i), to_halves(v));
                else _mm512_store_ps(ready[r] + i, v);
            }
        for (int64_t k = 0; k < count; k += chains, w += chains * vectors * 64) {
#pragma GCC unroll 4
            for (int j = 0; j < chains * vectors; j++) {
                __m512i a = _mm512_load_si512(w + 64 * j);
#pragma GCC unroll 4
                for (int r = 0; r < rows; r++) sums[r][j] = dot(sums[r][j], _mm512_set1_epi32(ready[r][k + j / vectors]), a, kind);
            }
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
                for (int j = 0; j < chains * vectors; j++) __asm__("" : "+v"(sums[r][j])); /* they stay in registers */
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) {
            __m512 sum = _mm512_castsi512_ps(sums[r][v]);
            for (int j = v + vectors; j < chains * vectors; j += vectors) sum = _mm512_add_ps(sum, _mm512_castsi512_ps(sums[r][j]));
            float *lowered = pass->lowered + (t + r) * MOST_RANK;
            int place = 16 * (panel * LANES + v);
            if (kind == HALVES) _mm256_storeu_si256((__m256i *)((uint16_t *)lowered + place), to_halves(sum));
            else _mm512_storeu_ps(lowered + place, sum);
        }
}

#define LOWER(KIND, NAME, ROWS, VECTORS)                                                                               \
    static void NAME##ROWS##VECTORS(const Op *op, const Pass *pass, const Adapter *adapter, int64_t t, int panel) {    \
        lower_panel(op, pass, adapter, t, panel, ROWS, VECTORS, KIND);                                                 \
    }
#define LOWERS(KIND, NAME, ROWS) LOWER(KIND, NAME, ROWS, 1) LOWER(KIND, NAME, ROWS, 2) LOWER(KIND, NAME, ROWS, 3) LOWER(KIND, NAME, ROWS, 4)
LOWERS(HALVES, halves, 1) LOWERS(HALVES, halves, 2) LOWERS(HALVES, halves, 4)
LOWERS(FLOATS, floats, 1) LOWERS(FLOATS, floats, 2) LOWERS(FLOATS, floats, 4)
typedef void (*Lower)(const Op *, const Pass *, const Adapter *, int64_t, int);
#define NAMED(NAME, ROWS) {0, NAME##ROWS##1, NAME##ROWS##2, NAME##ROWS##3, NAME##ROWS##4}
static const Lower KNOWN[2][3][5] = {
    {NAMED(floats, 1), NAMED(floats, 2), NAMED(floats, 4)},
    {NAMED(halves, 1), NAMED(halves, 2), NAMED(halves, 4)},
};

void danlu_lower(const Op *op, const Pass *pass, int64_t start, int64_t end) {
    const int32_t *slots = pass->slots[op->of_outs];
    for (int64_t t = start; t < end;) {
        int64_t same = t + 1, rows;
        while (same < end && same < t + 4 && slots[same] == slots[t]) same++;
        rows = same - t == 3 ? 2 : same - t;
        const Adapter *adapter = slots[t] < 0 ? 0 : pass->adapters + (int64_t)slots[t] * pass->num_products + op->product;
        for (int first = 0; adapter && first < adapter->rank; first += 16 * LANES) {
            int vectors = (adapter->rank - first) / 16;
            KNOWN[adapter->is_half][rows / 2][vectors < LANES ? vectors : LANES](op, pass, adapter, t, first / (16 * LANES));
        }
        t += rows;
    }
}

/* Feed-forward layers of experts: which experts a token goes through, its rows among theirs, and their sum.
 *
 * A token has `top_k` choices. SORT gives each choice a row, expert after expert, so that a product reads the weights of
 * an expert once for all rows that chose it. What a row becomes does not depend on the rows beside it.
 */
#include "danlu.h"

/* Logits -> the experts with the largest, best first, and their shares of the softmax over all. */
static void route(const Op *op, const Pass *pass, int64_t t, float *x) {
    int32_t *chosen = pass->places + t * op->top_k;
    float *shares = pass->shares + t * op->top_k;
    const __m512 least = _mm512_set1_ps(-INFINITY);
    __m512 most, all = least, sum = _mm512_setzero_ps();
    for (int i = 0; i < op->experts; i += 16)
        all = _mm512_max_ps(all, _mm512_mask_loadu_ps(least, tail(op->experts - i), x + i));
    most = _mm512_set1_ps(_mm512_reduce_max_ps(all));
    for (int i = 0; i < op->experts; i += 16) {
        __mmask16 m = tail(op->experts - i);
        sum = _mm512_mask_add_ps(sum, m, sum, exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + i), most)));
    }
    __m512 whole = _mm512_set1_ps(_mm512_reduce_add_ps(sum)), best = most;
    for (int j = 0; j < op->top_k; j++) {
        int found = -1;
        all = least;
        for (int i = 0; i < op->experts; i += 16) { /* of equal ones the first; NaN is as good as any */
            __mmask16 m = tail(op->experts - i);
            __m512 v = _mm512_mask_loadu_ps(least, m, x + i);
            __mmask16 same = found < 0 ? _mm512_mask_cmp_ps_mask(m, v, best, _CMP_NLT_UQ) : 0;
            if (same) {
                found = i + __builtin_ctz(same);
                v = _mm512_mask_mov_ps(v, (__mmask16)(1u << (found - i)), least);
            }
            all = _mm512_max_ps(all, v);
        }
        chosen[j] = found < 0 ? 0 : found;
        shares[j] = x[chosen[j]];
        x[chosen[j]] = -INFINITY;
        best = _mm512_set1_ps(_mm512_reduce_max_ps(all));
    }
    sum = _mm512_setzero_ps();
    for (int j = 0; j < op->top_k; j += 16) {
        __mmask16 m = tail(op->top_k - j);
        __m512 v = _mm512_div_ps(exponential(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, shares + j), most)), whole);
        sum = _mm512_mask_add_ps(sum, m, sum, v);
        _mm512_mask_storeu_ps(shares + j, m, v);
    }
    if (!op->normalise) return;
    whole = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
    for (int j = 0; j < op->top_k; j += 16) {
        __mmask16 m = tail(op->top_k - j);
        _mm512_mask_storeu_ps(shares + j, m, _mm512_div_ps(_mm512_maskz_loadu_ps(m, shares + j), whole));
    }
}

/* Experts become rows: counted, then dealt out in the order of tokens. Those beyond an expert's capacity get -1. */
static void sort(const Op *op, const Pass *pass) {
    int32_t *sorted = pass->sorted, *counts = sorted + 2 * op->experts + 4, *asked = counts + op->experts;
    int32_t *places = pass->places, num_filled = 0, first = 0;
    const int64_t num_choices = (int64_t)pass->num_tokens * op->top_k;
    memset(counts, 0, (size_t)op->experts * 4);
    for (int64_t i = 0; i < num_choices; i++) {
        int64_t t = i / op->top_k;
        if (op->capacity && i % op->top_k == 0 && (!t || pass->rows[t] != pass->rows[t - 1]))
            memset(asked, 0, (size_t)op->experts * 4);
        if (op->capacity && ++asked[places[i]] > op->capacity) places[i] = -1;
        else counts[places[i]]++;
    }
    for (int32_t expert = 0; expert < op->experts; expert++) {
        int32_t count = counts[expert];
        counts[expert] = first;
        if (!count) continue;
        sorted[2 + 2 * num_filled] = expert;
        sorted[3 + 2 * num_filled++] = first;
        first += count;
    }
    sorted[0] = first, sorted[1] = num_filled, sorted[3 + 2 * num_filled] = first;
    for (int64_t i = 0; i < num_choices; i++)
        if (places[i] >= 0) places[i] = counts[places[i]]++;
}

/* What a token's experts read: prepared once, then copied to each of its rows. */
static void spread(const Op *op, const Pass *pass, int64_t t, const float *x) {
    const int32_t *places = pass->places + t * op->top_k;
    const int64_t bytes = row_bytes(op), scalings = groups_of(op) * 2;
    int64_t first = -1;
    for (int j = 0; j < op->top_k; j++) {
        int64_t row = places[j];
        if (row < 0) continue;
        if (op->kind == FLOATS) {
            memcpy(pass->buffers[op->target] + row * pass->strides[op->target], x, (size_t)op->count * 4);
        } else if (first < 0) {
            danlu_prepare(op, pass, row, x);
            first = row;
        } else {
            memcpy(pass->prepared + row * bytes, pass->prepared + first * bytes, (size_t)bytes);
            if (op->kind == BYTES) memcpy(pass->steps + row * scalings, pass->steps + first * scalings, (size_t)scalings * 4);
        }
    }
}

/* The sum of what a token's experts say, by their shares, best first. */
static void combine(const Op *op, const Pass *pass, int64_t t, float *y) {
    const int32_t *places = pass->places + t * op->top_k;
    const float *shares = pass->shares + t * op->top_k, *rows = pass->buffers[op->source];
    const int64_t stride = pass->strides[op->source];
    for (int i = 0; i < op->count; i += 16) {
        __mmask16 m = tail(op->count - i);
        __m512 v = _mm512_setzero_ps();
        for (int j = 0; j < op->top_k; j++)
            if (places[j] >= 0)
                v = _mm512_fmadd_ps(_mm512_set1_ps(shares[j]), _mm512_maskz_loadu_ps(m, rows + places[j] * stride + i), v);
        if (op->adds) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(m, y + i));
        _mm512_mask_storeu_ps(y + i, m, v);
    }
}

/* Times the sigmoid of a number that the router's product made beside its logits. */
static void weigh(const Op *op, const float *x, float *y) {
    __m512 gate = sigmoid(_mm512_set1_ps(*x));
    for (int i = 0; i < op->count; i += 16) {
        __mmask16 m = tail(op->count - i);
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(gate, _mm512_maskz_loadu_ps(m, y + i)));
    }
}

void danlu_route(const Op *op, const Pass *pass, int64_t t, float *x, float *y) {
    switch (op->code) {
    case ROUTE: route(op, pass, t, x); break;
    case SORT: /* all tokens at once: it stands in a phase of one block, or alone */
        if (!t) sort(op, pass);
        break;
    case SPREAD: spread(op, pass, t, x); break;
    case COMBINE: combine(op, pass, t, y); break;
    default: weigh(op, x, y);
    }
}

/* Part `part` of `parts` of the outputs of the expert that stands at `which` among those that were chosen. */
void danlu_expert(const Op *op, const Pass *pass, int64_t which, int64_t part, int64_t parts) {
    if (which >= pass->sorted[1]) return;
    const int32_t *found = pass->sorted + 2 + 2 * which; /* expert, first row; then those of the next */
    const int64_t panels = panels_of(op), room = tile_of(op);
    Op own = *op;
    own.weight = (const uint8_t *)op->weight + found[0] * panels * panel_bytes(op);
    if (op->scales) own.scales = op->scales + (int64_t)found[0] * op->width;
    if (op->bias) own.bias = op->bias + (int64_t)found[0] * op->width;
    for (int64_t start = found[1]; start < found[3]; start += room)
        danlu_product(&own, pass, panels * part / parts, panels * (part + 1) / parts, start, start + room < found[3] ? start + room : found[3]);
}

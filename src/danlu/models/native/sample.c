/* How logits become tokens: the likeliest one, or a draw from what temperature and filters leave; and how likely they
 * were. The arithmetic of models/sampling.py, which is the reference.
 */
#include "danlu.h"
#include <float.h>
#include <stdlib.h>

#define FEW 32 /* numbers that are sorted rather than divided any further */

typedef struct {
    float temperature, top_p, min_p;
    int32_t top_k;                /* 0: all */
    double uniform;               /* the random number of a draw */
} Rule;                           /* kept equal to native/sample.py */

INLINE double sum_of(__m512 x) {
    __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x)), high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    return _mm512_reduce_add_pd(_mm512_add_pd(low, high));
}

INLINE __m512d add_wide(__m512d sum, __m512 x) {
    sum = _mm512_add_pd(sum, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
    return _mm512_add_pd(sum, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
}

INLINE __m512 load(const float *x, int i, int size) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), tail(size - i), x + i);
}

/* The first of the largest numbers; 0 where none is larger than minus infinity. */
static int likeliest(const float *x, int size, float *value) {
    __m512 most[4];
    for (int j = 0; j < 4; j++) most[j] = _mm512_set1_ps(-INFINITY);
    int i = 0;
    for (; i + 64 <= size; i += 64)
        for (int j = 0; j < 4; j++) most[j] = _mm512_max_ps(_mm512_loadu_ps(x + i + 16 * j), most[j]);
    for (; i < size; i += 16) most[0] = _mm512_max_ps(load(x, i, size), most[0]);
    float best = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3])));
    *value = best;
    for (i = 0; i < size; i += 16) {
        __mmask16 same = _mm512_mask_cmp_ps_mask(tail(size - i), load(x, i, size), _mm512_set1_ps(best), _CMP_EQ_OQ);
        if (same) return i + __builtin_ctz(same);
    }
    return 0;
}

static int falling(const void *a, const void *b) {
    float x = ((const float *)a)[0], y = ((const float *)b)[0];
    return x < y ? 1 : x > y ? -1 : 0;
}

/* The largest number such that those at least as large weigh `target` together (or the smallest there is). Pairs of a
 * number and its weight lie in x and w, which this overwrites. */
static float reaching(float *x, float *w, int size, double target) {
    double above = 0.0; /* weight of what is larger than all that are left */
    while (size > FEW) {
        __m512 least = _mm512_set1_ps(INFINITY), most = _mm512_set1_ps(-INFINITY);
        for (int i = 0; i < size; i += 16) {
            __mmask16 m = tail(size - i);
            __m512 v = _mm512_maskz_loadu_ps(m, x + i);
            least = _mm512_mask_min_ps(least, m, least, v);
            most = _mm512_mask_max_ps(most, m, most, v);
        }
        float low = _mm512_reduce_min_ps(least), high = _mm512_reduce_max_ps(most);
        if (low == high) return low;
        float middle = low + (high - low) * 0.5f;
        if (!(middle > low)) middle = high;
        __m512 border = _mm512_set1_ps(middle);
        __m512d sum = _mm512_setzero_pd();
        for (int i = 0; i < size; i += 16) {
            __mmask16 m = _mm512_mask_cmp_ps_mask(tail(size - i), _mm512_maskz_loadu_ps(tail(size - i), x + i), border, _CMP_GE_OQ);
            sum = add_wide(sum, _mm512_maskz_loadu_ps(m, w + i));
        }
        double mass = above + _mm512_reduce_add_pd(sum);
        int keeps_upper = mass >= target, kept = 0;
        for (int i = 0; i < size; i += 16) { /* never writes beyond what was read */
            __mmask16 m = tail(size - i);
            __m512 v = _mm512_maskz_loadu_ps(m, x + i), u = _mm512_maskz_loadu_ps(m, w + i);
            __mmask16 upper = _mm512_mask_cmp_ps_mask(m, v, border, _CMP_GE_OQ), stays = keeps_upper ? upper : m & ~upper;
            int count = __builtin_popcount(stays);
            _mm512_mask_storeu_ps(x + kept, tail(count), _mm512_maskz_compress_ps(stays, v));
            _mm512_mask_storeu_ps(w + kept, tail(count), _mm512_maskz_compress_ps(stays, u));
            kept += count;
        }
        if (!keeps_upper) above = mass;
        size = kept;
    }
    float pairs[FEW][2];
    for (int i = 0; i < size; i++) pairs[i][0] = x[i], pairs[i][1] = w[i];
    qsort(pairs, (size_t)size, sizeof pairs[0], falling);
    for (int i = 0; i < size; i++) {
        above += pairs[i][1];
        if (above >= target) return pairs[i][0];
    }
    return size ? pairs[size - 1][0] : -INFINITY;
}

/* Copies the numbers that are at least `border` and weigh at least `lightest`, and their weights; how many. */
static int gather(const float *x, const float *w, int size, float border, float lightest, float *to_x, float *to_w) {
    int kept = 0;
    for (int i = 0; i < size; i += 16) {
        __mmask16 m = tail(size - i);
        __m512 v = _mm512_maskz_loadu_ps(m, x + i), u = _mm512_maskz_loadu_ps(m, w + i);
        m = _mm512_mask_cmp_ps_mask(m, v, _mm512_set1_ps(border), _CMP_GE_OQ);
        m = _mm512_mask_cmp_ps_mask(m, u, _mm512_set1_ps(lightest), _CMP_GE_OQ);
        if (!m) continue;
        _mm512_storeu_ps(to_x + kept, _mm512_maskz_compress_ps(m, v)); /* there is room for 16 more */
        _mm512_storeu_ps(to_w + kept, _mm512_maskz_compress_ps(m, u));
        kept += __builtin_popcount(m);
    }
    return kept;
}

static double weight_from(const float *x, const float *w, int size, float border) {
    __m512d sum = _mm512_setzero_pd();
    for (int i = 0; i < size; i += 16) {
        __mmask16 m = _mm512_mask_cmp_ps_mask(tail(size - i), load(x, i, size), _mm512_set1_ps(border), _CMP_GE_OQ);
        sum = add_wide(sum, _mm512_maskz_loadu_ps(m, w + i));
    }
    return _mm512_reduce_add_pd(sum);
}

/* room: four times size + 64 numbers. */
static int draw(const float *logits, int size, const Rule *rule, float *room) {
    float best, temperature = rule->temperature > 1e-4f ? rule->temperature : 1e-4f;
    int first = likeliest(logits, size, &best);
    int64_t stride = ((int64_t)size + 79) / 16 * 16;
    float *x = room, *w = x + stride, *some_x = w + stride, *some_w = some_x + stride;
    float most = best / temperature;
    __m512d sum = _mm512_setzero_pd();
    for (int i = 0; i < size; i += 16) {
        __m512 v = _mm512_div_ps(load(logits, i, size), _mm512_set1_ps(temperature));
        __m512 below = _mm512_sub_ps(v, _mm512_set1_ps(most));
        __mmask16 counts = _mm512_cmp_ps_mask(below, _mm512_set1_ps(-87.0f), _CMP_GT_OQ); /* no NaN, no infinity */
        __m512 u = _mm512_maskz_mov_ps(counts, exponential(below));
        _mm512_storeu_ps(x + i, v);
        _mm512_storeu_ps(w + i, u);
        sum = add_wide(sum, u);
    }
    double total = _mm512_reduce_add_pd(sum);
    if (!(total > 0.0) || isinf(total)) return first; /* nothing is possible, or a number is infinite */
    float border = -INFINITY;
    if (rule->top_k > 0 && rule->top_k < size) {
        int count = gather(x, w, size, border, FLT_MIN, some_x, some_w);
        if (count > rule->top_k) {
            for (int i = 0; i < count; i++) some_w[i] = 1.0f;
            border = reaching(some_x, some_w, count, rule->top_k);
            total = weight_from(x, w, size, border);
        }
    }
    if (rule->top_p < 1.0f) { /* what is lighter than this is all together less than what may be left out */
        float lightest = (float)((1.0 - rule->top_p) * total / size * 0.999);
        int count = gather(x, w, size, border, lightest > FLT_MIN ? lightest : FLT_MIN, some_x, some_w);
        float nucleus = reaching(some_x, some_w, count, rule->top_p * total);
        if (nucleus > border) border = nucleus;
    }
    if (rule->min_p > 0.0f && most + logf(rule->min_p) > border) border = most + logf(rule->min_p);
    double wanted = rule->uniform * weight_from(x, w, size, border), passed = 0.0;
    int last = first;
    for (int i = 0; i < size; i += 16) {
        __mmask16 m = _mm512_mask_cmp_ps_mask(tail(size - i), load(x, i, size), _mm512_set1_ps(border), _CMP_GE_OQ);
        if (!m) continue;
        __m512 u = _mm512_maskz_loadu_ps(m, w + i);
        double here = sum_of(u);
        if (!(here > 0.0)) continue;
        if (passed + here > wanted) {
            float numbers[16];
            _mm512_storeu_ps(numbers, u);
            for (int j = 0; j < 16; j++) {
                if (numbers[j] > 0.0f) last = i + j;
                passed += numbers[j];
                if (passed > wanted) return i + j;
            }
            continue; /* the last digit of a sum */
        }
        passed += here;
        last = i + 15 - (__builtin_clz((uint32_t)_mm512_cmp_ps_mask(u, _mm512_setzero_ps(), _CMP_GT_OQ)) - 16);
    }
    return last;
}

/* The next token of each row: logits (rows, size), `stride` numbers apart. A rule with temperature 0 takes the
 * likeliest. 0, or -1 without memory. */
int32_t danlu_choose(const float *logits, int64_t stride, int32_t rows, int32_t size, const Rule *rules, int32_t *tokens) {
    float *room = 0, best;
    int32_t failed = 0;
    for (int32_t row = 0; row < rows; row++) {
        const float *x = logits + row * stride;
        if (!(rules[row].temperature > 0.0f)) {
            tokens[row] = likeliest(x, size, &best);
            continue;
        }
        if (!room) room = malloc(sizeof(float) * 4 * ((size_t)size + 96));
        if (!room) {
            failed = -1;
            break;
        }
        tokens[row] = draw(x, size, rules + row, room);
    }
    free(room);
    return failed;
}

/* Makes the numbers impossible whose bits are not set; those beyond the last bit, too. bits: 16 numbers each. */
void danlu_forbid(float *x, int32_t size, const uint16_t *bits, int32_t count) {
    for (int i = 0; i < size; i += 16) {
        __mmask16 kept = i / 16 < count ? bits[i / 16] : 0;
        _mm512_mask_storeu_ps(x + i, tail(size - i) & ~kept, _mm512_set1_ps(-INFINITY));
    }
}

/* The log of the sum of exponentials, and the `top` largest numbers with their places, the largest first. */
void danlu_note(const float *x, int32_t size, int32_t top, float *log_sum, int32_t *places, float *values) {
    __m512 most = _mm512_set1_ps(-INFINITY);
    float border = -INFINITY;
    int32_t count = 0;
    for (int i = 0; i < size; i += 16) {
        __m512 v = load(x, i, size);
        most = _mm512_max_ps(v, most);
        if (!top) continue;
        __mmask16 m = tail(size - i);
        if (count == top) m = _mm512_mask_cmp_ps_mask(m, v, _mm512_set1_ps(border), _CMP_GT_OQ);
        for (; m; m &= m - 1) {
            int place = i + __builtin_ctz(m);
            if (count == top && !(x[place] > border)) continue;
            int at = count < top ? count++ : top - 1;
            for (; at > 0 && values[at - 1] < x[place]; at--) values[at] = values[at - 1], places[at] = places[at - 1];
            values[at] = x[place], places[at] = place;
            border = values[count - 1];
        }
    }
    float best = _mm512_reduce_max_ps(most);
    __m512d sum = _mm512_setzero_pd();
    for (int i = 0; i < size; i += 16) {
        __m512 below = _mm512_sub_ps(load(x, i, size), _mm512_set1_ps(best));
        __mmask16 counts = _mm512_cmp_ps_mask(below, _mm512_set1_ps(-87.0f), _CMP_GT_OQ);
        sum = add_wide(sum, _mm512_maskz_mov_ps(counts, exponential(below)));
    }
    *log_sum = best + (float)log(_mm512_reduce_add_pd(sum));
}

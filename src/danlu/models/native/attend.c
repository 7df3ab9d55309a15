/* Queries meet the keys of their row page by page; the softmax is taken over fixed chunks of keys and merged in order.
 *
 * So scratch does not grow with the context, a long row can be split over threads, and neither that nor the queries
 * beside it change a single bit of an answer (Milakov & Gimelshein 2018 for the merging).
 */
#include "danlu.h"

typedef struct { /* queries that read keys together */
    const float *q[QUERIES];
    float *out[QUERIES];
    const float *bias[QUERIES]; /* of distance 0, or none */
    int begin[QUERIES], end[QUERIES]; /* keys each of them sees */
    float most[QUERIES], total[QUERIES]; /* the softmax so far */
    int earliest, latest;       /* keys that some of them see */
    const int32_t *table;
    int kv;
} Tile;

INLINE __m512 load(const void *numbers, int64_t at, const int kind, __mmask16 m) {
    if (kind == BYTES)
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(m, (const int8_t *)numbers + at)));
    if (kind == HALVES) return from_halves(_mm256_maskz_loadu_epi16(m, (const uint16_t *)numbers + at));
    return _mm512_maskz_loadu_ps(m, (const float *)numbers + at);
}

/* Steps of 8-bit keys or values of one page: (PAGE,). */
static const float *scales_of(const Op *op, const Tile *tile, float *const *const *scales, int page) {
    return scales[op->cross][op->layer] + ((int64_t)tile->table[page] * op->kv_heads + tile->kv) * PAGE;
}

/* Scores of one page: (queries, PAGE) at `scores`, rows CHUNK apart. */
INLINE void meet_keys(const Op *op, const Pass *pass, const Tile *tile, int page, float *scores, const int num, const int kind) {
    const void *pool = pass->keys[op->cross][op->layer];
    int64_t at = ((int64_t)tile->table[page] * op->kv_heads + tile->kv) * op->width * PAGE;
    __m512 sums[QUERIES][4];
#pragma GCC unroll 8
    for (int i = 0; i < num; i++)
#pragma GCC unroll 8
        for (int j = 0; j < 4; j++) sums[i][j] = _mm512_setzero_ps();
    const int bytes = kind == BYTES ? 1 : kind == HALVES ? 2 : 4;
    const char *values = (const char *)pass->values[op->cross][op->layer] + at * bytes;
    const char *next = (const char *)pool + at * bytes;
    if (page + 1 < (tile->latest + PAGE - 1) / PAGE)
        next = (const char *)pool + ((int64_t)tile->table[page + 1] * op->kv_heads + tile->kv) * op->width * PAGE * bytes;
    for (int e = 0; e < op->width; e++, at += PAGE, next += PAGE * bytes, values += PAGE * bytes) {
        __m512 k[4];
#pragma GCC unroll 4
        for (int j = 0; j < PAGE * bytes; j += 64) { /* what is needed next lies elsewhere: no hardware foresees it */
            _mm_prefetch(next + j, _MM_HINT_T0);
            _mm_prefetch(values + j, _MM_HINT_T1);
        }
#pragma GCC unroll 8
        for (int j = 0; j < 4; j++) k[j] = load(pool, at + 16 * j, kind, 0xffff);
#pragma GCC unroll 8
        for (int i = 0; i < num; i++) {
            __m512 v = _mm512_set1_ps(tile->q[i][e]);
#pragma GCC unroll 8
            for (int j = 0; j < 4; j++) sums[i][j] = _mm512_fmadd_ps(v, k[j], sums[i][j]);
        }
    }
    const float *scales = kind == BYTES ? scales_of(op, tile, pass->key_scales, page) : 0;
#pragma GCC unroll 8
    for (int j = 0; j < 4; j++) {
        __m512 scale = kind == BYTES ? _mm512_loadu_ps(scales + 16 * j) : _mm512_setzero_ps();
#pragma GCC unroll 8
        for (int i = 0; i < num; i++)
            _mm512_storeu_ps(scores + i * CHUNK + 16 * j, kind == BYTES ? _mm512_mul_ps(sums[i][j], scale) : sums[i][j]);
    }
}

/* Scores from key `first` on become weights: scaled, capped, biased, masked, exp(score - most). Gives most and total. */
static void weigh(const Op *op, const Tile *tile, int i, float *scores, int first, int count, float *most, float *total) {
    __m512 scale = _mm512_set1_ps(op->scale), cap = _mm512_set1_ps(op->softcap);
    __m512 nothing = _mm512_set1_ps(-INFINITY), top = nothing, sum = _mm512_setzero_ps();
    for (int j = 0; j < count; j += 16) {
        __m512 s = _mm512_mul_ps(_mm512_loadu_ps(scores + j), scale);
        if (op->softcap > 0.0f) s = _mm512_mul_ps(cap, tangent(_mm512_div_ps(s, cap)));
        if (tile->bias[i]) s = _mm512_add_ps(s, _mm512_loadu_ps(tile->bias[i] + first + j));
        __mmask16 seen = tail(tile->end[i] - first - j) & (__mmask16)~tail(tile->begin[i] - first - j);
        s = _mm512_mask_mov_ps(nothing, seen, s);
        top = _mm512_max_ps(top, s);
        _mm512_storeu_ps(scores + j, s);
    }
    *most = _mm512_reduce_max_ps(top);
    top = _mm512_set1_ps(*most);
    for (int j = 0; j < count; j += 16) {
        __m512 s = _mm512_loadu_ps(scores + j);
        __mmask16 seen = tail(tile->end[i] - first - j) & (__mmask16)~tail(tile->begin[i] - first - j);
        __m512 p = _mm512_maskz_mov_ps(seen, exponential(_mm512_sub_ps(s, top)));
        sum = _mm512_add_ps(sum, p);
        _mm512_storeu_ps(scores + j, p);
    }
    *total = _mm512_reduce_add_ps(sum);
}

/* (out, most, total) takes in what another chunk found. */
static void merge(float *out, float *most, float *total, const float *more, float top, float sum, int width) {
    if (top == -INFINITY) return; /* it saw nothing */
    if (*most == -INFINITY) {
        memcpy(out, more, (size_t)width * 4);
        *most = top, *total = sum;
        return;
    }
    float both = *most > top ? *most : top;
    __m512 keep = exponential(_mm512_set1_ps(*most - both)), take = exponential(_mm512_set1_ps(top - both));
    for (int c = 0; c < width; c += 16) {
        __mmask16 m = tail(width - c);
        __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(m, out + c), keep);
        _mm512_mask_storeu_ps(out + c, m, _mm512_fmadd_ps(_mm512_maskz_loadu_ps(m, more + c), take, v));
    }
    *total = *total * _mm512_cvtss_f32(keep) + sum * _mm512_cvtss_f32(take);
    *most = both;
}

/* Channels from `c` on, `lanes` vectors of them, of values of keys from `from` to `to` of a chunk, weighed. */
INLINE void meet_channels(
    const Op *op, const Pass *pass, const Tile *tile, int from, int to, int c, const float *weights, float *mixed,
    const int num, const int kind, const int lanes) {
    const void *pool = pass->values[op->cross][op->layer];
    int width = op->width, start = from / PAGE * PAGE;
    __m512 sums[QUERIES][4];
    __mmask16 masks[4];
#pragma GCC unroll 8
    for (int j = 0; j < lanes; j++) masks[j] = tail(width - c - 16 * j);
#pragma GCC unroll 8
    for (int i = 0; i < num; i++)
#pragma GCC unroll 8
        for (int j = 0; j < lanes; j++) sums[i][j] = _mm512_setzero_ps();
    for (int page = from / PAGE; page * PAGE < to; page++) {
        int64_t at = (((int64_t)tile->table[page] * op->kv_heads + tile->kv) * PAGE) * width + c;
        int n = page * PAGE < from ? from % PAGE : 0, last = to - page * PAGE < PAGE ? to - page * PAGE : PAGE;
        for (; n < last; n++) {
            __m512 v[4];
#pragma GCC unroll 8
            for (int j = 0; j < lanes; j++) v[j] = load(pool, at + (int64_t)n * width + 16 * j, kind, masks[j]);
#pragma GCC unroll 8
            for (int i = 0; i < num; i++) {
                __m512 w = _mm512_set1_ps(weights[i * CHUNK + page * PAGE - start + n]);
#pragma GCC unroll 8
                for (int j = 0; j < lanes; j++) sums[i][j] = _mm512_fmadd_ps(w, v[j], sums[i][j]);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < num; i++)
#pragma GCC unroll 8
        for (int j = 0; j < lanes; j++) _mm512_mask_storeu_ps(mixed + i * width + c + 16 * j, masks[j], sums[i][j]);
}

/* All channels: (queries, width) at `mixed`. */
INLINE void meet_values(
    const Op *op, const Pass *pass, const Tile *tile, int from, int to, const float *weights, float *mixed, const int num,
    const int kind) {
    for (int c = 0; c < op->width; c += 64)
        if (op->width - c > 32) meet_channels(op, pass, tile, from, to, c, weights, mixed, num, kind, 4);
        else meet_channels(op, pass, tile, from, to, c, weights, mixed, num, kind, 2);
}

/* One chunk of keys for the queries of a tile: merged into their outs. */
INLINE void meet_chunk(const Op *op, const Pass *pass, Tile *tile, int chunk, const int num, const int kind) {
    float scores[QUERIES * CHUNK] __attribute__((aligned(64)));
    float mixed[QUERIES * op->width], tops[QUERIES], sums[QUERIES];
    int from = chunk * CHUNK, to = from + CHUNK;
    if (from < tile->earliest) from = tile->earliest;
    if (to > tile->latest) to = tile->latest;
    if (from >= to) return;
    int start = from / PAGE * PAGE, pages = (to - start + PAGE - 1) / PAGE;
    for (int p = 0; p < pages; p++) meet_keys(op, pass, tile, start / PAGE + p, scores + p * PAGE, num, kind);
    for (int i = 0; i < num; i++) weigh(op, tile, i, scores + i * CHUNK, start, pages * PAGE, tops + i, sums + i);
    for (int p = 0; kind == BYTES && p < pages; p++) { /* the step of a value goes into its weight */
        const float *scales = scales_of(op, tile, pass->value_scales, start / PAGE + p);
        for (int i = 0; i < num; i++)
            for (int j = 0; j < PAGE; j += 16) {
                float *weights = scores + i * CHUNK + p * PAGE + j;
                _mm512_storeu_ps(weights, _mm512_mul_ps(_mm512_loadu_ps(weights), _mm512_loadu_ps(scales + j)));
            }
    }
    meet_values(op, pass, tile, from, to, scores, mixed, num, kind);
    for (int i = 0; i < num; i++)
        merge(tile->out[i], tile->most + i, tile->total + i, mixed + i * op->width, tops[i], sums[i], op->width);
}

#define MEET(NAME, KIND, NUM) \
    static void NAME##NUM(const Op *op, const Pass *pass, Tile *tile, int chunk) { meet_chunk(op, pass, tile, chunk, NUM, KIND); }
#define MEETS(NAME, KIND) MEET(NAME, KIND, 1) MEET(NAME, KIND, 2) MEET(NAME, KIND, 3) MEET(NAME, KIND, 4) MEET(NAME, KIND, 5) MEET(NAME, KIND, 6)
MEETS(meet_bytes, BYTES)
MEETS(meet_halves, HALVES)
MEETS(meet_floats, FLOATS)
typedef void (*Meet)(const Op *, const Pass *, Tile *, int);
static const Meet MEETINGS[][QUERIES + 1] = {
    {0, meet_bytes1, meet_bytes2, meet_bytes3, meet_bytes4, meet_bytes5, meet_bytes6},
    {0, meet_halves1, meet_halves2, meet_halves3, meet_halves4, meet_halves5, meet_halves6},
    {0, meet_floats1, meet_floats2, meet_floats3, meet_floats4, meet_floats5, meet_floats6},
};

/* What a query sees: keys begin ... end. */
static void look(const Op *op, const Pass *pass, int64_t t, int *begin, int *end) {
    int position = pass->positions[t], length = pass->lengths[op->cross][pass->rows[t]];
    *end = op->causal ? position + 1 : length;
    *begin = 0;
    if (op->window && position - op->window + 1 > 0) *begin = position - op->window + 1;
    if (op->window && position + op->window < *end) *end = position + op->window;
}

static float *partial_of(const Op *op, const Pass *pass, int64_t t, int head, int split) {
    return pass->partials + ((t * op->heads + head) * pass->num_splits + split) * (op->width + 2);
}

static void finish(float *out, float total, int width) {
    __m512 inverse = _mm512_set1_ps(1.0f / total);
    for (int c = 0; c < width; c += 16) {
        __mmask16 m = tail(width - c);
        _mm512_mask_storeu_ps(out + c, m, _mm512_mul_ps(_mm512_maskz_loadu_ps(m, out + c), inverse));
    }
}

/* Tokens of a block and their heads of one key/value head; with a split, of this chunk alone and into partials. */
void danlu_attend(const Op *op, const Pass *pass, const Block *block, int kv, int split) {
    int width = op->width, group = op->heads / op->kv_heads, count = (block->end - block->start) * group;
    int num_tiles = (count + QUERIES - 1) / QUERIES;
    for (int number = 0; number < num_tiles; number++) {
        Tile tile = {.kv = kv, .earliest = INT32_MAX};
        int first = (int)((int64_t)count * number / num_tiles);
        int num = (int)((int64_t)count * (number + 1) / num_tiles) - first;
        for (int i = 0; i < num; i++) {
            int head = kv * group + (first + i) % group;
            int64_t t = block->start + (first + i) / group;
            tile.q[i] = pass->buffers[op->source] + t * pass->strides[op->source] + op->first + head * width;
            tile.out[i] = pass->buffers[op->target] + t * pass->strides[op->target] + head * width;
            if (split >= 0) tile.out[i] = partial_of(op, pass, t, head, split);
            if (pass->bias && !op->cross) tile.bias[i] = pass->bias + head * pass->bias_stride + pass->bias_zero - pass->positions[t];
            look(op, pass, t, tile.begin + i, tile.end + i);
            tile.most[i] = -INFINITY, tile.total[i] = 0.0f;
            if (tile.begin[i] < tile.earliest) tile.earliest = tile.begin[i];
            if (tile.end[i] > tile.latest) tile.latest = tile.end[i];
        }
        tile.table = pass->tables[op->cross] + (int64_t)pass->rows[block->start] * pass->table_width[op->cross];
        int chunk = split >= 0 ? split : tile.earliest / CHUNK;
        int last = split >= 0 ? split : (tile.latest - 1) / CHUNK;
        for (; chunk <= last; chunk++) MEETINGS[pass->kept][num](op, pass, &tile, chunk);
        for (int i = 0; i < num; i++) {
            if (split < 0) finish(tile.out[i], tile.total[i], width);
            else tile.out[i][width] = tile.most[i], tile.out[i][width + 1] = tile.total[i];
        }
    }
}

/* Partials of a token's heads, in order. */
void danlu_merge(const Op *op, const Pass *pass, int64_t t, int kv) {
    int group = op->heads / op->kv_heads, width = op->width;
    for (int head = kv * group; head < (kv + 1) * group; head++) {
        float *out = pass->buffers[op->target] + t * pass->strides[op->target] + head * width;
        float most = -INFINITY, total = 0.0f;
        for (int split = 0; split < pass->num_splits; split++) {
            const float *partial = partial_of(op, pass, t, head, split);
            merge(out, &most, &total, partial, partial[width], partial[width + 1], width);
        }
        finish(out, total, width);
    }
}

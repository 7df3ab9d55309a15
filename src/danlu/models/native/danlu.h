/* What the kernels share: the operations of a pass, the pass itself, and arithmetic on vectors of 16.
 *
 * Op and Pass are kept equal to native/structs.py; danlu_sizes lets Python check it.
 */
#ifndef DANLU_H
#define DANLU_H

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define OUTS 64     /* outputs of a weight's panel: four vectors */
#define LANES 4     /* vectors of a panel */
#define PAGE 64     /* tokens of a page */
#define GROUP 64    /* inputs of an 8-bit product that share a step */
#define CHUNK 512   /* keys whose softmax is taken at once; always the same ones, so that sums have one order */
#define QUERIES 6   /* queries that read keys together */
#define MOST_RANK 1024
#define MOST_THREADS 64
#define TILE_BYTES (192 << 10) /* rows of a product that stay in a core's cache beside a panel */
#define INLINE static inline __attribute__((always_inline))

enum { NORM, PREPARE, PRODUCT, ROTATE, STORE, ATTEND, GATE, ACTIVATE, ADD, SCALE, SOFTCAP, GATHER, ROUTE, SORT, SPREAD, EXPERTS, COMBINE, WEIGH };
enum { SILU, GELU, GELU_TANH, QUICK_GELU, RELU, RELU6, TANH };
enum { BYTES, HALVES, FLOATS }; /* numbers of a weight */
enum { RMS_NORM, LAYER_NORM };

typedef struct {
    int32_t code, kind;           /* kind: of norm, activation or weight */
    int32_t source, target;       /* buffers */
    int32_t first, count;         /* channels of the source: where they start, how many */
    int32_t target_first, width;  /* where channels go; width: outputs of a product, of a head, turned channels */
    int32_t heads, kv_heads, layer, table;
    int32_t adds, causal, window, cross;
    int32_t product, of_outs;     /* number of a product, -1 where adapters add nothing; whether GATHER took its tokens */
    int32_t experts, top_k;       /* of a layer of experts, of each token */
    int32_t capacity, normalise;  /* rows that an expert takes, 0 for all; whether shares of a token are made to sum to 1 */
    int32_t by_choice, reserved;  /* whether rows are those that SORT gave to choices */
    float epsilon, scale, offset, softcap;
    const void *weight;
    const float *scales, *bias;
} Op;

typedef struct {
    int32_t rank, is_half;        /* whole vectors of 16; is_half: bf16, else fp32 */
    const uint8_t *down, *up;     /* by steps of four bytes: 64 ranks and less in the last panel; panels of 64 outputs */
    const int32_t *panels;        /* of each panel of `up`: the first step that is not zero, how many, where they lie */
} Adapter;

typedef struct {
    int32_t num_tokens, num_ops, num_outs, num_threads;
    int32_t num_products, kept, num_splits, reserved; /* kept: numbers of keys and values; splits: chunks worked on apart */
    int32_t table_width[2];       /* own pages, pages of the memory */
    int64_t bias_stride, bias_zero;
    const Op *ops;
    float *const *buffers;        /* (tokens, strides[i]) each */
    const int32_t *strides;
    const int32_t *positions;     /* of each token in its row */
    const int32_t *rows;          /* table that a token looks at */
    const int32_t *outs;          /* tokens that GATHER takes */
    const int32_t *tables[2];     /* pages of each row, (rows, table_width) */
    const int32_t *lengths[2];    /* tokens of each row: what all see where nothing is causal */
    void *const *keys[2];         /* of each layer: (pages, kv heads, width, PAGE) */
    void *const *values[2];       /* of each layer: (pages, kv heads, PAGE, width) */
    float *const *key_scales[2];  /* of 8-bit ones, of each layer: (pages, kv heads, PAGE) */
    float *const *value_scales[2];
    const float *const *angles;   /* cosines, then sines of each position: (positions, turned channels) */
    const float *bias;            /* of scores by distance: head · bias_stride + distance + bias_zero */
    uint8_t *prepared;            /* rows that the next product reads */
    float *steps;                 /* of 8-bit rows: step and low of each group of GROUP, (tokens, groups, 2) */
    float *partials;              /* of splits: (tokens, heads, splits, width + 2) */
    const Adapter *adapters;      /* (slots, products), or none */
    const int32_t *slots[2];      /* adapter of each token and of each that is taken, -1 for none */
    float *lowered;               /* (tokens, MOST_RANK), fp32 or bf16 */
    int32_t *places;              /* (tokens, top_k): experts, best first; after SORT rows of choices, -1 for none */
    float *shares;                /* (tokens, top_k) */
    int32_t *sorted;              /* rows, experts that have some, then expert and first row of each; room for counts */
} Pass;

typedef struct {
    int32_t start, end;           /* tokens that look at the same keys together */
} Block;

/* Items of a phase: rows of operations from first to last, panels of a product, blocks and heads of attention. */
typedef struct {
    int32_t first, last, kind, num_tokens;
    int32_t num_tasks, unit, tile, num_tiles;
} Phase;

enum { BY_TOKEN, BY_PANEL, BY_EXPERT, BY_BLOCK, BY_MERGE };

void danlu_lower(const Op *op, const Pass *pass, int64_t start, int64_t end);
void danlu_prepare(const Op *op, const Pass *pass, int64_t t, const float *x);
void danlu_route(const Op *op, const Pass *pass, int64_t t, float *x, float *y);
void danlu_expert(const Op *op, const Pass *pass, int64_t which, int64_t part, int64_t parts);
void danlu_rows(const Op *op, const Pass *pass, int64_t start, int64_t end);
void danlu_product(const Op *op, const Pass *pass, int64_t panel, int64_t panel_end, int64_t start, int64_t end);
void danlu_attend(const Op *op, const Pass *pass, const Block *block, int kv, int split);
void danlu_merge(const Op *op, const Pass *pass, int64_t token, int kv);

INLINE int64_t groups_of(const Op *op) { return ((int64_t)op->count + GROUP - 1) / GROUP; }

/* Bytes of a row that a product reads: whole steps of four. */
INLINE int64_t row_bytes(const Op *op) {
    static const int sizes[] = {1, 2, 4};
    return ((int64_t)op->count * sizes[op->kind] + 3) / 4 * 4;
}

INLINE int64_t panels_of(const Op *op) { return ((int64_t)op->width + OUTS - 1) / OUTS; }

/* Weights of one panel; after each group of 8-bit ones stand 16-bit sums. */
INLINE int64_t panel_bytes(const Op *op) { return row_bytes(op) * OUTS + (op->kind == BYTES ? groups_of(op) * OUTS * 2 : 0); }

/* Tokens of a product that are taken together. */
INLINE int64_t tile_of(const Op *op) { return TILE_BYTES / row_bytes(op) < 48 ? 48 : TILE_BYTES / row_bytes(op); }

INLINE __mmask16 tail(int64_t left) { return left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1u); }

INLINE __m512 from_halves(__m256i x) { /* bf16 -> fp32 */
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

INLINE uint16_t to_half(float x) { /* to nearest, ties to even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 64u);
    bits += 0x7fffu + ((bits >> 16) & 1u);
    return (uint16_t)(bits >> 16);
}

INLINE __m256i to_halves(__m512 x) {
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(x);
#else
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(1 << 22));
    up = _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
#endif
}

/* Four products of unsigned by signed bytes, or two of bf16, or one of fp32, added to each sum. */
INLINE __m512i dot(__m512i sum, __m512i x, __m512i w, const int kind) {
    if (kind == FLOATS) return _mm512_castps_si512(_mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), _mm512_castsi512_ps(sum)));
    if (kind == HALVES) {
#ifdef __AVX512BF16__
        return (__m512i)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
        __m512i high = _mm512_set1_epi32((int)0xffff0000u);
        __m512 s = _mm512_fmadd_ps((__m512)_mm512_slli_epi32(x, 16), (__m512)_mm512_slli_epi32(w, 16), (__m512)sum);
        return (__m512i)_mm512_fmadd_ps((__m512)_mm512_and_si512(x, high), (__m512)_mm512_and_si512(w, high), s);
#endif
    }
#ifdef __AVX512VNNI__
    return _mm512_dpbusd_epi32(sum, x, w);
#else
    __m512i even = _mm512_madd_epi16(
        _mm512_and_si512(x, _mm512_set1_epi16(0xff)), _mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8));
    __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(x, 8), _mm512_srai_epi16(w, 8));
    return _mm512_add_epi32(sum, _mm512_add_epi32(even, odd));
#endif
}

INLINE __m512 exponential(__m512 x) { /* relative error below 2e-7 in [-87, 88]; what lies outside is moved there */
    x = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), x)); /* in this order NaN stays */
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x); /* log 2 in two parts */
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040.0f); /* Taylor's series: |r| is at most log 2 / 2 */
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

INLINE __m512 sigmoid(__m512 x) {
    __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

INLINE __m512 tangent(__m512 x) { /* tanh(x) = 1 - 2 / (exp(2 x) + 1) */
    __m512 one = _mm512_set1_ps(1.0f), two = _mm512_set1_ps(2.0f);
    return _mm512_sub_ps(one, _mm512_div_ps(two, _mm512_add_ps(exponential(_mm512_mul_ps(two, x)), one)));
}

INLINE __m512 error_function(__m512 x) { /* Abramowitz & Stegun 1964, 7.1.26: within 1.5e-7 */
    __m512 one = _mm512_set1_ps(1.0f), away = _mm512_abs_ps(x);
    __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(_mm512_set1_ps(0.3275911f), away, one));
    __m512 p = _mm512_set1_ps(1.061405429f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
    __m512 bell = exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(away, away)));
    __m512 y = _mm512_fnmadd_ps(_mm512_mul_ps(p, t), bell, one);
    return _mm512_mask_sub_ps(y, _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ), _mm512_setzero_ps(), y);
}

#endif

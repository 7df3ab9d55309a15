/* Operations on each token alone: norms, what a product reads, positions, storing keys and values, activations. */
#include "danlu.h"

static void norm(const Op *op, const float *x, float *y) {
    int width = op->count;
    __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (int i = 0; i < width; i += 16) {
        __m512 v = _mm512_maskz_loadu_ps(tail(width - i), x + i);
        sum = _mm512_add_ps(sum, v);
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    float mean = 0.0f, square = _mm512_reduce_add_ps(squares) / (float)width;
    if (op->kind == LAYER_NORM) { /* a second pass keeps the digits that mean squares would lose */
        mean = _mm512_reduce_add_ps(sum) / (float)width;
        squares = _mm512_setzero_ps();
        for (int i = 0; i < width; i += 16) {
            __mmask16 m = tail(width - i);
            __m512 v = _mm512_maskz_sub_ps(m, _mm512_maskz_loadu_ps(m, x + i), _mm512_set1_ps(mean));
            squares = _mm512_fmadd_ps(v, v, squares);
        }
        square = _mm512_reduce_add_ps(squares) / (float)width;
    }
    __m512 inverse = _mm512_set1_ps(1.0f / sqrtf(square + op->epsilon)), middle = _mm512_set1_ps(mean);
    for (int i = 0; i < width; i += 16) {
        __mmask16 m = tail(width - i);
        __m512 v = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + i), middle), inverse);
        __m512 factor = _mm512_add_ps(_mm512_maskz_loadu_ps(m, op->scales + i), _mm512_set1_ps(op->offset));
        v = _mm512_mul_ps(v, factor);
        if (op->bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(m, op->bias + i));
        _mm512_mask_storeu_ps(y + i, m, v);
    }
}

/* Groups of 64 numbers, each of 256 steps from its lowest value, or 0, to its highest: x = step * q + low. */
static void quantize(const float *x, int width, int64_t padded, uint8_t *q, float *steps) {
    for (int first = 0; first < width; first += GROUP, steps += 2) {
        __m512 v[GROUP / 16], least = _mm512_setzero_ps(), most = _mm512_setzero_ps();
        for (int j = 0; j < GROUP / 16; j++) {
            v[j] = _mm512_maskz_loadu_ps(tail(width - first - 16 * j), x + first + 16 * j);
            least = _mm512_min_ps(least, v[j]);
            most = _mm512_max_ps(most, v[j]);
        }
        float low = _mm512_reduce_min_ps(least), step = (_mm512_reduce_max_ps(most) - low) * (1.0f / 255.0f);
        step = step > 1e-12f ? step : 1e-12f;
        steps[0] = step, steps[1] = low;
        __m512 below = _mm512_set1_ps(low), inverse = _mm512_set1_ps(1.0f / step);
        for (int j = 0; j < GROUP / 16; j++) {
            __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(v[j], below), inverse)); /* to nearest */
            whole = _mm512_max_epi32(whole, _mm512_setzero_si512());
            _mm512_mask_cvtusepi32_storeu_epi8(q + first + 16 * j, tail(padded - first - 16 * j), whole);
        }
    }
}

static void halve(const float *x, int width, int64_t padded, uint16_t *h) {
    for (int i = 0; i < padded; i += 16)
        _mm256_mask_storeu_epi16(h + i, tail(padded - i), to_halves(_mm512_maskz_loadu_ps(tail(width - i), x + i)));
}

void danlu_prepare(const Op *op, const Pass *pass, int64_t t, const float *x) {
    int64_t bytes = row_bytes(op);
    if (op->kind == BYTES) quantize(x, op->count, bytes, pass->prepared + t * bytes, pass->steps + t * groups_of(op) * 2);
    else if (op->kind == HALVES) halve(x, op->count, bytes / 2, (uint16_t *)(pass->prepared + t * bytes));
}

/* Half against half of the first channels of each head. */
static void rotate(const Op *op, const Pass *pass, int64_t t, float *x) {
    int half = op->width / 2;
    const float *cosines = pass->angles[op->table] + (int64_t)pass->positions[t] * op->width, *sines = cosines + half;
    for (int h = 0; h < op->heads; h++, x += op->count)
        for (int i = 0; i < half; i += 16) {
            __mmask16 m = tail(half - i);
            __m512 a = _mm512_maskz_loadu_ps(m, x + i), b = _mm512_maskz_loadu_ps(m, x + half + i);
            __m512 c = _mm512_maskz_loadu_ps(m, cosines + i), s = _mm512_maskz_loadu_ps(m, sines + i);
            _mm512_mask_storeu_ps(x + i, m, _mm512_fnmadd_ps(b, s, _mm512_mul_ps(a, c)));
            _mm512_mask_storeu_ps(x + half + i, m, _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c)));
        }
}

/* `width` numbers as steps of a 127th of the largest, `stride` apart; gives the step. */
static float keep_bytes(const float *x, int width, int8_t *q, int64_t stride) {
    __m512 most = _mm512_setzero_ps();
    for (int i = 0; i < width; i += 16) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_maskz_loadu_ps(tail(width - i), x + i)));
    float step = _mm512_reduce_max_ps(most) / 127.0f;
    step = step > 1e-12f ? step : 1e-12f;
    for (int i = 0; i < width; i += 16) {
        __m512 v = _mm512_div_ps(_mm512_maskz_loadu_ps(tail(width - i), x + i), _mm512_set1_ps(step));
        __m128i whole = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)); /* to nearest, ties to even */
        if (stride == 1) {
            _mm_mask_storeu_epi8(q + i, tail(width - i), whole);
            continue;
        }
        int8_t apart[16];
        _mm_storeu_si128((__m128i *)apart, whole);
        for (int j = 0; j < 16 && i + j < width; j++) q[(i + j) * stride] = apart[j];
    }
    return step;
}

/* Keys, then values of a token go where its row's pages say. */
static void store(const Op *op, const Pass *pass, int64_t t, const float *k) {
    int position = pass->positions[t], place = position % PAGE, width = op->width;
    int64_t page = pass->tables[0][(int64_t)pass->rows[t] * pass->table_width[0] + position / PAGE];
    const float *v = k + op->kv_heads * width;
    for (int h = 0; h < op->kv_heads; h++, k += width, v += width) {
        int64_t at = (page * op->kv_heads + h) * width * PAGE;
        if (pass->kept == BYTES) {
            int8_t *keys = (int8_t *)pass->keys[0][op->layer] + at, *values = (int8_t *)pass->values[0][op->layer] + at;
            int64_t scale = (page * op->kv_heads + h) * PAGE + place;
            pass->key_scales[0][op->layer][scale] = keep_bytes(k, width, keys + place, PAGE);
            pass->value_scales[0][op->layer][scale] = keep_bytes(v, width, values + (int64_t)place * width, 1);
        } else if (pass->kept == HALVES) {
            uint16_t *keys = (uint16_t *)pass->keys[0][op->layer] + at + place;
            for (int e = 0; e < width; e++) keys[(int64_t)e * PAGE] = to_half(k[e]);
            halve(v, width, width, (uint16_t *)pass->values[0][op->layer] + at + (int64_t)place * width);
        } else {
            float *keys = (float *)pass->keys[0][op->layer] + at + place;
            for (int e = 0; e < width; e++) keys[(int64_t)e * PAGE] = k[e];
            memcpy((float *)pass->values[0][op->layer] + at + (int64_t)place * width, v, (size_t)width * 4);
        }
    }
}

INLINE __m512 activation(__m512 x, const int kind) {
    __m512 zero = _mm512_setzero_ps();
    if (kind == RELU) return _mm512_max_ps(x, zero);
    if (kind == RELU6) return _mm512_min_ps(_mm512_max_ps(x, zero), _mm512_set1_ps(6.0f));
    if (kind == TANH) return tangent(x);
    if (kind == SILU) return _mm512_mul_ps(x, sigmoid(x));
    if (kind == QUICK_GELU) return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(x, _mm512_set1_ps(1.702f))));
    if (kind == GELU_TANH) { /* x sigmoid(2 u): tanh written with exp */
        __m512 u = _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.044715f), _mm512_set1_ps(1.0f));
        return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(_mm512_mul_ps(x, u), _mm512_set1_ps(1.5957691216f))));
    }
    __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
    return _mm512_fmadd_ps(half, error_function(_mm512_mul_ps(x, _mm512_set1_ps(0.70710678f))), half);
}

INLINE void activate(const Op *op, const float *x, float *y, const int kind) {
    for (int i = 0; i < op->count; i += 16) {
        __mmask16 m = tail(op->count - i);
        __m512 v = activation(_mm512_maskz_loadu_ps(m, x + i), kind);
        if (op->code == GATE) v = _mm512_mul_ps(v, _mm512_maskz_loadu_ps(m, x + op->count + i));
        _mm512_mask_storeu_ps(y + i, m, v);
    }
}

static void activate_row(const Op *op, const float *x, float *y) {
    switch (op->kind) {
    case SILU: activate(op, x, y, SILU); break;
    case GELU: activate(op, x, y, GELU); break;
    case GELU_TANH: activate(op, x, y, GELU_TANH); break;
    case QUICK_GELU: activate(op, x, y, QUICK_GELU); break;
    case RELU: activate(op, x, y, RELU); break;
    case RELU6: activate(op, x, y, RELU6); break;
    default: activate(op, x, y, TANH);
    }
}

static void simple_row(const Op *op, const float *x, float *y) {
    __m512 scale = _mm512_set1_ps(op->scale), inverse = _mm512_set1_ps(1.0f / op->scale);
    for (int i = 0; i < op->count; i += 16) {
        __mmask16 m = tail(op->count - i);
        __m512 v = _mm512_maskz_loadu_ps(m, x + i);
        if (op->code == ADD) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(m, y + i));
        else if (op->code == SCALE) v = _mm512_mul_ps(v, scale);
        else v = _mm512_mul_ps(scale, tangent(_mm512_mul_ps(v, inverse)));
        _mm512_mask_storeu_ps(y + i, m, v);
    }
}

void danlu_rows(const Op *op, const Pass *pass, int64_t start, int64_t end) {
    if (op->code == PREPARE && pass->adapters && op->product >= 0) danlu_lower(op, pass, start, end);
    for (int64_t t = start; t < end; t++) {
        int64_t from = op->code == GATHER ? pass->outs[t] : t;
        float *x = pass->buffers[op->source] + from * pass->strides[op->source] + op->first;
        float *y = pass->buffers[op->target] + t * pass->strides[op->target] + op->target_first;
        switch (op->code) {
        case NORM:
            for (int h = 0; h < op->heads; h++) norm(op, x + h * op->count, y + h * op->count);
            break;
        case PREPARE: danlu_prepare(op, pass, t, x); break;
        case ROTATE: rotate(op, pass, t, x); break;
        case STORE: store(op, pass, t, x); break;
        case GATE:
        case ACTIVATE: activate_row(op, x, y); break;
        case GATHER: memcpy(y, x, (size_t)op->count * 4); break;
        case ADD:
        case SCALE:
        case SOFTCAP: simple_row(op, x, y); break;
        default: danlu_route(op, pass, t, x, y);
        }
    }
}

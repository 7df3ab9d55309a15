/* Copies pages of all layers at once: no more of them than the tokens that are there. */
#include "danlu.h"

typedef struct {
    char *pages;                  /* (pages, rows, PAGE tokens) */
    int64_t rows, token_bytes;    /* rows of a page; bytes of a token in a row */
} Room;                           /* kept equal to native/copies.py */

typedef struct {
    int32_t source, target, tokens;
} Copy;                           /* kept equal to native/copies.py */

/* The first `bytes` of each row, in whole cache lines: a row has whole ones. */
static void copy_rows(char *to, const char *from, int64_t rows, int64_t stride, int64_t bytes) {
    if (bytes > 512 || stride % 64) {
        for (int64_t row = 0; row < rows; row++) memcpy(to + row * stride, from + row * stride, (size_t)bytes);
        return;
    }
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = row * stride; i < row * stride + bytes; i += 64)
            _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
}

/* In their order. */
void danlu_copy(const Room *rooms, int32_t num_rooms, const Copy *copies, int32_t num_copies) {
    for (int32_t r = 0; r < num_rooms; r++) {
        const Room *room = rooms + r;
        int64_t stride = room->token_bytes * PAGE, size = room->rows * stride;
        for (int32_t c = 0; c < num_copies; c++) {
            char *to = room->pages + copies[c].target * size;
            const char *from = room->pages + copies[c].source * size;
            if (copies[c].tokens >= PAGE) memcpy(to, from, (size_t)size);
            else copy_rows(to, from, room->rows, stride, copies[c].tokens * room->token_bytes);
        }
    }
}

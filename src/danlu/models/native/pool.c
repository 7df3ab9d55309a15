/* Threads that go through a pass together, and what Python calls.
 *
 * A pass is a list of phases, a phase a number of tasks. Threads claim tasks from one word that holds the phase, its
 * number of tasks and the next of them; who ends the last task opens the next phase. Nobody waits for a thread, only
 * for tasks: one whose core somebody else has taken holds up no more than what it had claimed. Who finds nothing to do
 * spins for some microseconds and then sleeps, which also lets the system move a thread that waits for a core.
 */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "danlu.h"

#define SPIN_CYCLES 120000      /* about 40 microseconds */
#define MOST_TASKS 60000        /* 16 bits, and room for claims that come too late */
#define TOKENS_OF_BLOCK 16
#define TASK_BYTES (64 << 10)   /* weights that are worth a task */

typedef struct {
    _Atomic uint64_t word __attribute__((aligned(128))); /* phase << 32 | tasks << 16 | next */
    _Atomic uint32_t done __attribute__((aligned(128)));
    _Atomic int32_t sleepers, stops;
    const Pass *pass __attribute__((aligned(128)));
    Phase *phases;
    Block *blocks[2];           /* tokens that look at own pages together, and at pages of the memory */
    uint32_t base;              /* phase number of the first phase of this pass */
    int32_t num_phases, room_phases, num_blocks[2], room_blocks, num_threads;
    pthread_t threads[MOST_THREADS];
} Pool;

static uint32_t *phase_of(Pool *pool) { return (uint32_t *)&pool->word + 1; } /* little endian: the upper half */

static void wake_all(Pool *pool) {
    if (atomic_load(&pool->sleepers)) syscall(SYS_futex, phase_of(pool), FUTEX_WAKE_PRIVATE, INT32_MAX, 0, 0, 0);
}

/* Until the phase is not `phase` any more. */
static void wait_for(Pool *pool, uint32_t phase) {
    uint64_t start = __rdtsc();
    while ((uint32_t)(atomic_load_explicit(&pool->word, memory_order_acquire) >> 32) == phase) {
        if (__rdtsc() - start < SPIN_CYCLES) {
            _mm_pause();
            continue;
        }
        atomic_fetch_add(&pool->sleepers, 1);
        syscall(SYS_futex, phase_of(pool), FUTEX_WAIT_PRIVATE, phase, 0, 0, 0);
        atomic_fetch_sub(&pool->sleepers, 1);
    }
}

static void do_task(const Pool *pool, const Phase *phase, int64_t task) {
    const Pass *pass = pool->pass;
    const Op *op = pass->ops + phase->first;
    int64_t start = task * phase->unit;
    if (phase->kind == BY_TOKEN) {
        int64_t most = op->by_choice ? pass->sorted[0] : phase->num_tokens;
        int64_t end = start + phase->unit < most ? start + phase->unit : most;
        for (int i = phase->first; i < phase->last; i++) danlu_rows(pass->ops + i, pass, start, end);
    } else if (phase->kind == BY_PANEL) {
        int64_t panels = panels_of(op), groups = phase->num_tasks / phase->num_tiles;
        int64_t group = task / phase->num_tiles, number = task % phase->num_tiles;
        danlu_product(
            op, pass, panels * group / groups, panels * (group + 1) / groups, (int64_t)phase->num_tokens * number / phase->num_tiles,
            (int64_t)phase->num_tokens * (number + 1) / phase->num_tiles);
    } else if (phase->kind == BY_EXPERT) {
        danlu_expert(op, pass, task / phase->num_tiles, task % phase->num_tiles, phase->num_tiles);
    } else {
        int64_t splits = phase->kind == BY_BLOCK && pass->num_splits ? pass->num_splits : 1;
        int64_t items = (phase->kind == BY_BLOCK ? pool->num_blocks[op->cross] : phase->num_tokens) * op->kv_heads * splits;
        for (int64_t item = start; item < items && item < start + phase->unit; item++) {
            int64_t which = item / splits / op->kv_heads;
            int kv = (int)(item / splits % op->kv_heads);
            if (phase->kind == BY_MERGE) danlu_merge(op, pass, which, kv);
            else danlu_attend(op, pass, pool->blocks[op->cross] + which, kv, pass->num_splits ? (int)(item % splits) : -1);
        }
    }
}

/* After the last task of phase `number` (counted from the first phase ever): opens the next, or ends the pass. */
static int open_next(Pool *pool, uint32_t number, int claims) {
    uint32_t index = number + 1 - pool->base;
    uint64_t tasks = index < (uint32_t)pool->num_phases ? (uint64_t)pool->phases[index].num_tasks : 0;
    atomic_store(&pool->word, (uint64_t)(number + 1) << 32 | tasks << 16 | (tasks && claims ? 1u : 0u));
    if (tasks != 1) wake_all(pool); /* of one task the opener takes care */
    return tasks > 0;
}

/* Works until there is nothing to claim; gives the phase it last saw. */
static uint32_t work(Pool *pool) {
    for (;;) {
        uint64_t word = atomic_load_explicit(&pool->word, memory_order_acquire);
        if ((word & 0xffff) >= (word >> 16 & 0xffff)) return (uint32_t)(word >> 32);
        word = atomic_fetch_add(&pool->word, 1);
        uint32_t number = (uint32_t)(word >> 32), task = word & 0xffff, count = word >> 16 & 0xffff;
        if (task >= count) return number;
        for (;;) { /* a task in hand: the pass cannot end meanwhile */
            do_task(pool, pool->phases + (number - pool->base), task);
            if (atomic_fetch_add(&pool->done, 1) + 1 < count) break;
            atomic_store(&pool->done, 0);
            int32_t index = (int32_t)(number + 1 - pool->base);
            count = index < pool->num_phases ? (uint32_t)pool->phases[index].num_tasks : 0;
            if (!open_next(pool, number, 1)) break;
            number++, task = 0;
        }
    }
}

static void *live(void *argument) {
    Pool *pool = argument;
    for (;;) {
        uint32_t seen = work(pool);
        if (atomic_load(&pool->stops)) return 0; /* set before the last phase is opened, so nobody waits for another */
        wait_for(pool, seen);
    }
}

/* ---- phases of a pass -------------------------------------------------------------------------------------------- */

static void split_evenly(Phase *phase, int64_t items, int64_t most) {
    if (most > MOST_TASKS) most = MOST_TASKS;
    phase->unit = (int32_t)((items + most - 1) / most);
    phase->num_tasks = (int32_t)((items + phase->unit - 1) / phase->unit);
}

static void plan_product(Phase *phase, const Op *op, int num_threads) {
    int64_t bytes = row_bytes(op), panels = panels_of(op), room = tile_of(op);
    int64_t tiles = (phase->num_tokens + room - 1) / room;
    int64_t groups = panels * OUTS * bytes / TASK_BYTES, most = 8L * num_threads;
    if (tiles > MOST_TASKS / MOST_THREADS / 8) tiles = MOST_TASKS / MOST_THREADS / 8;
    if (groups < num_threads || num_threads == 1) groups = num_threads;
    if (groups > most) groups = most;
    if (groups > panels) groups = panels;
    phase->num_tiles = (int32_t)tiles;
    phase->num_tasks = (int32_t)(groups * tiles);
}

/* Which experts will be chosen is not known yet: tasks of as many as there can be; `num_tiles` are the parts of each. */
static void plan_experts(Phase *phase, const Op *op, int num_threads) {
    int64_t panels = panels_of(op), parts = panels * OUTS * row_bytes(op) / TASK_BYTES;
    int64_t experts = phase->num_tokens < op->experts ? phase->num_tokens : op->experts;
    if (parts * experts < num_threads || num_threads == 1) parts = (num_threads + experts - 1) / experts;
    if (parts * experts > MOST_TASKS) parts = MOST_TASKS / experts;
    if (parts > panels) parts = panels;
    if (parts < 1) parts = 1;
    phase->num_tiles = (int32_t)parts;
    phase->num_tasks = (int32_t)(parts * experts);
}

/* Whether two rows look at the same keys: beams of one source look at its memory together. */
static int looks_alike(const Pass *pass, int64_t a, int64_t b, int cross) {
    int64_t width = pass->table_width[1];
    const int32_t *pages = pass->tables[1], *lengths = pass->lengths[1];
    if (a == b || !cross) return a == b;
    return lengths[a] == lengths[b] && !memcmp(pages + a * width, pages + b * width, (size_t)width * sizeof *pages);
}

static void plan_blocks(Pool *pool, const Pass *pass, int cross) {
    pool->num_blocks[cross] = 0;
    for (int32_t t = 0; t < pass->num_tokens;) {
        Block *block = pool->blocks[cross] + pool->num_blocks[cross]++;
        block->start = t++;
        while (t < pass->num_tokens && t - block->start < TOKENS_OF_BLOCK
               && looks_alike(pass, pass->rows[block->start], pass->rows[t], cross)) t++;
        block->end = t;
    }
}

static int plan(Pool *pool, const Pass *pass) {
    if (pool->room_phases < 2 * pass->num_ops) {
        Phase *larger = realloc(pool->phases, sizeof(Phase) * 2 * (size_t)pass->num_ops);
        if (!larger) return -1;
        pool->phases = larger, pool->room_phases = 2 * pass->num_ops;
    }
    if (pool->room_blocks < pass->num_tokens) {
        for (int cross = 0; cross < 2; cross++) {
            Block *larger = realloc(pool->blocks[cross], sizeof(Block) * (size_t)pass->num_tokens);
            if (!larger) return -1;
            pool->blocks[cross] = larger;
        }
        pool->room_blocks = pass->num_tokens;
    }
    for (int cross = 0; cross < (pass->tables[1] ? 2 : 1); cross++) plan_blocks(pool, pass, cross);
    int32_t num_tokens = pass->num_tokens, num_phases = 0;
    Phase *open = 0;
    for (int32_t i = 0; i < pass->num_ops; i++) {
        const Op *op = pass->ops + i;
        if (op->code == GATHER) num_tokens = pass->num_outs, open = 0; /* from here on only tokens that are asked for */
        if (!num_tokens) break;
        int by_row = op->code != PRODUCT && op->code != ATTEND && op->code != EXPERTS;
        int all_at_once = op->code != SORT || (open && open->num_tasks == 1 && num_tokens <= TOKENS_OF_BLOCK);
        if (open && by_row && all_at_once && op->by_choice == pass->ops[open->first].by_choice) {
            open->last = i + 1;
            continue;
        }
        int64_t num_rows = op->by_choice ? (int64_t)num_tokens * op->top_k : num_tokens;
        Phase *phase = pool->phases + num_phases++;
        *phase = (Phase){.first = i, .last = i + 1, .kind = BY_TOKEN, .num_tokens = (int32_t)num_rows};
        open = 0;
        if (op->code == PRODUCT) {
            phase->kind = BY_PANEL;
            plan_product(phase, op, pass->num_threads);
        } else if (op->code == EXPERTS) {
            phase->kind = BY_EXPERT;
            plan_experts(phase, op, pass->num_threads);
        } else if (op->code == SORT) {
            split_evenly(phase, num_rows, 1);
        } else if (op->code == ATTEND) {
            phase->kind = BY_BLOCK;
            split_evenly(
                phase, (int64_t)pool->num_blocks[op->cross] * op->kv_heads * (pass->num_splits ? pass->num_splits : 1),
                MOST_TASKS);
            if (pass->num_splits) {
                Phase *merging = pool->phases + num_phases++;
                *merging = (Phase){.first = i, .last = i + 1, .kind = BY_MERGE, .num_tokens = num_tokens};
                split_evenly(merging, (int64_t)num_tokens * op->kv_heads, 2L * pass->num_threads);
            }
        } else {
            split_evenly(phase, num_rows, pass->num_threads == 1 || num_rows < 4 ? 1 : 4L * pass->num_threads);
            open = phase;
        }
    }
    return num_phases;
}

/* ---- what Python calls ------------------------------------------------------------------------------------------- */

void danlu_close(Pool *pool) {
    atomic_store(&pool->stops, 1);
    uint64_t word = atomic_load(&pool->word);
    atomic_store(&pool->word, ((word >> 32) + 1) << 32);
    syscall(SYS_futex, phase_of(pool), FUTEX_WAKE_PRIVATE, INT32_MAX, 0, 0, 0);
    for (int i = 1; i < pool->num_threads; i++) pthread_join(pool->threads[i], 0);
    free(pool->phases);
    for (int cross = 0; cross < 2; cross++) free(pool->blocks[cross]);
    free(pool);
}

/* `num_threads` with the caller's own; fewer if the system gives no more; 0 without memory. */
Pool *danlu_open(int32_t num_threads) {
    Pool *pool = aligned_alloc(128, sizeof(Pool));
    if (!pool) return 0;
    memset(pool, 0, sizeof(Pool));
    pool->num_threads = 1;
    while (pool->num_threads < num_threads && pool->num_threads < MOST_THREADS) {
        if (pthread_create(&pool->threads[pool->num_threads], 0, live, pool)) break;
        pool->num_threads++;
    }
    return pool;
}

/* 0, or -1 without memory. One caller at a time. */
int32_t danlu_run(Pool *pool, const Pass *pass) {
    int num_phases = plan(pool, pass);
    if (num_phases < 0) return -1;
    if (!num_phases) return 0;
    pool->pass = pass;
    pool->num_phases = num_phases;
    if (pass->num_threads == 1) { /* the others sleep on */
        for (int p = 0; p < num_phases; p++)
            for (int32_t task = 0; task < pool->phases[p].num_tasks; task++) do_task(pool, pool->phases + p, task);
        return 0;
    }
    uint32_t idle = (uint32_t)(atomic_load(&pool->word) >> 32), end = idle + 1 + (uint32_t)num_phases;
    pool->base = idle + 1;
    open_next(pool, idle, 0);
    for (;;) {
        uint32_t seen = work(pool);
        if (seen == end) return 0;
        wait_for(pool, seen);
    }
}

int32_t danlu_threads(const Pool *pool) { return pool->num_threads; }

void danlu_sizes(int32_t *sizes) { sizes[0] = sizeof(Op), sizes[1] = sizeof(Pass), sizes[2] = sizeof(Adapter); }

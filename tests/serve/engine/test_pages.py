"""Pages are owned by as many tables as list them, found again by what they hold, and never both free and owned."""

import random
import timeit
from collections.abc import Sequence

import pytest

from danlu.serve.engine.pages import PagePool, cache_salt, extend_keys

SALT = cache_salt("tenant", "")


def keys_of(ids: Sequence[int], salt: bytes = SALT, page_tokens: int = 4) -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, ids, salt, page_tokens)
    return keys


def taken(pool: PagePool, count: int) -> list[int]:
    pages = pool.allocate(count)
    assert pages is not None
    return pages


def computed(pool: PagePool, ids: Sequence[int], salt: bytes = SALT) -> list[int]:
    """A table of pages that hold ``ids``, the full ones findable."""
    table = taken(pool, pool.pages_for(len(ids)))
    for page, key in zip(table, keys_of(ids, salt, pool.page_tokens), strict=False):
        pool.commit(page, key)
    return table


def test_pages_are_taken_and_given_back():
    pool = PagePool(4)
    table = taken(pool, 3)
    assert (pool.num_free, pool.usage) == (1, 0.75)
    pool.release(table)
    assert (pool.num_free, pool.usage) == (4, 0.0)
    pool.check([])


def test_when_there_are_not_enough_none_is_taken():
    pool = PagePool(4)
    table = taken(pool, 2)
    assert pool.allocate(3) is None
    assert pool.num_free == 2
    pool.check([table])


def test_an_empty_pool_is_not_in_use():
    pool = PagePool(0)
    assert (pool.usage, pool.allocate(0), pool.allocate(1)) == (0.0, [], None)


def test_a_shared_page_is_free_when_the_last_table_lets_it_go():
    pool = PagePool(4)
    table = taken(pool, 2)
    pool.share(table)
    pool.release(table)
    assert pool.num_free == 2
    pool.check([table])
    pool.release(table)
    assert pool.num_free == 4


def test_releasing_a_free_page_is_a_bug():
    pool = PagePool(4)
    table = taken(pool, 1)
    pool.release(table)
    with pytest.raises(AssertionError, match="released once too often"):
        pool.release(table)


def test_a_prefix_is_found_as_far_as_it_is_the_same():
    pool = PagePool(8, 4)
    table = computed(pool, range(12))
    assert pool.match(keys_of(range(12)), 3) == table
    assert pool.match(keys_of(range(12)), 2) == table[:2]
    assert pool.match(keys_of([*range(7), 99, *range(8, 12)]), 3) == table[:1]
    assert pool.match(keys_of([99, *range(1, 12)]), 3) == []


def test_the_same_tokens_after_other_ones_are_another_page():
    pool = PagePool(8, 4)
    computed(pool, [1, 2, 3, 4, 5, 6, 7, 8])
    assert pool.match(keys_of([5, 6, 7, 8]), 1) == []


@pytest.mark.parametrize(
    ("mine", "other"),
    [
        (("a", "", "model", 1), ("b", "", "model", 1)),
        (("a", "x", "model", 1), ("a", "y", "model", 1)),
        (("a", "", "adapter", 1), ("a", "", "adapter", 2)),
        (("ab", "c"), ("a", "bc")),
        (("a", ""), ("a",)),
        (("1:a",), ("1", "a")),
    ],
)
def test_what_differs_in_tenant_salt_or_version_shares_nothing(
    mine: tuple[str | int, ...], other: tuple[str | int, ...]
):
    pool = PagePool(8, 4)
    table = computed(pool, range(8), cache_salt(*mine))
    assert pool.match(keys_of(range(8), cache_salt(*mine)), 2) == table
    assert pool.match(keys_of(range(8), cache_salt(*other)), 2) == []


def test_a_salt_may_be_any_text():
    assert cache_salt("租户", "\ud800") != cache_salt("租户", "")


def test_keys_are_only_added_for_pages_that_have_become_full():
    keys = keys_of(range(7))
    assert len(keys) == 1
    extend_keys(keys, range(13), SALT, 4)
    assert keys == keys_of(range(13))


def test_a_freed_page_is_found_until_it_is_taken():
    pool = PagePool(4, 4)
    table = computed(pool, range(8))
    pool.release(table)
    found = pool.match(keys_of(range(8)), 2)
    assert found == table
    pool.share(found)
    assert pool.num_free == 2
    pool.check([found])
    pool.release(found)
    taken(pool, 4)
    assert pool.match(keys_of(range(8)), 2) == []
    assert pool.num_findable == 0


def test_the_longest_unused_text_is_forgotten_first_and_its_end_before_its_beginning():
    pool = PagePool(4, 4)
    old, new = computed(pool, range(8)), computed(pool, range(50, 58))
    pool.release(old)
    pool.release(new)
    taken(pool, 1)
    assert pool.match(keys_of(range(8)), 2) == old[:1]
    assert pool.match(keys_of(range(50, 58)), 2) == new


def test_pages_that_nobody_can_find_are_taken_before_those_that_can_be_found():
    pool = PagePool(4, 4)
    table = computed(pool, range(14))
    pool.release(table)
    taken(pool, 1)
    assert pool.match(keys_of(range(14)), 3) == table[:3]


def test_two_pages_with_the_same_text_are_found_as_one():
    pool = PagePool(4, 4)
    first, second = computed(pool, range(4)), computed(pool, range(4))
    assert pool.match(keys_of(range(4)), 1) == first
    pool.release(second)
    pool.release(first)
    pool.check([])
    assert pool.num_findable == 1


def test_lookups_are_counted():
    pool = PagePool(4, 4)
    pool.count_lookup(10, 8)
    pool.count_lookup(5, 0)
    assert (pool.queried_tokens, pool.hit_tokens) == (15, 8)


def test_a_fork_shares_every_page_and_the_first_to_write_gets_a_copy():
    pool = PagePool(4, 4)
    table = taken(pool, 2)
    twin = pool.fork(table)
    assert twin == table
    assert pool.num_free == 2
    shared = table[1]
    assert pool.is_shared(shared)
    pair = pool.writable(twin, 1)
    assert pair == (shared, twin[1])
    assert twin[1] != shared
    assert pool.writable(table, 1) is None, "it has the page for itself now"
    pool.check([table, twin])


def test_a_page_that_is_written_again_is_not_found_any_more():
    pool = PagePool(4, 4)
    table = computed(pool, range(8))
    assert pool.writable(table, 1) is None
    assert pool.match(keys_of(range(8)), 2) == table[:1]


def test_ten_thousand_random_operations_leave_the_books_right():
    random_ = random.Random(5)
    pool = PagePool(24, 4)
    tables: list[list[int]] = []
    texts = [[random_.randrange(3) for _ in range(random_.randrange(1, 24))] for _ in range(40)]
    for step in range(10_000):
        match random_.randrange(7):
            case 0 | 1:
                ids = random_.choice(texts)
                keys = keys_of(ids)
                found = pool.match(keys, (len(ids) - 1) // 4)
                pool.share(found)
                fresh = pool.allocate(pool.pages_for(len(ids)) - len(found))
                if fresh is None:
                    pool.release(found)
                else:
                    tables.append([*found, *fresh])
                    for page, key in zip(tables[-1], keys, strict=False):
                        pool.commit(page, key)
            case 2 if tables and len(tables) < 20:
                tables.append(pool.fork(random_.choice(tables)))
            case 3 if tables and pool.num_free:
                table = random_.choice(tables)
                pair = pool.writable(table, len(table) - 1)
                assert pair is None or pair[0] != pair[1] == table[-1]
                assert not pool.is_shared(table[-1])
            case 4 if tables and (fresh := pool.allocate(1)):
                random_.choice(tables).extend(fresh)
            case 5 | 6 if tables:
                pool.release(tables.pop(random_.randrange(len(tables))))
            case _:
                pass
        if step % 5 == 0:
            pool.check(tables)
    for table in tables:
        pool.release(table)
    pool.check([])
    assert pool.num_free == 24


def test_a_page_costs_the_same_in_a_large_pool():
    def churn(pool: PagePool) -> float:
        pool.release(taken(pool, pool.num_pages))
        return min(timeit.repeat(lambda: pool.release(taken(pool, 8)), number=200, repeat=20))

    assert churn(PagePool(50_000)) < 8 * churn(PagePool(64))


def test_pages_that_nobody_ever_took_are_counted():
    pool = PagePool(4)
    first = pool.allocate(3)
    assert first is not None
    pool.release(first)
    assert pool.num_untouched == 1
    assert pool.allocate(2) is not None
    assert pool.num_untouched == 1

"""Who owns which page of the key/value cache, and which pages already hold what a prompt begins with.

A page belongs to every table that lists it. One that belongs to no table is free, but what it holds can still be found
until it is taken again, the longest unused first. Knows page numbers and token ids, no tensors and no requests.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

PAGE_TOKENS = 64
"""Tokens of a page."""
_PART_STEP = 8
"""Beginnings of a page are found in steps of so many tokens, from two steps on: fewer are soon computed anew."""
_KEY_BYTES = 32


def cache_salt(*parts: str | int) -> bytes:
    """What keeps prefixes apart: only requests with the same parts (tenant, salt, adapter, version) share pages."""
    digest = hashlib.blake2b(digest_size=_KEY_BYTES)
    for part in parts:
        data = str(part).encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(data) + data)
    return digest.digest()


def extend_keys(keys: list[bytes], ids: Sequence[int], salt: bytes, page_tokens: int = PAGE_TOKENS) -> None:
    """Append the keys of those full pages of ``ids`` that ``keys`` does not have yet.

    A key is the hash (BLAKE2b, 256 bits: nobody finds two texts with the same) of the salt and every token up to the
    end of its page.
    """
    for index in range(len(keys), len(ids) // page_tokens):
        before = keys[index - 1] if index else salt
        keys.append(_key(before, ids[index * page_tokens : (index + 1) * page_tokens]))


def _key(before: bytes, ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(before + array("q", ids).tobytes(), digest_size=_KEY_BYTES).digest()


class PagePool:
    """Pages 0 … ``num_pages`` - 1. Every operation costs time only for the pages it names. Not thread-safe."""

    def __init__(self, num_pages: int, page_tokens: int = PAGE_TOKENS) -> None:
        self.num_pages = num_pages
        self.page_tokens = page_tokens
        self.queried_tokens = 0
        """Prompt tokens that were looked for in the prefix cache."""
        self.hit_tokens = 0
        """Those of them that were found."""
        self.num_untouched = num_pages
        """Pages that nobody ever took, which hold no memory yet."""
        self._was_taken = bytearray(num_pages)
        self._owners = [0] * num_pages
        self._keys: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._parts: dict[int, list[bytes]] = {}  # keys of a findable page's beginnings
        self._page_of_part: dict[bytes, int] = {}  # the newest page that begins so
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_pages))  # the next to be taken first

    @property
    def num_free(self) -> int:
        """Pages of no table."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of the pages that belong to a table, 0 to 1."""
        return 1.0 - len(self._free) / self.num_pages if self.num_pages else 0.0

    @property
    def num_findable(self) -> int:
        """Pages that the prefix cache can find, those of tables included."""
        return len(self._page_of)

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold so many tokens."""
        return -(-num_tokens // self.page_tokens)

    def is_shared(self, page: int) -> bool:
        """Whether more than one table lists it."""
        return self._owners[page] > 1

    def is_free(self, page: int) -> bool:
        """Whether no table lists it."""
        return self._owners[page] == 0

    # taking and giving back

    def allocate(self, count: int) -> list[int] | None:
        """Take this many free pages; None (and nothing taken) when there are not so many."""
        if count > len(self._free):
            return None
        pages = [self._free.popitem(last=False)[0] for _ in range(count)]
        for page in pages:
            self._forget(page)
            self._owners[page] = 1
            self.num_untouched -= 1 - self._was_taken[page]
            self._was_taken[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Take these pages for one more table, also such as are free but were found."""
        for page in pages:
            if self._owners[page] == 0:
                del self._free[page]
            self._owners[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Give a table's pages back. The end of a text is forgotten before its beginning, nameless pages first."""
        for page in reversed(pages):
            assert self._owners[page] > 0, f"page {page} is released once too often"
            self._owners[page] -= 1
            if self._owners[page] == 0:
                self._free[page] = None
                if self._keys[page] is None:
                    self._free.move_to_end(page, last=False)

    # prefixes

    def commit(self, page: int, key: bytes, before: bytes = b"", ids: Sequence[int] = ()) -> None:
        """Let a full page be found by its key. If another page has the same key already, that one stays the answer.

        With its tokens ``ids`` and the key ``before`` it (of the page before, or the salt), its beginnings are too.
        """
        assert self._owners[page] > 0, f"page {page} belongs to no table"
        if self._page_of.setdefault(key, page) != page or self._keys[page] == key:
            return
        self._keys[page] = key
        self._parts[page] = [_key(before, ids[:size]) for size in self._part_sizes(len(ids))]
        self._page_of_part |= dict.fromkeys(self._parts[page], page)

    def match(self, keys: Sequence[bytes], num_pages: int) -> list[int]:
        """The longest run of pages that hold what the first ``num_pages`` keys stand for; they are not taken yet."""
        pages: list[int] = []
        for key in keys[:num_pages]:
            page = self._page_of.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def match_part(self, before: bytes, ids: Sequence[int]) -> tuple[int, int] | None:
        """A page that follows the key ``before`` and begins as ``ids``, and how many tokens of it do; None if only few
        of any page do. It is for copying: what else the page holds is another text."""
        for size in self._part_sizes(len(ids) + 1):
            page = self._page_of_part.get(_key(before, ids[:size]))
            if page is not None:
                return page, size
        return None

    def _part_sizes(self, num_tokens: int) -> range:
        """Beginnings that are shorter than a page and than ``num_tokens``, the longest first."""
        most = (min(self.page_tokens, num_tokens) - 1) // _PART_STEP * _PART_STEP
        return range(most, _PART_STEP, -_PART_STEP)

    def count_lookup(self, queried: int, hit: int) -> None:
        """Count a prompt of ``queried`` tokens, ``hit`` of which were found."""
        self.queried_tokens += queried
        self.hit_tokens += hit

    def _forget(self, page: int) -> None:
        key = self._keys[page]
        if key is not None:
            del self._page_of[key]
            self._keys[page] = None
            for part in self._parts.pop(page):
                if self._page_of_part.get(part) == page:
                    del self._page_of_part[part]

    # copy on write

    def fork(self, table: Sequence[int]) -> list[int]:
        """A second table of the same pages, its last and perhaps unfinished one included (see ``writable``)."""
        self.share(table)
        return list(table)

    def writable(self, table: list[int], index: int) -> tuple[int, int] | None:
        """Make page ``index`` of a table its own before something is written there.

        Returns (source, target) when the page was shared: the table lists the target now, and what the source holds
        must be copied there before anything else is written. Needs one free page then.
        """
        page = table[index]
        if self._owners[page] == 1:
            self._forget(page)  # it will soon hold something else
            return None
        fresh = self.allocate(1)
        assert fresh is not None, "no page is free for a copy"
        self._owners[page] -= 1
        table[index] = fresh[0]
        return page, fresh[0]

    # for tests

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Assert that the books are right when ``tables`` are all there are."""
        owners = Counter(page for table in tables for page in table)
        for page in range(self.num_pages):
            assert self._owners[page] == owners[page], (
                f"page {page} has {self._owners[page]} owners, not {owners[page]}"
            )
            assert (page in self._free) == (owners[page] == 0), f"page {page} is free and owned, or neither"
            key = self._keys[page]
            assert key is None or self._page_of[key] == page, f"page {page} cannot be found by its key"
        for key, page in self._page_of_part.items():
            assert key in self._parts[page], f"a part leads to page {page}, which begins otherwise"
        assert len(self._page_of) == sum(key is not None for key in self._keys), "a key leads to a page without it"

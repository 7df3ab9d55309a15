import pyarrow as pa

from danlu.data.ops.exact_dedup import ExactDedupConfig, apply


def test_the_first_of_equal_texts_stays_and_the_others_name_it() -> None:
    table = pa.table({"id": ["a", "b", "c", "d", "e"], "text": ["Nice  top", "other", "nice top", None, ""]})
    applied = apply(table, ExactDedupConfig())
    assert list(applied.reasons) == [None, None, "duplicate", None, None]
    assert list(applied.details) == [None, None, "a", None, None]

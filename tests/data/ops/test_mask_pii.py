import pyarrow as pa

from danlu.data.ops.mask_pii import MaskPiiConfig, apply


def test_texts_are_masked_in_place_and_findings_counted() -> None:
    table = pa.table({"id": ["a", "b"], "text": ["mail a@b.com or 13812345678", "fine"], "title": [None, "c@d.org"]})
    rows = apply(table, MaskPiiConfig()).table.to_pylist()
    assert rows[0] == {"id": "a", "text": "mail [EMAIL] or [PHONE]", "title": None, "masked": ["EMAIL", "PHONE"]}
    assert rows[1] == {"id": "b", "text": "fine", "title": "[EMAIL]", "masked": ["EMAIL"]}

from danlu.train.watch import WATCH, Watch, watching


def test_a_watch_looks_on_inside_its_block_only() -> None:
    before, mine = WATCH.get(), Watch()
    with watching(mine):
        assert WATCH.get() is mine
    assert WATCH.get() is before

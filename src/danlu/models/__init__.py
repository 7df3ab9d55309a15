"""The model core: one stack of blocks; inputs feed it embeddings, heads read it.

Shape legend for the whole project:

    B batch (rows)          T tokens of a row        N tokens of a packed batch (rows laid end to end)
    D width                 V vocabulary             F feed-forward width
    H query heads           K key/value heads        E head width          S cached tokens of a row

The stack always runs on packed tokens (N, D). What a token may look at is not the block's business: it hands
queries, keys and values to an ``Attend`` (attention.py) that knows rows, masks and caches.
"""

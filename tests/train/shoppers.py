"""Users who walk through a catalogue: what comes next follows from what came last, whatever is popular."""

from __future__ import annotations

import random
from typing import Any

STEPS = 12
"""Items of the catalogue; each user goes on by one or two, round and round, and skips nothing else."""


def shopping(users: int = 40, length: int = 7, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of {user, item, time, rating} in no order. Even users go forward, odd ones backward."""
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for user in range(users):
        start, step = chance.randrange(STEPS), 1 if user % 2 == 0 else -1
        for place in range(length):
            item = (start + step * place) % STEPS
            rows.append({"user": f"u{user}", "item": str(100 + item), "time": place, "rating": 1 + place % 5})
    chance.shuffle(rows)
    return rows

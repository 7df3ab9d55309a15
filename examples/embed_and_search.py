"""Search by meaning: each sentence becomes a vector, and the nearest vectors are the answers.

python examples/embed_and_search.py MODEL "how do I return an order?"
MODEL is a folder of a sentence model, for example all-MiniLM-L6-v2.
"""

import sys
from pathlib import Path

from danlu.models.encode import embed
from danlu.models.load import load_model

SENTENCES = [
    "Send the parcel back within thirty days and you get your money back.",
    "Wash at 30 degrees and do not tumble dry.",
    "The jacket runs small; take one size up.",
    "We ship to all countries of the European Union.",
    "Your card is charged when the order leaves our warehouse.",
    "The lining is recycled polyester, the shell is wool.",
]


def main(folder: str, *queries: str) -> None:
    model = load_model(Path(folder), precision="fp32")
    index = embed(model, SENTENCES)  # (6, P), vectors of length 1
    for query, found in zip(queries, embed(model, queries) @ index.t(), strict=True):
        print(query)
        for score, place in zip(*found.topk(2), strict=True):
            print(f"  {score:.2f}  {SENTENCES[place]}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A classifier from a dozen labelled sentences: a sentence model's vectors and a logistic regression on top.

python examples/classify_text.py MODEL "The zip broke on the first day."
MODEL is the folder of a sentence model. Trained classifiers need only danlu.models.encode.classify(model, texts).
"""

import sys
from pathlib import Path

import torch

from danlu.models.encode import embed
from danlu.models.load import load_model

EXAMPLES = {
    "praise": ["I love this dress.", "Great quality, fits perfectly.", "The softest shirt I own!"],
    "complaint": ["It fell apart in a week.", "Terrible fabric, it itches.", "I want my money back."],
    "question": ["Does it come in blue?", "When will it ship?", "Can I machine-wash it?"],
}


def main(folder: str, *texts: str) -> None:
    torch.manual_seed(0)
    model = load_model(Path(folder), precision="fp32")
    vectors = embed(model, [text for group in EXAMPLES.values() for text in group])
    labels = torch.arange(len(EXAMPLES)).repeat_interleave(3)
    layer = torch.nn.Linear(vectors.shape[1], len(EXAMPLES))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05, weight_decay=1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(vectors), labels).backward()
        optimizer.step()
    for text, shares in zip(texts, layer(embed(model, texts)).softmax(dim=-1).tolist(), strict=True):
        print(f"{max(shares):.2f} {list(EXAMPLES)[shares.index(max(shares))]}: {text}")


if __name__ == "__main__":
    main(*sys.argv[1:])

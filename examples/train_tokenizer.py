"""Train a tokenizer of your own for Chinese and English, and see what it costs to write each language with it.

python examples/train_tokenizer.py my-tokenizer 4000 articles.jsonl notes.txt    # no files: made-up sentences
"""

import sys
from collections.abc import Iterable
from pathlib import Path

from danlu.text.bpe import BPEConfig, train_bpe
from danlu.text.corpus import Corpus

MADE_UP = [
    text.format(number)
    for number in range(400)
    for text in ("The navy dress number {} is soft and lined.", "第{}件连衣裙是纯棉的，柔软透气，适合通勤。")
]


def main(folder: str = "my-tokenizer", vocabulary_size: str = "320", *files: str) -> None:
    corpus: Iterable[str] = Corpus(files=tuple(map(Path, files))) if files else MADE_UP
    trained = train_bpe(corpus, BPEConfig(vocabulary_size=int(vocabulary_size), held_out=0.05))
    trained.save(Path(folder))

    for language, density in trained.density.items():
        print(
            f"{language}: {density.characters_per_token:.2f} characters per token on {density.documents} unseen texts"
        )
    text = "A navy dress, 柔软 👗 <|im_end|>"
    ids = trained.tokenizer.encode(text)
    print(f"{len(ids)} tokens; back as it was: {trained.tokenizer.decode(ids) == text}")
    print(f"what a user types is text: {not set(ids) & set(trained.tokenizer.special_ids.values())}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Load a model and ask it: all at once, piece by piece, and how likely it finds an answer.

python examples/load_and_generate.py product-copy        # an alias, a stage of the latest run, a folder or a .gguf file
"""

import sys

import danlu
from danlu.core.records import GenerateOptions, Message


def main(name: str = "product-copy") -> None:
    model = danlu.load(name)
    chat: list[Message] = [{"role": "user", "content": "Write product copy.\nTitle: Navy silk dress\nFit: loose"}]

    first, second = model.generate([chat, "The fabric is"], GenerateOptions(max_tokens=40))
    print("chat:", first.text, f"({first.finish_reason}, {first.usage.completion_tokens} tokens)")
    print("raw: ", second.text)

    for delta in model.stream(chat, GenerateOptions(max_tokens=40, temperature=0.8, top_p=0.95, seed=1)):
        print(delta.text, end="", flush=True)
    print()

    for score in model.score([chat, chat], ["A loose navy silk dress.", "A red wool coat."]):
        print(f"log-probability {score.logprob:.1f} over {score.num_tokens} tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])

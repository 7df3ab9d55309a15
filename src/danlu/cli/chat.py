"""Talk with a model in the terminal.

MODEL is a model folder or GGUF file, an alias, a stage of the latest run, an artifact id, a hub id, or the URL of any
server with the OpenAI API. The conversation goes on until Ctrl-D; Ctrl-C stops an answer. /help lists the commands:
other settings, another try, saving and loading. In a pipe every line is a question, or all of it is one with --once.

Examples:
  danlu chat product-copy
  danlu chat ./model.gguf --system "You answer in one sentence." --stats
  danlu chat http://127.0.0.1:8000 --model-name mine
  danlu chat ./model --scheme int8 --max-tokens 200 --temperature 0
  echo "Name a dress." | danlu chat product-copy
  danlu chat product-copy --once < question.txt
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import tyro

import danlu
from danlu.cli.dialogue import Dialogue, Streams
from danlu.cli.display import make_display
from danlu.cli.options import Home
from danlu.cli.serve import own_name
from danlu.core.errors import ConfigError
from danlu.core.records import GenerateOptions
from danlu.serve.engine.config import EngineConfig
from danlu.serve.engine.spec import EngineSpec, ModelSpec, Precision, Scheme

_OPTIONS = GenerateOptions(max_tokens=1024, temperature=0.7)
_KEY_VARIABLE = "DANLU_API_KEY"
_PROMPT, _MORE = ">>> ", "... "
_QUOTES = '"""'
_MAX_HISTORY = 1000


def command(
    model: tyro.conf.Positional[str],
    *,
    system: str = "",
    once: tyro.conf.FlagCreatePairsOff[bool] = False,
    stats: tyro.conf.FlagCreatePairsOff[bool] = False,
    load: Path | None = None,
    model_name: str | None = None,
    api_key: str | None = None,
    precision: Precision | None = None,
    scheme: Scheme = "none",
    threads: int | None = None,
    options: Annotated[GenerateOptions, tyro.conf.arg(name="")] = _OPTIONS,
    home: Home = None,
) -> int:
    """Talk with a model.

    Args:
        model: Model folder or GGUF file, alias, stage of the latest run, artifact id, hub id, or a server's URL.
        system: What the model is told before everything else.
        once: All of the input is one question.
        stats: Show tokens and speed after each answer.
        load: A conversation to go on with, as /save writes it.
        model_name: At a URL: which of the server's models; the first if left out.
        api_key: At a URL: the server's key; default $DANLU_API_KEY.
        precision: Number type of plain weights; None picks bf16 where the machine is fast at it, else fp32.
        scheme: int8 quantises the weights while loading.
        threads: Threads that compute; None for what is fastest here.
        options: How to answer.
        home: Where artifacts and runs are kept; default $DANLU_HOME or .danlu.
    """
    if is_url(model):
        if precision is not None or scheme != "none" or threads is not None:
            raise ConfigError(
                "--precision, --scheme and --threads are the server's at a URL.", "Leave them out, or name a model."
            )
        opened = _server(model, api_key or os.environ.get(_KEY_VARIABLE), model_name)
    else:
        spec = ModelSpec(
            name=own_name(model), path=str(danlu.locate(model, home)), precision=precision, scheme=scheme
        )  # fmt: skip
        opened = _engine(EngineSpec(models=(spec,), config=EngineConfig(max_rows=1, threads=threads)))
    with opened as talker:
        dialogue = Dialogue(talker, options, out=sys.stdout, notes=sys.stderr, system=system, shows_stats=stats)
        if load is not None:
            dialogue.load(load)
        if once:
            return 0 if dialogue.ask(readable(sys.stdin.read()).strip()) else 1
        return talk(dialogue)


def is_url(model: str) -> bool:
    """Whether MODEL is a server."""
    return model.startswith(("http://", "https://"))


@contextmanager
def _server(url: str, api_key: str | None, model_name: str | None) -> Iterator[Streams]:
    from danlu.client import Client, RemoteModel

    with RemoteModel(Client(url, api_key, model_name)) as model:
        yield model


@contextmanager
def _engine(spec: EngineSpec) -> Iterator[Streams]:
    from danlu.serve.engine.remote import RemoteEngine

    with RemoteEngine(spec, say=make_display().say) as engine:
        yield engine


def talk(dialogue: Dialogue) -> int:
    """Until the input ends or says so; 1 when a question of a pipe was not answered."""
    if not sys.stdin.isatty():
        for text in questions(_lines(sys.stdin)):
            if not dialogue.take(text):
                break
        return 1 if dialogue.num_failed else 0
    print("Ask away. /help lists the commands, Ctrl-D leaves.", file=sys.stderr)
    with _history():
        while True:
            try:
                text = next(questions(_typed), None)
                if text is None or not dialogue.take(text):
                    return 0
            except KeyboardInterrupt:
                print("\n(Ctrl-D or /exit leaves)", file=sys.stderr)


def questions(line: Callable[[bool], str | None]) -> Iterator[str]:
    """Texts put together from lines: a backslash at the end goes on, three double quotes begin and end a block.

    ``line`` gives the next line, or None at the end; it is told whether a text has begun.
    """
    while (text := line(False)) is not None:
        if text.lstrip().startswith(_QUOTES):
            yield _block(text.lstrip().removeprefix(_QUOTES), line)
            continue
        lines: list[str] = []
        while text is not None and text.endswith("\\"):
            lines.append(text[:-1])
            text = line(True)
        yield "\n".join([*lines, *([] if text is None else [text])])


def _block(text: str, line: Callable[[bool], str | None]) -> str:
    lines: list[str] = []
    more: str | None = text
    while more is not None and _QUOTES not in more:
        lines.append(more)
        more = line(True)
    last = [] if more is None else [more.partition(_QUOTES)[0]]
    return "\n".join([*lines, *last]).strip("\n")


def readable(text: str) -> str:
    """Bytes of the input that are no UTF-8 become question marks in boxes; they could not be sent."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _lines(stream: TextIO) -> Callable[[bool], str | None]:
    def line(_: bool) -> str | None:
        text = stream.readline()
        return readable(text.rstrip("\r\n")) if text else None

    return line


def _typed(is_begun: bool) -> str | None:
    try:
        return readable(input(_MORE if is_begun else _PROMPT))
    except EOFError:
        print(file=sys.stderr)
        return None


@contextmanager
def _history() -> Iterator[None]:
    """What was typed before, at the arrow keys, kept in the user's cache folder; for this user alone."""
    try:
        import readline
    except ImportError:  # a Python without it has no arrow keys
        yield
        return
    path = Path.home() / ".cache" / "danlu" / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        readline.read_history_file(path)
    except OSError as error:
        print(f"What is typed is not remembered: {error}", file=sys.stderr)
        yield
        return
    readline.set_history_length(_MAX_HISTORY)
    try:
        yield
    finally:
        readline.write_history_file(path)

"""An engine in another process behaves like one in this process, and its death is everybody's 503, not their end."""

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.core.errors import ModelError, OverloadedError, RequestError, ResourceError, UnavailableError
from danlu.core.records import Delta, GenerateOptions, Usage
from danlu.serve.engine import ask
from danlu.serve.engine.remote import RemoteEngine
from danlu.serve.engine.request import (
    AdapterRequest,
    Event,
    Reading,
    ReadRequest,
    Reply,
    TokenizerRequest,
    WriteRequest,
)
from danlu.serve.engine.spec import EngineSpec, ModelSpec
from danlu.serve.engine.supervise import RemoteConfig

COMMAND = (sys.executable, str(Path(__file__).parent / "fake_engine.py"))


def start(path: str = "x", *, adapters: tuple[AdapterRequest, ...] = (), command: Any = COMMAND, **config: Any):
    spec = EngineSpec(models=(ModelSpec(name="fake", path=path),), adapters=adapters)
    return RemoteEngine(spec, RemoteConfig(first_delay_s=0.05, **config), command=command)


@pytest.fixture(scope="module")
def engine() -> Iterator[RemoteEngine]:
    with start() as found:
        yield found


def request(prompt: Any, model: str = "fake", **options: Any) -> WriteRequest:
    return WriteRequest(model=model, prompt=prompt, options=GenerateOptions(**options))


def write(engine: RemoteEngine, asked: WriteRequest) -> Iterator[Delta]:
    """The pieces of all its answers; leaving early cancels."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    ticket, left = engine.submit(asked, events.put), asked.options.n
    try:
        while left:
            event = events.get(timeout=20)
            if isinstance(event, Exception):
                raise event
            assert isinstance(event, Delta)
            yield event
            left -= event.finish_reason is not None
    finally:
        ticket.cancel()


def begin(engine: RemoteEngine, prompt: str) -> tuple[Any, "queue.SimpleQueue[Event]"]:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    return engine.submit(request(prompt), events.put), events


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] != "Z"


# requests and events


def test_an_answer_comes_piece_by_piece_with_all_that_belongs_to_it(engine: RemoteEngine) -> None:
    *pieces, last = write(engine, request("go Hello wörld 丹炉"))
    assert [piece.text for piece in pieces] == ["Hello", "wörld", "丹炉"]
    assert (pieces[2].token_ids, pieces[2].token_bytes) == ((2,), {9: b"\xe4"})
    assert pieces[2].logprobs[0].top == ((2, -0.5), (9, -2.0))
    assert (last.finish_reason, last.usage) == ("stop", Usage(prompt_tokens=4, completion_tokens=3))


def test_conversations_and_ids_are_prompts_too(engine: RemoteEngine) -> None:
    turns = [{"role": "user", "content": "go a"}, {"role": "assistant", "content": "b"}]
    assert "".join(delta.text for delta in write(engine, request(turns))) == "ab"
    assert [delta.text for delta in write(engine, request([5, 6]))] == ["6", ""]


def test_several_answers_are_heard_to_the_last(engine: RemoteEngine) -> None:
    deltas = list(write(engine, request("go a b", n=3)))
    assert [delta.index for delta in deltas if delta.finish_reason] == [2, 1, 0]
    assert len(deltas) == 9


def test_reading_and_questions_are_answered(engine: RemoteEngine) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine.submit(ReadRequest(model="fake", task="embed", texts=("abc", "a")), events.put)
    reading = events.get(timeout=5)
    assert isinstance(reading, Reading)
    assert (len(reading.vectors), reading.width) == (8, 1)
    assert ask.reply(engine, TokenizerRequest(model="fake")).value["bytes"] == b"\xff"


def test_errors_of_the_engine_arrive_as_they_are(engine: RemoteEngine) -> None:
    with pytest.raises(RequestError, match="There is no model other") as caught:
        list(write(engine, request("go", model="other")))
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    with pytest.raises(OverloadedError) as full:
        list(write(engine, request("full")))
    assert full.value.retry_after_s == 7
    with pytest.raises(RequestError, match="An answer could not be sent"):
        list(write(engine, request("odd")))


def test_a_cancelled_request_is_told_so_and_leaves_the_engine(engine: RemoteEngine) -> None:
    ticket, events = begin(engine, "wait")
    wait_for(lambda: engine.status().models["fake"].running == 1)
    ticket.cancel()
    event = events.get(timeout=5)
    assert isinstance(event, Delta)
    assert event.finish_reason == "abort"
    ticket.cancel()  # does nothing
    wait_for(lambda: engine.status().models["fake"].running == 0)
    assert not engine._open


def test_a_request_cancelled_at_once_is_over_at_once(engine: RemoteEngine) -> None:
    for _ in range(50):
        ticket, events = begin(engine, "wait")
        ticket.cancel()
        event = events.get(timeout=5)
        assert isinstance(event, RequestError) or event.finish_reason == "abort"  # pyright: ignore
    assert not engine._open


def test_leaving_the_loop_early_cancels(engine: RemoteEngine) -> None:
    deltas = write(engine, request("go a b c"))
    next(deltas)
    deltas.close()  # pyright: ignore[reportAttributeAccessIssue]
    wait_for(lambda: not engine._open)


def test_a_thousand_requests_at_once_are_all_answered_whole_and_in_order(engine: RemoteEngine) -> None:
    texts: list[list[str]] = [[] for _ in range(1000)]
    left = threading.Semaphore(0)

    def hear(number: int, event: Event) -> None:
        assert isinstance(event, Delta)
        texts[number].append(event.text)
        if event.finish_reason:
            left.release()

    def ask_many(first: int) -> None:
        for number in range(first, 1000, 4):
            words = " ".join(f"{number}.{place}" for place in range(10))
            engine.submit(request(f"go {words}"), lambda event, number=number: hear(number, event))

    threads = [threading.Thread(target=ask_many, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(1000):
        assert left.acquire(timeout=20)
    for thread in threads:
        thread.join()
    assert texts == [[*(f"{number}.{place}" for place in range(10)), ""] for number in range(1000)]
    assert not engine._open


def test_a_listener_that_raises_harms_nobody(engine: RemoteEngine, caplog: pytest.LogCaptureFixture) -> None:
    def hear(event: Event) -> None:
        raise ValueError("mine")

    engine.submit(request("go a"), hear)
    assert [delta.text for delta in write(engine, request("go b"))] == ["b", ""]
    wait_for(lambda: "a listener of the engine failed" in caplog.text)


def test_a_request_that_is_no_plain_data_is_its_own_error(engine: RemoteEngine) -> None:
    events: list[Event] = []
    bad = WriteRequest(model="fake", prompt="x", options=GenerateOptions(), template_options={"x": object()})
    engine.submit(bad, events.append)
    assert "object is not sent between processes" in str(events[0])


def test_status_and_models_are_those_of_the_process(engine: RemoteEngine) -> None:
    status = engine.status()
    assert (status.is_ready, status.restarts) == (True, 0)
    assert status.models["fake"].steps_by_batch_size == {1: 2}
    assert engine.models()[0].abilities == {"write", "embed"}


def test_an_adapter_is_listed_as_soon_as_its_loading_is_answered(engine: RemoteEngine) -> None:
    load = AdapterRequest(action="load", name="mine", folder="here")
    assert ask.reply(engine, load) == Reply(value={"name": "mine"})
    assert [model.name for model in engine.models()] == ["fake", "mine"]
    ask.reply(engine, AdapterRequest(action="unload", name="mine"))
    assert [model.name for model in engine.models()] == ["fake"]
    with pytest.raises(ModelError, match="There is no adapter at missing"):
        ask.reply(engine, AdapterRequest(action="load", name="no", folder="missing"))


def test_signals_of_a_terminal_do_not_reach_the_process(engine: RemoteEngine) -> None:
    pid = engine.pid
    assert pid is not None
    assert os.getsid(pid) != os.getsid(0)
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) >= 500, "it goes before the server does"
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    assert [delta.text for delta in write(engine, request("go a"))] == ["a", ""]
    assert engine.pid == pid


def test_nothing_is_left_of_the_socket(engine: RemoteEngine) -> None:
    mine = [path for path in Path(tempfile.gettempdir()).glob("danlu-*/engine") if path.owner() == Path.home().owner()]
    assert not mine


def test_too_many_and_too_large_requests_are_refused() -> None:
    with start(max_open=2, max_frame_bytes=5000) as engine:
        with pytest.raises(RequestError, match=r"The request is \d+ bytes, more than 4995. Send less") as large:
            list(write(engine, request("x" * 6000)))
        assert large.value.status == 413
        tickets = [begin(engine, "wait")[0] for _ in range(2)]
        with pytest.raises(OverloadedError, match=r"The queue is full: 2 requests wait. Try again"):
            list(write(engine, request("go")))
        tickets[0].cancel()
        wait_for(lambda: len(engine._open) == 1)
        assert [delta.text for delta in write(engine, request("go b"))] == ["b", ""]


def test_it_is_a_language_model_as_an_engine_in_this_process_is(engine: RemoteEngine) -> None:
    answers = engine.generate(["go a b", "go c"], GenerateOptions(n=2))
    assert [answer.text for answer in answers] == ["ab", "ab", "c", "c"]
    assert "".join(delta.text for delta in engine.stream("go Hello")) == "Hello"


# death and restart


def test_when_the_process_is_killed_callers_are_told_and_it_starts_again_with_its_adapters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = AdapterRequest(action="load", name="first", folder="here")
    with start(adapters=(first,)) as engine:
        ask.reply(engine, AdapterRequest(action="load", name="second", folder="there"))
        waiting = [begin(engine, "wait")[1] for _ in range(3)]
        with pytest.raises(UnavailableError, match="had to be started again while it worked") as told:
            list(write(engine, request("kill")))
        assert (told.value.status, told.value.code, told.value.retry_after_s) == (503, "engine_restarted", 1)
        assert all(isinstance(events.get(timeout=5), UnavailableError) for events in waiting)
        assert not engine.status().is_ready
        with pytest.raises(UnavailableError, match=r"is being started again. Try again after") as meanwhile:
            list(write(engine, request("go")))
        assert (meanwhile.value.code, meanwhile.value.retry_after_s) == ("engine_restarting", 1)
        wait_for(lambda: engine.status().is_ready)
        assert engine.status().restarts == 1
        assert [model.name for model in engine.models()] == ["fake", "first", "second"]
        assert [delta.text for delta in write(engine, request("go a", model="second"))] == ["a", ""]
    assert "SIGKILL (out of memory?)" in caplog.text


def test_a_process_that_stands_still_with_work_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    with start(stall_s=5.0) as engine:
        with pytest.raises(UnavailableError, match="had to be started again"):
            list(write(engine, request("hang")))
        wait_for(lambda: engine.status().is_ready)
    assert "The engine has stood still for" in caplog.text


def test_a_process_that_says_nothing_with_work_is_started_again() -> None:
    with start(stall_s=1.5) as engine:
        assert engine.pid is not None
        _, events = begin(engine, "wait")
        wait_for(lambda: engine.status().models["fake"].running == 1)
        os.kill(engine.pid, signal.SIGSTOP)
        assert isinstance(events.get(timeout=10), UnavailableError)
        wait_for(lambda: engine.status().is_ready)


def test_too_many_crashes_and_it_is_given_up() -> None:
    with start(max_crashes=2) as engine:
        for _ in range(2):
            wait_for(lambda: engine.status().is_ready)
            with pytest.raises(UnavailableError):
                list(write(engine, request("kill")))
        wait_for(lambda: engine.status().last_step_age_s == float("inf"))
        assert not engine.status().is_ready
        with pytest.raises(UnavailableError, match="has crashed too often and is not started again") as told:
            list(write(engine, request("go")))
        assert told.value.code == "engine_failed"


# the end


def test_stopping_lets_running_answers_finish_and_ends_the_rest() -> None:
    engine = start()
    pid = engine.pid
    assert pid is not None
    slow, waiting = begin(engine, "slow a")[1], begin(engine, "wait")[1]
    wait_for(lambda: engine.status().models["fake"].running == 2)
    began = time.monotonic()
    thread = threading.Thread(target=engine.stop, args=(0.6,))
    thread.start()
    wait_for(lambda: engine._phase == "stopping")
    with pytest.raises(UnavailableError, match="The engine is stopping"):
        list(write(engine, request("go")))
    assert not engine.status().is_ready
    thread.join(10)
    assert 0.5 < time.monotonic() - began < 3
    assert [slow.get(timeout=1).text, slow.get(timeout=1).finish_reason] == ["a", "stop"]  # pyright: ignore
    assert waiting.get(timeout=1).finish_reason == "abort"  # pyright: ignore
    assert not is_alive(pid)
    with pytest.raises(UnavailableError, match="The engine is stopping"):
        list(write(engine, request("go")))
    engine.stop(0.0)


def test_a_second_stop_shortens_the_first() -> None:
    engine = start()
    _, waiting = begin(engine, "wait")
    thread = threading.Thread(target=engine.stop, args=(60.0,))
    thread.start()
    wait_for(lambda: engine._phase == "stopping")
    engine.stop(0.0)
    thread.join(5)
    assert not thread.is_alive()
    assert waiting.get(timeout=1).finish_reason == "abort"  # pyright: ignore


def test_stopping_does_not_wait_for_a_restart() -> None:
    spec = EngineSpec(models=(ModelSpec(name="fake", path="x"),))
    engine = RemoteEngine(spec, RemoteConfig(first_delay_s=60.0), command=COMMAND)
    with pytest.raises(UnavailableError):
        list(write(engine, request("kill")))
    began = time.monotonic()
    engine.stop(30.0)
    assert time.monotonic() - began < 2


def test_a_process_that_does_not_end_is_killed() -> None:
    engine = start(stop_s=0.3)
    assert engine.pid is not None
    pid, (_, waiting) = engine.pid, begin(engine, "wait")
    os.kill(pid, signal.SIGSTOP)
    engine.stop(0.0)
    assert waiting.get(timeout=1).finish_reason == "abort"  # pyright: ignore
    assert not is_alive(pid)


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("absent", ModelError, "There is no model at absent. Check the path."),
        ("broken", ResourceError, "The engine cannot start: KeyError: 'weight'. Its log is above."),
        ("crash", ResourceError, r"ended while it was loading: it is gone \(SIGKILL \(out of memory\?\)\)"),
    ],
)
def test_what_is_wrong_at_the_start_is_raised(path: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        start(path)


def test_an_adapter_that_is_missing_at_the_start_is_raised() -> None:
    with pytest.raises(ModelError, match="There is no adapter at missing"):
        start(adapters=(AdapterRequest(action="load", name="a", folder="missing"),))


def test_a_command_that_ends_at_once_and_one_of_another_version_are_told() -> None:
    with pytest.raises(ResourceError, match=r"ended before it began \(exit status 3\). Its log is above"):
        start(command=(sys.executable, "-c", "raise SystemExit(3)"))
    other = (
        "import sys; from danlu.serve.engine import wire, process; wire._PROTOCOL = 2; "
        "process.main(sys.argv[1:])"
    )  # fmt: skip
    with pytest.raises(ResourceError, match="cannot be understood, the other side is another version of danlu: 2/"):
        start(command=(sys.executable, "-c", other))


def test_ctrl_c_while_loading_leaves_no_process() -> None:
    code = (
        "import sys, signal, threading, os\n"
        "from danlu.serve.engine.remote import RemoteEngine\n"
        "from danlu.serve.engine.spec import EngineSpec, ModelSpec\n"
        "def say(text):\n"
        "    print(text, flush=True); os.kill(os.getpid(), signal.SIGINT)\n"
        "try:\n"
        "    RemoteEngine(EngineSpec(models=(ModelSpec(name='fake', path='slow'),)), say=say, command=sys.argv[1:])\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *COMMAND], capture_output=True, text=True, timeout=20)
    assert done.stdout == "Loading fake\nstopped\n"


def test_the_process_dies_with_its_parent() -> None:
    code = (
        "import sys, os, time\n"
        "from danlu.serve.engine.remote import RemoteEngine\n"
        "from danlu.serve.engine.spec import EngineSpec, ModelSpec\n"
        "engine = RemoteEngine(EngineSpec(models=(ModelSpec(name='fake', path='x'),)), command=sys.argv[1:])\n"
        "assert 'torch' not in sys.modules\n"
        "print(engine.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, *COMMAND], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.kill()
        wait_for(lambda: not is_alive(pid))

"""How often the engine's process is started again, and what is said of its end."""

import signal

import pytest

from danlu.core.errors import ConfigError
from danlu.serve.engine import supervise
from danlu.serve.engine.supervise import Crashes, RemoteConfig, ending


def test_delays_double_up_to_a_longest_one_and_then_it_is_given_up() -> None:
    crashes = Crashes(RemoteConfig(max_crashes=9, most_delay_s=10.0))
    assert [crashes.add(float(second)) for second in range(9)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0, None]


def test_old_crashes_are_forgotten() -> None:
    crashes = Crashes(RemoteConfig())
    assert [crashes.add(second) for second in (0.0, 300.0, 601.0, 5000.0)] == [0.5, 1.0, 1.0, 0.5]
    assert [crashes.add(5001.0), crashes.add(5002.0), crashes.add(5003.0), crashes.add(5004.0)][-1] is None


@pytest.mark.parametrize("name", ["stall_s", "max_crashes", "max_open", "stop_s"])
def test_settings_must_be_more_than_0(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0. Use more than 0."):
        RemoteConfig(**{name: 0})


def test_an_end_is_told_in_words() -> None:
    assert ending(3) == "exit status 3"
    assert ending(-signal.SIGSEGV) == "SIGSEGV"
    assert ending(-signal.SIGKILL) == "SIGKILL (out of memory?)"


def test_a_temporary_folder_with_a_long_name_is_not_used_for_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/var/short")
    assert supervise._socket_root() == "/var/short"
    monkeypatch.setattr("tempfile.tempdir", "/var/" + "long" * 20)
    assert supervise._socket_root() == "/tmp"

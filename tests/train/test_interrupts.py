import os
import signal
import threading

import pytest

from danlu.train.interrupts import HeldBack


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_waits_until_it_is_let_through() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), HeldBack() as interrupts:
        interrupts.let_through()
        press()
        reached = True
        interrupts.let_through()
    assert reached


def test_a_second_ctrl_c_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), HeldBack():
        press()
        press()
        pytest.fail("the second one must not wait")


def test_afterwards_ctrl_c_is_what_it_was() -> None:
    before = signal.getsignal(signal.SIGINT)
    with HeldBack():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread_it_does_nothing() -> None:
    found: list[object] = []

    def work() -> None:
        with HeldBack() as interrupts:
            interrupts.let_through()
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]

import os
import signal
import threading

import pytest

from evomerge.session.signals import Interrupts, Terminated


def test_the_first_is_a_wish_and_the_second_raises() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        assert not interrupts.wanted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.wanted()
        assert interrupts.name == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_sigterm_raises_at_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_waits_until_nothing_is_half_done() -> None:
    with Interrupts() as interrupts:
        interrupts.settled = lambda: False
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.name == "SIGTERM"
        with pytest.raises(Terminated):
            interrupts.wanted()
        assert interrupts.wanted()


def test_a_second_sigterm_does_not_wait() -> None:
    with Interrupts() as interrupts:
        interrupts.settled = lambda: False
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)


def test_another_thread_installs_nothing() -> None:
    before, wanted = signal.getsignal(signal.SIGINT), []

    def run() -> None:
        with Interrupts() as interrupts:
            wanted.append((interrupts.wanted(), signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert wanted == [(False, True)]

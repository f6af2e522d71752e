"""A soft time limit never fires while an outcome is being recorded."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest
from billiard.exceptions import SoftTimeLimitExceeded

from sagakit.worker.undisturbed import undisturbed


@pytest.fixture(autouse=True)
def soft_limit() -> Iterator[None]:
    """What the prefork pool installs in its children."""

    def fire(number: int, frame: object) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGUSR1, fire)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_a_limit_inside_the_block_is_dropped() -> None:
    """The block runs to its end, and nothing is raised after it."""
    done = []
    with undisturbed():
        os.kill(os.getpid(), signal.SIGUSR1)
        done.append("all of it")
    assert done == ["all of it"]


def test_a_limit_after_the_block_fires() -> None:
    """The mask is put back as it was."""
    with undisturbed():
        pass
    with pytest.raises(SoftTimeLimitExceeded):
        os.kill(os.getpid(), signal.SIGUSR1)


def test_an_error_of_the_block_comes_out() -> None:
    """It is not lost to a limit that fired meanwhile."""

    def fail() -> None:
        with undisturbed():
            os.kill(os.getpid(), signal.SIGUSR1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()


def test_a_thread_has_no_soft_limit() -> None:
    """Signals go to the main thread: a threads pool is left alone."""
    done: list[str] = []

    def run() -> None:
        with undisturbed():
            done.append("ran")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(5)
    assert done == ["ran"]

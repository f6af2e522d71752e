"""What the main process tells the sweep, and how the sweep is woken."""

import os

import pytest

from sagakit.dispatch.envelope import Delivery
from sagakit.worker.identity import Identity, Wakeup
from sagakit.worker.notices import Notice, NoticeBoard, NoticeKind, claim_token

DELIVERY = Delivery("s", 0, "t0")


def test_a_claim_s_token_tells_the_message_and_the_process() -> None:
    """So that a notice can say whose run it is about; and nobody can guess it from the message."""
    token = claim_token(DELIVERY)
    assert Notice(NoticeKind.LOST, DELIVERY, os.getpid()).is_about(token)
    assert Notice(NoticeKind.LOST, DELIVERY).is_about(token)
    assert not Notice(NoticeKind.LOST, DELIVERY, os.getpid() + 1).is_about(token)
    assert not Notice(NoticeKind.LOST, Delivery("s", 0, "t"), os.getpid()).is_about(token)
    assert claim_token(DELIVERY) != token


def test_notices_are_taken_once_and_can_be_put_back() -> None:
    """In order, without waiting."""
    board = NoticeBoard()
    notices = [Notice(kind, DELIVERY) for kind in NoticeKind]
    for notice in notices:
        board.post(notice)
    assert board.take() == notices
    assert board.take() == []
    board.put_back(notices)
    assert board.take() == notices


def test_the_newest_message_of_each_queue_is_kept() -> None:
    """Messages come out of order now and then."""
    board = NoticeBoard()
    for queue, sent_at in [("a", 2.0), ("a", 1.0), ("b", 5.0)]:
        board.received(queue, sent_at)
    assert board.newest == {"a": 2.0, "b": 5.0}


def test_a_poke_wakes_once() -> None:
    """Any number of pokes before the wait are one."""
    wakeup = Wakeup()
    for _ in range(100_000):  # more than a pipe holds: poking never blocks
        wakeup.poke()
    while wakeup.wait(0):
        pass
    assert not wakeup.wait(0)
    wakeup.poke()
    assert wakeup.wait(5)
    wakeup.close()
    wakeup.poke()
    assert not wakeup.wait(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the pool does not fork here")
def test_a_child_wakes_its_parent() -> None:
    """Children are forked and share the pipe."""
    identity = Identity()
    name = identity.become_worker()
    assert identity.worker_id == name
    pid = os.fork()
    if pid == 0:
        identity.poke()
        os._exit(0)
    os.waitpid(pid, 0)
    assert identity.wakeup is not None
    assert identity.wakeup.wait(5)
    identity.resign()
    assert (identity.worker_id, identity.wakeup) == (None, None)
    identity.poke()


def test_a_process_that_is_no_worker_keeps_its_identity() -> None:
    """It is one and the same for all steps it runs."""
    identity = Identity()
    assert identity.stand_in() == identity.stand_in()

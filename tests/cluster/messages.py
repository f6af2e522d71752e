"""Messages on a Redis broker: those that wait, those that a worker holds, and a record of those that were published."""

import json
import re
import threading
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import Any, Self

import redis

from tests.cluster.waiting import wait_until

# kombu's separator between a queue's name and a message's priority
_PRIORITY = "\x06\x16"

# A line of MONITOR: `1700000000.123456 [3 127.0.0.1:5000] "LPUSH" "celery" "{...}"`. redis-py has a parser of its own,
# which takes the escaped backslash before a closing quote for an escaped quote.
_LINE = re.compile(rb'[\d.]+ \[(\d+) [^\]]*\] "(\w+)"')
_ARGUMENT = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|.)")
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}


def waiting_messages(redis_url: str, queue: str = "celery") -> int:
    """How many messages wait in the queue, over all priorities."""
    with redis.Redis.from_url(redis_url, socket_timeout=10) as client:
        keys = [queue, *(f"{queue}{_PRIORITY}{priority}" for priority in range(1, 10))]
        return sum(client.llen(key) for key in keys)


def unacked_messages(redis_url: str) -> int:
    """How many messages workers have taken and not yet acknowledged, over all queues."""
    with redis.Redis.from_url(redis_url, socket_timeout=10) as client:
        return int(client.hlen("unacked"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A task message as it was put into a queue; a ``redelivered`` one had been there before."""

    queue: str
    task: str
    id: str
    headers: dict[str, Any]
    redelivered: bool


class PublishedMessages:
    """Records, from the broker's side, every task message put into a queue while the ``with`` block lasts.

    It watches the server's own command stream (MONITOR), so it misses no publisher and no process that was killed.
    """

    def __init__(self, redis_url: str) -> None:
        self._client = redis.Redis.from_url(redis_url, socket_timeout=10)
        self._stream = redis.Redis.from_url(redis_url, socket_timeout=None).connection_pool.get_connection()
        self._database = b"%d" % int(self._client.connection_pool.connection_kwargs.get("db") or 0)
        self._messages: list[Message] = []
        self._echoed: set[bytes] = set()
        self._failure: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._watch, name="published-messages", daemon=True)

    def __enter__(self) -> Self:
        self._stream.send_command("MONITOR")
        assert self._stream.read_response() in (b"OK", "OK")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._client.ping()  # shown in the stream, so the thread looks up
        self._thread.join(10)
        self._stream.disconnect()
        self._client.close()

    def all(self) -> list[Message]:
        """The messages published until now; redeliveries, which nobody published, are not among them."""
        return [message for message in self.everything() if not message.redelivered]

    def everything(self) -> list[Message]:
        """The messages put into a queue until now, redeliveries included."""
        self._catch_up()
        return list(self._messages)

    def count(self, *, task: str | None = None, queue: str | None = None) -> int:
        """How many were published until now, of a task and to a queue."""
        return sum(task in (None, message.task) and queue in (None, message.queue) for message in self.all())

    def by_task(self) -> Counter[str]:
        """How many were published until now, of each task."""
        return Counter(message.task for message in self.all())

    def _catch_up(self) -> None:
        # The stream shows a command of ours after everything that the server did before it.
        nonce = uuid.uuid4().hex.encode()
        self._client.echo(nonce)

        def seen() -> bool:
            if self._failure is not None:
                raise AssertionError("the broker's command stream broke off") from self._failure
            return nonce in self._echoed

        wait_until(seen, 30, "the broker's command stream to catch up")

    def _watch(self) -> None:
        try:
            while not self._closing:
                self._look(self._stream.read_response(disable_decoding=True))
        except BaseException as exc:  # told by the test's thread
            self._failure = exc

    def _look(self, line: bytes) -> None:
        start = _LINE.match(line)
        if start is None:
            return
        database, verb = start.groups()
        verb = verb.upper()
        if verb == b"ECHO":
            self._echoed.update(_arguments(line, start.end()))
        elif verb in (b"LPUSH", b"RPUSH") and database == self._database:
            queue, *payloads = _arguments(line, start.end())
            self._messages += [message for text in payloads if (message := _message(queue.decode(), text))]


def _arguments(line: bytes, at: int) -> list[bytes]:
    return [_ESCAPE.sub(_unescape, quoted) for quoted in _ARGUMENT.findall(line, at)]


def _unescape(escape: re.Match[bytes]) -> bytes:
    what = escape[1]
    return bytes.fromhex(what[1:].decode()) if len(what) == 3 else _ESCAPED.get(what, what)


def _message(queue: str, text: bytes) -> Message | None:
    """The message in a list entry, if it is a task's: other things live in lists, too."""
    try:
        headers = json.loads(text)["headers"]
        return Message(
            queue=queue.split(_PRIORITY)[0],
            task=headers["task"],
            id=headers["id"],
            headers=headers,
            redelivered=bool(headers.get("redelivered")),
        )
    except (ValueError, KeyError, TypeError):
        return None

"""Databases of a Redis, borrowed for one test each, so that tests and test runs do not meet."""

import contextlib
import secrets
import threading
from urllib.parse import urlsplit, urlunsplit

import redis

from sagakit.local import ValkeyServer
from tests.cluster.waiting import wait_until

_LOCK = "sagakit-test:lock:{}"
_DIRTY = "sagakit-test:dirty"
_DATABASES = 16  # what a server has unless told otherwise
_LEASE = 60
_RENEWAL = 15.0
_BORROW_TIMEOUT = 90.0
# Renew or release only what is still ours.
_IF_OURS = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call({}) end return 0"
_RENEW = _IF_OURS.format("'expire', KEYS[1], ARGV[2]")
_RELEASE = _IF_OURS.format("'del', KEYS[1]")


class RedisServer:
    """A Redis named by a URL, or our own.

    The URL's own database is never handed out: it keeps, under ``sagakit-test:``, who uses which of the others. Only
    databases that were empty, or that a test of ours has left full, are touched.

    Attributes:
        url: of the database that is not handed out.
        server: the server itself, if it is ours to kill.

    Raises:
        redis.RedisError: it does not answer.
    """

    def __init__(self, url: str, server: ValkeyServer | None = None) -> None:
        self.url = url
        self.server = server
        self._client = self._connect(url)
        self._client.ping()
        self._home = int(self._client.connection_pool.connection_kwargs.get("db") or 0)
        self._token = secrets.token_hex(8)
        self._borrowed: set[int] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="redis-databases", daemon=True)
        self._thread.start()

    def borrow(self) -> int:
        """Get an empty database that nobody else uses, and return its number."""
        found = wait_until(self._find, _BORROW_TIMEOUT, f"a free database on {self.url}")
        return found[0]

    def give_back(self, number: int) -> None:
        """Empty a borrowed database and let others have it."""
        self._borrowed.discard(number)
        with self._connect(self.database_url(number)) as client:
            client.flushdb()
        self._client.srem(_DIRTY, number)
        self._client.eval(_RELEASE, 1, _LOCK.format(number), self._token)

    def database_url(self, number: int) -> str:
        """URL of a database."""
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{number}"))

    def has(self, url: str) -> bool:
        """Whether the URL is that of a database of this server."""
        return urlsplit(url).netloc == urlsplit(self.url).netloc

    def close(self) -> None:
        """Give back what is still borrowed and disconnect."""
        self._closing.set()
        self._thread.join()
        for number in list(self._borrowed):
            self.give_back(number)
        self._client.close()

    def _find(self) -> tuple[int] | None:
        for number in range(_DATABASES):
            if number != self._home and self._take(number):
                return (number,)
        return None

    def _take(self, number: int) -> bool:
        if not self._client.set(_LOCK.format(number), self._token, nx=True, ex=_LEASE):
            return False
        with self._connect(self.database_url(number)) as client:
            # A killed test run's leftovers are ours to remove, anybody else's data is not.
            if client.dbsize() and not self._client.sismember(_DIRTY, number):
                self._client.eval(_RELEASE, 1, _LOCK.format(number), self._token)
                return False
            self._client.sadd(_DIRTY, number)
            client.flushdb()
        self._borrowed.add(number)
        return True

    def _renew(self) -> None:
        while not self._closing.wait(_RENEWAL):
            for number in list(self._borrowed):
                # A test may have taken the server down; it will be back before the lease is over.
                with contextlib.suppress(redis.RedisError):
                    self._client.eval(_RENEW, 1, _LOCK.format(number), self._token, str(_LEASE))

    @staticmethod
    def _connect(url: str) -> redis.Redis:
        return redis.Redis.from_url(url, socket_timeout=10, socket_connect_timeout=5, decode_responses=True)

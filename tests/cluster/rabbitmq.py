"""Virtual hosts of a RabbitMQ, one for each test."""

import contextlib
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import amqp

from tests.cluster.waiting import wait_until

_TIMEOUT = 15
_LOCK = "sagakit-test-lock"
_LOCK_TIMEOUT = 90.0
_RESOURCE_LOCKED = 405
_DEFAULT_QUEUE = "celery"


class RabbitMQ:
    """A RabbitMQ named by a URL.

    Raises:
        OSError, amqp.AMQPError: it does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._connect(url).close()

    @contextlib.contextmanager
    def virtual_host(self) -> Iterator[str]:
        """A virtual host of our own, where rabbitmqctl lets us make one; else the URL's, for one test at a time."""
        name = f"sagakit_test_{secrets.token_hex(6)}"
        url = urlunsplit(urlsplit(self.url)._replace(path=f"/{quote(name, safe='')}"))
        if self._create(name, url):
            try:
                yield url
            finally:
                _rabbitmqctl("delete_vhost", name)  # takes half a second, which nobody need wait for
        else:
            with self._shared_host():
                yield self.url

    def _create(self, name: str, url: str) -> bool:
        if shutil.which("rabbitmqctl") is None:
            return False
        user = unquote(urlsplit(self.url).username or "guest")
        for command in (["add_vhost", name], ["set_permissions", "-p", name, user, ".*", ".*", ".*"]):
            try:
                if _rabbitmqctl(*command).wait(_TIMEOUT) != 0:
                    return False
            except subprocess.TimeoutExpired:
                return False
        try:
            self._connect(url).close()
        except (OSError, amqp.AMQPError):
            _rabbitmqctl("delete_vhost", name)  # rabbitmqctl speaks to another server than the URL
            return False
        return True

    @contextlib.contextmanager
    def _shared_host(self) -> Iterator[None]:
        with contextlib.closing(wait_until(self._lock, _LOCK_TIMEOUT, f"the virtual host of {self.url}")):
            self._delete_default_queue()
            yield
            self._delete_default_queue()

    def _lock(self) -> amqp.Connection | None:
        # An exclusive queue is a lock that ends with its connection.
        connection = self._connect(self.url)
        try:
            connection.channel().queue_declare(_LOCK, exclusive=True)
        except amqp.AMQPError as exc:
            connection.close()
            if exc.code == _RESOURCE_LOCKED:
                return None
            raise
        return connection

    def _delete_default_queue(self) -> None:
        with contextlib.closing(self._connect(self.url)) as connection:
            connection.channel().queue_delete(_DEFAULT_QUEUE)

    @staticmethod
    def _connect(url: str) -> amqp.Connection:
        parts = urlsplit(url)
        connection = amqp.Connection(
            f"{parts.hostname or '127.0.0.1'}:{parts.port or 5672}",
            unquote(parts.username or "guest"),
            unquote(parts.password or "guest"),
            virtual_host=unquote(parts.path[1:]) or "/",
            ssl=parts.scheme == "amqps",
            connect_timeout=5,
            read_timeout=_TIMEOUT,
            write_timeout=_TIMEOUT,
        )
        connection.connect()
        return connection


def _rabbitmqctl(*arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        ["rabbitmqctl", "--quiet", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # finishes what it does when the tests are interrupted
    )

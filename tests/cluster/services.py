"""The servers that tests use: those that SAGAKIT_TEST_*_URL name, else our own out of wheels.

A server that is named and does not answer is a failure. One that is not named and cannot be started, because its wheel
is missing, is a skip on a laptop and a failure in CI.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NoReturn, TypeAlias, TypeVar

import pytest

from sagakit.local import LocalServersNotInstalled, PostgresServer, ValkeyServer, local_postgres, local_valkey
from tests.cluster.postgres import NamedPostgres
from tests.cluster.rabbitmq import RabbitMQ
from tests.cluster.redis import RedisServer

S = TypeVar("S")

Postgres: TypeAlias = NamedPostgres | PostgresServer


def in_ci() -> bool:
    """Whether a missing service is a failure."""
    return os.environ.get("CI", "").lower() in ("1", "true")


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A Postgres that lets us create and drop databases."""
    url = os.environ.get("SAGAKIT_TEST_POSTGRES_URL")
    if url:
        with contextlib.closing(_named("SAGAKIT_TEST_POSTGRES_URL", lambda: NamedPostgres(url))) as server:
            yield server
    else:
        with _out_of_wheel(lambda: local_postgres(fsync=False)) as own:
            yield own


def own_postgres() -> AbstractContextManager[PostgresServer]:
    """A Postgres that a test may kill; its commits reach the disk."""
    return _out_of_wheel(local_postgres)


def own_valkey() -> AbstractContextManager[ValkeyServer]:
    """A Valkey that a test may kill."""
    return _out_of_wheel(local_valkey)


@contextlib.contextmanager
def redis() -> Iterator[RedisServer]:
    """A Redis whose databases tests can borrow."""
    url = os.environ.get("SAGAKIT_TEST_REDIS_URL")
    if url:
        with contextlib.closing(_named("SAGAKIT_TEST_REDIS_URL", lambda: RedisServer(url))) as server:
            yield server
    else:
        with (
            own_valkey() as valkey,
            contextlib.closing(RedisServer(valkey.url, valkey)) as server,
        ):
            yield server


def rabbitmq() -> RabbitMQ:
    """The RabbitMQ that SAGAKIT_TEST_AMQP_URL names; there is no wheel of it, so a skip without, in CI too."""
    url = os.environ.get("SAGAKIT_TEST_AMQP_URL")
    if not url:
        pytest.skip("SAGAKIT_TEST_AMQP_URL names no RabbitMQ")
    return _named("SAGAKIT_TEST_AMQP_URL", lambda: RabbitMQ(url))


def _named(variable: str, connect: Callable[[], S]) -> S:
    try:
        return connect()
    except Exception as exc:  # whatever the driver raises: the variable promised a server
        problem = f"{type(exc).__name__}: {exc}".strip()
    pytest.fail(f"{variable}={os.environ[variable]} cannot be used: {problem}", pytrace=False)


@contextlib.contextmanager
def _out_of_wheel(start: Callable[[], AbstractContextManager[S]]) -> Iterator[S]:
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(start())
        except LocalServersNotInstalled as exc:
            _missing(str(exc))
        yield server


def _missing(message: str) -> NoReturn:
    if in_ci():
        pytest.fail(message, pytrace=False)
    pytest.skip(message)

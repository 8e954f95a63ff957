"""Servers that studies live on, started for real: PostgreSQL and Redis, one each a session."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

REQUIRED = "AUTOCOMP_REQUIRE_SERVERS"  # where set, a missing server fails the tests
START_SECONDS = 30.0


def binary(name: str) -> str:
    """Return the path of a server's program; skip the test where there is none."""
    packaged = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    found = shutil.which(name) or (str(packaged[-1]) if packaged else None)
    if found is None:
        reason = f"{name} is not installed (Debian: postgresql, redis-server)"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{reason}, and {REQUIRED} is set")
        pytest.skip(reason)
    return found


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Server:
    """A private server in a folder of its own, which outlives :meth:`kill`.

    PostgreSQL refuses to run as root, so the superuser runs servers as ``postgres`` or ``nobody``.
    """

    stop = signal.SIGKILL

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="autocomp-server-"))
        self.port = free_port()
        self.user: dict[str, object] = {}
        if os.getuid() == 0:
            user = "postgres" if "postgres:" in Path("/etc/passwd").read_text() else "nobody"
            shutil.chown(self.folder, user)
            self.user = {"user": user, "extra_groups": []}
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, *command: str) -> None:
        """Run a program to its end as the server's user."""
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, cwd=self.folder, **self.user
        )

    def command(self) -> list[str]:
        """Return what starts the server."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Return whether the server can be used."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the server and wait until it answers; again, where a dead one still holds on."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            with open(self.folder / "log", "ab") as log:
                self.process = subprocess.Popen(
                    self.command(), stdout=log, stderr=log, cwd=self.folder, **self.user
                )
            while self.process.poll() is None:
                if self.answers():
                    return
                time.sleep(0.02)
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill the server as the kernel would when memory is short."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Stop the server and remove its folder."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(self.stop)
            self.process.wait(timeout=START_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)


class Postgres(Server):
    """PostgreSQL, with a new database a study; only a loss of power could lose a write."""

    stop = signal.SIGQUIT  # so that it stops its own processes, without waiting for clients

    def __init__(self) -> None:
        self._program, initdb = binary("postgres"), binary("initdb")
        super().__init__()
        data = str(self.folder / "data")
        self.run(initdb, "-D", data, "-A", "trust", "-U", "autocomp", "-E", "UTF8", "--no-sync")
        self._databases = 0

    def command(self) -> list[str]:
        place = ["-D", str(self.folder / "data"), "-k", str(self.folder)]
        return [self._program, *place, "-p", str(self.port), "-h", "127.0.0.1", "-F"]

    def url(self, database: str) -> str:
        return f"postgresql://autocomp@127.0.0.1:{self.port}/{database}"

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=1).close()
        except psycopg.OperationalError:
            return False
        return True

    def new(self) -> str:
        """Return the URL of an empty database."""
        self._databases += 1
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE study{self._databases}")
        return self.url(f"study{self._databases}")


class Redis(Server):
    """Redis with a log of every write; only a loss of power could lose one."""

    def __init__(self) -> None:
        self._program = binary("redis-server")
        super().__init__()

    def command(self) -> list[str]:
        kept = ["--appendonly", "yes", "--appendfsync", "no", "--save", ""]
        place = ["--dir", str(self.folder), "--port", str(self.port), "--bind", "127.0.0.1"]
        return [self._program, *place, *kept]

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.exceptions.ConnectionError:
            return False

    def new(self) -> str:
        """Return the URL of the database, emptied."""
        self.client.flushall()
        return f"redis://127.0.0.1:{self.port}/0"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server."""
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A Redis server."""
    server = Redis()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(params=["journal", "sqlite", "postgresql", "redis"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """The URL of an empty storage of every kind; ``None`` for the journal of the directory."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").new()
    if request.param == "redis":
        return request.getfixturevalue("redis_server").new()
    return None if request.param == "journal" else f"sqlite:///{tmp_path / 'study.db'}"

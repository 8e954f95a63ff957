"""Who is working on a trial: a process identity that survives the reuse of process ids."""

import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


def _start_time(pid: int) -> str:
    """Return when a process started, in kernel ticks; empty when it is dead, ``0`` if unknown."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] in "ZX" else fields[19]  # state and start time: proc(5) 3 and 22
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "0"


def this_process() -> str:
    """Return ``host:pid:start`` of the running process."""
    pid = os.getpid()
    return f"{socket.gethostname()}:{pid}:{_start_time(pid)}"


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to evaluate a running trial.

    Args:
        owner: ``host:pid:start`` of the process.
        expiry: Unix time in seconds after which anyone may take the trial over.
    """

    owner: str
    expiry: float

    @classmethod
    def take(cls, seconds: float) -> "Lease":
        """Return a lease of this process that ends ``seconds`` from now."""
        return cls(this_process(), time.time() + seconds)

    @classmethod
    def from_json(cls, data: Any) -> "Lease":
        """Return the lease of its JSON form; a missing one has long expired."""
        return cls(data["owner"], data["expiry"]) if data else cls("", 0.0)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @property
    def abandoned(self) -> bool:
        """Whether it has expired, or its process is known to be dead (same host only)."""
        if time.time() > self.expiry:
            return True
        host, pid, start = self.owner.rsplit(":", 2)
        return host == socket.gethostname() and _start_time(int(pid)) != start

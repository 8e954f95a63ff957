"""Leases: who works on a trial, and whether it still lives."""

import os
import subprocess
import sys

from autocomp.search.lease import Lease, this_process

CHILD = """
import sys
from autocomp.search.lease import this_process
print(this_process(), flush=True)
sys.stdin.read()
"""


def test_own_lease_holds_until_it_expires():
    assert not Lease.take(60).abandoned
    assert Lease.take(-1).abandoned


def test_missing_lease_has_expired():
    assert Lease.from_json(None).abandoned


def test_json_round_trip():
    lease = Lease.take(60)
    assert Lease.from_json(lease.to_json()) == lease


def test_dead_process_abandons_its_lease():
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    lease = Lease(process.stdout.readline().decode().strip(), 1e12)
    assert not lease.abandoned
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, not reaped: a zombie
    assert lease.abandoned
    process.communicate()
    assert lease.abandoned


def test_reused_process_id_is_another_process():
    host, pid, _ = this_process().rsplit(":", 2)
    assert Lease(f"{host}:{pid}:12345", 1e12).abandoned


def test_other_hosts_are_believed():
    assert not Lease("some-other-host:1:2", 1e12).abandoned

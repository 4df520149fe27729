"""The test bed and two users' clusters on it, made once for all end-to-end tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.cluster import Cluster
from tests.testbed import Bed


@pytest.fixture(scope="session")
def bed() -> Iterator[Bed]:
    """A bed of the tests' own, so that a developer's is left alone. $HPK_TESTBED names another, which then stays up."""
    if os.geteuid() != 0:
        pytest.skip("the test bed is made by root")
    kept = "HPK_TESTBED" in os.environ
    found = Bed(None if kept else "e2e")
    if not kept:
        found.down()
    found.up()
    yield found
    if not kept:
        found.down(wipe=True)


def _cluster(bed: Bed, user: str) -> Cluster:
    cluster = Cluster(bed, user)
    cluster.run("rm", "-rf", f"{cluster.home}/.hpk")  # a new user, also on a bed that was kept
    seconds = cluster.start()
    print(f"{user}: sbatch to node Ready {seconds:.1f} s", file=sys.stderr)
    return cluster


@pytest.fixture(scope="session")
def alice(bed: Bed) -> Iterator[Cluster]:
    cluster = _cluster(bed, "alice")
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def bob(bed: Bed) -> Iterator[Cluster]:
    cluster = _cluster(bed, "bob")
    yield cluster
    cluster.stop()

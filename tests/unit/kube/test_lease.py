"""Leader election: whose lease counts, and for how long. Two real contenders: tests/component/test_client.py."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from hpk.kube import errors, lease

Object = dict[str, Any]


class Played:
    """One Lease object with resourceVersions; ``broken`` makes it unreachable."""

    def __init__(self, spec: Object | None = None) -> None:
        self.object: Object | None = None if spec is None else {"metadata": {"resourceVersion": "1"}, "spec": spec}
        self.broken = False

    async def get(self, path: str) -> Object:
        if self.broken:
            raise errors.Unreachable("away")
        if self.object is None:
            raise errors.NotFound(404, "NotFound", "no lease")
        return {**self.object}

    async def create(self, path: str, body: Object) -> Object:
        self.object = {**body, "metadata": {**body["metadata"], "resourceVersion": "1"}}
        return self.object

    async def replace(self, path: str, body: Object) -> Object:
        if self.broken:
            raise errors.Unreachable("away")
        assert self.object is not None
        if body["metadata"]["resourceVersion"] != self.object["metadata"]["resourceVersion"]:
            raise errors.Conflict(409, "Conflict", "changed")
        version = str(int(self.object["metadata"]["resourceVersion"]) + 1)
        self.object = {**body, "metadata": {**body["metadata"], "resourceVersion": version}}
        return self.object


def held_by(holder: str, seconds: int = 15) -> Object:
    return {"holderIdentity": holder, "leaseDurationSeconds": seconds, "renewTime": "2001-01-01T00:00:00.000000Z", "leaseTransitions": 4}


def lease_of(client: Any, holder: str = "me", **how: Any) -> lease.LeaderLease:
    return lease.LeaderLease(client, "kube-system", "x", holder=holder, **how)


async def test_a_new_lease_and_its_renewal() -> None:
    client = Played()
    mine = lease_of(client)
    assert await mine._try()
    assert client.object is not None
    acquired = client.object["spec"]["acquireTime"]
    assert await mine._try()
    assert client.object["spec"]["acquireTime"] == acquired
    assert client.object["spec"]["leaseTransitions"] == 0


async def test_anothers_lease_counts_from_when_we_saw_it() -> None:
    """Its renewTime is long past by our clock: that means nothing, clocks differ."""
    client = Played(held_by("other", 1))
    mine = lease_of(client)
    assert not await mine._try()
    await asyncio.sleep(0.6)
    assert client.object is not None
    client.object = {**client.object, "spec": {**client.object["spec"], "renewTime": "2001-01-01T00:00:09.000000Z"}}
    assert not await mine._try()  # renewed: a second more
    await asyncio.sleep(0.6)
    assert not await mine._try()
    await asyncio.sleep(0.5)
    assert await mine._try()
    assert client.object["spec"]["leaseTransitions"] == 5


async def test_a_released_lease_is_free() -> None:
    assert await lease_of(Played(held_by("", 1)))._try()


async def test_a_lost_answer_to_our_own_renewal_is_no_loss() -> None:
    client = Played()
    mine = lease_of(client)
    await mine._try()
    original = client.get

    async def stale(path: str) -> Object:
        found = await original(path)
        client.get = original  # type: ignore[method-assign]
        return {**found, "metadata": {"resourceVersion": "0"}}

    client.get = stale  # type: ignore[method-assign]
    assert await mine._try()


async def test_leader_that_cannot_renew_stops_leading() -> None:
    client = Played()
    mine = lease_of(client, duration=1, renew_deadline=0.3, retry=0.05)
    stopped = asyncio.Event()

    async def lead() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    task = asyncio.create_task(mine.run(lead))
    await asyncio.sleep(0.2)
    client.broken = True
    with pytest.raises(lease.LostLease):
        await asyncio.wait_for(task, 5)
    assert stopped.is_set()


async def test_a_usurped_leader_stops() -> None:
    client = Played()
    task = asyncio.create_task(lease_of(client, retry=0.05).run(lambda: asyncio.sleep(60)))
    await asyncio.sleep(0.1)
    assert client.object is not None
    client.object = {"metadata": {"resourceVersion": "9"}, "spec": held_by("other")}
    with pytest.raises(lease.LostLease, match="other"):
        await asyncio.wait_for(task, 5)
    assert client.object["spec"]["holderIdentity"] == "other"  # and does not release what is not its own


async def test_failure_of_the_work_is_told_and_the_lease_released() -> None:
    client = Played()

    async def lead() -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        await lease_of(client).run(lead)
    assert client.object is not None
    assert client.object["spec"]["holderIdentity"] == ""


def test_identity_tells_the_dead_from_the_living() -> None:
    mine = lease.identity()
    assert not lease.is_dead(mine)
    start = mine.rsplit("_", 1)[1]
    assert lease.is_dead(mine[: -len(start)] + "1")  # the pid was used again
    assert not lease.is_dead("otherhost_" + mine.split("_", 1)[1])
    assert not lease.is_dead("somebody")
    host, _, pid, started = mine.rsplit("_", 3)
    assert pid == str(os.getpid())
    assert not lease.is_dead(f"{host}_otherboot_{pid}_1{started}")


def test_micro_time() -> None:
    assert lease.micro_time(1.5) == "1970-01-01T00:00:01.500000Z"

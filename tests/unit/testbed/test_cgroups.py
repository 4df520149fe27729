"""Which cgroup hierarchies the hosts use."""

from __future__ import annotations

import pytest

from tests.testbed import cgroups, commands

V1 = """\
30 24 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:12 - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
"""
V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_only_hierarchies_with_controllers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "read", lambda path: V1)
    assert cgroups.hierarchies() == {"/sys/fs/cgroup/cpu,cpuacct": "cpu,cpuacct", "/sys/fs/cgroup/memory": "memory"}


def test_cgroup_v2_only_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "read", lambda path: V2)
    with pytest.raises(commands.TestbedError, match=r"needs cgroup v1 \(kernel command line systemd\.unified_cgroup_hierarchy=0\)"):
        cgroups.hierarchies()

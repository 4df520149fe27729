"""A whole bed: up, down, its hosts and what is run on them. This is also the Python API of the end-to-end tests."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from tests.testbed import cgroups, commands, host, images, layout, oci, packages, registry, site, slurm, switch, users


class Bed:
    """The bed that $HPK_TESTBED names (``main`` without it). All methods raise TestbedError with the reason when they fail."""

    def __init__(self, name: str | None = None) -> None:
        self.layout = layout.Layout(name) if name else layout.Layout.default()

    # what there is

    @property
    def nodes(self) -> list[str]:
        """Names of the compute hosts; empty when the bed is down."""
        text = commands.read(self._record)
        return [f"c{number}" for number in range(1, json.loads(text)["nodes"] + 1)] if text else []

    @property
    def hosts(self) -> dict[str, host.Host]:
        return {name: host.Host(self.layout, name) for name in [layout.LOGIN, *self.nodes]}

    @property
    def login(self) -> host.Host:
        return host.Host(self.layout, layout.LOGIN)

    def host(self, name: str) -> host.Host:
        """The host of that name. Raises TestbedError when the bed has none."""
        if not self.nodes:
            raise commands.TestbedError(f"test bed {self.layout.name} is down: python -m tests.testbed up")
        if name not in self.hosts:
            raise commands.TestbedError(f"--host: no host {name!r} in the test bed; it has {', '.join(self.hosts)}")
        return self.hosts[name]

    @property
    def _record(self) -> str:
        """File that exists while the bed is up."""
        return f"{self.layout.state}/up.json"

    # up and down

    def up(self, nodes: int | None = None) -> None:
        """Make the bed, or switch on those of its hosts that are off. ``nodes``: number of compute hosts, 3 for a new bed."""
        _require_root()
        with self._locked():
            if nodes is not None and not 1 <= nodes <= layout.MAX_NODES:
                raise commands.TestbedError(f"--nodes: {nodes} is not between 1 and {layout.MAX_NODES}")
            if self.nodes and nodes not in (None, len(self.nodes)):
                raise commands.TestbedError(f"--nodes: the test bed is up with {len(self.nodes)}; `down` first")
            if self.nodes and all(machine.up for machine in self.hosts.values()):
                return
            _prepare_machine()
            if self.nodes and self.login.up:
                self._boot([name for name, machine in self.hosts.items() if not machine.up])
                return
            nodes = nodes or len(self.nodes) or 3
            self._clean()
            names = [f"c{number}" for number in range(1, nodes + 1)]
            self._configure(names)
            switch.create(self.layout)
            commands.write(self._record, json.dumps({"nodes": nodes}))
            try:
                self._boot([layout.LOGIN, *names])
            except BaseException:
                self._clean()
                raise

    def down(self, *, wipe: bool = False) -> None:
        """End every process of the bed, its network and its cgroups. Homes, accounting and images stay unless ``wipe``."""
        _require_root()
        with self._locked():
            self._clean()
            if wipe:
                shutil.rmtree(self.layout.state)

    def kill_host(self, name: str) -> None:
        """Power failure of a host."""
        with self._locked():
            self.host(name).kill()

    def start_host(self, name: str, *, timeout: float = 60) -> None:
        """Switch a host on again and wait until it takes jobs; does nothing when it is on."""
        with self._locked():
            if not self.host(name).up:
                self._boot([name], timeout)

    def _configure(self, nodes: list[str]) -> None:
        etc = self.layout.etc
        users.folder(self.layout.home, "root")
        users.homes(self.layout)
        slurm.configure(self.layout, nodes)
        site.configure(self.layout)
        registry.configure(self.layout)
        hosts = ["127.0.0.1 localhost", *(f"{layout.address(name)} {name}" for name in [layout.LOGIN, *nodes])]
        commands.write(f"{etc}/hosts", "\n".join([*hosts, f"{layout.address(layout.LOGIN)} registry"]) + "\n")
        # no name server in the bed: an address of its own that refuses at once, so that look-ups fail without a wait
        commands.write(f"{etc}/resolv.conf", f"nameserver {layout.address(layout.LOGIN)}\n")

    def _boot(self, names: list[str], timeout: float = 60) -> None:
        """Switch hosts on, the login host's services before those of the compute hosts."""
        with concurrent.futures.ThreadPoolExecutor(8) as pool:

            def start(name: str) -> None:
                host.Host(self.layout, name).start()
                slurm.start_munge(host.Host(self.layout, name))

            list(pool.map(start, names))
            registry_ready = pool.submit(registry.start, self.login) if layout.LOGIN in names else None
            if layout.LOGIN in names:
                slurm.start_controller(self.login)
            nodes = [name for name in names if name != layout.LOGIN]
            list(pool.map(lambda name: slurm.start_node(host.Host(self.layout, name)), nodes))
            slurm.wait_ready(self.login, nodes, timeout)
            if registry_ready:
                registry_ready.result()

    def _clean(self) -> None:
        """Remove every trace of running hosts, also of an `up` that crashed."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._record)
        prefix = self.layout.cgroup("")
        names = [name[len(prefix) :] for name in cgroups.leftovers(prefix)]
        for name in names:
            host.Host(self.layout, name).kill()
        switch.remove(self.layout)

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        """One change of the bed at a time, whoever asks."""
        return commands.locked(f"{self.layout.state}.lock")

    # running things

    def argv(self, argv: Sequence[str], *, host: str = layout.LOGIN, user: str = "alice") -> list[str]:
        """Command line that runs ``argv`` on a host, in the user's home with the environment of a login (or as root)."""
        if user != "root" and user not in layout.USERS:
            raise commands.TestbedError(f"--user: {user!r} is none of {', '.join(layout.USERS)}")
        return self.host(host).enter(argv, user=user, env={} if user == "root" else site.environment(user))

    def run(
        self,
        *argv: str,
        host: str = layout.LOGIN,
        user: str = "alice",
        stdin: str | None = None,
        timeout: float = 60,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a user logged in to ``host`` and return what it printed."""
        return commands.run(self.argv(argv, host=host, user=user), stdin=stdin, timeout=timeout, check=check)

    def root(self, *argv: str, host: str = layout.LOGIN, timeout: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as root on ``host``."""
        return self.run(*argv, host=host, user="root", timeout=timeout, check=check)

    def push(
        self, reference: str, *, base: str = "busybox", files: Sequence[oci.File] = (), config: Mapping[str, Any] | None = None
    ) -> None:
        """Push an image of a test's own as registry:5000/``reference``: a test image (see ``images``), more files, another config."""
        with tempfile.TemporaryDirectory(dir=layout.CACHE) as folder:
            registry.push(self.login, images.derive(base, files, config or {}, folder), reference)

    def status(self) -> dict[str, str]:
        """State and address of each host: ``off``, ``on``, or Slurm's word for the node if it answers; empty when the bed is down."""
        if not self.nodes:
            return {}
        slurm_states: dict[str, str] = {}
        with contextlib.suppress(commands.TestbedError):
            slurm_states = slurm.states(self.login)
        found = {}
        for name, machine in self.hosts.items():
            found[name] = (slurm_states.get(name, "on") if machine.up else "off") + f" {layout.address(name)}"
        return found


def _prepare_machine() -> None:
    """Install what any bed needs; quick when it is there."""
    with commands.locked(f"{layout.CACHE}/.lock"):
        packages.ensure()
        users.ensure()
        site.python_environment()


def _require_root() -> None:
    if os.geteuid() != 0:
        raise commands.TestbedError("the test bed is made by root; HPK itself never needs it")

"""The state directory as the bootstrap uses it: its format, and the account that a run gives of itself (``run/cluster.json``)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from hpk import config as configuration
from hpk import errors, files, paths, records


def check_version(where: paths.Paths) -> bool:
    """Tell whether the state directory is one of ours; False: there is none yet. Nothing is written.

    Raises StateError for one of another format, one that holds other things, and one that cannot be read.
    """
    try:
        with open(where.version, encoding="utf-8") as file:
            found = file.read().strip()
    except FileNotFoundError:
        if any(os.path.exists(path) for path in (where.etcd, where.pki)):
            raise errors.StateError(
                f"{where.root} holds a cluster's state but no file {os.path.basename(where.version)}",
                hint=f"is it a damaged copy? write {paths.STATE_VERSION} into {where.version} if you are sure",
            ) from None
        return False
    except (OSError, UnicodeDecodeError) as exc:
        raise errors.StateError(f"{where.version} cannot be read: {exc}") from exc
    if found != str(paths.STATE_VERSION):
        raise errors.StateError(
            f"{where.root} is a state directory of format {found[:20]!r}; this HPK understands format {paths.STATE_VERSION}",
            hint="use the HPK that made it, or another directory by HPK_HOME=...",
        )
    return True


def prepare(where: paths.Paths) -> None:
    """Make the folders of the state directory. Raises StateError for one that cannot be used."""
    known = check_version(where)
    try:
        for folder in (where.root, where.pki, where.kubeconfigs, where.logs, where.run, where.images, where.pods):
            files.private_dir(folder)
        os.chmod(where.root, 0o700)
        if not known:
            files.write_atomic(where.version, f"{paths.STATE_VERSION}\n", sync=True)
    except OSError as exc:
        raise errors.StateError(f"{where.root} cannot be written: {exc.strerror or exc}") from exc


def find_image(where: paths.Paths, config: configuration.Config) -> str:
    """Return the control-plane image. Raises InvalidInput that says how to get one."""
    configured = config.control_plane.image
    image = os.path.abspath(os.path.expanduser(configured)) if configured else where.control_plane_image
    try:
        if os.path.isdir(image):
            os.listdir(image)
        else:
            with open(image, "rb") as file:
                file.read(1)
    except OSError as exc:
        key = "controlPlane.image: " if configured else "no control-plane image: "
        raise errors.InvalidInput(f"{key}{image}: {exc.strerror}", hint="`hpk image build` makes it") from exc
    return image


class Report:
    """``run/cluster.json``: what ``hpk up`` and ``hpk status`` (and the kubelet) know of the present control plane.

    jobID, host, address, pid, startedAt   who and where
    apiServer                              base URL
    dns                                    {"address", "port", "transport"} of CoreDNS
    phase                                  starting, ready, stopping, stopped, failed
    ready                                  true when phase is ready
    error                                  why it failed, one line
    steps                                  [{"name", "at"}] in the order in which they were done; at in seconds since startedAt
    components                             name -> {"summary", "phase", "pid", "restarts", "lastExit"}
    """

    def __init__(self, path: str, facts: Mapping[str, Any]) -> None:
        self._path = path
        self._began = time.time()
        self._value: dict[str, Any] = {
            **facts, "startedAt": records.now(self._began), "phase": "starting", "ready": False, "error": "", "steps": [], "components": {},
        }  # fmt: skip
        self._write()

    def _write(self) -> None:
        files.write_json(self._path, self._value)

    def step(self, name: str) -> None:
        """Note that a step of the start is done."""
        self._value["steps"].append({"name": name, "at": round(time.time() - self._began, 2)})
        self._write()

    def phase(self, phase: str, *, error: str = "") -> None:
        self._value.update(phase=phase, ready=phase == "ready", error=error or self._value["error"])
        self._write()

    def components(self, states: Mapping[str, Any], summaries: Mapping[str, str]) -> None:
        """Note the states (runner.State) of the components; a component's first readiness is a step."""
        done = {step["name"] for step in self._value["steps"]}
        for name, state in states.items():
            self._value["components"][name] = {
                "summary": summaries[name],
                "phase": state.phase,
                "pid": state.pid,
                "restarts": state.restarts,
                "lastExit": state.last_exit,
            }
            if state.phase == "ready" and summaries[name] not in done:
                self._value["steps"].append({"name": summaries[name], "at": round(state.ready_at - self._began, 2)})
        self._write()

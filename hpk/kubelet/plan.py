"""What a Pod becomes: Pod + what it refers to -> PodPlan. Pure; prepare.py fetches, writes and pulls.

Raises NotReady("CreateContainerConfigError", ...) with the container's name where upstream's kubelet would leave that container
waiting, and Rejected for what can never be.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from hpk import config as configuration
from hpk import errors, paths, records
from hpk.kubelet import env, etcfiles, images, podplan, resources, slurmflags, users
from hpk.kubelet.volumes import mounts

Object = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Resolved:
    """All that a Pod refers to and that is there. Objects by name; what is missing is not in the mapping."""

    images: Mapping[str, images.ImageInfo]
    """By container name."""
    config_maps: Mapping[str, Object] = dataclasses.field(default_factory=dict)
    secrets: Mapping[str, Object] = dataclasses.field(default_factory=dict)
    services: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Service environment variables."""
    claims: Mapping[str, mounts.HostVolume] = dataclasses.field(default_factory=dict)
    """PersistentVolumeClaims' volumes, by volume name."""
    resolv_conf: str = ""
    """/etc/resolv.conf of this node."""
    node_memory: int = 0
    """Allocatable memory of the node in bytes, for resourceFieldRef where neither the container nor the job has a limit."""


def build(pod: Object, resolved: Resolved, *, config: configuration.Config, where: paths.Paths) -> podplan.PodPlan:
    """Return the plan of ``pod``."""
    spec, metadata = pod["spec"], pod["metadata"]
    namespace = metadata.get("namespace") or "default"
    pod_dir = where.pod(namespace, metadata["name"], metadata.get("uid", ""))
    job = resources.job(pod, config)
    found, job_volumes = mounts.sources(spec, pod_dir, resolved.claims)
    builder = _Builder(pod, resolved, config, pod_dir, job, found)
    init = tuple(builder.container(container, main=False) for container in spec.get("initContainers") or [])
    main = tuple(builder.container(container, main=number == 0) for number, container in enumerate(spec["containers"]))
    grace = spec.get("terminationGracePeriodSeconds")
    namespaces = ["user", "mnt", *([] if spec.get("hostIPC") else ["ipc"]), *([] if spec.get("hostNetwork") else ["uts"])]
    return podplan.PodPlan(
        uid=metadata.get("uid", ""),
        namespace=namespace,
        name=metadata["name"],
        node_name=spec.get("nodeName") or config.cluster.node_name,
        pod_dir=pod_dir.root,
        job=job,
        containers=main,
        init_containers=init,
        job_volumes=(*job_volumes, *dict.fromkeys(builder.job_volumes), builder.hosts),
        hostname="" if spec.get("hostNetwork") else etcfiles.hostname(pod, config.cluster.domain)[0],
        namespaces=tuple(namespaces),
        restart_policy=spec.get("restartPolicy") or "Always",
        termination_grace_period=30 if grace is None else int(grace),
        active_deadline=None if spec.get("activeDeadlineSeconds") is None else int(spec["activeDeadlineSeconds"]),
        start_time=(pod.get("status") or {}).get("startTime") or records.now(),
        kubelet={"endpointFile": where.kubelet_endpoint, "caFile": where.ca_cert, "tokenFile": pod_dir.token},
    )


def resolv_conf(pod: Object, resolved: Resolved) -> str | None:
    """Content of the Pod's etc/resolv.conf; None where the node's own is used."""
    return etcfiles.resolv_conf(pod, resolved.resolv_conf)


def allocatable(job: podplan.SlurmJob, node_memory: int) -> dict[str, Fraction]:
    """What the Pod's job has: limits of containers that have none of their own (downward API)."""
    memory = job.memory_mb * 1024 * 1024 or node_memory
    return {"cpu": Fraction(job.cpus or 1), "memory": Fraction(memory)}


class _Builder:
    """What the containers of one Pod share."""

    def __init__(
        self,
        pod: Object,
        resolved: Resolved,
        config: configuration.Config,
        pod_dir: paths.PodDir,
        job: podplan.SlurmJob,
        found: Mapping[str, podplan.Mount],
    ) -> None:
        self.pod = pod
        self.resolved = resolved
        self.config = config
        self.pod_dir = pod_dir
        self.found = found
        self.allocatable = allocatable(job, resolved.node_memory)
        self.mpi_flags = slurmflags.mpi_flags(pod["metadata"].get("annotations") or {})
        self.hosts = etcfiles.hosts(pod, config.cluster.domain)
        self.job_volumes: list[podplan.JobVolume] = []

    def container(self, container: Object, *, main: bool) -> podplan.ContainerPlan:
        try:
            return self._container(container, main)
        except env.ConfigError as exc:
            raise errors.NotReady("CreateContainerConfigError", exc.message, container=container["name"], event="Failed") from exc

    def _container(self, container: Object, main: bool) -> podplan.ContainerPlan:
        image = self.resolved.images[container["name"]]
        who = users.identity(self.pod, container, str(image.config.get("User") or ""), image.passwd, image.group)
        own = env.container_env(
            self.pod,
            container,
            config_maps=self.resolved.config_maps,
            secrets=self.resolved.secrets,
            services=self.resolved.services,
            allocatable=self.allocatable,
        )
        variables = self._image_env(image, who, container)
        variables.update(own)
        bound, made = mounts.container_mounts(container, self.found, own, self.pod_dir)
        self.job_volumes += made
        security = container.get("securityContext") or {}
        ports = container.get("ports") or []
        lifecycle = container.get("lifecycle") or {}
        return podplan.ContainerPlan(
            name=container["name"],
            image=container.get("image") or "",
            image_id=image.image_id,
            image_path=image.path,
            command=self._command(container, image, own),
            working_dir=container.get("workingDir") or image.config.get("WorkingDir") or "/",
            env=variables,
            mounts=tuple(self._etc_mounts(bound) + bound),
            run_as_user=who.uid,
            run_as_group=who.gid,
            supplemental_groups=who.groups,
            user_name=who.name,
            home=who.home,
            read_only_root=bool(security.get("readOnlyRootFilesystem")),
            restart_policy=container.get("restartPolicy"),
            restart_policy_rules=tuple(container.get("restartPolicyRules") or ()),
            lifecycle={name: _numbered(hook, ports) for name, hook in lifecycle.items() if isinstance(hook, Mapping)} or None,
            liveness_probe=_numbered(container.get("livenessProbe"), ports),
            readiness_probe=_numbered(container.get("readinessProbe"), ports),
            startup_probe=_numbered(container.get("startupProbe"), ports),
            termination_message_path=container.get("terminationMessagePath") or "/dev/termination-log",
            termination_message_policy=container.get("terminationMessagePolicy") or "File",
            stop_signal=_signal(lifecycle.get("stopSignal") or image.config.get("StopSignal") or "SIGTERM"),
            tty=bool(container.get("tty")),
            stdin=bool(container.get("stdin")),
            stdin_once=bool(container.get("stdinOnce")),
            ports=tuple(ports),
            gpu=resources.gpu(container),
            mpi_flags=self.mpi_flags if main else None,
        )

    def _image_env(self, image: images.ImageInfo, who: users.Identity, container: Object) -> dict[str, str]:
        """What the runtime sets: defaults, then the image's."""
        variables = {"PATH": env.DEFAULT_PATH, "HOME": who.home}
        if not self.pod["spec"].get("hostNetwork"):
            variables["HOSTNAME"] = etcfiles.hostname(self.pod, self.config.cluster.domain)[0]
        if container.get("tty"):
            variables["TERM"] = "xterm"
        for line in image.config.get("Env") or []:
            name, equals, value = str(line).partition("=")
            if equals and name:
                variables[name] = value
        return variables

    def _command(self, container: Object, image: images.ImageInfo, own: Mapping[str, str]) -> tuple[str, ...]:
        """Entrypoint and Cmd of the image, replaced by command and args as the API says."""

        def expanded(words: Any) -> list[str]:
            return [env.expand(str(word), own.get) for word in words]

        entrypoint, cmd = _words(image.config.get("Entrypoint")), _words(image.config.get("Cmd"))
        if container.get("command"):
            words = expanded(container["command"]) + expanded(container.get("args") or [])
        elif container.get("args"):
            words = entrypoint + expanded(container["args"])
        else:
            words = entrypoint + cmd
        if not words:
            raise errors.NotReady(
                "CreateContainerError",
                "no command specified: neither the container nor its image has one",
                container=container["name"],
                event="Failed",
            )
        return tuple(words)

    def _etc_mounts(self, bound: list[podplan.Mount]) -> list[podplan.Mount]:
        taken = {mount.target for mount in bound}
        own = [podplan.Mount(self.hosts.path, "/etc/hosts")]
        if resolv_conf(self.pod, self.resolved) is not None:
            own.append(podplan.Mount(f"{self.pod_dir.etc}/resolv.conf", "/etc/resolv.conf"))
        return [mount for mount in own if mount.target not in taken and "/etc" not in taken]


def _words(value: Any) -> list[str]:
    """Entrypoint or Cmd of an image; a text (old images have them) is a shell line."""
    return ["/bin/sh", "-c", value] if isinstance(value, str) and value else [str(word) for word in value or []]


def _numbered(probe: Any, ports: Any) -> Mapping[str, Any] | None:
    """A probe or hook with named ports resolved to numbers; an unknown name stays, and the probe fails with it."""
    if not probe:
        return None
    result = dict(probe)
    for kind in ("httpGet", "tcpSocket"):
        action = result.get(kind)
        if isinstance(action, Mapping) and isinstance(action.get("port"), str):
            name = action["port"]
            number: Any = int(name) if name.isdigit() else next((port["containerPort"] for port in ports if port.get("name") == name), name)
            result[kind] = {**action, "port": number}
    return result


def _signal(name: str) -> str:
    """SIGNAME for ``SIGQUIT``, ``QUIT`` or ``3``."""
    text = str(name).upper()
    try:
        return signal.Signals(int(text)).name if text.isdigit() else signal.Signals["SIG" + text.removeprefix("SIG")].name
    except (ValueError, KeyError):
        return text if text.startswith("SIGRT") else "SIGTERM"

"""What a Pod asks of Slurm: its resource requests as an allocation. Pure.

    effective request   max(each init container + the sidecars started before it, all sidecars + all containers) + overhead (KEP-753),
                        or spec.resources where it is set (KEP-2837)
    cpu                 the request, rounded up to whole CPUs                      --cpus-per-task
    memory              the request, or the limit where that is higher, in MiB     --mem
    extended resources  by ``slurm.resources`` of the configuration                --gres (and --nv or --rocm)
    activeDeadlineSeconds + terminationGracePeriodSeconds                          --time

The deadline counts from the Pod's start, the job's time from the job's: the kubelet and the supervisor keep the deadline, the
limit only tells Slurm's scheduler what to plan with. ephemeral-storage is not asked for: few sites count node-local disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from hpk import config as configuration
from hpk import errors
from hpk.kube import quantity
from hpk.kubelet import podplan, slurmflags

Object = Mapping[str, Any]
Amounts = dict[str, Fraction]

#: Slurm counts in these; a Pod that asks for more is a mistake, told before Slurm says something less clear.
_MAX_CPUS = 2**16 - 3
_MAX_MEMORY_MB = 2**40
_MAX_SECONDS = 2**31 // 60 * 60 - 60
_NATIVE = ("cpu", "memory", "ephemeral-storage")
_GPU_KINDS = {"nvidia.com": "nvidia", "amd.com": "rocm"}


def requests(container: Object, where: str) -> Amounts:
    """What one container (or spec.resources) asks for: requests, where missing the limits; memory: the higher of both."""
    listed = container.get("resources") or {}
    amounts: Amounts = {}
    for kind in ("limits", "requests"):
        for name, text in (listed.get(kind) or {}).items():
            try:
                value = quantity.parse(text)
            except errors.InvalidInput as exc:
                raise _refused(f"{where}.resources.{kind}[{name}]", exc.message) from exc
            if value < 0:
                raise _refused(f"{where}.resources.{kind}[{name}]", f"{text} is negative")
            amounts[name] = max(amounts.get(name, Fraction(0)), value) if name == "memory" else value
    return amounts


def effective(spec: Object) -> Amounts:
    """What the whole Pod asks for."""
    sidecars: Amounts = {}
    peak: Amounts = {}
    for number, container in enumerate(spec.get("initContainers") or []):
        own = requests(container, f"spec.initContainers[{number}]")
        together = _add([sidecars, own])
        if container.get("restartPolicy") == "Always":
            sidecars = together
        peak = _max(peak, together)
    running = _add([sidecars, *(requests(item, f"spec.containers[{number}]") for number, item in enumerate(spec.get("containers") or []))])
    total = _max(peak, running)
    total.update(requests(spec, "spec"))
    overhead = {name: quantity.parse(text) for name, text in (spec.get("overhead") or {}).items()}
    return _add([total, overhead])


def job(pod: Object, config: configuration.Config) -> podplan.SlurmJob:
    """Return the allocation for ``pod``. Raises Rejected for what cannot be asked of Slurm, naming the field."""
    spec, metadata = pod["spec"], pod["metadata"]
    total = effective(spec)
    slurm = config.slurm
    cpu = total.get("cpu") or _configured("slurm.defaultCpu", slurm.default_cpu)
    memory = total.get("memory") or _configured("slurm.defaultMemory", slurm.default_memory)
    cpus, memory_mb = quantity.ceil(cpu), quantity.mebibytes(memory)
    if cpus > _MAX_CPUS:
        raise _refused("resources.requests[cpu]", f"{cpus} CPUs are more than Slurm can count")
    if memory_mb > _MAX_MEMORY_MB:
        raise _refused("resources.requests[memory]", f"{memory_mb} MiB are more than Slurm can count")
    time_limit = 0
    if spec.get("activeDeadlineSeconds") is not None:
        grace = spec.get("terminationGracePeriodSeconds")
        time_limit = min(int(spec["activeDeadlineSeconds"]) + (30 if grace is None else int(grace)), _MAX_SECONDS)
    return podplan.SlurmJob(
        name=f"{metadata.get('namespace') or 'default'}/{metadata['name']}",
        comment=f"hpk uid={metadata.get('uid', '')}",
        cpus=cpus,
        memory_mb=memory_mb,
        gres=_gres(total, slurm.resources),
        time_limit=time_limit,
        partition=slurm.partition,
        account=slurm.account,
        qos=slurm.qos,
        flags=slurmflags.parse_flags(slurm.flags, "slurm.flags") + slurmflags.slurm_flags(metadata.get("annotations") or {}),
    )


def gpu(container: Object) -> str:
    """Which GPU support of the runtime a container needs: ``nvidia``, ``rocm`` or none."""
    for name, value in requests(container, "container").items():
        kind = _GPU_KINDS.get(name.partition("/")[0])
        if kind and value > 0:
            return kind
    return ""


def _gres(total: Amounts, table: Mapping[str, str]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for name, value in sorted(total.items()):
        if name in _NATIVE or value == 0:
            continue
        if name not in table:
            known = ", ".join(sorted(table)) or "none"
            raise _refused(f"resources.requests[{name}]", f"no gres of Slurm is configured for it (slurm.resources knows: {known})")
        counts[table[name]] = counts.get(table[name], 0) + quantity.ceil(value)
    return tuple(f"{gres}:{count}" for gres, count in counts.items())


def _configured(name: str, text: str) -> Fraction:
    try:
        return quantity.parse(text) if text else Fraction(0)
    except errors.InvalidInput as exc:
        raise errors.InvalidInput(f"{name}: {exc.message}") from exc


def _add(parts: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, Fraction(0)) + value
    return total


def _max(left: Amounts, right: Amounts) -> Amounts:
    return {name: max(left.get(name, Fraction(0)), right.get(name, Fraction(0))) for name in {**left, **right}}


def _refused(field: str, problem: str) -> errors.Rejected:
    return errors.Rejected("UnsupportedPodSpec", f"Pod was rejected: {field}: {problem}")

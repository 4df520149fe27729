"""A PodPlan as the job script, the environment files and the plan of the supervisor. Pure: nothing here touches the disk.

The script is meant to be read and to be run by hand. It holds no value of a container's environment: these are in one file per
container (env_file), which is bound over the image's own ``/.singularity.d/env/99-base.sh``. The runtime reads that file inside
the container right before it executes the command. So the values are never in an argument list or in the script, need no
prefix that differs between Apptainer and Singularity, may be called HOME (which the runtime refuses elsewhere), and the
variables which the runtime adds of its own are gone, as the file executes the command itself.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2

from hpk import errors, paths, records
from hpk.kubelet import podplan

FLAGS_ANNOTATION = "slurm-job.hpk.io/flags"
MPI_FLAGS_ANNOTATION = "slurm-job.hpk.io/mpi-flags"

#: Seconds before the time limit at which Slurm warns the supervisor, beyond the Pod's own grace period.
WARNING_MARGIN = 10
#: Seconds by which that warning may come too early (sbatch(1), --signal), and the largest time that can be asked for.
WARNING_EARLY = 60
WARNING_LONGEST = 65535

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: Names that a shell, or the runtime's own, does not let a script set.
_READ_ONLY_NAMES = frozenset({"UID", "EUID", "GID", "PPID", "APPTAINER_CONTAINER", "APPTAINER_NAME", "SINGULARITY_APPNAME"})
#: Variables by which Slurm and the drivers say which GPUs a job has.
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")

#: First line of an environment file: what only a process, not a shell, can set (hpk/pod/environ.py).
ENVIRON_PREFIX = "#environ "


def job_script(plan: podplan.PodPlan) -> str:
    """Return the text of the job script.

    Raises errors.InvalidInput for words that cannot stand in an #SBATCH line.
    """
    pod_dir = paths.PodDir(plan.pod_dir)
    containers = [*plan.init_containers, *plan.containers]
    return _template().render(
        sbatch=list(_sbatch_options(plan)),
        pod=_one_line(f"{plan.namespace}/{plan.name}"),
        uid=_one_line(plan.uid),
        script=_one_line(shlex.quote(pod_dir.script)),
        pod_dir=shlex.quote(plan.pod_dir),
        devices=any(container.mpi_flags is None for container in containers),
        layers=any(container.mpi_flags is None and not container.read_only_root for container in containers),
        ranks=any(container.mpi_flags is not None for container in containers),
        fill_in=any(_has_addresses(container) for container in containers),
        containers=[_container(plan, container) for container in containers],
        names="|".join(container.name for container in containers),
        volumes=[podplan.shell_quote(volume.path) for volume in plan.job_volumes if volume.kind == "emptyDir"],
        supervisor=shlex.quote(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "pod", "__main__.py")),
        plan=shlex.quote(pod_dir.plan),
    )


@functools.cache
def _template() -> jinja2.Template:
    """The script's template, compiled once: that takes longer than to fill it in."""
    environment = jinja2.Environment(  # noqa: S701 - a shell script, everything is quoted by shell_quote()
        loader=jinja2.PackageLoader("hpk.kubelet"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("pod.sbatch.j2")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _sbatch_options(plan: podplan.PodPlan) -> Iterator[str]:
    """The #SBATCH lines, those of the annotation last, so that they win."""
    job = plan.job
    numbers = {
        "--cpus-per-task": job.cpus,
        "--mem": f"{job.memory_mb}M" if job.memory_mb else "",
        # room for the warning: the Pod's own deadline comes first, by the supervisor's clock
        "--time": _slurm_time(job.time_limit + WARNING_MARGIN + WARNING_EARLY) if job.time_limit else "",
    }
    words = {
        "--job-name": job.name,
        "--comment": job.comment,
        "--chdir": plan.pod_dir,
        # Slurm replaces %j and the like in file names only, and a name cannot begin a comment
        "--output": paths.PodDir(plan.pod_dir).output.replace("%", "%%"),
        "--open-mode": "append",
        # the kubelet gives sbatch few variables; NONE would have Slurm run a login shell on the node first
        "--export": "ALL",
        "--signal": f"B:TERM@{min(plan.termination_grace_period + WARNING_MARGIN, WARNING_LONGEST)}",
        **numbers,
        "--gres": ",".join(job.gres),
        "--partition": job.partition,
        "--account": job.account,
        "--qos": job.qos,
        "--constraint": job.constraint,
        "--nodelist": job.node_list,
    }
    yield "--no-requeue"
    for option, value in words.items():
        if value:
            yield _sbatch_quote(f"{option}={value}", option)
    for flag in job.flags:
        yield _sbatch_quote(flag, f"annotation {FLAGS_ANNOTATION}")


def _slurm_time(seconds: int) -> str:
    """Minutes, rounded up: Slurm's own resolution (sbatch(1), --time)."""
    return str(-(-seconds // 60))


def _sbatch_quote(word: str, what: str) -> str:
    """Quote for the parser of #SBATCH lines: quotes group words, a backslash makes the next character literal, # begins a comment.

    Raises errors.InvalidInput naming ``what`` for characters that cannot stand in such a line.
    """
    if any(ord(character) < 32 or ord(character) == 127 for character in word):
        raise errors.InvalidInput(f"{what}: {word!r} has a line break or control character, which cannot be in an #SBATCH line")
    if re.fullmatch(r"[\w@%+=:,./-]+", word, re.ASCII):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _has_addresses(container: podplan.ContainerPlan) -> bool:
    return any(podplan.POD_IP in value or podplan.HOST_IP in value for value in container.env.values())


def _container(plan: podplan.PodPlan, container: podplan.ContainerPlan) -> dict[str, Any]:
    """What the template needs of one container."""
    steps = []
    if container.mpi_flags is None and not container.read_only_root:
        steps.append(f"writable_layer {container.name} || return")
    if _has_addresses(container):
        steps.append(f"environment {container.name} || return")
    kind = "Container"
    if container in plan.init_containers:
        kind = "Sidecar" if container.restart_policy == "Always" else "Init container"
    return {
        "name": container.name,
        "title": _one_line(f"{kind} {container.name}: {container.image}"),
        # container names are DNS labels: the result is one to one, and no shell's own word
        "function": f"container_{container.name.replace('-', '_')}",
        "steps": steps,
        "lines": list(_command_lines(plan, container)),
    }


def _command_lines(plan: podplan.PodPlan, container: podplan.ContainerPlan) -> Iterator[str]:
    """The ``singularity exec`` command, one group of words for each line."""
    pod_dir = paths.PodDir(plan.pod_dir)
    mpi = container.mpi_flags is not None
    clean = not mpi
    launcher = ""
    if clean and (odd_environment(container) or container.gpu):
        # Names that a shell cannot set, and the GPU's variables, reach the container by the process environment. That rules out
        # --cleanenv, so the launcher cleans it.
        program = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "pod", "environ.py")
        keep = " ".join(GPU_VARIABLES) if container.gpu else ""
        launcher = " ".join(
            filter(None, ['"${HPK_PYTHON:-python3}" -I -S', shlex.quote(program), f'"$POD_DIR/env/{container.name}.sh"', keep, "--"])
        )
        clean = False
    if container.mpi_flags is not None:
        starter = container.mpi_flags if container.mpi_flags[:1] == ("mpirun",) else ("srun", *container.mpi_flags)
        yield "exec " + " ".join(_literal(word, MPI_FLAGS_ANNOTATION) for word in starter)
    elif launcher:
        yield f"exec {launcher}"
    options = ["--contain", "--no-home", "--no-eval", "--pid", "--no-init"]
    if mpi:
        options.remove("--pid")  # ranks on one node reach each other's memory by pid
        options.remove("--no-init")
    if clean:
        options.insert(0, "--cleanenv")
    if container.gpu:
        options.append({"nvidia": "--nv", "rocm": "--rocm"}[container.gpu])
    prefix = "" if mpi or launcher else "exec "
    yield f'{prefix}"$RUNTIME" -s exec {" ".join(options)}'
    if mpi:
        yield "--writable-tmpfs"
    elif container.read_only_root:
        yield "--no-mount tmp,bind-paths"
    else:
        yield '--no-mount tmp,bind-paths "${LAYER[@]}"'
    yield f"--pwd {podplan.shell_quote(container.working_dir or '/')}"
    folder = '"$HPK_SCRATCH' if _has_addresses(container) else '"$POD_DIR'
    yield f'--bind {folder}/env/{container.name}.sh:/.singularity.d/env/99-base.sh:ro"'
    targets = {mount.target.rstrip("/") for mount in container.mounts}
    if not mpi:
        yield '"${DEV[@]}"'
    for mount in container.mounts:
        yield _bind(mount, plan.pod_dir)
    message_path = container.termination_message_path
    if message_path and not message_path.startswith("/dev/") and message_path not in targets and not mpi:
        yield _bind(podplan.Mount(pod_dir.termination_message(container.name), message_path), plan.pod_dir)
    yield '"${HPK_IMAGE:-' + _in_braces(container.image_path) + '}"'
    yield " ".join(podplan.shell_quote(word) for word in container.command)


def _literal(word: str, annotation: str) -> str:
    if any(ord(character) < 32 for character in word):
        raise errors.InvalidInput(f"annotation {annotation}: {word!r} has a line break or control character")
    return shlex.quote(word)


def _in_braces(path: str) -> str:
    """Escape a path for use inside ``"${NAME:-...}"``."""
    return re.sub(r'([\\"$`}])', r"\\\1", path)


def _bind(mount: podplan.Mount, pod_dir: str) -> str:
    """``--bind`` where the paths allow it, else ``--mount``, which takes a record in CSV form."""
    if not re.search(r'[:,\\"\n]', mount.source + mount.target):
        inside = mount.source.removeprefix(pod_dir + "/")
        if inside != mount.source and re.fullmatch(r"[\w@%+=./-]+", inside + mount.target, re.ASCII):
            return f'--bind "$POD_DIR/{inside}:{mount.target}' + (':ro"' if mount.read_only else '"')
        return "--bind " + podplan.shell_quote(f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else ""))
    fields = ["type=bind", f"source={mount.source}", f"destination={mount.target}"] + (["ro"] if mount.read_only else [])
    return "--mount " + podplan.shell_quote(",".join(_csv_field(field) for field in fields))


def _csv_field(field: str) -> str:
    return '"' + field.replace('"', '""') + '"' if re.search(r'[",\n]', field) else field


def odd_environment(container: podplan.ContainerPlan) -> dict[str, str]:
    """The variables whose names no shell can set: ``discovery.type``, ``A-B``, ``UID``."""
    return {name: value for name, value in container.env.items() if not _IDENTIFIER.fullmatch(name) or name in _READ_ONLY_NAMES}


def env_file(container: podplan.ContainerPlan) -> str:
    """Return the environment file of a container, to be written with mode 0600 (it holds the values of Secrets)."""
    odd = odd_environment(container)
    lines = []
    if odd:
        lines.append(ENVIRON_PREFIX + json.dumps(odd))
    lines.append(f"# Environment of container {container.name}, read by the runtime inside the container.")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted(container.env.items()) if name not in odd]
    if container.gpu:
        lines.append('export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs"')
    elif container.mpi_flags is None:
        # What follows in the runtime would add variables of its own; ranks need those that srun gave them, GPUs theirs.
        lines += ['exec "$@"', "exit 0"]
    return "\n".join(lines) + "\n"


def plan_record(plan: podplan.PodPlan, *, log_max_bytes: int = 10 * 1024 * 1024, log_max_files: int = 5) -> dict[str, Any]:
    """Return the record of the plan for the supervisor (records.py: plan)."""
    pod_dir = paths.PodDir(plan.pod_dir)
    return {
        "version": records.PLAN_VERSION,
        "uid": plan.uid,
        "namespace": plan.namespace,
        "name": plan.name,
        "nodeName": plan.node_name,
        "podDir": plan.pod_dir,
        "script": pod_dir.script,
        "hostname": plan.hostname,
        "namespaces": list(plan.namespaces),
        "restartPolicy": plan.restart_policy,
        "terminationGracePeriodSeconds": plan.termination_grace_period,
        "activeDeadlineSeconds": plan.active_deadline,
        "startTime": plan.start_time,
        "kubelet": dict(plan.kubelet),
        "logMaxBytes": log_max_bytes,
        "logMaxFiles": log_max_files,
        "initContainers": _container_records(plan, plan.init_containers),
        "containers": _container_records(plan, plan.containers),
        "jobVolumes": [_volume_record(volume) for volume in plan.job_volumes],
    }


def _container_records(plan: podplan.PodPlan, containers: Sequence[podplan.ContainerPlan]) -> list[dict[str, Any]]:
    pod_dir = paths.PodDir(plan.pod_dir)
    return [
        {
            "name": container.name,
            "image": container.image,
            "imageID": container.image_id,
            "imagePath": container.image_path,
            "workingDir": container.working_dir,
            "readOnlyRootFilesystem": container.read_only_root,
            "runAsUser": container.run_as_user,
            "runAsGroup": container.run_as_group,
            "supplementalGroups": list(container.supplemental_groups),
            "userName": container.user_name,
            "home": container.home,
            "restartPolicy": container.restart_policy,
            "restartPolicyRules": [dict(rule) for rule in container.restart_policy_rules],
            "lifecycle": container.lifecycle,
            "livenessProbe": container.liveness_probe,
            "readinessProbe": container.readiness_probe,
            "startupProbe": container.startup_probe,
            "terminationMessagePath": container.termination_message_path,
            "terminationMessagePolicy": container.termination_message_policy,
            "terminationMessageFile": pod_dir.termination_message(container.name),
            "stopSignal": container.stop_signal,
            "tty": container.tty,
            "stdin": container.stdin,
            "stdinOnce": container.stdin_once,
            "logDir": pod_dir.container(container.name),
            "envFile": pod_dir.env(container.name),
            "command": list(container.command),
            "ports": [dict(port) for port in container.ports],
            "mpi": container.mpi_flags is not None,
            "gpu": container.gpu,
            "mounts": [{"source": mount.source, "target": mount.target} for mount in container.mounts],
        }
        for container in containers
    ]


def _volume_record(volume: podplan.JobVolume) -> dict[str, Any]:
    return {
        "kind": volume.kind,
        "name": volume.name,
        "path": volume.path,
        "type": volume.type,
        "medium": volume.medium,
        "sizeLimit": volume.size_limit,
        "limitText": volume.limit_text,
        "mode": volume.mode,
        "base": volume.base,
        "subPath": volume.sub_path,
        "content": volume.content,
        "nodeHosts": volume.node_hosts,
    }

"""What the kubelet and the in-job supervisor tell each other, and the helpers both use. Standard library only, cheap to import.

They meet in files of the Pod's folder (hpk/paths.py: PodDir) and in frames on the Pod's channel. All records are JSON objects.

plan (``plan.json``, written by the kubelet before the job is submitted, never changed afterwards)
    version             1
    uid, namespace, name, nodeName
    podDir              absolute path of the Pod's folder
    script              absolute path of the job script; a container is started by ``bash SCRIPT container NAME``
    hostname            of the Pod's UTS namespace
    namespaces          list of the namespaces to make: any of "user", "mnt", "ipc", "uts", "net"; [] runs containers as the user does
    restartPolicy, terminationGracePeriodSeconds, activeDeadlineSeconds (null or seconds from the Pod's startTime)
    startTime           RFC 3339, status.startTime of the Pod
    kubelet             {"endpointFile", "caFile", "tokenFile"}
    logMaxBytes, logMaxFiles   rotation of the containers' logs
    jobVolumes          what the job makes before the first container (hpk/kubelet/podplan.py: JobVolume, in camelCase)
    initContainers, containers
                        lists, in the Pod's order, of
        name, image, imageID
        imagePath           SIF file or unpacked folder
        workingDir, readOnlyRootFilesystem
        mounts              [{"source", "target"}]: the places that must exist before the runtime mounts on them
        userName, home      of runAsUser, for the runtime's look-up
        gpu                 "", "nvidia" or "rocm"
        envFile             environment file (hpk/kubelet/script.py: env_file)
        runAsUser, runAsGroup, supplementalGroups   ids as seen inside the container; the first two are mapped to the user's own
        restartPolicy       null, or "Always" for a native sidecar
        restartPolicyRules  as in the Pod, []
        lifecycle, livenessProbe, readinessProbe, startupProbe   as in the Pod, named ports resolved to numbers; null
        terminationMessagePath, terminationMessagePolicy, terminationMessageFile (on the host)
        stopSignal          "SIGTERM" unless the image or the Pod says otherwise
        tty, stdin, stdinOnce
        logDir              folder of <restartCount>.log
        command             entrypoint and arguments, for messages about a missing program
        ports               as in the Pod
        mpi                 true when the function starts ranks with srun or mpirun: then no namespaces are entered

report (``status.json``, and the ``status`` frame; written by the supervisor at every change; the final one also as a line of the
        job's output, after LAST_WORDS, for the case that the file is lost)
    uid, seq            seq grows by one with each report of this job
    jobID               SLURM_JOB_ID as a string, "" when run by hand
    host, hostIP        the node's name and address
    podIP               address of the Pod
    startedAt           RFC 3339, when the supervisor began
    phase               "Running" while there is anything left to do, "Succeeded", "Failed" at the end (final)
    reason, message     of the Pod, "" unless e.g. DeadlineExceeded, Evicted
    sandboxReady        bool (condition PodReadyToStartContainers)
    initialized         bool (condition Initialized: all init containers done, all sidecars started)
    initContainerStatuses, containerStatuses
                        Kubernetes' own ContainerStatus objects without image fields: name, state, lastState, ready, started,
                        restartCount, containerID ("hpk://<uid>/<container>/<restartCount>")
    events              the last (<= 50) Kubernetes Events to record: {"seq", "time", "type", "reason", "message", "container"};
                        the kubelet remembers the last seq it has recorded

submission (``submission.json``, written by the kubelet around sbatch)
    uid, state          "submitting" written before sbatch, "submitted" after its answer, "refused" when there surely is no job
    jobID               of the submitted job, "" before
    submittedAt         RFC 3339
    attempt             number of sbatch calls so far

endpoint (``run/kubelet.json``)
    address, port       of the channel listener
    serverName          name in the kubelet's serving certificate, checked by the supervisor against the CA

channel: TLS over TCP, dialled by the supervisor. Frames both ways: 4 bytes length of the rest (big endian), 1 byte kind, 4 bytes
stream (0: control), payload. Kind of control frames: J (JSON object with "type"). Supervisor to kubelet: ``hello`` {"type", "uid",
"token", "jobID", "host", "version"}, always first; ``status`` {"type", "report"}. Kubelet to supervisor: ``welcome``; ``stop``
{"type", "gracePeriodSeconds", "reason", "message"}: end the Pod gracefully (a later one may shorten the time); ``error`` {"type",
"message"}: the kubelet does not want this channel, do not come back. Streams above 0 are kept for exec, attach, port-forward.
"""

from __future__ import annotations

import struct
import time

PLAN_VERSION = 1
CHANNEL_VERSION = 1

#: Begin of the line of the job's output with the final report.
LAST_WORDS = "final report: "

#: Largest payload of a frame, in bytes; a longer one is a broken or hostile peer.
MAX_FRAME = 4 * 1024 * 1024
JSON_FRAME = b"J"
HEADER = struct.Struct(">IcI")


def frame(kind: bytes, stream: int, payload: bytes) -> bytes:
    """Encode one frame of the channel."""
    return HEADER.pack(len(payload) + 5, kind, stream) + payload


def now(seconds: float | None = None) -> str:
    """RFC 3339 in UTC with seconds, the form of Kubernetes' ``metav1.Time``. ``seconds`` since the epoch, default the present."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() if seconds is None else seconds))


def now_nano(seconds: float | None = None) -> str:
    """RFC 3339 in UTC with nine digits, the form of CRI logs and ``metav1.MicroTime`` readers."""
    whole = time.time_ns() if seconds is None else int(seconds * 1e9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole // 1_000_000_000)) + f".{whole % 1_000_000_000:09d}Z"

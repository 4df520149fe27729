"""The supervisor with real containers: what a Pod sees, how it starts, restarts and ends, and what is left behind."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import stat
import time
from collections.abc import Iterator

import pytest

from hpk.kubelet import podplan
from hpk.pod import processes
from tests.component import podjob

pytestmark = pytest.mark.component

REASON = podjob.missing()


@pytest.fixture(scope="module")
def space() -> Iterator[podjob.Workspace]:
    if REASON:
        pytest.skip(REASON)
    with podjob.workspace() as made:
        yield made


# -- what a container sees ------------------------------------------------------------------------------------------------


def test_environment_is_the_pods_alone(space: podjob.Workspace) -> None:
    nasty = "line 1\nline 2 $HOME `id` \"q\" 's' \\n {end}"
    env = {"NASTY": nasty, "EMPTY": "", "HOME": "/srv", "A-B": "dash", "discovery.type": "single node", "UID": "77"}
    job = space.job("env", [{"name": "main", "command": ["env"], "env": env}])
    report = job.finish()
    assert report.get("phase") == "Succeeded", job.output()
    seen = job.log("main")
    for line in ("EMPTY=", "HOME=/srv", "A-B=dash", "discovery.type=single node", "UID=77", "PATH=/bin", f"NASTY={nasty}"):
        assert f"{line}\n" in seen
    names = {line.partition("=")[0] for line in seen.splitlines() if "=" in line}
    extra = names - {"NASTY", "EMPTY", "HOME", "A-B", "discovery.type", "UID", "PATH", "line 2 $HOME `id` \"q\" 's' \\n {end}"}
    assert extra <= {"PWD", "SHLVL", "APPTAINER_CONTAINER", "APPTAINER_NAME", "SINGULARITY_APPNAME"}
    assert "leaked" not in seen
    assert "leaked" not in (job.pod_dir / "job.sh").read_text()


def test_values_of_secrets_are_in_no_argument_list_and_not_in_the_script(space: podjob.Workspace) -> None:
    with space.job("secret", [{"name": "main", "command": "sleep 20", "env": {"PASSWORD": "hunter2", "pass.word": "hunter3"}}]) as job:
        job.running("main")
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    assert b"hunter" not in file.read().replace(b"hunter2 hunter3", b"")
            except OSError:
                continue
        assert "hunter" not in (job.pod_dir / "job.sh").read_text()
        assert stat.S_IMODE(os.stat(job.pod_dir / "env" / "main.sh").st_mode) == 0o600


def test_root_file_system_is_writable_and_fresh_at_each_start(space: podjob.Workspace) -> None:
    big = "dd if=/dev/zero of=/big bs=1M count=100 2>/dev/null && echo big"
    command = f"ls /mark 2>/dev/null; touch /mark /tmp/mark /bin/mark && echo written; {big}; exit 1"
    with space.job("rootfs", [{"name": "main", "command": command}], restart_policy="OnFailure") as job:
        job.wait_for(lambda: job.container("main").get("restartCount") == 1)
        job.wait_for(lambda: job.log("main", 1).count("\n") == 2)
        assert job.log("main") == "written\nbig\n"
        assert job.log("main", 1) == "written\nbig\n"


@pytest.mark.parametrize("uid", [0, 1000])
def test_read_only_root(space: podjob.Workspace, uid: int) -> None:
    mounts = (podplan.Mount(podplan.SCRATCH + "/volumes/v", "/not/in/the/image"),)
    volumes = (podplan.JobVolume("emptyDir", "v", path=podplan.SCRATCH + "/volumes/v"),)
    command = "touch /x || touch /tmp/x || echo refused; touch /not/in/the/image/x && echo volume"
    container = {"name": "main", "command": command, "read_only_root": True, "mounts": mounts, "run_as_user": uid}
    job = space.job(f"ro-{uid}", [container], job_volumes=volumes)
    assert job.finish()["phase"] == "Succeeded", job.log("main")
    assert "refused" in job.log("main")
    assert "volume" in job.log("main")


@pytest.mark.parametrize("read_only", [False, True])
def test_unpacked_image(space: podjob.Workspace, read_only: bool) -> None:
    folder = str(space.root / "unpacked")
    if not os.path.exists(folder):
        done = space.run(["apptainer", "-s", "build", "--sandbox", folder, "tiny.def"])
        assert done.returncode == 0, done.stderr
    command = "cat /srv/index.html; id -u; touch /srv/x && echo written"
    container = {"name": "main", "command": command, "image_path": folder, "run_as_user": 7, "read_only_root": read_only}
    job = space.job(f"unpacked-{read_only}".lower(), [container])
    job.finish()
    assert job.log("main").startswith("hello\n7\n")
    assert ("written" in job.log("main")) is not read_only
    assert not os.path.exists(f"{folder}/srv/x")


def test_runs_as_any_user_and_may_write_tmp(space: podjob.Workspace) -> None:
    command = "id -u; id -g; touch /tmp/x /dev/shm/x && echo ok; stat -c %u /tmp/x; grep app: /etc/passwd"
    container = {"name": "main", "command": command, "run_as_user": 4711, "run_as_group": 815, "user_name": "app", "home": "/home/app"}
    job = space.job("user", [container])
    job.finish()
    assert job.log("main") == "4711\n815\nok\n4711\napp:x:4711:815::/home/app:/bin/sh\n"


def test_pid_1_hostname_devices_and_shared_memory(space: podjob.Workspace) -> None:
    first = "echo $$; hostname; cat /proc/1/comm; echo x > /dev/null && echo null; echo shared > /dev/shm/note; sleep 2"
    second = "sleep 1; cat /dev/shm/note; test -c /dev/random -a -d /dev/pts -a -c /dev/full && echo devices"
    job = space.job("web-0", [{"name": "a", "command": first}, {"name": "b", "command": second}])
    job.finish()
    assert job.log("a") == "1\nweb-0\nsh\nnull\n"
    assert job.log("b") == "shared\ndevices\n"


def test_working_directory_is_made_when_it_is_missing(space: podjob.Workspace) -> None:
    containers = [{"name": "made", "command": "pwd", "working_dir": "/a/b"}, {"name": "there", "command": "pwd; ls", "working_dir": "/srv"}]
    job = space.job("workdir", containers)
    job.finish()
    assert job.log("made") == "/a/b\n"
    assert job.log("there") == "/srv\nindex.html\n"


def test_mounts_with_awkward_names(space: podjob.Workspace) -> None:
    folder = space.root / "odd: name, $(id) 'q'"
    folder.mkdir()
    (folder / "file").write_text("content")
    folder.chmod(0o755)
    mounts = (podplan.Mount(str(folder), "/in", True), podplan.Mount(podplan.SCRATCH + "/volumes/v", "/v"))
    volumes = (podplan.JobVolume("emptyDir", "v", path=podplan.SCRATCH + "/volumes/v"),)
    command = "cat /in/file; touch /in/x || echo read-only; touch /v/x && stat -c %a /v"
    job = space.job("mounts", [{"name": "main", "command": command, "mounts": mounts}], job_volumes=volumes)
    job.finish()
    assert "content" in job.log("main")
    assert "read-only" in job.log("main")
    assert "777" in job.log("main")


def test_addresses_of_the_job_in_env_and_command(space: podjob.Workspace) -> None:
    container = {
        "name": "main",
        "command": ("sh", "-c", f"echo $IP {podplan.POD_IP} $HOST"),
        "env": {"IP": podplan.POD_IP, "HOST": podplan.HOST_IP},
    }
    job = space.job("address", [container])
    report = job.finish()
    assert job.log("main") == f"{report['podIP']} {report['podIP']} {report['hostIP']}\n"
    assert report["podIP"].count(".") == 3


# -- how it ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code", "reason"),
    [("exit 0", 0, "Completed"), ("exit 3", 3, "Error"), ("exit 255", 255, "Error"), ("sh -c 'kill -9 $$'; exit $?", 137, "Error")],
)
def test_exit_codes_are_true(space: podjob.Workspace, command: str, code: int, reason: str) -> None:
    job = space.job(f"exit-{code}", [{"name": "main", "command": command}])
    assert job.finish()["phase"] == ("Succeeded" if code == 0 else "Failed")
    assert (job.terminated("main")["exitCode"], job.terminated("main")["reason"]) == (code, reason)
    assert job.process is not None
    assert job.process.returncode == (0 if code == 0 else 1)


@pytest.mark.parametrize(
    ("name", "command", "message"),
    [
        ("missing", ["nosuch"], 'exec: "nosuch": executable file not found in $PATH'),
        ("path", ["/no/such"], 'exec: "/no/such": stat /no/such: no such file or directory'),
        ("mode", ["/etc/passwd"], 'exec: "/etc/passwd": permission denied'),
    ],
)
def test_command_that_cannot_be_executed(space: podjob.Workspace, name: str, command: list[str], message: str) -> None:
    job = space.job(f"start-{name}", [{"name": "main", "command": command}])
    job.finish()
    end = job.terminated("main")
    assert (end["exitCode"], end["reason"], end["message"]) == (128, "StartError", message)


def test_termination_message(space: podjob.Workspace) -> None:
    containers = [
        {"name": "file", "command": "printf 'last words' > /dev/termination-log; exit 1"},
        {"name": "path", "command": "printf 'elsewhere' > /tmp/result", "termination_message_path": "/tmp/result"},
        {"name": "log", "command": "echo from the log; exit 1", "termination_message_policy": "FallbackToLogsOnError"},
        {"name": "good", "command": "echo from the log", "termination_message_policy": "FallbackToLogsOnError"},
        {"name": "long", "command": "yes | head -c 9000 > /dev/termination-log; exit 1"},
    ]
    job = space.job("message", containers)
    job.finish()
    messages = {name: job.terminated(name).get("message", "") for name in ("file", "path", "log", "good", "long")}
    assert messages["file"] == "last words"
    assert messages["path"] == "elsewhere"
    assert messages["log"] == "from the log"
    assert messages["good"] == ""
    assert len(messages["long"]) <= 4096
    assert messages["long"].startswith("y\ny\n")


# -- order and restarts ---------------------------------------------------------------------------------------------------


def test_init_containers_run_in_order_before_the_others(space: podjob.Workspace) -> None:
    init = [{"name": "one", "command": "sleep 0.3; echo one >> /dev/shm/order"}, {"name": "two", "command": "echo two >> /dev/shm/order"}]
    job = space.job("init", [{"name": "main", "command": "cat /dev/shm/order"}], init)
    job.start()
    job.wait_for(lambda: job.container("main"))
    assert job.container("main")["state"] == {"waiting": {"reason": "PodInitializing"}}
    assert job.report()["initialized"] is False
    assert job.finish()["initialized"] is True
    assert job.log("main") == "one\ntwo\n"


def test_failed_init_container_fails_the_pod(space: podjob.Workspace) -> None:
    job = space.job("init-fails", [{"name": "main", "command": "echo no"}], [{"name": "init", "command": "exit 4"}])
    assert job.finish()["phase"] == "Failed"
    assert job.terminated("init")["exitCode"] == 4
    assert job.container("main")["state"] == {"waiting": {"reason": "PodInitializing"}}
    assert job.log("main") == ""


def test_restart_with_back_off(space: podjob.Workspace) -> None:
    with space.job("crash", [{"name": "main", "command": "echo run; exit 1"}], restart_policy="Always") as job:
        job.wait_for(lambda: job.container("main").get("state", {}).get("waiting", {}).get("reason") == "CrashLoopBackOff")
        assert job.container("main")["restartCount"] == 1  # the first restart is immediate
        status = job.container("main")
        assert status["state"]["waiting"] == {
            "reason": "CrashLoopBackOff",
            "message": "back-off 10s restarting failed container=main pod=crash_default(uid-crash)",
        }
        assert status["lastState"]["terminated"]["exitCode"] == 1
        assert job.events("BackOff") == [("main", "BackOff", "Back-off restarting failed container main in pod crash_default(uid-crash)")]
        began = time.monotonic()
        job.wait_for(lambda: job.container("main")["restartCount"] == 2, 15)
        assert 7 < time.monotonic() - began < 13
        job.wait_for(
            lambda: "waiting" in job.container("main")["state"] and "20s" in job.container("main")["state"]["waiting"].get("message", "")
        )
        job.signal()
        job.wait()
        assert job.terminated("main")["exitCode"] == 1  # it was in back-off: its last end stands


def test_on_failure_restarts_only_failures(space: podjob.Workspace) -> None:
    good, bad = (
        {"name": "good", "command": "exit 0"},
        {"name": "bad", "command": "test -e /dev/shm/again || { touch /dev/shm/again; exit 1; }"},
    )
    job = space.job("on-failure", [good, bad], restart_policy="OnFailure")
    assert job.finish()["phase"] == "Succeeded"
    assert (job.container("good")["restartCount"], job.container("bad")["restartCount"]) == (0, 1)


def test_sidecars_start_first_and_end_last_in_reverse_order(space: podjob.Workspace) -> None:
    trap = "trap 'echo {0} >> /dev/shm/end; exit 0' TERM; echo {0} >> /dev/shm/begin; while :; do sleep 0.05; done"
    init = [
        {"name": "first", "command": trap.format("first"), "restart_policy": "Always"},
        {"name": "second", "command": trap.format("second"), "restart_policy": "Always"},
        {"name": "init", "command": "echo init >> /dev/shm/begin"},
    ]
    watcher = "echo main >> /dev/shm/begin; sleep 0.5"
    volumes = (podplan.JobVolume("emptyDir", "v", path=podplan.SCRATCH + "/volumes/v"),)
    mounts = (podplan.Mount(str(space.root / "tmp"), "/out"),)
    init[0]["mounts"] = mounts
    init[0]["command"] = init[0]["command"].replace("exit 0", "cat /dev/shm/begin /dev/shm/end > /out/order; exit 0")
    job = space.job("sidecar", [{"name": "main", "command": watcher}], init, job_volumes=volumes)
    assert job.finish()["phase"] == "Succeeded"
    assert (space.root / "tmp" / "order").read_text().split() == ["first", "second", "init", "main", "second", "first"]


# -- stopping -------------------------------------------------------------------------------------------------------------


def test_sigterm_stops_politely_and_tells_why(space: podjob.Workspace) -> None:
    command = "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done"
    with space.job("term", [{"name": "main", "command": command}]) as job:
        job.wait_for(lambda: job.log("main") == "up\n")
        job.signal()
        assert job.wait() == 1
        assert job.terminated("main")["exitCode"] == 7
        assert job.log("main") == "up\nbye\n"
        report = job.report()
        assert (report["phase"], report["reason"]) == ("Failed", "Terminated")
        assert "Slurm asked the job to end" in report["message"]
        assert job.events("Killing") == [("main", "Killing", "Stopping container main")]


def test_scancel_that_signals_all_processes_leaves_the_containers_their_files(space: podjob.Workspace) -> None:
    command = "trap 'sleep 1; cat /srv/index.html; ls /bin/ls; exit 7' TERM; echo up; while :; do sleep 0.05; done"
    with space.job("scancel", [{"name": "main", "command": command}]) as job:
        job.wait_for(lambda: job.log("main") == "up\n")
        for pid in processes.descendants(job.pid):
            if "Apptainer" not in pathlib.Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGTERM)
        job.signal()
        job.wait()
        assert job.log("main").endswith("hello\n/bin/ls\n")
        assert job.terminated("main")["exitCode"] == 7


def test_container_that_ignores_sigterm_is_killed_after_the_grace_period(space: podjob.Workspace) -> None:
    # sleep has no handler, and the kernel drops such signals for process 1, as on any Kubernetes node
    with space.job("stubborn", [{"name": "main", "command": ["sleep", "100"]}], termination_grace_period=2) as job:
        job.running("main")
        began = time.monotonic()
        job.signal()
        job.wait()
        assert 1.8 < time.monotonic() - began < 5
        assert job.terminated("main")["exitCode"] == 137


def test_stop_signal(space: podjob.Workspace) -> None:
    command = "trap 'exit 5' USR1; echo up; while :; do sleep 0.05; done"
    with space.job("usr1", [{"name": "main", "command": command, "stop_signal": "SIGUSR1"}]) as job:
        job.wait_for(lambda: job.log("main") == "up\n")
        job.signal()
        job.wait()
        assert job.terminated("main")["exitCode"] == 5


def test_active_deadline(space: podjob.Workspace) -> None:
    command = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
    job = space.job("deadline", [{"name": "main", "command": command}], active_deadline=2)
    report = job.finish()
    assert (report["phase"], report["reason"]) == ("Failed", "DeadlineExceeded")
    assert report["message"] == "Pod was active on the node longer than the specified deadline"


def test_nothing_is_left_behind(space: podjob.Workspace) -> None:
    command = "(sleep 300 &) ; (setsid sleep 300 &); mkdir /locked; chmod 000 /locked; echo done"
    job = space.job("tidy", [{"name": "main", "command": command, "run_as_user": 1000}])
    job.finish()
    assert "done" in job.log("main")
    assert job.leftovers() == []


def test_killed_supervisor_takes_its_containers_along(space: podjob.Workspace) -> None:
    with space.job(
        "killed", [{"name": "main", "command": "sleep 300"}, {"name": "other", "command": "sleep 300", "run_as_user": 5}]
    ) as job:
        job.running("main")
        job.running("other")
        job.signal(signal.SIGKILL)
        job.wait()
        job.wait_for(lambda: not job.leftovers(), 5)
        assert job.report()["phase"] == "Running"  # the kubelet learns of the end from Slurm


# -- hooks ----------------------------------------------------------------------------------------------------------------


def test_post_start_and_pre_stop_run_in_the_container(space: podjob.Workspace) -> None:
    lifecycle = {
        "postStart": {"exec": {"command": ["sh", "-c", "echo post $WHO $(hostname) $(id -u) >> /tmp/hooks"]}},
        "preStop": {"exec": {"command": ["sh", "-c", "echo pre >> /tmp/hooks"]}},
    }
    command = "trap 'cat /tmp/hooks; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    container = {"name": "main", "command": command, "lifecycle": lifecycle, "env": {"WHO": "me"}, "run_as_user": 33}
    with space.job("hooks", [container]) as job:
        job.running("main")
        job.wait_for(lambda: job.log("main") == "up\n")
        job.signal()
        job.wait()
        assert job.log("main") == "up\npost me hooks 33\npre\n", job.output()


def test_failing_post_start_kills_the_container(space: podjob.Workspace) -> None:
    container = {
        "name": "main",
        "command": "trap 'exit 0' TERM; while :; do sleep 0.05; done",
        "lifecycle": {"postStart": {"exec": {"command": ["false"]}}},
    }
    job = space.job("post-fails", [container])
    job.finish()
    assert ("main", "FailedPostStartHook", "PostStartHook failed") in job.events()
    assert ("main", "Killing", "FailedPostStartHook") in job.events()


def test_pre_stop_that_hangs_ends_with_the_grace_period(space: podjob.Workspace) -> None:
    container = {"name": "main", "command": ["sleep", "100"], "lifecycle": {"preStop": {"exec": {"command": ["sleep", "100"]}}}}
    with space.job("pre-hangs", [container], termination_grace_period=2) as job:
        job.running("main")
        began = time.monotonic()
        job.signal()
        job.wait()
        assert 3.5 < time.monotonic() - began < 8  # the grace period, then the two seconds that upstream adds
        assert job.leftovers() == []


# -- probes ---------------------------------------------------------------------------------------------------------------


def test_readiness_by_exec(space: podjob.Workspace) -> None:
    probe = {"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1}
    container = {"name": "main", "command": "sleep 2; touch /tmp/ready; sleep 60", "readiness_probe": probe}
    with space.job("readiness", [container]) as job:
        assert job.running("main")["ready"] is False
        job.wait_for(lambda: job.container("main")["ready"], 10)
        assert job.events("Unhealthy")
        assert job.events("Unhealthy")[0][2].startswith("Readiness probe failed:")


def test_liveness_restarts_and_startup_gates_it(space: podjob.Workspace) -> None:
    startup = {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 30}
    liveness = {"exec": {"command": ["test", "!", "-e", "/tmp/sick"]}, "periodSeconds": 1, "failureThreshold": 1}
    command = (
        "trap 'exit 0' TERM; touch /tmp/sick; sleep 2; rm /tmp/sick; touch /tmp/up; sleep 3; touch /tmp/sick; while :; do sleep 0.05; done"
    )
    container = {"name": "main", "command": command, "startup_probe": startup, "liveness_probe": liveness}
    with space.job("liveness", [container], restart_policy="Always") as job:
        assert job.running("main")["started"] is False
        job.wait_for(lambda: job.container("main")["started"], 10)
        assert job.container("main")["restartCount"] == 0
        job.wait_for(lambda: job.container("main")["restartCount"] == 1, 15)
        assert ("main", "Killing", "Container main failed liveness probe, will be restarted") in job.events()


def test_http_and_tcp_probes(space: podjob.Workspace) -> None:
    ports = {"http": free_port(), "closed": free_port()}
    good = {"httpGet": {"port": ports["http"], "path": "/index.html"}, "periodSeconds": 1}
    missing = {"httpGet": {"port": ports["http"], "path": "/nothing"}, "periodSeconds": 1}
    container = {"name": "web", "command": f"httpd -f -p {ports['http']} -h /srv", "readiness_probe": good}
    tcp = {"name": "tcp", "command": "sleep 60", "readiness_probe": {"tcpSocket": {"port": ports["http"]}, "periodSeconds": 1}}
    bad = {"name": "bad", "command": "sleep 60", "readiness_probe": missing}
    closed = {"name": "closed", "command": "sleep 60", "readiness_probe": {"tcpSocket": {"port": ports["closed"]}, "periodSeconds": 1}}
    with space.job("http", [container, tcp, bad, closed]) as job:
        job.wait_for(lambda: job.container("web").get("ready") and job.container("tcp").get("ready"), 10)
        not_found = ("bad", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 404")
        job.wait_for(lambda: not_found in job.events("Unhealthy"), 10)
        job.wait_for(lambda: any(c == "closed" and m.endswith("connect: connection refused") for c, _, m in job.events("Unhealthy")), 10)
        assert not job.container("bad")["ready"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


# -- logs -----------------------------------------------------------------------------------------------------------------


def test_long_line_and_rotation(space: podjob.Workspace) -> None:
    command = "head -c 10000000 /dev/zero | tr '\\0' x; echo; echo end; printf no-newline; echo err >&2"
    job = space.job("log", [{"name": "main", "command": command}])
    job.finish()
    folder = job.pod_dir / "containers" / "main"
    lines = [line for file in sorted(folder.glob("0.log*"), reverse=True) for line in file.read_bytes().splitlines()]
    content = [line.split(b" ", 3) for line in lines]
    assert sum(len(parts[3]) for parts in content if parts[3].startswith(b"x")) == 10000000
    assert max(len(parts[3]) for parts in content) == 16384
    assert [b"stdout", b"F", b"end"] in [parts[1:] for parts in content]
    assert [b"stdout", b"P", b"no-newline"] in [parts[1:] for parts in content]
    assert [b"stderr", b"F", b"err"] in [parts[1:] for parts in content]


# -- by hand --------------------------------------------------------------------------------------------------------------


def test_one_container_by_hand(space: podjob.Workspace) -> None:
    mounts = (podplan.Mount(podplan.SCRATCH + "/volumes/v", "/v"),)
    volumes = (podplan.JobVolume("emptyDir", "v", path=podplan.SCRATCH + "/volumes/v"),)
    container = {"name": "main", "command": "echo $WHO; touch /x /v/x && echo written; exit 3", "env": {"WHO": "me"}, "mounts": mounts}
    job = space.job("hand", [container], job_volumes=volumes)
    done = space.run(["bash", str(job.pod_dir / "job.sh"), "container", "main"])
    assert (done.stdout, done.returncode) == ("me\nwritten\n", 3), done.stderr
    assert os.listdir(space.root / "tmp") == [] or not [name for name in os.listdir(space.root / "tmp") if name.startswith("tmp.")]
    assert space.run(["bash", str(job.pod_dir / "job.sh"), "container", "nobody"]).returncode == 2


def test_without_namespaces(space: podjob.Workspace) -> None:
    job = space.job("plain", [{"name": "main", "command": "id -u; echo $A", "env": {"A": "b"}}], namespaces=())
    assert job.finish()["phase"] == "Succeeded", job.output()
    assert job.log("main").endswith("b\n")
    assert job.leftovers() == []


def test_goes_on_where_user_namespaces_are_forbidden_and_says_so(space: podjob.Workspace) -> None:
    limit = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    job = space.job("forbidden", [{"name": "main", "command": "echo ran"}])
    job.start(["unshare", "--user", "--map-root-user", "sh", "-c", limit, "sh"])
    job.wait()
    assert job.log("main") == "ran\n", job.output()
    [(_, _, message)] = job.events("NoSandbox")
    assert "user.max_user_namespaces" in message


def test_runtime_missing(space: podjob.Workspace) -> None:
    job = space.job("no-runtime", [{"name": "main", "command": "true"}])
    job.start(PATH="/usr/sbin:/usr/bin:/sbin:/bin")
    job.wait()
    end = job.terminated("main")
    assert end.get("reason") == "StartError", job.output()
    assert "neither apptainer nor singularity is on PATH" in end["message"]

"""``make demo``: from nothing to a cluster of one's own and a Job on it. ``python3 -m scripts.demo up|down``; standard library only.

As root: installs what is missing, builds the control-plane image into $HPK_CACHE, offers it to all users of the machine, and goes
on as an ordinary user: the one who said sudo, $HPK_DEMO_USER, or a new one, hpk-demo.
As a user: says all that is missing, or goes through README's steps and shows each.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import subprocess
import sys
import time

TREE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CACHE = os.environ.get("HPK_CACHE") or "/var/cache/hpk"
IMAGE = f"{CACHE}/control-plane.sif"
SITE_CONFIG = "/etc/hpk/hpk.yaml"
DEMO_USER = "hpk-demo"
#: Where Slurm's daemons are, which an ordinary PATH may lack.
SBIN = ":/usr/local/sbin:/usr/sbin:/sbin"

SLURM = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}


class DemoError(Exception):
    """The demo cannot go on; the text says why and what to do."""


def run(*argv: str, env: dict[str, str] | None = None, cwd: str | None = None) -> None:
    """Run a command that speaks for itself. Raises DemoError when it fails."""
    print(f"$ {shlex.join(argv)}", flush=True)
    code = subprocess.run(argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL).returncode
    if code != 0:
        raise DemoError(f"exit code {code}: {shlex.join(argv)}")


def answer(*argv: str, stdin: str | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it said."""
    try:
        return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout)
    except (FileNotFoundError, subprocess.TimeoutExpired) as exc:
        return subprocess.CompletedProcess(argv, 127, "", str(exc))


class Steps:
    """Headings with the time that each step took."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()

    def done(self, text: str) -> None:
        now = time.monotonic()
        print(f"== {text}: {now - self._last:.1f} s (of {now - self._began:.1f} s)\n", flush=True)
        self._last = now


# As root


def prepare_machine(steps: Steps) -> None:
    """What an administrator does once: packages, Apptainer, Go, the image for all users."""
    run(sys.executable, "-m", "tests.testbed", "packages", "--demo", cwd=TREE)
    steps.done("packages, Apptainer, Go")
    venv = f"{CACHE}/test-venv"
    run(sys.executable, f"{TREE}/scripts/venv.py", venv)
    env = {**os.environ, "PYTHONPATH": TREE, "HPK_CACHE": CACHE}
    run(f"{venv}/bin/python", "-m", "hpk", "image", "build", "--from", "source", "--output", IMAGE, env=env, cwd="/")
    if not os.path.exists(SITE_CONFIG):
        os.makedirs(os.path.dirname(SITE_CONFIG), exist_ok=True)
        with open(SITE_CONFIG, "w", encoding="utf-8") as file:
            file.write(f"# Settings for all users of HPK on this machine.\ncontrolPlane:\n  image: {IMAGE}\n")
    if not shutil.which("kubectl"):
        os.symlink(f"{CACHE}/bin/kubectl", "/usr/local/bin/kubectl")
    steps.done("control-plane image")


def demo_user() -> pwd.struct_passwd:
    """The ordinary user to go on as; made if it does not exist."""
    name = os.environ.get("HPK_DEMO_USER") or os.environ.get("SUDO_USER") or DEMO_USER
    if name == "root":
        name = DEMO_USER
    try:
        return pwd.getpwnam(name)
    except KeyError:
        run("useradd", "--create-home", "--shell", "/bin/bash", name)
        return pwd.getpwnam(name)


def as_user(user: pwd.struct_passwd, *argv: str, cwd: str) -> list[str]:
    """Command line that runs ``argv`` as a login of ``user`` would, with nothing of root's environment but the way to packages."""
    kept = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(("PIP_", "LANG", "TERM")) or name.endswith("_proxy")]
    path = f"{user.pw_dir}/.local/bin:/usr/local/bin:/usr/bin:/bin"
    home = [f"HOME={user.pw_dir}", f"USER={user.pw_name}", f"LOGNAME={user.pw_name}", f"SHELL={user.pw_shell}", f"PATH={path}"]
    return ["runuser", "-u", user.pw_name, "--", "env", "-i", f"--chdir={cwd}", *kept, *home, *argv]


def own_tree(user: pwd.struct_passwd) -> str:
    """Return a copy of the tree that ``user`` can read, or the tree itself when they can."""
    readable = subprocess.run(["runuser", "-u", user.pw_name, "--", "test", "-r", f"{TREE}/Makefile"], capture_output=True)
    if readable.returncode == 0:
        return TREE
    copy = f"{user.pw_dir}/hpk"
    os.makedirs(copy, exist_ok=True)
    parts = [name for name in sorted(os.listdir(TREE)) if name not in (".git", ".venv", "build", "dist")]
    with subprocess.Popen(["tar", "-C", TREE, "-cf", "-", "--exclude=__pycache__", "--", *parts], stdout=subprocess.PIPE) as pack:
        subprocess.run(["tar", "-C", copy, "-xf", "-"], stdin=pack.stdout, check=True)
    subprocess.run(["chown", "-R", f"{user.pw_uid}:{user.pw_gid}", copy], check=True)
    return copy


# As the user


def has_user_namespaces() -> bool:
    return answer("unshare", "--user", "--map-root-user", "true").returncode == 0


def has_slurm() -> bool:
    """Whether a Slurm of the site answers."""
    return answer("sinfo", "--noheader").returncode == 0


def missing() -> list[tuple[str, str]]:
    """What an ordinary user needs here and does not have: (what, Debian packages or advice)."""
    path = os.environ.get("PATH", "") + SBIN
    found: list[tuple[str, str]] = []
    if sys.version_info < (3, 10) or answer(sys.executable, "-c", "import ensurepip, venv").returncode != 0:
        found.append(("Python 3.10 or newer with venv", "python3 python3-venv"))
    if not shutil.which("apptainer") and not shutil.which("singularity"):
        found.append(("Apptainer or Singularity", ""))
    for program, package in (("mksquashfs", "squashfs-tools"), ("squashfuse", "squashfuse"), ("busybox", "busybox-static")):
        if not shutil.which(program, path=path):
            found.append((program, package))
    if not has_slurm():
        found += [(program, package) for program, package in SLURM.items() if not shutil.which(program, path=path)]
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        found.append(("/dev/fuse with mode 0666", ""))
    if not has_user_namespaces():
        found.append(("user namespaces for ordinary users (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces)", ""))
    return found


def say_missing(found: list[tuple[str, str]]) -> str:
    packages = " ".join(dict.fromkeys(package for _, package in found if package))
    lines = ["missing on this machine:", *(f"  {what}" for what, _ in found)]
    if packages:
        lines.append(f"as root: apt-get install --no-install-recommends {packages}")
    return "\n".join([*lines, f"or all of it at once: sudo make -C {TREE} demo"])


def busybox(folder: str) -> str:
    """Make an image that needs no registry, of Debian's static busybox, and return its path."""
    image, root = f"{folder}/busybox.sif", f"{folder}/busybox"
    if os.path.exists(image):
        return image
    os.makedirs(f"{root}/bin", exist_ok=True)
    for name in ("etc", "proc", "sys", "dev", "tmp", "root", "usr/bin"):
        os.makedirs(f"{root}/{name}", exist_ok=True)
    program = shutil.which("busybox", path="/bin:/usr/bin:" + os.environ.get("PATH", ""))
    assert program, "missing() has looked"
    shutil.copy2(program, f"{root}/bin/busybox")
    for applet in answer(program, "--list").stdout.split():
        if applet != "busybox" and not os.path.lexists(f"{root}/bin/{applet}"):
            os.symlink("busybox", f"{root}/bin/{applet}")
    run(shutil.which("apptainer") or "singularity", "--quiet", "build", image, root)
    return image


def job_output(kubectl: list[str], image: str) -> None:
    """Run examples/hello and print what its Pods wrote. Raises DemoError when it does not complete."""
    with open(f"{TREE}/examples/hello/job.yaml", encoding="utf-8") as file:
        job = file.read().replace("image: busybox", f"image: {image}")
    answer(*kubectl, "delete", "job", "hello", "--ignore-not-found", timeout=120)
    made = answer(*kubectl, "apply", "-f", "-", stdin=job)
    if made.returncode != 0:
        raise DemoError(made.stderr.strip())
    run(*kubectl, "wait", "--for=condition=Complete", "--timeout=180s", "job/hello")
    run(*kubectl, "get", "pods", "-o", "wide")
    run(*kubectl, "logs", "--selector=job-name=hello", "--tail=-1")


def up_as_user() -> None:
    steps = Steps()
    found = missing()
    if found:
        raise DemoError(say_missing(found))
    home = os.environ.get("HPK_HOME") or os.path.expanduser("~/.hpk")
    hpk = f"{home}/venv/bin/hpk"
    run(f"{TREE}/scripts/install.sh")
    steps.done("hpk installed")
    source = "source" if shutil.which("go") else "release"
    run(hpk, "image", "build", "--from", source)
    steps.done("control-plane image")
    if not has_slurm():
        run(hpk, "slurm", "up")
        steps.done("private Slurm")
    run(hpk, "up", "--timeout", "300")
    steps.done("cluster")
    folder = f"{home}/demo"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    image = busybox(folder)
    program = shutil.which("kubectl") or f"{home}/bin/kubectl"
    job_output([program, f"--kubeconfig={home}/kubeconfig"], image)
    steps.done("a Job of three Pods")
    print(f"""The cluster is yours. To go on, as user {pwd.getpwuid(os.getuid()).pw_name}:
  export KUBECONFIG={home}/kubeconfig PATH=$HOME/.local/bin:{os.path.dirname(program)}:$PATH
  kubectl get pods -A; hpk status
  eval "$(hpk slurm env)"; squeue          # where the Slurm is the private one
Images: {image}, or any of a registry that this machine reaches.
To end it: make demo-down""")


def down_as_user() -> None:
    home = os.environ.get("HPK_HOME") or os.path.expanduser("~/.hpk")
    hpk = f"{home}/venv/bin/hpk"
    if not os.path.exists(hpk):
        print("nothing to end")
        return
    if has_slurm() or answer(hpk, "slurm", "env").returncode == 0:
        run(hpk, "down", "--pods")
    run(hpk, "slurm", "down", "--cancel")
    print(f"ended; the state stays in {home}: remove that folder to be rid of it")


def main(argv: list[str]) -> int:
    if argv not in (["up"], ["down"]):
        print("usage: python3 -m scripts.demo up|down", file=sys.stderr)
        return 2
    try:
        if os.getuid() == 0:
            if argv == ["up"]:
                prepare_machine(Steps())
            user = demo_user()
            tree = own_tree(user)
            print(f"going on as user {user.pw_name}, in {tree}\n", flush=True)
            python = shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin") or sys.executable  # root's own may be below /root
            line = as_user(user, python, "-m", "scripts.demo", *argv, cwd=tree)
            os.execvp(line[0], line)  # noqa: S606
        (up_as_user if argv == ["up"] else down_as_user)()
    except DemoError as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

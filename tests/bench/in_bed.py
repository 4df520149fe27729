"""Runs as the user on the login host of the test bed and prints one line of JSON.

    in_bed.py KUBECONFIG starts SIF ROUNDS     Pods and bare jobs in turn: seconds to the first process in the container, by step
    in_bed.py KUBECONFIG burst COUNT           COUNT short Pods: seconds until the last one is done
    in_bed.py KUBECONFIG loop SIF COUNT        the same with a loop of COUNT `sbatch`
    in_bed.py KUBECONFIG create COUNT          COUNT Pods whose jobs are held: seconds until Slurm has them all
    in_bed.py KUBECONFIG delete COUNT          ... until they are gone, from the API server and from Slurm's queue

Both ways of starting end with the same program in a container, `cat /proc/uptime`, whose output is on the clock that this script
reads before it begins (all hosts of the bed have one kernel). Resolution 10 ms; steps by the times of the files that they leave.
"""

from __future__ import annotations

import base64
import concurrent.futures
import glob
import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

import yaml

PODS = "/api/v1/namespaces/default/pods"
#: Connections at the same time to create and delete many.
WORKERS = 8
TAG = f"bench-{os.getpid()}"


def uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class API:
    """One keep-alive connection with the user's certificate, so that no start of kubectl is in the figures."""

    def __init__(self, kubeconfig: str) -> None:
        self.kubeconfig = kubeconfig
        with open(kubeconfig) as file:
            config = yaml.safe_load(file)
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        context = ssl.create_default_context(cadata=self._pem(cluster, "certificate-authority").decode())
        with tempfile.NamedTemporaryFile() as pair:
            pair.write(self._pem(user, "client-certificate") + b"\n" + self._pem(user, "client-key"))
            pair.flush()
            context.load_cert_chain(pair.name)
        server = urllib.parse.urlsplit(cluster["server"])
        assert server.hostname
        self.connection = http.client.HTTPSConnection(server.hostname, server.port, context=context, timeout=120)

    @staticmethod
    def _pem(section: dict, key: str) -> bytes:
        if f"{key}-data" in section:
            return base64.b64decode(section[f"{key}-data"])
        with open(section[key], "rb") as file:
            return file.read()

    def call(self, method: str, path: str, body: dict | None = None) -> tuple[int, bytes]:
        self.connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        return answer.status, answer.read()


def pod(name: str, *command: str, flags: str = "", **labels: str) -> dict:
    annotations = {"slurm-job.hpk.io/flags": flags} if flags else {}
    container = {"name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": list(command)}
    container["resources"] = {"requests": {"cpu": "1"}}
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]}
    metadata = {"name": name, "annotations": annotations, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def when_bound(api: API, name: str, found: list[float]) -> threading.Thread:
    """Append the time at which a watch shows the Pod's nodeName."""
    watcher = API(api.kubeconfig)
    watcher.connection.request("GET", f"{PODS}?watch=1&fieldSelector=metadata.name={name}")
    answer = watcher.connection.getresponse()

    def read() -> None:
        for line in answer:
            if json.loads(line)["object"].get("spec", {}).get("nodeName"):
                found.append(uptime())
                return

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def born(path: str, offset: float) -> float:
    """When a file was made, on the clock of uptime(); its last change where the file system does not keep that."""
    text = subprocess.run(["stat", "-c", "%.W %.Y", path], check=True, capture_output=True, text=True).stdout.split()
    return (float(text[0]) or float(text[1])) - offset


def pod_start(api: API, number: int) -> dict[str, float]:
    """Seconds from the POST of a Pod to its first process, and to the steps before it."""
    name = f"{TAG}-{number}"
    bound: list[float] = []
    watcher = when_bound(api, name, bound)
    begin, offset = uptime(), time.time() - uptime()
    status, answer = api.call("POST", PODS, pod(name, "cat", "/proc/uptime"))
    assert status == 201, answer
    posted = uptime()
    uid = json.loads(answer)["metadata"]["uid"]
    path = f"{PODS}/{name}"
    while json.loads(api.call("GET", path)[1])["status"]["phase"] not in ("Succeeded", "Failed"):
        time.sleep(0.05)
    started = float(api.call("GET", f"{path}/log")[1].split()[0])
    watcher.join(5)
    (folder,) = glob.glob(os.path.expanduser(f"~/.hpk/pods/*_{uid}"))
    steps = {
        "posted": posted,
        "bound": bound[0],
        "prepared": os.stat(f"{folder}/plan.json").st_mtime - offset,
        "submitted": os.stat(f"{folder}/submission.json").st_mtime - offset,
        "job": born(f"{folder}/slurm.out", offset),
        "supervisor": born(f"{folder}/containers/main/0.log", offset),
        "process": started,
    }
    api.call("DELETE", f"{path}?gracePeriodSeconds=0")
    return {step: value - begin for step, value in steps.items()}


def bare_start(image: str, number: int) -> dict[str, float]:
    """Seconds from the start of sbatch to the first process of `apptainer exec` in a plain batch job."""
    output = os.path.expanduser(f"~/{TAG}-{number}.out")
    script = f"#!/bin/bash\nexec apptainer -s exec --contain --no-home --cleanenv {image} cat /proc/uptime\n"
    begin, offset = uptime(), time.time() - uptime()
    subprocess.run(["sbatch", "--parsable", "-J", "bare", "-n1", "-o", output], input=script, text=True, check=True, capture_output=True)
    submitted = uptime()
    while True:
        try:
            with open(output) as file:
                text = file.read()
        except FileNotFoundError:
            text = ""
        if text.endswith("\n"):
            steps = {"submitted": submitted, "job": born(output, offset), "process": float(text.split()[0])}
            os.unlink(output)
            return {step: value - begin for step, value in steps.items()}
        time.sleep(0.05)


def starts(api: API, image: str, rounds: int) -> dict:
    pod_start(api, -1)  # pulls the image, warms both ways
    bare_start(image, -1)
    pods, bare = [], []
    for number in range(rounds):
        pods.append(pod_start(api, number))
        bare.append(bare_start(image, number))
    return {"pod": pods, "bare": bare}


def remaining(api: API, selector: str) -> int:
    answer = json.loads(api.call("GET", f"{PODS}?{selector}&limit=1")[1])
    return len(answer["items"]) + int(answer["metadata"].get("remainingItemCount") or 0)


def burst(api: API, count: int) -> dict:
    begin = uptime()
    each(api, [("POST", PODS, pod(f"{TAG}-{number}", "true", bench="burst")) for number in range(count)])
    created = uptime()
    while True:
        items = json.loads(api.call("GET", f"{PODS}?labelSelector=bench=burst")[1])["items"]
        phases = [item["status"]["phase"] for item in items]
        if all(phase in ("Succeeded", "Failed") for phase in phases):
            break
        time.sleep(1)
    done = uptime()
    each(api, [("DELETE", f"{PODS}/{TAG}-{number}") for number in range(count)])
    return {"failed": phases.count("Failed"), "made": created - begin, "done": done - begin}


def loop(image: str, count: int) -> dict:
    script = f"#!/bin/bash\nexec apptainer -s exec --contain --no-home --cleanenv {image} true\n"
    begin = uptime()
    for _ in range(count):
        subprocess.run(["sbatch", "-J", "bare", "-n1", "-o", "/dev/null"], input=script, text=True, check=True, capture_output=True)
    submitted = uptime()
    while subprocess.run(["squeue", "--me", "-h", "-n", "bare"], capture_output=True, text=True, check=True).stdout.strip():
        time.sleep(1)
    return {"made": submitted - begin, "done": uptime() - begin}


def queued() -> tuple[int, float]:
    """Held jobs in Slurm's queue, and what asking took."""
    begin = uptime()
    text = subprocess.run(["squeue", "--me", "-h", "-t", "PD", "-o", "%j"], capture_output=True, text=True, check=True).stdout
    return sum(1 for line in text.splitlines() if line.startswith("default/held-")), uptime() - begin


def each(api: API, calls: list[tuple]) -> None:
    """Make the calls, WORKERS at a time, each worker with a connection of its own."""
    left = iter(calls)

    def work() -> None:
        mine = API(api.kubeconfig)
        for call in left:
            status, answer = mine.call(*call)
            assert status in (200, 201), answer

    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        for done in [pool.submit(work) for _ in range(WORKERS)]:
            done.result()


def create(api: API, count: int) -> dict:
    begin = uptime()
    each(api, [("POST", PODS, pod(f"held-{number}", "true", flags="--hold", bench="held")) for number in range(count)])
    created = uptime() - begin
    jobs, took = queued()
    while jobs < count:
        assert uptime() - begin < 60 + count / 5, f"only {jobs} jobs"
        time.sleep(max(0.5, count / 1000))
        jobs, took = queued()
    return {"created": created, "seconds": uptime() - begin, "squeue": took}


def delete(api: API, count: int) -> dict:
    begin = uptime()
    each(api, [("DELETE", f"{PODS}/held-{number}") for number in range(count)])
    while remaining(api, "labelSelector=bench=held") or queued()[0]:
        assert uptime() - begin < 60 + count / 5, "they do not go"
        time.sleep(max(0.5, count / 1000))
    return {"seconds": uptime() - begin}


def main() -> None:
    api, command, rest = API(sys.argv[1]), sys.argv[2], sys.argv[3:]
    count = int(rest[-1])
    if command == "starts":
        result = starts(api, rest[0], count)
    elif command == "loop":
        result = loop(rest[0], count)
    else:
        result = {"burst": burst, "create": create, "delete": delete}[command](api, count)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

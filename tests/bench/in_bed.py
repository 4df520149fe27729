"""Runs as the user on the login host of the test bed: starts Pods and bare jobs in turn and prints when their first process ran.

Usage: in_bed.py KUBECONFIG SIF ROUNDS. Both ways end with the same program in a container, `cat /proc/uptime`, whose output is on
the clock that this script reads before it begins (all hosts of the bed have one kernel). Resolution 10 ms.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.parse

import yaml


def uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class API:
    """One keep-alive connection with the user's certificate, so that no start of kubectl is in the figures."""

    def __init__(self, kubeconfig: str) -> None:
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
        self.connection = http.client.HTTPSConnection(server.hostname, server.port, context=context, timeout=60)

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


def pod_start(api: API, number: int) -> float:
    """Seconds from the POST of a Pod to its first process."""
    name = f"bench-{os.getpid()}-{number}"
    container = {"name": "main", "image": "busybox", "command": ["cat", "/proc/uptime"], "resources": {"requests": {"cpu": "1"}}}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    begin = uptime()
    status, answer = api.call("POST", "/api/v1/namespaces/default/pods", body)
    assert status == 201, answer
    path = f"/api/v1/namespaces/default/pods/{name}"
    while json.loads(api.call("GET", path)[1])["status"]["phase"] not in ("Succeeded", "Failed"):
        time.sleep(0.05)
    started = float(api.call("GET", f"{path}/log")[1].split()[0])
    api.call("DELETE", f"{path}?gracePeriodSeconds=0")
    return started - begin


def bare_start(image: str, number: int) -> float:
    """Seconds from the start of sbatch to the first process of `apptainer exec` in a plain batch job."""
    output = os.path.expanduser(f"~/bench-{os.getpid()}-{number}.out")
    script = f"#!/bin/bash\nexec apptainer -s exec --contain --no-home --cleanenv {image} cat /proc/uptime\n"
    begin = uptime()
    subprocess.run(["sbatch", "--parsable", "-J", "bare", "-n1", "-o", output], input=script, text=True, check=True, capture_output=True)
    while True:
        try:
            with open(output) as file:
                text = file.read()
        except FileNotFoundError:
            text = ""
        if text.endswith("\n"):
            os.unlink(output)
            return float(text.split()[0]) - begin
        time.sleep(0.05)


def main() -> None:
    kubeconfig, image, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    api = API(kubeconfig)
    pod_start(api, -1)  # pulls the image, warms both ways
    bare_start(image, -1)
    pods, bare = [], []
    for number in range(rounds):
        pods.append(pod_start(api, number))
        bare.append(bare_start(image, number))
    print(json.dumps({"pod": pods, "bare": bare}))


if __name__ == "__main__":
    main()

"""The image cache against a real registry and a real Apptainer, and against registries that misbehave. All on loopback."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiohttp import web

from hpk import config as configuration
from hpk import errors, files, paths, procs
from hpk.kubelet import credentials, imageref, images, imagestore, registry, sif
from tests.testbed import oci

pytestmark = pytest.mark.component

BUSYBOX = "/bin/busybox"
EVENTS = list[tuple[str, str, str]]


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None and not os.path.exists(program):
            pytest.skip(f"{program} is not installed")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A docker-registry with ``team/app:v1`` in it."""
    needs("docker-registry", "skopeo", "apptainer", "mksquashfs", BUSYBOX)
    root = str(tmp_path_factory.mktemp("registry"))
    with serving_registry(root) as at:
        push(root, f"{at}/team/app:v1", "one")
        yield at


@contextlib.contextmanager
def serving_registry(root: str, htpasswd: str = "") -> Iterator[str]:
    """A docker-registry, with logins where ``htpasswd`` has some."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open(f"{root}/htpasswd", "w") as file:
        file.write(htpasswd)
    auth = f"auth: {{htpasswd: {{realm: registry, path: {root}/htpasswd}}}}\n" if htpasswd else ""
    with open(f"{root}/config.yml", "w") as file:
        file.write(f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n{auth}")
    with open(f"{root}/log", "w") as log:
        process = subprocess.Popen(["docker-registry", "serve", f"{root}/config.yml"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < deadline, f"docker-registry does not listen: {root}/log"
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def push(root: str, reference: str, text: str, *options: str) -> None:
    with open(BUSYBOX, "rb") as file:
        program = file.read()
    layer = oci.layer(
        f"{root}/{text}.tar.gz",
        [
            oci.File("bin", folder=True, mode=0o755),
            oci.File("bin/busybox", program, 0o755),
            oci.File("bin/sh", link="busybox"),
            oci.File("bin/cat", link="busybox"),
            oci.File("etc", folder=True, mode=0o755),
            oci.File("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\napp:x:101:102::/srv/app:/bin/sh\n"),
            oci.File("etc/group", b"root:x:0:\napp:x:102:\nextra:x:200:app\n"),
            oci.File("text", text.encode()),
        ],
    )
    config = {"Entrypoint": ["/bin/cat"], "Cmd": ["/text"], "User": "app", "Env": ["A=1"]}
    folder = oci.write(f"{root}/{text}", oci.Image([layer], config))
    argv = ["skopeo", "copy", "-q", "--all", "--dest-tls-verify=false", *options, f"oci:{folder}", f"docker://{reference}"]
    subprocess.run(argv, check=True)


def manager(home: str, host: str, **more: Any) -> images.ImageManager:
    config = configuration.Config(images=configuration.ImagesConfig(insecure=(host,), mirrors={"docker.io": f"{host}/mirror"}, **more))
    return images.ImageManager(config=config, paths=paths.Paths(home))


def recorder(events: EVENTS) -> images.OnEvent:
    return lambda kind, reason, message: events.append((kind, reason, message))


async def test_pull_once_for_many_and_run(host: str, tmp_path: Any) -> None:
    cache = manager(str(tmp_path), host)
    events: EVENTS = []
    asked = [cache.ensure(f"{host}/team/app:v1", on_event=recorder(events)) for _ in range(10)]
    found = await asyncio.gather(*asked)
    assert len({info.path for info in found}) == 1
    assert sum(1 for name in os.listdir(tmp_path / "images") if name.endswith(".sif")) == 1
    assert [reason for _, reason, _ in events].count("Pulling") == 10
    info = found[0]
    assert info.image_id.startswith(f"{host}/team/app@sha256:")
    assert info.config["Entrypoint"] == ["/bin/cat"]
    assert "app:x:101:102" in info.passwd
    assert "extra:x:200:app" in info.group
    assert os.stat(info.path).st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path / "images" / "tmp") == []
    ran = await procs.arun(["apptainer", "-s", "exec", "--userns", info.path, "/bin/cat", "/text"])
    assert ran.check().stdout == "one"

    # Once there, neither the registry nor a tag is asked again ...
    events.clear()
    again = await manager(str(tmp_path), "127.0.0.1:1").ensure(f"{host}/team/app:v1", on_event=recorder(events))
    assert again == info
    assert events == [("Normal", "Pulled", f'Container image "{host}/team/app:v1" already present on machine')]
    # ... and the digest names the same image.
    by_digest = await cache.ensure(f"{host}/team/app@{info.image_id.partition('@')[2]}", on_event=recorder(events))
    assert by_digest.path == info.path


async def test_policy_always_follows_the_tag(host: str, tmp_path: Any) -> None:
    push(str(tmp_path), f"{host}/mirror/library/moving:latest", "first")
    cache = manager(str(tmp_path / "home"), host)
    first = await cache.ensure("moving", policy="Always")  # docker.io, by the mirror
    assert first.image_id.startswith("docker.io/library/moving@sha256:")
    push(str(tmp_path), f"{host}/mirror/library/moving:latest", "second")
    assert (await cache.ensure("moving", policy="IfNotPresent")).path == first.path
    second = await cache.ensure("moving", policy="Always")
    assert second.path != first.path
    assert os.path.exists(first.path)  # Pods may still run from it
    asked = []

    async def resolve(self: Any) -> Any:
        asked.append(self)
        raise AssertionError("one HEAD is enough for an unchanged tag")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry._Conversation, "resolve", resolve)
        unchanged = await asyncio.gather(*(cache.ensure("moving", policy="Always") for _ in range(20)))
    assert {info.path for info in unchanged} == {second.path}
    assert asked == []


async def test_two_processes_pull_once(host: str, tmp_path: Any) -> None:
    program = (
        "import asyncio, sys\nfrom tests.component import test_images as t\nfrom hpk.kubelet import sif\npull = sif.pull\n"
        "async def told(*args, **more):\n    print('pulling')\n    await pull(*args, **more)\n"
        "sif.pull = told\nprint(asyncio.run(t.manager(sys.argv[1], sys.argv[2]).ensure(sys.argv[2] + '/team/app:v1')).path)"
    )
    both = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(tmp_path), host, stdout=asyncio.subprocess.PIPE)
        for _ in range(2)
    ]
    told = [(await process.communicate())[0].decode().split() for process in both]
    assert told[0][-1] == told[1][-1]
    assert sorted(map(len, told)) == [1, 2]  # one of them pulled


async def test_a_killed_pull_leaves_nothing_usable_and_is_cleaned_up(host: str, tmp_path: Any) -> None:
    program = (
        "import asyncio, sys, os\nfrom tests.component import test_images as t\nfrom hpk.kubelet import sif\n"
        "async def half(target, *args, work):\n    open(target, 'wb').write(b'half')\n"
        "    print('now', flush=True)\n    await asyncio.sleep(60)\n"
        "sif.pull = half\nasyncio.run(t.manager(sys.argv[1], sys.argv[2]).ensure(sys.argv[2] + '/team/app:v1'))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(tmp_path), host, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"now\n"
    process.kill()
    await process.wait()
    assert len(os.listdir(tmp_path / "images" / "tmp")) == 1
    assert not [name for name in os.listdir(tmp_path / "images") if name.endswith(".sif")]
    info = await manager(str(tmp_path), host).ensure(f"{host}/team/app:v1")
    assert sif.squashfs_offset(info.path) > 0
    assert os.listdir(tmp_path / "images" / "tmp") == []


async def test_damaged_cache_is_pulled_again(host: str, tmp_path: Any) -> None:
    cache = manager(str(tmp_path), host)
    info = await cache.ensure(f"{host}/team/app:v1")
    os.truncate(info.path, 1000)
    again = await cache.ensure(f"{host}/team/app:v1")
    assert os.stat(again.path).st_size > 1000
    with open(again.path.removesuffix(".sif") + ".json", "w") as file:
        file.write("{half")
    assert await cache.ensure(f"{host}/team/app:v1") == info


async def test_never_and_missing_and_back_off(host: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = manager(str(tmp_path), host)
    events: EVENTS = []
    with pytest.raises(errors.NotReady, match="not present with pull policy of Never") as caught:
        await cache.ensure(f"{host}/team/app:v1", policy="Never", on_event=recorder(events), container="main")
    assert (caught.value.reason, caught.value.container, caught.value.event) == ("ErrImageNeverPull", "main", "")
    assert [reason for _, reason, _ in events] == ["ErrImageNeverPull", "Failed"]

    now = [1000.0]
    monkeypatch.setattr(images.time, "monotonic", lambda: now[0])
    for delay in (10, 20, 40, 80, 160, 300, 300):
        with pytest.raises(errors.NotReady, match=r'failed to resolve reference "127.*/team/none:v9": not found') as caught:
            await cache.ensure(f"{host}/team/none:v9", backoff_key="uid")
        assert caught.value.reason == "ErrImagePull"
        now[0] += delay - 1
        with pytest.raises(errors.NotReady, match=r"Back-off pulling image .*not found") as caught:
            await cache.ensure(f"{host}/team/none:v9", backoff_key="uid")
        assert caught.value.reason == "ImagePullBackOff"
        now[0] += 2
    with pytest.raises(errors.NotReady) as caught:  # another Pod has its own back-off
        await cache.ensure(f"{host}/team/none:v9", backoff_key="other")
    assert caught.value.reason == "ErrImagePull"


async def test_bad_names_and_local_files(host: str, tmp_path: Any) -> None:
    cache = manager(str(tmp_path), host)
    events: EVENTS = []
    with pytest.raises(errors.NotReady, match="must be lowercase") as caught:
        await cache.ensure("Bad:v1", on_event=recorder(events))
    assert caught.value.reason == "InvalidImageName"
    assert events[0][:2] == ("Warning", "InspectFailed")

    info = await cache.ensure(f"{host}/team/app:v1")
    copy = str(tmp_path / "mine.sif")
    shutil.copy(info.path, copy)
    local = await cache.ensure(copy, policy="Always")
    assert (local.path, local.image_id, "app:x:101" in local.passwd) == (copy, copy, True)
    for bad in (str(tmp_path / "none.sif"), "/etc/passwd"):
        with pytest.raises(errors.NotReady, match="is not a SIF image") as caught:
            await cache.ensure(bad)
        assert caught.value.reason == "ErrImagePull"
        with pytest.raises(errors.NotReady) as caught:
            await cache.ensure(bad, policy="Never")
        assert caught.value.reason == "ErrImageNeverPull"


async def test_no_space_is_a_reason_not_a_traceback(host: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device", target)

    monkeypatch.setattr(images, "_move", full)
    with pytest.raises(errors.NotReady, match=r"No space left on device: .*sif") as caught:
        await manager(str(tmp_path), host).ensure(f"{host}/team/app:v1")
    assert caught.value.reason == "ErrImagePull"
    assert os.listdir(tmp_path / "images" / "tmp") == []


@pytest.fixture
def small_disk(tmp_path: Any) -> Iterator[str]:
    """A file system of 1 MiB; remounted read-only by remount()."""
    if os.getuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = str(tmp_path / "home")
    os.mkdir(folder)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "hpk-test", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: str, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


async def test_a_full_cache_and_one_that_cannot_be_written(host: str, small_disk: str) -> None:
    """The image is larger than the disk; later there is room, and the same manager brings it."""
    cache = manager(small_disk, host)
    with pytest.raises(errors.NotReady, match="no space left on device") as caught:
        await cache.ensure(f"{host}/team/app:v1", backoff_key="a")
    assert caught.value.reason == "ErrImagePull"
    assert "Traceback" not in caught.value.message
    assert os.listdir(f"{small_disk}/images/tmp") == []
    assert not [name for name in os.listdir(f"{small_disk}/images") if name.endswith((".sif", ".json"))]

    remount(small_disk, "ro")
    with pytest.raises(errors.NotReady, match="Read-only file system") as caught:
        await cache.ensure(f"{host}/team/app:v1", backoff_key="b")
    assert caught.value.reason == "ErrImagePull"

    remount(small_disk, "rw,size=100m")
    info = await cache.ensure(f"{host}/team/app:v1", backoff_key="c")
    remount(small_disk, "ro")
    assert await cache.ensure(f"{host}/team/app:v1", backoff_key="d") == info  # what is there can be used


async def test_the_cache_stays_within_its_bound(host: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagestore, "MIN_AGE", 0.0)
    monkeypatch.setattr(imagestore.remove, "__kwdefaults__", {"min_age": 0.0})
    monkeypatch.setattr(imagestore.collect, "__kwdefaults__", {"min_age": 0.0})
    monkeypatch.setattr(images, "COLLECT_PAUSE", 0.05)
    home = str(tmp_path / "home")
    for number in range(3):
        push(str(tmp_path), f"{host}/team/many:{number}", f"number {number}")
    cache = manager(home, host, max_bytes=1)
    used = await cache.ensure(f"{host}/team/many:0")
    pod = paths.Paths(home).pod("default", "one", "uid")
    files.private_dir(pod.root)
    files.write_json(pod.plan, {"containers": [{"imagePath": used.path}]})
    task = asyncio.create_task(cache.collect())
    try:
        for number in (1, 2):
            info = await cache.ensure(f"{host}/team/many:{number}")
            for _ in range(100):
                if not os.path.exists(info.path):
                    break
                await asyncio.sleep(0.05)
            assert not os.path.exists(info.path)
        assert os.path.exists(used.path)
        assert [image.path for image in imagestore.stored(paths.Paths(home))] == [used.path]
    finally:
        task.cancel()
    again = await cache.ensure(f"{host}/team/many:1")  # a removed image is pulled like a new one
    assert sif.squashfs_offset(again.path) > 0


def test_pull_command(host: str, tmp_path: Any) -> None:
    env = {**os.environ, "HPK_HOME": str(tmp_path / "home"), "HPK_SITE_CONFIG": str(tmp_path / "hpk.yaml")}
    (tmp_path / "hpk.yaml").write_text(f"images: {{insecure: ['{host}']}}\n")

    def hpk(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "hpk", "image", *argv], env=env, text=True, capture_output=True)

    done = hpk("pull", f"{host}/team/app:v1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{host}/team/app@sha256:")
    assert f"{host}/team/app:v1" in hpk("ls").stdout
    missing = hpk("pull", f"{host}/team/none:v1")
    assert missing.returncode == 1
    assert missing.stderr.startswith(f"hpk: error: {host}/team/none:v1: ErrImagePull: ")
    assert missing.stderr.count("\n") == 1


async def test_pull_secrets_of_a_real_registry(tmp_path: Any) -> None:
    needs("docker-registry", "skopeo", "apptainer", "mksquashfs", BUSYBOX)
    # Password "testbed" by bcrypt; the registry takes no other hash.
    with serving_registry(str(tmp_path), "puller:$2y$05$abcdefghijklmnopqrstuuaUQoGoyjmuuXWQwBTiSaR.DpPZodIem\n") as at:
        push(str(tmp_path), f"{at}/team/secret:v1", "secret", "--dest-creds=puller:testbed")
        cache = manager(str(tmp_path / "home"), at)
        for number, keyrings in enumerate(([], [{at: credentials.Credential("puller", "wr0ng-pass")}])):
            with pytest.raises(errors.NotReady, match="pull access denied") as caught:
                await cache.ensure(f"{at}/team/secret:v1", pull_secrets=keyrings, backoff_key=str(number))
            assert caught.value.reason == "ErrImagePull"
            assert "wr0ng-pass" not in caught.value.message
        right = [{at: credentials.Credential("puller", "testbed")}]
        info = await cache.ensure(f"{at}/team/secret:v1", pull_secrets=right, backoff_key="right")
        assert sif.squashfs_offset(info.path) > 0


# -- registries made here, to misbehave ---------------------------------------------------------------------------------


def blob(value: Any) -> tuple[bytes, str]:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return raw, "sha256:" + hashlib.sha256(raw).hexdigest()


CONFIG, CONFIG_DIGEST = blob({"architecture": registry.architecture()[0], "os": "linux", "config": {"Cmd": ["x"]}})
MANIFEST, MANIFEST_DIGEST = blob({"schemaVersion": 2, "config": {"digest": CONFIG_DIGEST}, "layers": [{"size": 5}]})
OTHER_CONFIG, OTHER_CONFIG_DIGEST = blob({"architecture": "pdp11", "os": "linux"})
OTHER, OTHER_DIGEST = blob({"schemaVersion": 2, "config": {"digest": OTHER_CONFIG_DIGEST}, "layers": []})
INDEX, INDEX_DIGEST = blob(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {"digest": OTHER_DIGEST, "platform": {"os": "linux", "architecture": "pdp11"}},
            {"digest": "sha256:" + "0" * 64, "platform": {"os": "unknown", "architecture": "unknown"}},
            {"digest": MANIFEST_DIGEST, "platform": {"os": "linux", "architecture": registry.architecture()[0]}},
        ],
    }
)
NONE_FITS, _ = blob({"schemaVersion": 2, "manifests": [{"digest": OTHER_DIGEST, "platform": {"os": "linux", "architecture": "pdp11"}}]})

CONTENT = {
    "manifests/latest": MANIFEST,
    "manifests/multi": INDEX,
    "manifests/nofit": NONE_FITS,
    "manifests/other": OTHER,
    f"manifests/{MANIFEST_DIGEST}": MANIFEST,
    f"manifests/{INDEX_DIGEST}": INDEX,
    "manifests/sha256:" + "1" * 64: MANIFEST,  # a lie
    "manifests/garbage": b"<html>",
    "manifests/huge": b"[" + b" " * (5 * 1024 * 1024),
    "manifests/schema1": json.dumps({"schemaVersion": 1, "name": "x"}).encode(),
    f"blobs/{CONFIG_DIGEST}": CONFIG,
    f"blobs/{OTHER_CONFIG_DIGEST}": OTHER_CONFIG,
}


def layered(name: str, *layers: list[tuple[str, bytes, bytes | str]], cut: int | None = None, hang: bool = False) -> None:
    """Put image ``app:<name>`` into CONTENT; an entry is (path, tar type, content or link target)."""
    raws, diffs = [], []
    for entries in layers:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for path, kind, content in entries:
                entry = tarfile.TarInfo(path)
                entry.type, entry.mode = kind, 0o755
                entry.devmajor, entry.devminor = 1, 3
                if isinstance(content, str):
                    entry.linkname = content
                else:
                    entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content) if isinstance(content, bytes) else None)
        raws.append(gzip.compress(buffer.getvalue(), mtime=0))
        diffs.append(blob(buffer.getvalue())[1])
    about = {"architecture": registry.architecture()[0], "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diffs}}
    config, config_digest = blob(about)
    kind = "application/vnd.oci.image"
    descriptors = [{"mediaType": f"{kind}.layer.v1.tar+gzip", "digest": blob(raw)[1], "size": len(raw)} for raw in raws]
    described = {"mediaType": f"{kind}.config.v1+json", "digest": config_digest, "size": len(config)}
    body = {"schemaVersion": 2, "mediaType": f"{kind}.manifest.v1+json", "config": described, "layers": descriptors}
    manifest, digest = blob(body)
    CONTENT.update({f"blobs/{config_digest}": config, f"manifests/{name}": manifest, f"manifests/{digest}": manifest})
    for descriptor, raw in zip(descriptors, raws, strict=True):
        CONTENT[f"blobs/{descriptor['digest']}"] = b"" if hang else raw
        if cut is not None or hang:
            BROKEN[f"blobs/{descriptor['digest']}"] = (-1 if hang else cut or 0, len(raw))


#: Path to (bytes that are sent before the connection is cut, length that is promised); -1 bytes: no answer at all.
BROKEN: dict[str, tuple[int, int]] = {}


@contextlib.asynccontextmanager
async def serving(middleware: Any = None) -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/v2/library/app/")
        if path in BROKEN:
            sent, length = BROKEN[path]
            if sent < 0:
                await asyncio.sleep(30)
            response = web.StreamResponse(headers={"Content-Length": str(length)})
            await response.prepare(request)
            await response.write(CONTENT[path][:sent])
            assert request.transport is not None
            request.transport.close()
            return response
        if request.path == "/v2/":
            return web.Response()
        kind = "application/vnd.oci.image.manifest.v1+json" if path.startswith("manifests") else "application/octet-stream"
        return web.Response(body=CONTENT[path], content_type=kind) if path in CONTENT else web.Response(status=404)

    app = web.Application(middlewares=[middleware] if middleware else [])
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def resolve(at: str, name: str = "app", *keyrings: dict[str, credentials.Credential]) -> registry.Image:
    ref = imageref.parse(name)
    return await registry.resolve(
        ref, registry.endpoint(ref, configuration.ImagesConfig(mirrors={"docker.io": at}, insecure=(at,))), keyrings
    )


async def test_index_and_single_manifest() -> None:
    async with serving() as at:
        single, multi = await resolve(at), await resolve(at, "app:multi")
        assert (single.digest, single.manifest, single.size) == (MANIFEST_DIGEST, MANIFEST_DIGEST, 5)
        assert (multi.digest, multi.manifest) == (INDEX_DIGEST, MANIFEST_DIGEST)
        assert single.config["config"] == {"Cmd": ["x"]}
        assert (await resolve(at, f"app@{INDEX_DIGEST}")).manifest == MANIFEST_DIGEST


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("app:gone", "not found"),
        ("app:nofit", "no match for platform linux/"),
        ("app:other", "the image is linux/pdp11"),
        ("app@sha256:" + "1" * 64, "does not match its digest"),
        ("app:garbage", "not JSON"),
        ("app:huge", "too large"),
        ("app:schema1", "unsupported kind"),
    ],
)
async def test_bad_answers(name: str, words: str) -> None:
    async with serving() as at:
        with pytest.raises(registry.RegistryError, match=words) as caught:
            await resolve(at, name)
        assert f'failed to resolve reference "docker.io/library/{name}"' in caught.value.message


async def test_hanging_and_absent_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    @web.middleware
    async def hang(request: web.Request, handler: Any) -> web.StreamResponse:
        await asyncio.sleep(5)
        return await handler(request)

    monkeypatch.setattr(registry, "_TIMEOUT", registry.aiohttp.ClientTimeout(total=0.3))
    async with serving(hang) as at:
        with pytest.raises(registry.RegistryError, match="did not answer in time"):
            await resolve(at)
    with pytest.raises(registry.RegistryError, match=r"registry 127\.0\.0\.1:1: .*[Cc]onnect"):
        await resolve("127.0.0.1:1")


GOOD = credentials.Credential("alice", "s3cret:with:colons")
HEADER = "Basic " + base64.b64encode(b"alice:s3cret:with:colons").decode()


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
async def test_credentials(scheme: str) -> None:
    asked: list[str] = []

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if request.path == "/token":
            asked.append(request.query_string)
            return web.json_response({"token": "T"}) if given == HEADER else web.Response(status=401)
        if given == (HEADER if scheme == "basic" else "Bearer T"):
            return await handler(request)
        challenge = 'Basic realm="r"' if scheme == "basic" else f'Bearer realm="http://{request.host}/token",service="reg",scope="x"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    async with serving(guard) as at:
        wrong = {f"http://{at}/v1/": credentials.Credential("alice", "no")}
        right = {at: GOOD}
        assert (await resolve(at, "app", wrong, right)).credential == GOOD
        if scheme == "bearer":
            assert "scope=repository:library/app:pull" in asked[0].replace("%3A", ":").replace("%2F", "/")
        for keyrings in ([], [wrong], [{"other.example.org": GOOD}]):
            with pytest.raises(registry.RegistryError, match="pull access denied") as caught:
                await resolve(at, "app", *keyrings)
            assert "s3cret" not in caught.value.message


async def test_password_is_not_sent_unencrypted() -> None:
    """A registry by HTTPS that points to a token service by HTTP gets nothing."""
    where = registry.Endpoint("registry.example.org", "library/app", insecure=False)
    async with registry.aiohttp.ClientSession() as session:
        talk = registry._Conversation(session, imageref.parse("app"), where, GOOD)
        with pytest.raises(registry.RegistryError, match="unencrypted"):
            await talk._token({"realm": "http://registry.example.org/token"})


FILE, LINK, DEVICE = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE


async def pull_layers(tmp_path: Any, *layers: Any, **how: Any) -> images.ImageInfo:
    needs("apptainer", "mksquashfs")
    name = f"case-{len(CONTENT)}"
    layered(name, *layers, **how)
    async with serving() as at:
        config = configuration.ImagesConfig(insecure=(at,), pull_timeout=3 if how.get("hang") else 60)
        manager = images.ImageManager(config=configuration.Config(images=config), paths=paths.Paths(str(tmp_path)))
        try:
            return await manager.ensure(f"{at}/library/app:{name}")
        finally:
            assert os.listdir(tmp_path / "images" / "tmp") == []


async def listing(info: images.ImageInfo) -> str:
    done = await procs.arun(["unsquashfs", "-lls", "-o", str(sif.squashfs_offset(info.path)), info.path])
    return done.stdout


async def test_many_pods_ask_the_registry_once(tmp_path: Any) -> None:
    needs("apptainer", "mksquashfs")
    asked: list[str] = []

    @web.middleware
    async def count(request: web.Request, handler: Any) -> web.StreamResponse:
        asked.append(f"{request.method} {request.path}")
        return await handler(request)

    layered("popular", [("f", FILE, b"x")])
    async with serving(count) as at:
        cache = manager(str(tmp_path), at)
        await asyncio.gather(*(cache.ensure(f"{at}/library/app:popular", policy="Always", backoff_key=str(n)) for n in range(50)))
        assert asked.count("GET /v2/library/app/manifests/popular") == 1


async def test_a_hundred_layers(tmp_path: Any) -> None:
    info = await pull_layers(tmp_path, *([(f"f{number}", FILE, b"x")] for number in range(100)))
    assert (await listing(info)).count("squashfs-root/f") == 100


async def test_layers_that_point_outside(tmp_path: Any) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    upwards = [("../../../../../../../../../../" + str(victim) + "/up", FILE, b"x"), ("device", DEVICE, b""), ("fine", FILE, b"x")]
    with contextlib.suppress(errors.NotReady):  # refused or made harmless: both are well
        info = await pull_layers(tmp_path, upwards, [("out", LINK, str(victim))], [("out/through", FILE, b"x")])
        if os.getuid() != 0:  # root may make devices, and images are mounted without them in any case
            assert "crw" not in await listing(info)
    assert os.listdir(victim) == []


@pytest.mark.parametrize(
    ("how", "words"), [({"cut": 100}, "unexpected EOF"), ({"hang": True}, r"pulling took longer than 3 s \(images.pullTimeout\)")]
)
async def test_layers_that_do_not_arrive(tmp_path: Any, how: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.NotReady, match=words) as caught:
        await pull_layers(tmp_path, [("file", FILE, os.urandom(50_000))], **how)
    assert caught.value.reason == "ErrImagePull"
    assert not [name for name in os.listdir(tmp_path / "images") if name.endswith(".sif")]

"""The image cache: each image is one SIF file, pulled once, whoever asks and whatever dies meanwhile.

    ~/.hpk/images/<hex>.sif          image of the manifest sha256:<hex>
    ~/.hpk/images/<hex>.json         written after it: {"size", "config", "passwd", "group"}; no image is used without it. Its time
                                     is when a Pod asked for the image last: imagestore.py removes by it
    ~/.hpk/images/refs/<hash>.json   what a reference named when last asked: {"ref", "digest", "manifest", "imageSize"}
    ~/.hpk/images/tmp/<name>/        a pull under way, with a lock that its owner holds; whatever is not locked is left from a dead one

Files appear by rename; pullers of one image in one process share a task, in several processes a file lock.
Reasons and words are upstream's (pkg/kubelet/images): ErrImagePull, ImagePullBackOff, ErrImageNeverPull, InvalidImageName.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any

from hpk import config as configuration
from hpk import errors, files, paths
from hpk.kubelet import credentials, imageref, imagestore, registry, sif

log = logging.getLogger(__name__)

#: Back-off of failed pulls in seconds: first, longest (upstream's MaxContainerBackOff and its start).
_BACKOFF = (10.0, 300.0)

#: Seconds between two looks at the cache's size without a pull (upstream's ImageGCPeriod), and the least between any two.
COLLECT_SECONDS = 300.0
COLLECT_PAUSE = 10.0

#: Recorder of an Event for the container in question: type, reason, message.
OnEvent = Callable[[str, str, str], None]


@dataclasses.dataclass(frozen=True)
class ImageInfo:
    """An image that can be run."""

    ref: str
    """As the Pod spells it."""
    image_id: str
    """``<repository>@<digest>``, as status.containerStatuses[].imageID shows it; the path of a local file."""
    path: str
    """SIF file or folder."""
    config: Mapping[str, Any]
    """``config`` of the OCI image configuration: Env, Entrypoint, Cmd, User, WorkingDir, StopSignal."""
    passwd: str = ""
    group: str = ""


@dataclasses.dataclass
class _Failure:
    until: float
    delay: float
    message: str


class ImageManager:
    """See the module. One per process."""

    def __init__(self, *, config: configuration.Config, paths: paths.Paths) -> None:
        self._config = config.images
        self._paths = paths
        self._root = paths.images
        self._temp = config.images.temp_dir or os.path.join(paths.images, "tmp")
        self._failures: dict[str, _Failure] = {}
        self._refs: dict[tuple[Any, ...], asyncio.Task[dict[str, Any]]] = {}
        self._pulls: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(max(1, config.images.parallel_pulls))
        self._clean = False
        self._pulled = asyncio.Event()

    async def ensure(
        self,
        image: str,
        *,
        policy: str = "IfNotPresent",
        pull_secrets: Sequence[Mapping[str, credentials.Credential]] = (),
        on_event: OnEvent = lambda kind, reason, message: None,
        backoff_key: str = "",
        container: str | None = None,
    ) -> ImageInfo:
        """Return ``image``, pulled if the policy says so. Raises NotReady with upstream's reason; Events are recorded already."""

        def refuse(reason: str, message: str) -> errors.NotReady:
            on_event("Warning", "Failed", f"Error: {reason}")
            return errors.NotReady(reason, message, container=container, event="")

        key = f"{backoff_key}_{image}"
        try:
            ref = None if imageref.is_local(image) else imageref.parse(image)
        except errors.InvalidInput as exc:
            message = f'Failed to apply default image tag "{image}": couldn\'t parse image name "{image}": {exc.message}'
            on_event("Warning", "InspectFailed", message)
            raise refuse("InvalidImageName", message) from exc
        present = await self._local(image) if ref is None else self._find(ref, image)
        if present is not None and (policy != "Always" or ref is None):
            on_event("Normal", "Pulled", f'Container image "{image}" already present on machine')
            self._failures.pop(key, None)
            return present
        if policy == "Never":
            message = f'Container image "{image}" is not present with pull policy of Never'
            on_event("Warning", "ErrImageNeverPull", message)
            raise refuse("ErrImageNeverPull", message)
        failure = self._failures.get(key)
        if failure is not None and time.monotonic() < failure.until:
            on_event("Normal", "BackOff", f'Back-off pulling image "{image}"')
            raise refuse("ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {failure.message}')
        on_event("Normal", "Pulling", f'Pulling image "{image}"')
        began = time.monotonic()
        try:
            if ref is None:
                raise errors.InvalidInput(f'"{image}" is not a SIF image or an image folder that can be read')
            info, size = await self._pull(ref, image, pull_secrets)
        except (errors.HPKError, OSError) as exc:
            words = exc.message if isinstance(exc, errors.HPKError) else f"{exc.strerror or exc}: {exc.filename or self._root}"
            delay = min(failure.delay * 2, _BACKOFF[1]) if failure is not None else _BACKOFF[0]
            self._failures[key] = _Failure(time.monotonic() + delay, delay, words)
            on_event("Warning", "Failed", f'Failed to pull image "{image}": {words}')
            raise refuse("ErrImagePull", words) from exc
        took = time.monotonic() - began
        on_event("Normal", "Pulled", f'Successfully pulled image "{image}" in {took:.3f}s. Image size: {size} bytes.')
        self._failures.pop(key, None)
        return info

    async def peek(self, image: str, *, ask: bool, keyrings: Sequence[Mapping[str, credentials.Credential]] = ()) -> ImageInfo:
        """Return ``image`` without pulling it: from the cache, else (``ask``) as the registry describes it. Raises HPKError."""
        ref = None if imageref.is_local(image) else imageref.parse(image)
        info = await self._local(image) if ref is None else self._find(ref, image)
        if info is not None:
            return info
        if ref is None or not ask:
            raise errors.HPKError("is not in the cache" if ref is not None else "is not a SIF image or an image folder that can be read")
        found = await registry.resolve(ref, registry.endpoint(ref, self._config), keyrings)
        assert found is not None
        config = dict(found.config.get("config") or {})
        if not str(config.get("User") or "0").partition(":")[0].isdigit():
            del config["User"]  # its number is inside the image
        return ImageInfo(image, f"{ref.name}@{found.digest}", self._sif(found.manifest), config)

    def unknown(self, image: str) -> str:
        """A path that stands for an image of which nothing is known."""
        return image if imageref.is_local(image) else os.path.join(self._root, f"{image.replace('/', '_')}.sif")

    def keep(self, found: Iterable[ImageInfo]) -> bool:
        """Note that a Pod is about to use these; False when one was removed while the Pod waited for another."""
        return all([imagestore.touch(info.path) or not info.path.startswith(self._root + os.sep) for info in found])

    async def collect(self) -> None:
        """Eternal: hold the cache within images.maxBytes. After a pull, and at times for what other processes brought."""
        while True:
            if self._config.max_bytes > 0:
                try:
                    removed, left = await asyncio.to_thread(imagestore.collect, self._paths, self._config.max_bytes)
                except OSError as exc:
                    log.warning("cannot clean up %s: %s", self._root, exc)
                else:
                    for image in removed:
                        log.info(
                            "removed image %s (%s), unused, %d bytes", ", ".join(image.names) or image.source, image.hex[:12], image.size
                        )
                    if left > self._config.max_bytes:
                        log.debug("the images take %d bytes, more than images.maxBytes, but Pods use them", left)
            self._pulled.clear()
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._pulled.wait(), COLLECT_SECONDS)
            await asyncio.sleep(COLLECT_PAUSE)

    def forget(self, backoff_key: str) -> None:
        """Drop the back-off of a Pod that is gone."""
        for key in [key for key in self._failures if key.startswith(f"{backoff_key}_")]:
            del self._failures[key]

    # -- what is there -------------------------------------------------------------------------------------------------

    def _ref_path(self, ref: imageref.Reference) -> str:
        return os.path.join(self._root, "refs", hashlib.sha256(str(ref).encode()).hexdigest() + ".json")

    def _sif(self, digest: str) -> str:
        return os.path.join(self._root, digest.partition(":")[2] + ".sif")

    def _find(self, ref: imageref.Reference, image: str) -> ImageInfo | None:
        """The image that ``ref`` named when it was last pulled, if it is whole."""
        record = imagestore.read_record(self._ref_path(ref))
        if record is None or not imagestore.touch(self._sif(str(record.get("manifest")))):
            return None
        return self._load(ref, image, str(record.get("digest")), str(record.get("manifest")))

    def _load(self, ref: imageref.Reference, image: str, digest: str, manifest: str) -> ImageInfo | None:
        path = self._sif(manifest)
        record = imagestore.read_record(path.removesuffix(".sif") + ".json")
        try:
            whole = record is not None and os.stat(path).st_size == record.get("size")
        except OSError:
            whole = False
        if not whole or record is None:
            return None
        return ImageInfo(image, f"{ref.name}@{digest}", path, record.get("config") or {}, record.get("passwd", ""), record.get("group", ""))

    async def _local(self, image: str) -> ImageInfo | None:
        """A SIF file or a folder by its absolute path. What it runs is its runscript, since it has no OCI config to ask."""
        if not os.access(image, os.R_OK):
            return None
        if not os.path.isdir(image):
            try:
                sif.squashfs_offset(image)
            except (errors.InvalidInput, OSError):
                return None
        passwd, group = await sif.user_tables(image)
        return ImageInfo(image, image, image, {"Entrypoint": ["/.singularity.d/runscript"]}, passwd, group)

    # -- pulling -------------------------------------------------------------------------------------------------------

    async def _pull(
        self, ref: imageref.Reference, image: str, pull_secrets: Sequence[Mapping[str, credentials.Credential]]
    ) -> tuple[ImageInfo, int]:
        """Bring what ``ref`` names now into the cache; Pods that ask at the same time with the same credentials share the work."""
        where = registry.endpoint(ref, self._config)
        keyrings = [*pull_secrets, credentials.own()]
        key = (str(ref), *credentials.matching(where.host, where.repository, keyrings))
        task = self._refs.get(key)
        if task is None:
            task = asyncio.create_task(self._update(ref, where, keyrings), name=f"pull {ref}")
            self._refs[key] = task
            task.add_done_callback(lambda done: _finished(self._refs, key, done))
        record = await asyncio.shield(task)  # one Pod that goes away does not end the pull for the others
        info = self._load(ref, image, record["digest"], record["manifest"])
        if info is None:
            raise errors.HPKError(f'failed to pull image "{ref}": its file vanished from {self._root}')
        return info, int(record["imageSize"])

    async def _update(
        self, ref: imageref.Reference, where: registry.Endpoint, keyrings: Sequence[Mapping[str, credentials.Credential]]
    ) -> dict[str, Any]:
        record = imagestore.read_record(self._ref_path(ref))
        present = self._find(ref, "") is not None
        found = await registry.resolve(ref, where, keyrings, known=str(record.get("digest")) if present and record else "")
        if found is None and record is not None:
            return record
        assert found is not None
        if self._load(ref, "", found.digest, found.manifest) is None:
            task = self._pulls.get(found.manifest)  # another reference may name the same image
            if task is None:
                task = asyncio.create_task(self._fetch(where, found), name=f"fetch {found.manifest}")
                self._pulls[found.manifest] = task
                task.add_done_callback(lambda done: _finished(self._pulls, found.manifest, done))
            await asyncio.shield(task)
        record = {"ref": str(ref), "digest": found.digest, "manifest": found.manifest, "imageSize": found.size}
        files.private_dir(os.path.dirname(self._ref_path(ref)))
        files.write_json(self._ref_path(ref), record)
        return record

    async def _fetch(self, where: registry.Endpoint, found: registry.Image) -> None:
        """Put the image into the cache. Raises HPKError or OSError; then nothing is left of it."""
        path = self._sif(found.manifest)
        files.private_dir(self._root)
        if not self._clean:
            self._clean = True
            self._remove_leftovers()
        async with self._slots, _locked(path.removesuffix(".sif") + ".lock"):
            if self._load(_ANY, "", found.digest, found.manifest) is not None:
                return  # another process was quicker
            with self._workspace() as work:
                made = os.path.join(work, "image.sif")
                await sif.pull(made, where, found.manifest, found.credential, self._config, work=work)
                os.chmod(made, 0o600)
                passwd, group = await sif.user_tables(made)
                record = {
                    "size": os.stat(made).st_size,
                    "config": found.config.get("config") or {},
                    "passwd": passwd,
                    "group": group,
                    "source": f"{where.host}/{where.repository}@{found.manifest}",
                    "pulledAt": int(time.time()),
                }
                await asyncio.to_thread(_move, made, path)
                files.write_json(path.removesuffix(".sif") + ".json", record)
        self._pulled.set()

    @contextlib.contextmanager
    def _workspace(self) -> Any:
        files.private_dir(self._temp)
        work = files.private_dir(os.path.join(self._temp, f"pull-{os.getpid()}-{secrets.token_hex(4)}"))
        try:
            with open(os.path.join(work, "lock"), "wb") as lock:
                imagestore.try_lock(lock.fileno())
                yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        """Remove what pullers that were killed left behind."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self._temp) as entries:
            for entry in entries:
                if not entry.name.startswith("pull-"):
                    continue
                try:
                    with open(os.path.join(entry.path, "lock"), "rb") as lock:
                        abandoned = imagestore.try_lock(lock.fileno())
                        if abandoned:
                            log.info("removing %s, left by a pull that was killed", entry.path)
                            shutil.rmtree(entry.path, ignore_errors=True)
                except FileNotFoundError:
                    if time.time() - entry.stat().st_mtime > 60:  # else it is being made just now
                        shutil.rmtree(entry.path, ignore_errors=True)


def _finished(table: dict[Any, Any], key: Any, task: asyncio.Task[Any]) -> None:
    """Forget a task that is over. Its exception is told to whoever waits; looking at it keeps asyncio from complaining when nobody does."""
    table.pop(key, None)
    if not task.cancelled():
        task.exception()


#: Stands for any reference where only the file matters.
_ANY = imageref.Reference("", "", "", "")


def _move(source: str, target: str) -> None:
    """Bring a finished file under its name, also from another file system, durable before it is visible."""
    if os.stat(source).st_dev != os.stat(os.path.dirname(target)).st_dev:
        beside = f"{target}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        try:
            shutil.copyfile(source, beside)
            os.chmod(beside, 0o600)
            _sync(beside)
            os.rename(beside, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        return
    _sync(source)
    os.rename(source, target)


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.asynccontextmanager
async def _locked(path: str) -> AsyncIterator[None]:
    """Hold the lock file ``path``. It stays: removing it would let two owners lock two files of one name."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        wait = 0.05
        while not imagestore.try_lock(fd):
            await asyncio.sleep(wait)
            wait = min(wait * 1.5, 1.0)
        yield
    finally:
        os.close(fd)

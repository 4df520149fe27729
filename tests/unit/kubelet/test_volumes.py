import base64
import os
import stat
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from hpk import errors, paths
from hpk.kubelet import env, podplan
from hpk.kubelet.volumes import atomic, mounts, payload

POD: dict[str, Any] = {
    "metadata": {"name": "web", "namespace": "ns", "uid": "u", "labels": {"b": "2", "a": "1"}},
    "spec": {"containers": [{"name": "main", "resources": {"limits": {"memory": "64Mi"}}}]},
}
SOURCES = payload.Sources(
    config_maps={"cm": {"data": {"a": "A", "b": "B"}, "binaryData": {"c": base64.b64encode(b"\0\xff").decode()}}},
    secrets={"sec": {"data": {"pw": base64.b64encode(b"x").decode()}}},
    token=lambda audience, seconds: f"token-{audience}-{seconds}",
    allocatable={"cpu": Fraction(2), "memory": Fraction(0)},
)


def build(**volume: Any) -> dict[str, tuple[bytes, int]]:
    return {path: (file.data, file.mode) for path, file in payload.build(POD, {"name": "v", **volume}, SOURCES).items()}


def test_config_map_and_secret() -> None:
    assert build(configMap={"name": "cm"}) == {"a": (b"A", 0o644), "b": (b"B", 0o644), "c": (b"\0\xff", 0o644)}
    items = [{"key": "a", "path": "x/y.conf", "mode": 0o400}, {"key": "b", "path": "./z"}]
    assert build(configMap={"name": "cm", "items": items, "defaultMode": 0o600}) == {"x/y.conf": (b"A", 0o400), "z": (b"B", 0o600)}
    assert build(secret={"secretName": "sec", "defaultMode": 0}) == {"pw": (b"x", 0)}
    assert build(configMap={"name": "none", "optional": True}) == {}
    assert build(configMap={"name": "cm", "optional": True, "items": [{"key": "none", "path": "p"}]}) == {}


def test_projected_as_every_pod_has_it() -> None:
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "cm", "items": [{"key": "a", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        {"serviceAccountToken": {"path": "vault", "audience": "vault"}},
        {"clusterTrustBundle": {"path": "x", "optional": True}},
    ]
    assert build(projected={"sources": sources, "defaultMode": 0o440}) == {
        "token": (b"token--3607", 0o440),
        "ca.crt": (b"A", 0o440),
        "namespace": (b"ns", 0o440),
        "vault": (b"token-vault-3600", 0o440),
    }


def test_downward_api() -> None:
    items = [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
        {"path": "mem", "resourceFieldRef": {"containerName": "main", "resource": "limits.memory", "divisor": "1Mi"}, "mode": 0o400},
        {"path": "cpu", "resourceFieldRef": {"containerName": "main", "resource": "limits.cpu"}},
    ]
    assert build(downwardAPI={"items": items}) == {"labels": (b'a="1"\nb="2"', 0o644), "mem": (b"64", 0o400), "cpu": (b"2", 0o644)}


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        ({"configMap": {"name": "none"}}, 'configmap "none" not found'),
        ({"secret": {"secretName": "none"}}, 'secret "none" not found'),
        ({"configMap": {"name": "cm", "items": [{"key": "z", "path": "z"}]}}, "configmap references non-existent config key: z"),
        ({"secret": {"secretName": "sec", "items": [{"key": "z", "path": "z"}]}}, "references non-existent secret key: z"),
        ({"configMap": {"name": "cm", "items": [{"key": "a", "path": "../x"}]}}, "must be relative"),
        ({"configMap": {"name": "cm", "items": [{"key": "a", "path": "x/../../y"}]}}, "must be relative"),
        ({"configMap": {"name": "cm", "items": [{"key": "a", "path": "/etc/x"}]}}, "must be relative"),
        ({"configMap": {"name": "cm", "items": [{"key": "a", "path": "..data"}]}}, "must be relative"),
        ({"downwardAPI": {"items": [{"path": "x", "fieldRef": {"fieldPath": "spec.x"}}]}}, "unsupported fieldPath"),
    ],
)
def test_what_is_missing_is_named(volume: dict[str, Any], message: str) -> None:
    with pytest.raises(payload.VolumeError, match=message):
        build(**volume)


# -- the atomic writer ------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in os.listdir(folder) if not name.startswith("..")}


def test_layout_and_update(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    first = {"key": payload.File(b"1", 0o440), "sub/deep": payload.File(b"2", 0o600)}
    assert atomic.write(str(folder), first)
    assert os.readlink(folder / "key") == "..data/key"
    assert os.readlink(folder / "sub") == "..data/sub"
    assert (folder / "sub" / "deep").read_bytes() == b"2"
    assert stat.S_IMODE(os.stat(folder / "key").st_mode) == 0o440
    target = os.readlink(folder / "..data")
    assert not atomic.write(str(folder), first)
    assert os.readlink(folder / "..data") == target  # nothing moved
    second = {"key": payload.File(b"changed", 0o440), "new": payload.File(b"", 0o644)}
    held = os.open(folder / "key", os.O_RDONLY)
    assert atomic.write(str(folder), second)
    assert os.read(held, 10) == b"1"
    os.close(held)
    assert files_of(folder) == {"key": b"changed", "new": b""}
    assert len([name for name in os.listdir(folder) if name.startswith("..2")]) == 1
    assert atomic.write(str(folder), {"key": payload.File(b"changed", 0o400), "new": payload.File(b"", 0o644)})  # only a mode


def test_a_failed_write_keeps_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "v"
    atomic.write(str(folder), {"key": payload.File(b"old", 0o644)})

    def full(path: str, data: bytes, *, mode: int) -> None:
        raise OSError(28, "No space left on device", path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.files, "write_atomic", full)
        with pytest.raises(OSError, match="No space"):
            atomic.write(str(folder), {"key": payload.File(b"new", 0o644)})
    assert files_of(folder) == {"key": b"old"}
    assert atomic.write(str(folder), {"key": payload.File(b"new", 0o644)})
    assert files_of(folder) == {"key": b"new"}


def test_leftovers_of_a_crash(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    (folder / "..2020_01_01_00_00_00.1").mkdir(parents=True)
    os.symlink("nowhere", folder / "..data_tmp")
    assert atomic.write(str(folder), {})
    assert atomic.write(str(folder), {"key": payload.File(b"1", 0o644)})
    os.unlink(folder / "key")  # died between the rename and the links
    assert not atomic.write(str(folder), {"key": payload.File(b"1", 0o644)})
    assert files_of(folder) == {"key": b"1"}
    assert len([name for name in os.listdir(folder) if name.startswith("..")]) == 2


# -- mounts -----------------------------------------------------------------------------------------------------------

DIR = paths.PodDir("/home/a/.hpk/pods/ns_web_u")
SPEC = {
    "volumes": [
        {"name": "scratch"},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "data", "hostPath": {"path": "/data", "type": "Directory"}},
        {"name": "cm", "configMap": {"name": "cm"}},
        {"name": "claim", "persistentVolumeClaim": {"claimName": "c"}},
    ]
}


def test_sources() -> None:
    found, made = mounts.sources(SPEC, DIR, {"claim": mounts.HostVolume("/home/a/pv", "DirectoryOrCreate", True)})
    assert {name: (mount.source, mount.read_only) for name, mount in found.items()} == {
        "scratch": (podplan.SCRATCH + "/volumes/scratch", False),
        "shm": (podplan.SHM + "/volumes/shm", False),
        "data": ("/data", False),
        "cm": (DIR.root + "/volumes/cm", True),
        "claim": ("/home/a/pv", True),
    }
    assert [(item.kind, item.name, item.type, item.size_limit) for item in made] == [
        ("emptyDir", "scratch", "", None),
        ("emptyDir", "shm", "", 1024 * 1024),
        ("hostPath", "data", "Directory", None),
        ("hostPath", "claim", "DirectoryOrCreate", None),
    ]


def bind(*volume_mounts: dict[str, Any], variables: dict[str, str] | None = None) -> tuple[list[podplan.Mount], list[podplan.JobVolume]]:
    found, _ = mounts.sources(SPEC, DIR, {})
    return mounts.container_mounts({"name": "c", "volumeMounts": list(volume_mounts)}, found, variables or {}, DIR)


def test_mounts_outer_first_and_read_only() -> None:
    bound, made = bind(
        {"name": "cm", "mountPath": "/a/b/c/"},
        {"name": "data", "mountPath": "a", "readOnly": True},
        {"name": "scratch", "mountPath": "/a/b"},
    )
    assert [(mount.target, mount.read_only) for mount in bound] == [("/a", True), ("/a/b", False), ("/a/b/c", True)]
    assert made == []


def test_sub_paths() -> None:
    bound, made = bind(
        {"name": "data", "mountPath": "/x", "subPath": "d/./e/"},
        {"name": "data", "mountPath": "/y", "subPathExpr": "logs/$(POD)"},
        {"name": "cm", "mountPath": "/etc/app.conf", "subPath": "app.conf"},
        {"name": "data", "mountPath": "/z", "subPath": "."},
        variables={"POD": "web"},
    )
    assert [mount.source for mount in bound] == ["/data/d/e", "/data/logs/web", "/data", DIR.root + "/volumes/cm/app.conf"]
    assert [(item.kind, item.base, item.sub_path) for item in made] == [("subPath", "/data", "d/e"), ("subPath", "/data", "logs/web")]


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ({"subPath": "/etc"}, "must not be an absolute path"),
        ({"subPath": "a/../../b"}, r"must not contain '\.\.'"),
        ({"subPathExpr": "$(UP)/x"}, r"must not contain '\.\.'"),
        ({"subPathExpr": "$(ROOT)"}, "must not be an absolute path"),
        ({"subPathExpr": "$(NONE)"}, 'missing value for "NONE"'),
        ({"name": "gone"}, 'no volume is named "gone"'),
        ({"mountPath": "/a/../b"}, "invalid mountPath"),
    ],
)
def test_escapes_are_refused(mount: dict[str, Any], message: str) -> None:
    with pytest.raises(env.ConfigError, match=message):
        bind({"name": "data", "mountPath": "/x", **mount}, variables={"UP": "..", "ROOT": "/"})


def test_persistent_volumes() -> None:
    claim = {"metadata": {"name": "c"}}
    assert mounts.claim_volume(claim, {"spec": {"hostPath": {"path": "/p", "type": "Directory"}}}) == mounts.HostVolume("/p", "Directory")
    assert mounts.claim_volume(claim, {"spec": {"local": {"path": "/l"}}}) == mounts.HostVolume("/l", "Directory")
    with pytest.raises(errors.Rejected, match='persistentvolumeclaim "c": its PersistentVolume is of kind nfs'):
        mounts.claim_volume(claim, {"spec": {"nfs": {"server": "s"}, "capacity": {}}})

from typing import Any

import pytest

from hpk.kubelet import env, users

PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:101:102:App:/srv/app:/bin/sh\nbroken line\nbad:x:one:2:::\n"
GROUP = "root:x:0:\napp:x:102:\nextra:x:200:app,other\nbroken\n"


def who(image_user: str = "", pod: dict[str, Any] | None = None, own: dict[str, Any] | None = None, passwd: str = PASSWD) -> users.Identity:
    return users.identity(
        {"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"securityContext": pod or {}}},
        {"name": "main", "securityContext": own or {}},
        image_user,
        passwd,
        GROUP,
    )


@pytest.mark.parametrize(
    ("image_user", "pod", "own", "expected"),
    [
        ("", {}, {}, (0, 0, (), "root", "/root")),
        ("app", {}, {}, (101, 102, (200,), "app", "/srv/app")),
        ("101", {}, {}, (101, 102, (200,), "app", "/srv/app")),
        ("5000", {}, {}, (5000, 0, (), "5000", "/")),
        ("app:extra", {}, {}, (101, 200, (), "app", "/srv/app")),
        ("1000:2000", {}, {}, (1000, 2000, (), "1000", "/")),
        ("app", {"runAsUser": 1000}, {}, (1000, 0, (), "1000", "/")),
        ("app", {"runAsUser": 1000}, {"runAsUser": 0}, (0, 0, (), "root", "/root")),
        ("", {"runAsUser": 101, "runAsGroup": 5, "fsGroup": 7, "supplementalGroups": [8, 5]}, {}, (101, 5, (8, 7, 200), "app", "/srv/app")),
        ("app", {"supplementalGroupsPolicy": "Strict"}, {}, (101, 102, (), "app", "/srv/app")),
    ],
)
def test_identity(image_user: str, pod: dict[str, Any], own: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = who(image_user, pod, own)
    assert (found.uid, found.gid, found.groups, found.name, found.home) == expected


def test_image_without_passwd() -> None:
    found = who("", passwd="")
    assert (found.uid, found.name, found.home) == (0, "root", "/")


@pytest.mark.parametrize(
    ("image_user", "own", "message"),
    [
        ("nobody-here", {}, "unable to find user nobody-here"),
        ("app:nogroup", {}, "unable to find group nogroup"),
        ("", {"runAsNonRoot": True}, r'image will run as root \(pod: "p_ns\(u\)", container: main\)'),
        ("0", {"runAsNonRoot": True}, "image will run as root"),
        ("app", {"runAsNonRoot": True}, r"image has non-numeric user \(app\), cannot verify user is non-root"),
        ("app", {"runAsNonRoot": True, "runAsUser": 0}, "container's runAsUser breaks non-root policy"),
    ],
)
def test_refused(image_user: str, own: dict[str, Any], message: str) -> None:
    with pytest.raises(env.ConfigError, match=message):
        who(image_user, {}, own)


def test_non_root_is_fine() -> None:
    assert who("101", {"runAsNonRoot": True}).uid == 101
    assert who("app", {"runAsNonRoot": True}, {"runAsUser": 5}).uid == 5
    assert who("", {"runAsNonRoot": True}, {"runAsNonRoot": False}).uid == 0

import pytest

from hpk import errors
from hpk.kubelet import imageref

HEX = "a" * 64


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("localhost/app:v1", "localhost/app:v1"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("registry:5000/a/b__c/d.e:T_a-g.1", "registry:5000/a/b__c/d.e:T_a-g.1"),
        ("registry.k8s.io/e2e-test-images/agnhost:2.53", "registry.k8s.io/e2e-test-images/agnhost:2.53"),
        ("Upper/app", "Upper/app:latest"),  # an upper-case first part can only be a host
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        (f"quay.io/x@sha256:{HEX}", f"quay.io/x@sha256:{HEX}"),
        (f"quay.io/x:v1@sha256:{HEX}", f"quay.io/x:v1@sha256:{HEX}"),
        ("a" * 200 + ":" + "t" * 128, "docker.io/library/" + "a" * 200 + ":" + "t" * 128),
    ],
)
def test_defaults(image: str, full: str) -> None:
    assert str(imageref.parse(image)) == full


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("", "invalid reference format"),
        ("BusyBox", r"repository name \(library/BusyBox\) must be lowercase"),
        ("quay.io/App", r"repository name \(App\) must be lowercase"),
        ("busybox:", "invalid reference format"),
        ("busybox:a b", "invalid reference format"),
        ("busybox:" + "t" * 129, "invalid reference format"),
        ("busybox;touch", "invalid reference format"),
        ("busybox\n", "invalid reference format"),
        ("-busybox", "invalid reference format"),
        ("docker://busybox", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("../a", "invalid reference format"),
        ("a" * 256, "must not be more than 255"),
        (HEX, "64-byte hexadecimal"),
        ("x@sha256:" + "a" * 63, "invalid checksum digest length"),
        ("x@sha256:" + "A" * 64, "invalid checksum digest format"),
        ("x@md5:" + "a" * 32, "unsupported digest algorithm"),
    ],
)
def test_refused(image: str, words: str) -> None:
    with pytest.raises(errors.InvalidInput, match=words):
        imageref.parse(image)


def test_local_files_are_not_references() -> None:
    assert imageref.is_local("/home/a/x.sif")
    assert not imageref.is_local("x.sif")

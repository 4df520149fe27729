"""The go.mod for agnhost follows Kubernetes' own."""

from __future__ import annotations

from tests.testbed import agnhost

KUBERNETES = """\
module k8s.io/kubernetes

go 1.26.0

require (
	k8s.io/api v0.0.0
	k8s.io/klog/v2 v2.130.1
)

replace (
	k8s.io/api => ./staging/src/k8s.io/api
	k8s.io/apimachinery => ./staging/src/k8s.io/apimachinery
)
"""


def test_each_staging_module_is_replaced_by_its_release() -> None:
    lines = agnhost.go_mod(KUBERNETES).splitlines()
    published = "v0." + agnhost.VERSION.split(".", 1)[1]
    assert lines[:3] == ["module testbed", "go 1.26.0", f"require k8s.io/kubernetes {agnhost.VERSION}"]
    assert lines[3:] == [f"replace {name} => {name} {published}" for name in ("k8s.io/api", "k8s.io/apimachinery")]

import argparse
import pathlib
from typing import Any

import pytest
import yaml

from hpk import config as configuration
from hpk import errors, paths
from hpk.kubelet import render

POD: dict[str, Any] = {
    "kind": "Pod",
    "metadata": {"name": "p"},
    "spec": {"containers": [{"name": "main", "image": "busybox", "command": ["id"]}]},
}


def pods(*documents: Any) -> list[dict[str, Any]]:
    return list(render.read_pods(yaml.safe_dump_all(documents), "f.yaml", "default"))


def template(kind: str, *path: str) -> dict[str, Any]:
    inner: dict[str, Any] = {"metadata": {"labels": {"a": "b"}}, "spec": POD["spec"]}
    for key in reversed(path):
        inner = {key: inner}
    return {"kind": kind, "metadata": {"name": kind.lower(), "namespace": "prod"}, **inner}


def test_templates_of_other_kinds() -> None:
    found = pods(
        POD,
        {"kind": "Service", "metadata": {"name": "s"}},
        template("Deployment", "spec", "template"),
        {"kind": "List", "items": [template("CronJob", "spec", "jobTemplate", "spec", "template")]},
    )
    assert [(pod["metadata"]["namespace"], pod["metadata"]["name"]) for pod in found] == [
        ("default", "p"),
        ("prod", "deployment"),
        ("prod", "cronjob"),
    ]
    assert found[1]["metadata"]["labels"] == {"a": "b"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "f.yaml: is not YAML"),
        ("", r"f.yaml: holds no Pod \(found: nothing\)"),
        ("kind: Service", r"holds no Pod \(found: Service\)"),
        ("just text", "a Kubernetes object with `kind` is expected"),
        ("kind: Pod", "f.yaml: spec: is missing"),
        ("{kind: Job, spec: {}}", "f.yaml: spec.template: is missing"),
        ("{kind: Pod, spec: {containers: []}}", "spec.containers: at least one"),
        ("{kind: Pod, spec: {containers: {a: b}}}", "spec.containers: at least one"),
        ("{kind: Pod, spec: {containers: [{image: x}]}}", r"spec.containers\[0\].name: is missing"),
        ("{kind: Pod, spec: {containers: [{name: x}]}}", r"spec.containers\[0\].image: is missing"),
        ("{kind: Pod, spec: {containers: [{name: x, image: y, command: ls}]}}", r"spec.containers\[0\].command: a list is expected"),
        ("{kind: Pod, spec: {containers: [{name: x, image: y}]}}", "metadata.name: is missing"),
    ],
)
def test_bad_files_name_the_field(text: str, message: str) -> None:
    with pytest.raises(errors.InvalidInput, match=message) as caught:
        list(render.read_pods(text, "f.yaml", "default"))
    assert "\n" not in caught.value.message


async def test_script_without_a_cluster(tmp_path: pathlib.Path) -> None:
    where, config = paths.Paths(str(tmp_path / "state")), configuration.Config()
    text = await render.render(pods(POD)[0], config, where, offline=True)
    assert "#SBATCH --job-name=default/p" in text
    assert "id\n" in text
    assert not (tmp_path / "state").exists()  # nothing is touched
    needs = pods(POD)[0]
    needs["spec"]["containers"][0]["envFrom"] = [{"configMapRef": {"name": "cfg"}}]
    with pytest.raises(errors.InvalidInput, match="the Pod refers to cfg, and there is no cluster to ask"):
        await render.render(needs, config, where, offline=True)
    needs["spec"]["hostPID"] = True
    with pytest.raises(errors.Rejected, match=r"spec\.hostPID"):
        await render.render(needs, config, where, offline=True)


async def test_command_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPK_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HPK_SITE_CONFIG", str(tmp_path / "none"))
    file = tmp_path / "pods.yaml"
    file.write_text(yaml.safe_dump_all([POD, template("Job", "spec", "template")]))
    parser = argparse.ArgumentParser()
    render.add_arguments(parser)
    assert await render.run(parser.parse_args([str(file), "-n", "mine", "--offline"])) == 0
    out, err = capsys.readouterr()
    assert "--job-name=mine/p" in out
    assert "--job-name=prod/job" in out
    assert "image busybox: is not in the cache" in err
    with pytest.raises(errors.InvalidInput, match=r"none\.yaml: No such file"):
        await render.run(parser.parse_args([str(tmp_path / "none.yaml")]))

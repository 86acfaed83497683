"""The launchers: shell scripts with the programs that they call replaced by ones that write down how they were called,
and manifests against the schemas that there are."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))

# Each writes a line with its name, what decides on Ray's authentication, and its arguments.
LOG = (
    'echo "$(basename "$0") mode=${RAY_AUTH_MODE:-} token=${#RAY_AUTH_TOKEN} address=${RAY_ADDRESS:-} $*" >>"$CALLS"\n'
)
FAKES = {
    "srun": LOG + 'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": LOG + '[[ $1 == requeue ]] || printf "%s\\n" $FAKE_NODES\n',
    "python": LOG,
    "hostname": "echo 10.0.0.7 fe80::1\n",
    "ray": LOG + "if [[ $* == *--block* ]]; then exec sleep 60; fi\n[[ $1 != health-check || -z ${FAKE_DEAD:-} ]]\n",
    "evomerge": LOG
    + """if [[ $1 == search ]]; then
  run=$(printf '%s\\n' "$@" | sed -n "s/^run_dir='\\(.*\\)'$/\\1/p")
  mkdir -p "$run" && echo line >"$run/ledger.jsonl"
  trap 'echo interrupted >>"$CALLS"; exit 143' TERM
  echo begun >>"$CALLS"
  for _ in $(seq 300); do sleep 0.1; done
fi
exit "${FAKE_STATUS:-0}"
""",
}


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the replaced programs write down how they were called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in FAKES.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calls").touch()
    return tmp_path / "calls"


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "scripts" / words[0]), *words[1:]]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)


def job(*words: str, nodes: str = "n1 n2 n3") -> subprocess.Popen[str]:
    """The SLURM job, as SLURM would run it."""
    environment = {
        "SLURM_JOB_ID": "7012", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_PER_TASK": "4", "SLURM_GPUS_ON_NODE": "2",
        "SLURM_SUBMIT_DIR": str(ROOT), "FAKE_NODES": nodes,
    }  # fmt: skip
    return subprocess.Popen(
        ["bash", str(ROOT / "scripts" / "slurm.sh"), *words],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(calls: Path, text: str) -> None:
    end = time.monotonic() + 60
    while text not in calls.read_text():
        assert time.monotonic() < end, calls.read_text()
        time.sleep(0.02)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert found.stdout == ""


def test_a_search_is_begun_where_there_is_none(calls: Path, tmp_path: Path) -> None:
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "config.yaml").write_text("it ended before its first line\n")
    words = ["bash", str(ROOT / "scripts" / "begin_or_resume.sh"), "my run", "a=b", "evaluator=ray"]
    search = subprocess.Popen(words, env=os.environ)
    wait_for(calls, "begun")
    search.terminate()
    assert search.wait(timeout=60) == 143
    line = calls.read_text().splitlines()[0]
    assert line.split(" address= ")[1] == "search --trust a=b evaluator=ray run_dir='my run'"
    (moved,) = tmp_path.glob("my run.not-begun-*")
    assert (moved / "config.yaml").exists()


def test_a_run_is_gone_on_with_where_it_is_said_to_lie(calls: Path, tmp_path: Path) -> None:
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "ledger.jsonl").write_text("line\n")
    words = "experiment=small_24gb", "evaluator=ray", "evaluator.workers=3", "search.seed=1"
    assert run("begin_or_resume.sh", "my run", *words).returncode == 0
    assert calls.read_text().split(" address= ")[1] == "resume --trust my run evaluator=ray evaluator.workers=3\n"
    assert run("begin_or_resume.sh", "my run", FAKE_STATUS="143").returncode == 143


def test_a_job_is_requeued_when_it_is_interrupted_and_then_resumes(calls: Path) -> None:
    first = job("runs/x", "experiment=small_24gb")
    for text in (
        "begun",
        "ray mode=token token=64 address= start --head",
        "ray mode=token token=64 address= start --add",
    ):
        wait_for(calls, text)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 143, errors
    assert "requeued" in errors
    lines = calls.read_text().splitlines()
    port = 20000 + 7012
    common = "--num-cpus=4 --num-gpus=2 --disable-usage-stats --block"
    starts = [line for line in lines if line.startswith("ray ") and " start " in line]
    head = f"start --head --node-ip-address=10.0.0.7 --port={port} --include-dashboard=false {common}"
    assert sorted(starts, reverse=True) == [
        f"ray mode=token token=64 address= {head}",
        f"ray mode=token token=64 address= start --address=10.0.0.7:{port} {common}",
    ]
    steps = [line.partition("address= ")[2] for line in lines if line.startswith("srun")]
    assert steps[1].startswith("--nodes=1 --ntasks=1 --overlap --nodelist=n1 ray start --head")
    assert steps[2].startswith("--nodes=2 --ntasks=2 --overlap --exclude=n1 ray start --address")
    evaluator = "evaluator=ray evaluator.address=auto evaluator.workers=auto"
    (search,) = [line for line in lines if line.startswith("evomerge")]
    assert search == (
        f"evomerge mode=token token=64 address=10.0.0.7:{port} search --trust experiment=small_24gb {evaluator} "
        "run_dir='runs/x'"
    )
    assert lines.index("interrupted") < next(i for i, line in enumerate(lines) if "requeue 7012" in line)

    again = job("runs/x", "experiment=small_24gb", nodes="n1")
    again.communicate(timeout=60)
    assert again.returncode == 0
    lines = calls.read_text().splitlines()[len(lines) :]
    (resumed,) = [line for line in lines if line.startswith("evomerge")]
    assert resumed.endswith(f"resume --trust runs/x {evaluator}")
    assert not any("requeue" in line for line in lines)
    assert sum(" start " in line for line in lines if line.startswith("ray ")) == 1  # one node: no workers apart


def test_a_job_whose_ray_does_not_start_says_so(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_DEAD", "1")
    monkeypatch.setenv("EVOMERGE_RAY_TRIES", "1")
    failed = job("runs/x")
    _, errors = failed.communicate(timeout=60)
    assert failed.returncode == 1
    assert "Ray did not start on n1" in errors
    assert "evomerge" not in calls.read_text()


def test_a_job_that_is_interrupted_before_the_search_begins_is_requeued(
    calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DEAD", "1")
    waiting = job("runs/x")
    wait_for(calls, "health-check")
    waiting.send_signal(signal.SIGTERM)
    waiting.communicate(timeout=60)
    assert waiting.returncode == 143
    assert "requeue 7012" in calls.read_text()


def test_a_cluster_by_hand_has_one_token(calls: Path, tmp_path: Path) -> None:
    refused = run("ray_cluster.sh", "worker", "head:6379")
    assert refused.returncode == 1
    assert "there is no token" in refused.stderr
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    (tmp_path / "home" / ".ray" / "auth_token").write_text("secret")
    assert run("ray_cluster.sh", "head", "7777").returncode == 0
    assert run("ray_cluster.sh", "worker", "head:7777").returncode == 0
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "ledger.jsonl").write_text("line\n")
    assert run("ray_cluster.sh", "search", "head:7777", "r", "a=b").returncode == 0
    lines = calls.read_text().splitlines()
    assert lines[0].startswith("ray mode=token token=0 address= start --head --port=7777")
    assert lines[1].startswith("ray mode=token token=0 address= start --address=head:7777")
    assert lines[2].startswith("evomerge mode=token token=0 address=head:7777 resume --trust r evaluator=ray")
    assert run("ray_cluster.sh").returncode == 2


def test_the_cluster_s_yaml_is_what_ray_up_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "scripts" / "ray_cluster.yaml").read_text())
    validate_config(prepare_config(config))
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert commands[-1].startswith("export RAY_AUTH_MODE=token; ray start ")
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    broken = {**config, "head_node_typ": "head"}
    with pytest.raises(Exception, match="head_node_typ"):
        validate_config(prepare_config(broken))


def test_the_job_of_kubernetes() -> None:
    import ray

    job = yaml.safe_load((ROOT / "scripts" / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert set(spec) == {
        "entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
        "rayClusterSpec",
    }  # fmt: skip
    assert spec["backoffLimit"] >= 1  # a lost head is followed by another cluster
    words = spec["entrypoint"].split()
    assert words[:3] == ["bash", "/opt/evomerge/scripts/begin_or_resume.sh", "/data/runs/evomerge"]
    assert words[4:7] == ["evaluator=ray", "evaluator.address=auto", "evaluator.workers=auto"]
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == ray.__version__
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert pods[0]["rayStartParams"]["num-cpus"] == "0"
    for pod in pods:
        inner = pod["template"]["spec"]
        (container,) = inner["containers"]
        assert {"name", "image", "resources", "env", "volumeMounts"} == set(container)
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in inner["volumes"]}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert all(isinstance(value, str) for value in pod["rayStartParams"].values())
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert int(limits["nvidia.com/gpu"]) * group["maxReplicas"] >= 4

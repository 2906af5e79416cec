"""slurm/pretrain.sbatch on a real two-node Slurm cluster on this machine.

The cluster is made by slurm_local.sh of the shared folder and thrown away afterwards. The jobs are
signalled by scancel instead of the time limit: Slurm looks at time limits twice a minute only.
"""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("XYLEM_SHARED", ROOT.parent / "shared"))
NODES = 2
STEPS = 60
WORDS = {
    "fin_Latn": "talo järvi metsä kala lintu päivä yö vesi tuli maa",
    "swh_Latn": "nyumba ziwa msitu samaki ndege siku usiku maji moto ardhi",
    "tur_Latn": "ev göl orman balık kuş gün gece su ateş toprak",
}


@dataclass(frozen=True)
class Cluster:
    """A running cluster and a folder for runs that holds a prepared corpus."""

    folder: Path
    environment: dict[str, str]

    def call(self, *command: str, **extra: str) -> str:
        """Standard output of a command in the folder."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment | extra, timeout=120,
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, *settings: str, options: tuple[str, ...] = (), **extra: str) -> str:
        """A job of two nodes, one process on each; returns its number."""
        return self.call(
            "sbatch", "--parsable", f"--nodes={NODES}", "--ntasks-per-node=1", "--time=20",
            *options, str(ROOT / "slurm" / "pretrain.sbatch"), *SETTINGS, *settings, **extra,
        )  # fmt: skip

    def log(self, job: str) -> str:
        """What the job has printed."""
        path = self.folder / f"xylem-{job}.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def job(self, job: str) -> dict[str, str]:
        """The controller's record of the job."""
        fields = self.call("scontrol", "show", "job", "-o", job).split()
        return dict(field.partition("=")[::2] for field in fields)

    def wait(self, job: str, until: Callable[[], bool], what: str) -> None:
        """Polls; a job that ends first, or takes minutes, fails with its log."""
        deadline = time.monotonic() + 180
        while not until():
            state = self.job(job)["JobState"]
            ended = state in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
            if (ended and not until()) or time.monotonic() > deadline:
                pytest.fail(f"job {job} is {state}, waited for {what}\n{self.log(job)}")
            time.sleep(0.2)

    def wait_for_step(self, job: str, run: str, step: int) -> None:
        self.wait(job, lambda: max(self.losses(run), default=0) >= step, f"step {step}")

    def wait_for_end(self, job: str) -> dict[str, str]:
        def ended() -> bool:
            return self.job(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED")

        self.wait(job, ended, "its end")
        return self.job(job)

    def losses(self, run: str) -> dict[int, float]:
        """Step -> training loss, as far as the run is; a step logged twice is a failure."""
        metrics = self.folder / "runs" / run / "metrics.jsonl"
        lines = metrics.read_text(encoding="utf-8").splitlines(True) if metrics.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        steps = [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]
        assert len(steps) == len(dict(steps)), f"steps logged twice: {steps}"
        return dict(steps)


SETTINGS = (
    "data=default", "data.corpus=corpus", "data.prepared=prepared", "data.sequence_length=64",
    "data.tokenizer.vocab_size=500", "engine.precision=fp32", "checkpoint.every=100000",
)  # fmt: skip


def free_ports(count: int) -> int:
    """The first of so many consecutive ports that are free now."""
    for _ in range(100):
        first = random.randrange(17200, 29000)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return first
    pytest.fail("found no free ports for a cluster")


def missing() -> str | None:
    """Why there can be no cluster here."""
    if not (SHARED / "slurm_local.sh").is_file():
        return f"no slurm_local.sh in {SHARED} (XYLEM_SHARED names the folder)"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    absent = [c for c in ("sbatch", "slurmctld", "munged") if not shutil.which(c, path=path)]
    return f"Slurm is not installed: no {', '.join(absent)}" if absent else None


def write_corpus(folder: Path) -> None:
    words = random.Random(0)
    folder.mkdir()
    for code, vocabulary in WORDS.items():
        with (folder / f"{code}.jsonl").open("w", encoding="utf-8") as out:
            for number in range(200):
                text = " ".join(words.choices(vocabulary.split(), k=60))
                out.write(json.dumps({"id": f"{code}-{number}", "text": text}) + "\n")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(reason)
    # Short, as Unix socket names are: pytest's own folders are too long.
    state = tempfile.mkdtemp(prefix="xs")
    script = str(SHARED / "slurm_local.sh")
    environment = os.environ | {
        "SLURM_LOCAL_STATE": state,
        "SLURM_LOCAL_NODES": str(NODES),
        "SLURM_LOCAL_PORT": str(free_ports(NODES + 2)),
        "SLURM_CONF": f"{state}/etc/slurm.conf",
        "XYLEM_VENV": sys.prefix,
        "PYTHONPATH": str(ROOT / ".typing"),
        "OMP_NUM_THREADS": "1",
        "XYLEM_MIN_FREE_GIB": "0",
    }
    folder = tmp_path_factory.mktemp("slurm")
    try:
        started = subprocess.run(
            [script, "start"], env=environment, capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert started.returncode == 0, started.stdout + started.stderr
        if "ISO=none" in Path(state, "etc", "settings").read_text(encoding="utf-8"):
            pytest.skip("no namespaces here, so the cluster's node names do not resolve")
        cluster = Cluster(folder, environment)
        write_corpus(folder / "corpus")
        cluster.call(sys.executable, "-m", "xylem.train", "prepare", *SETTINGS)
        yield cluster
    finally:
        subprocess.run(
            [script, "wipe"], env=environment, capture_output=True, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip


def test_a_signalled_job_saves_requeues_resumes_and_ends_like_an_uninterrupted_one(
    cluster: Cluster,
) -> None:
    job = cluster.submit("run.name=interrupted", f"run.steps={STEPS}")
    cluster.wait_for_step(job, "interrupted", 5)
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    record = cluster.wait_for_end(job)
    log = cluster.log(job)
    assert (record["JobState"], record["ExitCode"], record["Restarts"]) == (
        "COMPLETED",
        "0:0",
        "1",
    ), log
    assert "(exit code 75), requeueing" in log
    assert "2 process(es) on cpu" in log
    saved = int(log.partition("runs/interrupted: resumed at step ")[2].split()[0])
    assert 5 <= saved < STEPS
    assert log.rstrip().endswith(f"done, newest checkpoint step-{STEPS}")

    whole = cluster.submit("run.name=whole", f"run.steps={STEPS}")
    assert cluster.wait_for_end(whole)["Restarts"] == "0"
    losses = cluster.losses("whole")
    assert list(losses) == list(range(1, STEPS + 1))
    assert losses[STEPS] < losses[1] - 1.0  # it did learn
    assert cluster.losses("interrupted") == losses


def test_a_cancelled_job_saves_and_is_not_requeued(cluster: Cluster) -> None:
    job = cluster.submit("run.name=cancelled", "run.steps=100000")
    cluster.wait_for_step(job, "cancelled", 3)
    cluster.call("scancel", job)
    record = cluster.wait_for_end(job)
    log = cluster.log(job)
    assert (record["JobState"], record["Restarts"]) == ("CANCELLED", "0"), log
    assert "not requeued, as the job was cancelled" in log
    assert (cluster.folder / "runs" / "cancelled" / "checkpoints" / "latest").exists()


def test_a_job_requeues_itself_no_more_often_than_allowed(cluster: Cluster) -> None:
    job = cluster.submit("run.name=often", "run.steps=100000", XYLEM_MAX_RESTARTS="0")
    cluster.wait_for_step(job, "often", 3)
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    record = cluster.wait_for_end(job)
    assert (record["ExitCode"], record["Restarts"]) == ("75:0", "0"), cluster.log(job)
    assert "restarted XYLEM_MAX_RESTARTS=0 times" in cluster.log(job)


def test_a_job_without_progress_is_not_requeued(cluster: Cluster, tmp_path: Path) -> None:
    """Signalled during the node check, it has no time to begin, and would have none again."""
    slow = tmp_path / "df"
    slow.write_text(f'#!/bin/sh\nsleep 3\nexec {shutil.which("df")} "$@"\n')
    slow.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    job = cluster.submit("run.name=stuck", "run.steps=100000", PATH=path)
    cluster.wait(job, lambda: "rendezvous" in cluster.log(job), "the node check")
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    record = cluster.wait_for_end(job)
    log = cluster.log(job)
    assert (record["ExitCode"], record["Restarts"]) == ("1:0", "0"), log
    assert "no checkpoint was added since the start (newest none)" in log


def test_a_mistake_ends_with_2_before_the_nodes_are_used(cluster: Cluster) -> None:
    job = cluster.submit("run.name=mistake", "run.stps=3")
    record = cluster.wait_for_end(job)
    log = cluster.log(job)
    assert (record["ExitCode"], record["Restarts"]) == ("2:0", "0"), log
    assert "run.stps" in log and "run.steps" in log and "Traceback" not in log
    assert "rendezvous" not in log


def test_a_mistake_of_all_processes_ends_with_2_and_is_not_requeued(cluster: Cluster) -> None:
    job = cluster.submit("run.name=nowhere", "run.steps=3", "data.prepared=nowhere")
    record = cluster.wait_for_end(job)
    assert (record["ExitCode"], record["Restarts"]) == ("2:0", "0"), cluster.log(job)
    assert "failed with exit code 2" in cluster.log(job)


def test_a_full_node_is_named_before_the_start(cluster: Cluster) -> None:
    job = cluster.submit("run.name=full", "run.steps=3", XYLEM_MIN_FREE_GIB="10000000")
    record = cluster.wait_for_end(job)
    log = cluster.log(job)
    assert (record["ExitCode"], record["Restarts"]) == ("1:0", "0"), log
    assert "node n1: " in log and "node n2: " in log
    assert "GiB free, wanted XYLEM_MIN_FREE_GIB=10000000" in log
    assert not cluster.losses("full")


def test_gpus_and_tasks_that_do_not_match_are_refused(tmp_path: Path) -> None:
    """No cluster: the record is a stand-in scontrol's."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f"#!/bin/sh\necho 'JobId=7 Command={ROOT}/slurm/pretrain.sbatch x'\n")
    scontrol.chmod(0o755)
    xylem = tmp_path / "xylem"
    xylem.write_text("#!/bin/sh\n")
    xylem.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "8",
        "SLURM_TASKS_PER_NODE": "1(x2)", "XYLEM_VENV": str(tmp_path / "none"),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", ROOT / "slurm" / "pretrain.sbatch"], env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert (
        "8 GPUs but 1 tasks a node; one task is one GPU: sbatch --ntasks-per-node=8" in done.stderr
    )


def test_outside_slurm_the_job_script_says_how_to_start_it() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "SLURM_JOB_ID"}
    done = subprocess.run(
        ["bash", ROOT / "slurm" / "pretrain.sbatch"], env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "this is a job script, start it with: sbatch" in done.stderr

"""The command line: exit codes, signals and triggers, and a line for every mistake."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ..conftest import Command, Prepared, environment, run_settings, train_losses, xylem_command


def mistake(done: "subprocess.CompletedProcess[str]") -> str:
    """The one line of a user's mistake."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("xylem ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


def test_an_unknown_setting_ends_with_2_and_a_suggestion(xylem: Command) -> None:
    told = mistake(xylem("plan", "optim.weigth_decay=1"))
    assert told == (
        "xylem plan: unknown key 'optim.weigth_decay'; did you mean 'optim.weight_decay'?"
    )


def test_a_run_before_prepare_says_what_to_do(xylem: Command, tmp_path: Path) -> None:
    told = mistake(xylem("pretrain", f"data.prepared={tmp_path}", f"run.root={tmp_path}"))
    assert "xylem prepare" in told
    assert not (tmp_path / "debug").exists()


def test_a_run_folder_of_another_config_is_refused(
    prepared: Prepared, xylem: Command, tmp_path: Path
) -> None:
    settings = run_settings(prepared, tmp_path, "run", "run.steps=2")
    assert xylem("pretrain", *settings).returncode == 0
    told = mistake(xylem("pretrain", *settings, "optim.weight_decay=0.5"))
    assert "holds a run of another config: optim.weight_decay=0.5 (was 0.1)" in told
    more = xylem("pretrain", *settings, "run.steps=4", "logging.every=2")
    assert more.returncode == 0 and "resumed at step 2" in more.stdout
    told = mistake(xylem("pretrain", *settings, "run.steps=4", "checkpoint.resume=never"))
    assert "checkpoint.resume=never, but" in told
    told = mistake(xylem("pretrain", *settings, "checkpoint.resume=/nowhere"))
    assert "checkpoint.resume=/nowhere is no checkpoint" in told


def test_a_model_that_does_not_fit_the_tokenizer_is_refused(
    prepared: Prepared, xylem: Command, tmp_path: Path
) -> None:
    settings = run_settings(prepared, tmp_path, "run", "model.vocab_size=500")
    for verb in ("plan", "pretrain"):
        assert "set model.vocab_size=400" in mistake(xylem(verb, *settings))


def test_a_tokenizer_that_is_not_the_shards_is_refused(
    prepared: Prepared, xylem: Command, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "prepared"
    shutil.copytree(prepared.folder, folder)
    model = next(folder.glob("tokenizer/*.model"))
    model.write_bytes(model.read_bytes()[:-3] + b"xyz")
    told = mistake(xylem("plan", *prepared.settings, f"data.prepared={folder}"))
    assert "did not make the shards beside it" in told and "xylem prepare --force" in told


def test_a_damaged_shard_ends_with_1_and_names_it(
    prepared: Prepared, xylem: Command, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "prepared"
    shutil.copytree(prepared.folder, folder)
    shard = next(folder.glob("train/rus_Cyrl/*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    settings = run_settings(prepared, tmp_path, "run", f"data.prepared={folder}")
    done = xylem("pretrain", *settings)
    assert done.returncode == 1
    assert f"DamagedShard: {shard}" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_saves_ends_with_75_and_the_same_command_goes_on(
    number: signal.Signals, prepared: Prepared, xylem: Command, tmp_path: Path
) -> None:
    settings = run_settings(prepared, tmp_path, "run", "run.steps=80")
    process = subprocess.Popen(
        xylem_command("pretrain", *settings),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(tmp_path / "run", 5, process)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 75, told
    assert f"{number.name}: saved at step" in told
    step = int((tmp_path / "run" / "checkpoints" / "latest").read_text().strip()[5:])
    done = xylem("pretrain", *settings)
    assert done.returncode == 0 and f"resumed at step {step}" in done.stdout
    assert len(train_losses(tmp_path / "run")) == 80


def test_triggers_save_and_exit(prepared: Prepared, tmp_path: Path) -> None:
    settings = run_settings(prepared, tmp_path, "run", "run.steps=4000", "checkpoint.every=4000")
    process = subprocess.Popen(
        xylem_command("pretrain", *settings),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    run = tmp_path / "run"
    wait_for_step(run, 3, process)
    (run / "triggers" / "save").touch()
    deadline = time.monotonic() + 60
    while not (run / "checkpoints" / "latest").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None and (run / "checkpoints" / "latest").exists()
    (run / "triggers" / "exit").touch()
    assert process.wait(timeout=60) == 0, "who touches the trigger wants no requeue"
    assert not list((run / "triggers").iterdir())


def test_an_unexpected_failure_ends_with_1_and_a_trace(
    prepared: Prepared, xylem: Command, tmp_path: Path
) -> None:
    settings = run_settings(prepared, tmp_path, "run", "optim.learning_rate=1e30")
    done = xylem("pretrain", *settings, "optim.clip_norm=0", "optim.warmup_steps=0")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "lower optim.learning_rate" in done.stderr.splitlines()[-1]
    followed = xylem(
        "pretrain", *settings[:-1], "optim.learning_rate=0.001", "optim.warmup_steps=0",
        "debug=anomaly",
    )  # fmt: skip
    assert followed.returncode == 0, followed.stderr


def test_a_folder_that_is_no_run_is_told_so(xylem: Command, tmp_path: Path) -> None:
    for verb in ("evaluate", "export"):
        assert "is no run folder: it has no config.yaml" in mistake(xylem(verb, str(tmp_path)))


def test_evaluate_and_inspect_on_a_run(prepared: Prepared, xylem: Command, tmp_path: Path) -> None:
    settings = run_settings(prepared, tmp_path, "run", "run.steps=3")
    assert xylem("pretrain", *settings).returncode == 0
    facts = tmp_path / "facts.jsonl"
    question = {"language": "rus_Cyrl", "prompt": "абв", "choices": [" где", " жик"], "label": 1}
    rows = [{**question, "held_out": held_out} for held_out in (True, False, False)]
    facts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = xylem("evaluate", str(tmp_path / "run"), "--facts", str(facts))
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result["step"] == 3
    assert result["facts"]["rus_Cyrl"]["stated"]["questions"] == 2
    assert result["facts"]["rus_Cyrl"]["held_out"]["chance"] == 0.5
    told = mistake(xylem("inspect", str(tmp_path / "run"), "data.seed=3"))
    assert "data.seed=3: a run is shown as it is" in told
    shown = xylem("inspect", str(tmp_path / "run"), "--step", "2")
    assert shown.returncode == 0, shown.stderr
    facts.write_text('{"language": "rus_Cyrl"}\n', encoding="utf-8")
    told = mistake(xylem("evaluate", str(tmp_path / "run"), "--facts", str(facts)))
    assert f"{facts}:1 is no question" in told


def test_every_verb_explains_itself(xylem: Command) -> None:
    from xylem.train.__main__ import VERBS

    told = xylem("--help").stdout
    assert all(verb in told for verb in VERBS)


def wait_for_step(
    run: Path, step: int, process: "subprocess.Popen[str] | subprocess.Popen[bytes]"
) -> None:
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= step:
            return
        time.sleep(0.005)
    raise AssertionError(f"the run never reached step {step}")

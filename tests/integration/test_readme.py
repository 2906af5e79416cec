"""README says what is: its commands run, its table lists the verbs, its links lead somewhere."""

import re
from pathlib import Path

from xylem.train.__main__ import VERBS

from ..conftest import Command, write_corpus

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_commands_for_ones_own_text_run(xylem: Command, tmp_path: Path) -> None:
    block = README.split("## Your own text")[1].split("```")[1]
    settings = re.search(r'^D="([^"]+)"', block, re.M)
    assert settings is not None
    write_corpus(tmp_path / "corpus")
    # Smaller than in the README, and nothing else: a tiny model, two steps, short sequences.
    small = settings[1].replace("=corpus", f"={tmp_path}/corpus")
    small = small.replace("=prepared", f"={tmp_path}/prepared").replace("32000", "400")
    ran = []
    for line in block.splitlines():
        command = line.split("#")[0].split()
        if command[:1] != ["xylem"]:
            continue
        words = " ".join(command[1:]).replace("$D", small).replace("model=small", "model=debug")
        words = words.replace("run.steps=5000", "run.steps=2")
        more = [f"run.root={tmp_path}", "data.sequence_length=32"]
        done = xylem(*words.split(), *more)
        assert done.returncode == 0, (line, done.stderr)
        ran.append(command[1])
    assert ran == ["prepare", "plan", "pretrain"]


def test_the_table_lists_every_verb() -> None:
    assert sorted(re.findall(r"^\| `xylem (\w+)", README, re.M)) == sorted(VERBS)


def test_every_link_and_path_leads_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#]+)\)", text):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), (page.name, link)
        for path in re.findall(
            r"`((?:data|model|train|tests|configs|scripts|slurm)/[\w/.]+\.\w+)", text
        ):
            assert (ROOT / path).exists(), (page.name, path)

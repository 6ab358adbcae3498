"""The commands as a user runs them: quick help, one-line errors, exit codes, nothing written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from tiny import tiny_folder

from geomsafe.cli import main
from geomsafe.cli.main import app
from geomsafe.cli.settings import given_settings
from geomsafe.config import TrainConfig
from geomsafe.errors import ConfigError


def run_cli(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run `geomsafe` in its own process, wide enough that help lines do not wrap."""
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", "from geomsafe.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["check", "--help"],
        ["geometry", "--help"],
        ["sweep", "--help"],
        ["organism", "path"],
    ],
)
def test_light_commands_do_not_import_torch(arguments: list[str], tmp_path: Path) -> None:
    probe = f"""
import sys
sys.argv = ["geomsafe", *{arguments!r}]
from geomsafe.cli import main
try:
    main()
except SystemExit as stop:
    print("exit", stop.code, file=sys.stderr)
print("heavy", sorted({{"torch", "transformers", "datasets", "scipy", "plotly"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "heavy []" in done.stderr


def test_every_setting_is_an_option(tmp_path: Path) -> None:
    shown = run_cli("train", "--help", cwd=tmp_path).stdout
    missing = [name for name in TrainConfig.model_fields if f"--{name.replace('_', '-')}" not in shown]
    assert not missing


def test_options_not_given_do_not_override_yaml() -> None:
    assert given_settings({"lr": None, "method": [], "seed": 3}) == {"seed": 3}


def test_nested_options() -> None:
    given = given_settings({"lora": "rank=4,alpha=8,targets=q_proj+v_proj"})
    assert given["lora"] == {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]}
    assert given_settings({"columns": "prompt=question"})["columns"] == {"prompt": "question"}
    with pytest.raises(ConfigError, match="key=value"):
        given_settings({"lora": "rank"})


BAD = [
    (["train", "--config-file", "x"], "No such option"),
    (["train", "missing.yaml"], "'missing.yaml' does not exist"),
    (["train", "typo.yaml"], "did you mean 'batch_size'"),
    (["train", "--lr", "fast"], "--lr"),
    (["train", "--optimizer", "lion"], "lion"),
    (["train", "--method", "emma"], "did you mean 'ema'"),
    (["train", "--method", "ema:etta=1"], "did you mean 'eta'"),
    (["train", "--method", "ema:eta=2"], "eta"),
    (["train", "--resume", "nowhere"], "nowhere"),
    (["train", "--resume", "nowhere", "--lr", "1"], "--lr"),
    (["train", "--model", "no/such-model"], "no/such-model"),
    (["train", "--data", "nothing.jsonl"], "nothing.jsonl"),
    (["train", "--data", "broken.jsonl"], "line 2"),
    (["train", "--data", "latin.csv"], "UTF-8"),
    (["train", "--data", "empty.json"], "empty.json"),
    (["train", "--data", "columns.csv"], "columns"),
    (["train", "--max-length", "8", "--data", "good.jsonl"], "long"),
    (["sweep"], "give either a SWEEP.yaml or --preset NAME"),
    (["sweep", "sweep.yaml", "--preset", "paper-a"], "give either a SWEEP.yaml or --preset NAME"),
    (["sweep", "missing.yaml"], "'missing.yaml' does not exist"),
    (["sweep", "--preset", "paper-x"], "unknown preset 'paper-x'"),
    (["sweep", "--preset", "paper-a", "--backend", "slurm"], "'slurm' is not one of"),
    (["sweep", "--preset", "paper-a", "--address", "auto"], "add --backend ray"),
    (["sweep", "--preset", "paper-a", "--seeds", "one"], "--seeds 'one': write whole numbers"),
    (["sweep", "sweep.yaml"], "arm 'a': unknown method 'emma': did you mean 'ema'"),
    (["landscape", "nowhere"], "say where to go by one of --axes"),
    (["landscape", "nowhere", "--axes", "finetune"], "'nowhere' is not a run directory"),
    (["landscape", "nowhere", "--axes", "finetuned"], "direction 'finetuned' is not known"),
    (["landscape", "nowhere", "--lines", "random", "--visage", "3"], "say where to go by one of --axes"),
    (["analyze", "nowhere"], "nowhere"),
    (["evaluate", "nowhere"], "nowhere"),
    (["evaluate", "nowhere", "--choices", "columns.csv"], "no multiple-choice columns"),
    (["evaluate", "nowhere", "--held-out", "nothing.jsonl"], "nothing.jsonl"),
    (["evaluate", "nowhere", "--lm-eval-path", "tasks"], "add --lm-eval TASK"),
    (["evaluate", "nowhere", "--lm-eval", "arc_easy", "--lm-eval-path", "tasks"], "'tasks' is no folder"),
    (["evaluate", "nowhere", "--mt-bench", "bench"], "--judge-url is missing"),
    (["evaluate", "nowhere", "--mt-bench", "bench", "--judge-url", "http://h/v1"], "--judge-model is missing"),
    (["evaluate", "nowhere", "--judge-model", "gpt-4"], "add --mt-bench FOLDER"),
]


def run_here(
    arguments: list[str], cwd: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Run the command line in this process, which has torch imported: exit code and standard error."""
    monkeypatch.chdir(cwd)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["geomsafe", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0), capfd.readouterr().err


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_mistakes_are_one_line_with_exit_code_2(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    row = '{"prompt": "How do I bake bread at home?", "response": "Mix flour and water, knead, rest and bake it."}\n'
    (tmp_path / "sweep.yaml").write_text("arms: {a: {method: [emma]}}\n")
    (tmp_path / "typo.yaml").write_text("batchsize: 3\n")
    (tmp_path / "good.jsonl").write_text(row)
    (tmp_path / "broken.jsonl").write_text(row + '{"prompt": "a"\n')
    (tmp_path / "latin.csv").write_bytes("prompt,response\nhé,a\n".encode("latin-1"))
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "columns.csv").write_text("alpha,beta\na,b\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    code, stderr = run_here(arguments, tmp_path, monkeypatch, capfd)
    assert code == 2, stderr
    assert said in stderr
    if "Usage:" not in stderr:  # Typer's own complaint about an option, in its frame
        assert stderr.startswith("error: ")
        assert len(stderr.strip().splitlines()) == 1, stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "nothing is written"


def test_measures_are_printed_and_nothing_else_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny_folder(tmp_path)
    rows = [{"prompt": f"Sea {number} is", "options": ["wide", "salt"], "answer": number % 2} for number in range(4)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "talk.csv").write_text("prompt,response\nHello,Hi\nWho?,Me\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    command = ["geomsafe", "evaluate", "tiny-llama", "--choices", "items.jsonl", "--held-out", "talk.csv"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    shown = capfd.readouterr().out
    folder = tmp_path / "runs" / "evaluate-tiny-llama" / "measurements"
    choices, held_out = (
        json.loads((folder / f"model--{name}.json").read_text(encoding="utf-8"))["measurement"]
        for name in ("choices-items", "held-out-talk")
    )
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0] == "weights measure metric value n"
    assert f"model choices-items acc ↑ {choices['values']['acc']:g} ± {choices['errors']['acc']:.4g} 4" in lines
    loss, error = held_out["values"]["nats_per_token"], held_out["errors"]["nats_per_token"]
    assert any(line.startswith(f"model held-out-talk nats_per_token ↓ {loss:.4g} ± ") for line in lines) and error > 0
    assert "completions:" not in shown and not folder.with_name("evaluations").exists()


def test_the_installed_command_reports_a_mistake(tmp_path: Path) -> None:
    done = run_cli("analyze", "nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_typer_is_told_to_hide_locals() -> None:
    assert isinstance(app, typer.Typer)
    assert app.pretty_exceptions_show_locals is False

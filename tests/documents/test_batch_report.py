"""What a job says of itself: counts, rates, what is left, energy."""

from pathlib import Path

import pytest
from document_files import BUSY, EchoBackend, pictures

from qwen25vl.documents.batch import Target, run_job
from qwen25vl.documents.batch_job import JobLimits
from qwen25vl.documents.inputs import list_inputs
from qwen25vl.documents.plan import make_plan
from qwen25vl.documents.report import EnergyMeter, Report, span


def test_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that failed counted as pages done; a rate from the time before the model was loaded."""
    folder = pictures(tmp_path / "in", 5)
    backend = EchoBackend({"02.png": [BUSY], "03.png": [BUSY, BUSY]})
    report = Report(5)
    plan = make_plan(identity={"model": "echo"}, ask="What?")
    limits = JobLimits(max_attempts=2)
    job = run_job(list_inputs([str(folder)]), plan, backend, Target(), limits, report=report)
    assert len(list(job)) == 5
    told = report.summary()
    assert (told["pages"], told["failed"], told["failed_by_kind"]) == (4, 1, {"server": 1})
    assert (told["tries_again"], told["completion_tokens"]) == (2, 8)
    monkeypatch.setattr(Report, "seconds", 8.0)
    assert report.rate == 0.5
    assert report.line() == ("4 pages, 0.50 a second, input 5 of 5, 1 failed, 8 tokens written")
    assert report.sentence().startswith("4 pages in 8.0 s (0.50 a second); 20 tokens read, 8 ")
    assert report.sentence().endswith("1 failed (1 server)")
    report.num_sources = 10
    assert report.seconds_left == 8.0
    assert "about 8.0 s left" in report.line()


def test_spans() -> None:
    """Seconds by the thousand say nothing."""
    assert [span(each) for each in (1.25, 75, 7320)] == ["1.2 s", "1 min 15 s", "2 h 2 min"]


def test_energy(tmp_path: Path) -> None:
    """The counters of the processor start again at nothing every few minutes, and are often not
    readable at all."""
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "max_energy_range_uj").write_text("10000000\n")
    counter = zone / "energy_uj"
    counter.write_text("9000000\n")
    meter = EnergyMeter(tmp_path)
    meter.begin()
    counter.write_text("2000000\n")
    assert meter.joules() == 3.0
    counter.write_text("4500000\n")
    assert meter.joules() == 5.5
    counter.unlink()
    assert meter.joules() is None
    assert EnergyMeter(tmp_path / "none").joules() is None

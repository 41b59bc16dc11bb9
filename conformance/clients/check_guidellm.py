"""guidellm's benchmark, as its command line runs it."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import BASE, FACTS, URL, check, run

NUM_REQUESTS = 6


def benchmark(path: str, *more: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("guidellm")),
                "run",
                "--backend",
                f"kind=openai_http,target={URL},model={BASE},request_format={path}",
                "--profile",
                "kind=concurrent,streams=2",
                "--constraint",
                f"kind=max_requests,count={NUM_REQUESTS}",
                "--tokenizer",
                f"kind=huggingface_auto,model={FACTS['tokenizer']}",
                "--data",
                "kind=synthetic_text,prompt_tokens=32,output_tokens=16",
                "--output",
                f"kind=json,path={report}",
                "--disable-console",
                *more,
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(report.read_text())


@check
def completions_are_measured_without_an_error() -> None:
    totals = benchmark("/v1/completions")["benchmarks"][0]["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (NUM_REQUESTS, 0), totals


@check
def chats_are_measured_without_an_error() -> None:
    totals = benchmark("/v1/chat/completions")["benchmarks"][0]["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (NUM_REQUESTS, 0), totals


run()

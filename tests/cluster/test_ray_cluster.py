"""A local cluster of Ray: each page once, also when a replica is killed; conversations stay."""

import base64
import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from document_files import page, pictures

pytestmark = [pytest.mark.slow, pytest.mark.ray]
QUESTION = "What is in the picture?"
PORT = 8765


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_killed_worker(cluster: Any, tmp_path: Path) -> None:
    """Ray asks the batch of a dead replica again; what it had answered must not come twice."""
    from qwen25vl.ray import AskPages

    class Mortal(AskPages):
        def __call__(self, batch: Any) -> Any:
            mark = tmp_path / "killed"
            columns = super().__call__(batch)
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return columns

    folder = pictures(tmp_path / "in", 40)
    files = cluster.data.read_binary_files(str(folder), include_paths=True)
    answers = files.map_batches(
        Mortal, fn_constructor_args=[QUESTION], fn_constructor_kwargs={"max_new_tokens": 4},
        concurrency=2, num_cpus=1, batch_size=10,
    )  # fmt: skip
    rows = answers.take_all()
    assert (tmp_path / "killed").exists()
    assert len(rows) == len({row["source"] for row in rows}) == 40
    assert all(row["error"] is None and row["text"] for row in rows)


def test_a_conversation_stays_with_its_replica(cluster: Any) -> None:
    """Another replica would read the whole conversation anew."""
    serve = pytest.importorskip("ray.serve")
    from qwen25vl.ray import deployment

    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    try:
        serve.run(deployment(num_replicas=2, ray_actor_options={"num_cpus": 0.5}))
        for session in ("one", "two", "three"):
            cached = talk(session)
            assert all(number > 0 for number in cached[1:])
            assert cached[1:] == sorted(cached[1:])
    finally:
        serve.shutdown()


def talk(session: str) -> list[int]:
    """Five turns about a picture; the cached tokens of each."""
    import io

    file = io.BytesIO()
    page(len(session), 112).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    picture = {"type": "image_url", "image_url": {"url": url}}
    content: Any = [picture, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    cached = []
    for _ in range(5):
        body = json.dumps({"messages": messages, "max_tokens": 8, "temperature": 0}).encode()
        headers = {"content-type": "application/json", "x-session-id": session}
        request = urllib.request.Request(
            f"http://127.0.0.1:{PORT}/v1/chat/completions", body, headers
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            reply = json.load(response)
        cached.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
        answer = reply["choices"][0]["message"]["content"]
        messages += [
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "And what else?"},
        ]
    return cached

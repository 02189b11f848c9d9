"""Many clients of all kinds at one server, for minutes or hours: does anything go wrong, or grow?

    python benchmarks/serving_soak.py [--minutes 10] [--clients 32] [--seed 0]

Starts `qwen25vl serve` with the built-in model. Each client asks about pictures, clips or nothing,
whole or streamed; or it leaves, sends nonsense, reads slowly, or vanishes. Every greedy answer that
was finished is compared with that of `ask`, letter by letter. Beside them /health is asked four
times a second.

Prints what was asked, what was wrong, and the memory, threads and open files of the server with its
workers at the start and at the end. The exit status is 1 if anything was wrong.
"""

import argparse
import asyncio
import base64
import io
import json
import random
import re
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

CHAT = "/v1/chat/completions"
COLOURS = ("red", "green", "blue", "black", "orange", "purple")
KINDS = {
    "whole": 5, "streamed": 5, "left": 4, "nonsense": 3, "slow": 1, "vanished": 1, "tokens": 1,
}  # fmt: skip
NONSENSE: tuple[Any, ...] = (
    "{", [], {}, {"messages": "x"}, {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": "x"}], "temperature": 9},
    {"messages": [{"role": "user", "content": "x " * 20_000}]},
    {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]}]},
    {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}}]}]},
)  # fmt: skip
MIB = 2**20


@dataclass
class Question:
    """messages: as a request has them; images, frames: the same for `ask`."""

    text: str
    images: list[Image.Image] = field(default_factory=list)
    frames: list[Image.Image] = field(default_factory=list)
    max_tokens: int = 24
    expected: str = ""

    @property
    def body(self) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": data_url(image)}} for image in self.images
        ]
        if self.frames:
            parts.append({"type": "video", "video": [*map(data_url, self.frames)], "fps": 2})
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": self.text}]}]
        return {"messages": messages, "max_tokens": self.max_tokens, "temperature": 0}


@dataclass
class Tally:
    """What happened. wrong: in words, the first few."""

    finished: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    rss: list[tuple[float, float]] = field(default_factory=list)


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def scene(colour: str, side: int, shift: int = 0) -> Image.Image:
    """A square on white."""
    picture = Image.new("RGB", (side, side), "white")
    picture.paste(colour, (side // 4 + shift, side // 4, 3 * side // 4 + shift, 3 * side // 4))
    return picture


def make_questions() -> list[Question]:
    """With the answers of `ask`."""
    import qwen25vl

    vlm = qwen25vl.load()
    made = [Question("What is red?"), Question("Describe the picture.", max_tokens=40)]
    for number, colour in enumerate(COLOURS):
        picture = scene(colour, 112 + 28 * number)
        made.append(Question("What colour is the square?", [picture]))
        made.append(Question("Describe the pictures.", [picture, scene("red", 84)], max_tokens=48))
        moving = [scene(colour, 112, 4 * step) for step in range(4)]
        made.append(Question("What happens?", frames=moving, max_tokens=32))
    for one in made:
        clips: Any = [one.frames] if one.frames else None
        rate = {"fps": 2.0} if one.frames else {}
        answer = vlm.ask(
            one.text, images=one.images or None, videos=clips, max_new_tokens=one.max_tokens,
            do_sample=False, **rate,
        )  # fmt: skip
        one.expected = answer.text
    return made


class Client:
    """One of the many. All of its random choices come from its own generator."""

    def __init__(self, url: str, questions: list[Question], tally: Tally, seed: int) -> None:
        self.url, self.questions, self.tally = url, questions, tally
        self.random = random.Random(seed)
        self.http = httpx.AsyncClient(base_url=url, timeout=300, trust_env=False)

    async def run(self, until: float) -> None:
        while time.monotonic() < until:
            kind = self.random.choices([*KINDS], [*KINDS.values()])[0]
            question = self.random.choice(self.questions)
            try:
                await getattr(self, kind)(question)
                self.tally.finished[kind] += 1
            except httpx.HTTPError as error:
                self.tally.wrong.append(f"{kind}: {type(error).__name__} {error}")
            await asyncio.sleep(self.random.random() * 0.2)
        await self.http.aclose()

    def check(self, kind: str, status: int, text: str, question: Question) -> None:
        """Of a request that is in order."""
        self.tally.statuses[status] += 1
        if status == 429:
            return
        if status != 200 or text != question.expected:
            self.tally.wrong.append(f"{kind}: {status} {text!r} for {question.expected!r}")

    async def whole(self, question: Question) -> None:
        reply = await self.http.post(CHAT, json=question.body)
        found = reply.json()
        is_answered = reply.status_code == 200
        text = found["choices"][0]["message"]["content"] if is_answered else reply.text
        self.check("whole", reply.status_code, text, question)

    async def streamed(self, question: Question, pause: float = 0.0) -> None:
        parts = []
        body = {**question.body, "stream": True}
        async with self.http.stream("POST", CHAT, json=body) as reply:
            async for line in reply.aiter_lines():
                await asyncio.sleep(pause)
                if line.startswith("data: {"):
                    found = json.loads(line[6:])
                    if "error" in found:
                        parts.append(str(found["error"]))
                    for choice in found.get("choices", ()):
                        parts.append(choice["delta"].get("content") or "")
        self.check("streamed", reply.status_code, "".join(parts), question)

    async def slow(self, question: Question) -> None:
        await self.streamed(question, 0.1)

    async def left(self, question: Question) -> None:
        """Close at any moment: while queued, decoding, encoding, reading, writing, at the end."""
        body = {**question.body, "stream": self.random.random() < 0.5}
        if self.random.random() < 0.5:
            body |= {"ignore_eos": True, "max_tokens": 2000, "temperature": 1.5}
        asked = asyncio.ensure_future(self.http.post(CHAT, json=body))
        await asyncio.wait({asked}, timeout=self.random.random() ** 2 * 2)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    async def nonsense(self, _: Question) -> None:
        sent = self.random.choice(NONSENSE)
        body = sent if isinstance(sent, str) else json.dumps(sent)
        reply = await self.http.post(CHAT, content=body)
        self.tally.statuses[reply.status_code] += 1
        if reply.status_code not in (400, 429) or "error" not in reply.json():
            self.tally.wrong.append(f"nonsense: {reply.status_code} {reply.text:.200}")

    async def tokens(self, question: Question) -> None:
        reply = await self.http.post("/tokenize", json={"messages": question.body["messages"]})
        self.tally.statuses[reply.status_code] += 1

    async def vanished(self, question: Question) -> None:
        """Ask, read nothing, and reset the connection some time later."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        body = {**question.body, "stream": True, "ignore_eos": True, "max_tokens": 1000}
        raw = json.dumps(body).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(raw)}\r\n\r\n"
        connected = socket.create_connection((host, int(port)))
        connected.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connected, head.encode() + raw)
        await asyncio.sleep(self.random.random() * 5)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connected.close()


async def watch(url: str, pid: int, tally: Tally, until: float) -> None:
    """Ask for the health, and look at the memory."""
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as http:
        begin = time.monotonic()
        while time.monotonic() < until:
            start = time.monotonic()
            reply = await http.get("/health")
            tally.health.append(time.monotonic() - start)
            if reply.status_code != 200:
                tally.wrong.append(f"/health: {reply.status_code} {reply.text}")
            tally.rss.append((start - begin, usage(pid)["memory in MiB"]))
            await asyncio.sleep(0.25)


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except OSError:  # the thread has ended meanwhile
            continue
        found += [one for child in children for one in family_of(int(child))]
    return found


def family_of(pid: int) -> list[int]:
    return family(pid) if Path(f"/proc/{pid}/task").exists() else []


def usage(pid: int) -> dict[str, float]:
    """What the server and its workers hold: the memory that is theirs alone, and their share of
    what they have in common."""
    sizes, threads, files = 0.0, 0, 0
    for one in family(pid):
        folder = Path(f"/proc/{one}")
        try:
            text = (folder / "smaps_rollup").read_text()
            files += len([*(folder / "fd").iterdir()])
            threads += len([*(folder / "task").iterdir()])
        except OSError:
            continue
        sizes += sum(float(kib) for kib in re.findall(r"^Pss: +(\d+)", text, re.MULTILINE)) / 1024
    return {"memory in MiB": round(sizes, 1), "threads": threads, "files": files}


def start_server() -> tuple[subprocess.Popen[str], str]:
    """The server and its address."""
    command = [sys.executable, "-m", "qwen25vl", "serve", "--port", "0", "--log-level", "warning"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        print(line, end="", flush=True)
        if found := re.search(r"at (http://\S+)/v1", line):
            asyncio.get_running_loop().run_in_executor(None, pass_on, server.stderr)
            return server, found[1]
    raise SystemExit("the server did not start")


def pass_on(lines: Iterable[str]) -> None:
    """Show what the server says, so that its pipe is never full."""
    for line in lines:
        print(line, end="", flush=True)


async def soak(minutes: float, num_clients: int, seed: int) -> int:
    questions = make_questions()
    server, url = start_server()
    tally = Tally()
    try:
        warm = [Client(url, questions, tally, -seed - number - 1) for number in range(num_clients)]
        await asyncio.gather(*(one.run(time.monotonic() + 20) for one in warm))
        before = await settled(url, server.pid)
        until = time.monotonic() + 60 * minutes
        clients = [Client(url, questions, tally, seed + number) for number in range(num_clients)]
        watching = watch(url, server.pid, tally, until)
        await asyncio.gather(watching, *(one.run(until) for one in clients))
        after = await settled(url, server.pid)
        if after.pop("open requests"):
            tally.wrong.append("requests are open though all clients have left")
        before.pop("open requests")
        if server.poll() is not None:
            tally.wrong.append(f"the server ended with {server.returncode}")
    finally:
        server.terminate()
        server.wait(60)
    return report(tally, before, after)


async def settled(url: str, pid: int) -> dict[str, float]:
    """What the server holds once nobody asks any more."""
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
        for _ in range(40):
            load = (await http.get("/load")).json()["server_load"]
            if not load:
                break
            await asyncio.sleep(0.5)
        text = (await http.get("/metrics")).text
    await asyncio.sleep(3)
    kept = re.search(r"^vllm:prefix_cache_bytes\S* (\S+)", text, re.MULTILINE)
    return {
        **usage(pid),
        "kept caches in MiB": round(float(kept[1]) / MIB, 1) if kept else 0.0,
        "open requests": load,
    }


def report(tally: Tally, before: dict[str, float], after: dict[str, float]) -> int:
    failures = sum(number for status, number in tally.statuses.items() if status >= 500)
    if failures:
        tally.wrong.append(f"{failures} replies with a status of 500 or more")
    steady = np.array(tally.rss[len(tally.rss) // 3 :])
    slope = np.polyfit(steady[:, 0], steady[:, 1], 1)[0] * 3600 if len(steady) > 2 else 0.0
    middle, high = np.percentile(tally.health, [50, 95]) * 1000
    print(f"finished: {dict(tally.finished)}; statuses: {dict(tally.statuses)}")
    print(f"wrong: {len(tally.wrong)}; 5xx: {failures}")
    for line in tally.wrong[:20]:
        print(f"  {line:.300}")
    for name, value in before.items():
        print(f"{name}: {value:g} at the start, {after[name]:g} at the end")
    print(f"memory grows by {slope:.1f} MiB an hour after the first third")
    print(f"/health: p50 {middle:.1f} ms, p95 {high:.1f} ms, of {len(tally.health)}")
    return 1 if tally.wrong else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    raise SystemExit(asyncio.run(soak(given.minutes, given.clients, given.seed)))


if __name__ == "__main__":
    main()

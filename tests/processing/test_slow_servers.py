"""Servers that never finish: each download ends within its limits."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from qwen25vl.errors import MediaNotFoundError, MediaSizeError
from qwen25vl.processing import streams
from qwen25vl.processing.sources import load_bytes

QUIET, WHOLE = 0.2, 0.5  # seconds: without a byte, and in all
BOUND = 1.9
HEAD = b"HTTP/1.1 200 OK\r\n"
Behaviour = Callable[[socket.socket, threading.Event], None]


@contextmanager
def serving(behave: Behaviour) -> Iterator[str]:
    """A server that reads a request and then behaves so, in a thread for each connection."""
    stopped = threading.Event()
    workers: list[threading.Thread] = []

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            behave(connection, stopped)

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                workers.append(threading.Thread(target=answer, args=(connection,)))
                workers[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        acceptor = threading.Thread(target=accept, args=(listener,))
        acceptor.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/clip.mp4"
        finally:
            stopped.set()
            listener.shutdown(socket.SHUT_RDWR)
            for thread in (acceptor, *workers):
                thread.join()


def drip(connection: socket.socket, stopped: threading.Event, piece: bytes) -> None:
    """A piece every 50 ms, for 5 s: never as long quiet as the timeout of a single read."""
    for _ in range(100):
        if stopped.wait(0.05):
            return
        connection.sendall(piece)


def never_answers(connection: socket.socket, stopped: threading.Event) -> None:
    stopped.wait(5)


def stops_in_the_middle(connection: socket.socket, stopped: threading.Event) -> None:
    connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\nhalf")
    stopped.wait(5)


def drips_its_header(connection: socket.socket, stopped: threading.Event) -> None:
    connection.sendall(HEAD + b"X-Long: ")
    drip(connection, stopped, b"x")


def drips_a_known_length(connection: socket.socket, stopped: threading.Event) -> None:
    connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
    drip(connection, stopped, b"x")


def drips_until_closed(connection: socket.socket, stopped: threading.Event) -> None:
    connection.sendall(HEAD + b"Connection: close\r\n\r\n")
    drip(connection, stopped, b"x")


def drips_chunks(connection: socket.socket, stopped: threading.Event) -> None:
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    drip(connection, stopped, b"1\r\nx\r\n")


def leads_in_a_circle(connection: socket.socket, stopped: threading.Event) -> None:
    stopped.wait(0.1)
    where = b"Location: /%d\r\n" % time.monotonic_ns()
    connection.sendall(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n" + where + b"\r\n")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "DOWNLOAD_TIMEOUT_SECONDS", QUIET)
    monkeypatch.setattr(streams, "MAX_DOWNLOAD_SECONDS", WHOLE)


@pytest.mark.parametrize("behave", [never_answers, stops_in_the_middle])
def test_a_silent_server_is_given_up(behave: Behaviour) -> None:
    """Without a timeout a request waits for ever, and nobody can tell for what."""
    with serving(behave) as url:
        start = time.monotonic()
        with pytest.raises(MediaNotFoundError, match=r"clip\.mp4 cannot be fetched: .*timed out"):
            load_bytes(url)
        assert QUIET <= time.monotonic() - start < BOUND


@pytest.mark.parametrize(
    "behave",
    [drips_its_header, drips_a_known_length, drips_until_closed, drips_chunks, leads_in_a_circle],
)
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(behave: Behaviour) -> None:
    """The timeout of a socket begins anew with each byte: such a server held its client for ever.
    What had come until then was no whole picture, even where no length was announced."""
    with serving(behave) as url:
        start = time.monotonic()
        with pytest.raises(MediaNotFoundError, match=r"the download took more than 0\.5 seconds"):
            load_bytes(url)
        assert WHOLE <= time.monotonic() - start < BOUND


def test_a_fast_endless_answer_ends_at_the_limit_of_its_size() -> None:
    """A server that never ends would fill the disk."""

    def floods(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(HEAD + b"Connection: close\r\n\r\n")
        while not stopped.is_set():
            connection.sendall(bytes(1 << 16))

    with serving(floods) as url, pytest.raises(MediaSizeError, match="limit of 1 MiB"):
        load_bytes(url, max_bytes=1 << 20)


def test_a_slow_but_honest_server_is_waited_for() -> None:
    """Six pieces in 0.3 s: late, but within both limits."""

    def answers_slowly(connection: socket.socket, stopped: threading.Event) -> None:
        connection.sendall(HEAD + b"Content-Length: 6\r\n\r\n")
        for letter in b"abcdef":
            stopped.wait(0.05)
            connection.sendall(bytes([letter]))

    with serving(answers_slowly) as url:
        assert load_bytes(url) == b"abcdef"
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]

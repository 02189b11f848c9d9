"""file:// addresses: nothing outside of the folder is opened, and none without one."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from media_audit import watching
from media_files import asked, picture, refusal, unstarted

from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.media.folder import RefusedPathError, TooLargeError, read_file
from qwen25vl.serving.settings import MediaLimits

PNG = picture("PNG")
SECRET = b"canary " * 10


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """media/ is allowed; beside it and behind links lie secrets."""
    root = tmp_path / "media"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "media-private").mkdir()
    for path in (root / "a.png", root / "sub" / "b.png", root / "a b#?.png", root / "ä.png"):
        path.write_bytes(PNG)
    for path in (tmp_path / "secret.png", tmp_path / "media-private" / "secret.png"):
        path.write_bytes(SECRET)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "inner.png").symlink_to(root / "a.png")
    (root / "out").symlink_to(tmp_path)
    (root / "here").symlink_to(root)
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    (root / "large.png").write_bytes(bytes(5000))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(root / "socket"))
    listener.close()
    return tmp_path


TRAVERSALS = [
    "file://{t}/secret.png",
    "file://{r}/../secret.png",
    "file://{r}/./../secret.png",
    "file://{r}/sub/../../secret.png",
    "file://{r}/sub/../a.png",
    "file://{r}//../secret.png",
    "file://{r}/%2e%2e/secret.png",
    "file://{r}/%2E%2E%2Fsecret.png",
    "file://{r}/..%2fsecret.png",
    "file://{r}/%252e%252e/secret.png",
    "file://{r}/..%c0%afsecret.png",
    "file://{r}/%c0%ae%c0%ae/secret.png",
    "file://{r}/..\\secret.png",
    "file://{r}\\..\\secret.png",
    "file://{r}/a.png%00.png",
    "file://{r}/a.png\x00",
    "file://{r}/../media-private/secret.png",
    "file://{t}/media-private/secret.png",
    "file://{t}/mediax/secret.png",
    "file://{r}",
    "file://{r}/",
    "file://{r}/sub",
    "file://{r}/sub/",
    "file://{r}/a.png/",
    "file://{r}//a.png",
    "file://{r}/link.png",
    "file://{r}/inner.png",
    "file://{r}/out/secret.png",
    "file://{r}/here/a.png",
    "file://{r}/loop",
    "file://{r}/pipe",
    "file://{r}/socket",
    "file://{r}/none.png",
    "file://host{r}/a.png",
    "file://user@localhost{r}/a.png",
    "file://localhost:80{r}/a.png",
    "file:{r}/a.png",
    "file:/{r}/a.png",
    "file://./a.png",
    "file://a.png",
    "file:///etc/passwd",
    "file:///proc/self/environ",
    "file:///dev/zero",
    "file://~/a.png",
    "file://{r}/a.png?x=1",
    "FILE:///etc/passwd",
    "file://{r}/" + "a/" * 3000 + "a.png",
    "{r}/a.png",
]


@pytest.mark.parametrize("url", TRAVERSALS, ids=range(len(TRAVERSALS)))
def test_nothing_outside_is_read(url: str, tree: Path) -> None:
    """Not by dots, encodings, links or neighbours with a longer name; and the refusal does not say
    whether the file exists."""
    root = tree / "media"
    room = unstarted(MediaLimits(allowed_path=root))
    part = {"type": "image", "image": url.format(t=tree, r=root)}
    with watching() as notes:
        error = asyncio.run(refusal(room.resolve(asked(part))))
    assert error.status == 400
    assert error.code in ("image_file_not_found", "invalid_image_url")
    assert str(tree) not in error.message
    opened = [str(path) for event, path in notes if event in ("open", "os.open")]
    assert not [path for path in opened if "secret" in path or path.startswith("/etc")]


@pytest.mark.parametrize(
    "url",
    [
        "file://{r}/a.png",
        "file://localhost{r}/sub/b.png",
        "FILE://{r}/a%20b%23%3F.png",
        "file://{r}/ä.png",
        "file://{r}/%C3%A4.png",
        "file://{r}/a.png#page=3",
    ],
)
def test_files_of_the_folder(url: str, tree: Path) -> None:
    room = unstarted(MediaLimits(allowed_path=tree / "media"))
    part = {"type": "image_url", "image_url": {"url": url.format(r=tree / "media")}}
    (message,) = asyncio.run(room.resolve(asked(part)))
    assert message["content"][0]["image"].contents == (PNG,)


def test_off_by_default(tree: Path) -> None:
    part = {"type": "image", "image": f"file://{tree}/media/a.png"}
    with watching() as notes:
        error = asyncio.run(refusal(unstarted().resolve(asked(part))))
    assert (error.status, error.code) == (400, "invalid_image_url")
    assert not [path for event, path in notes if "open" in event and str(tree) in str(path)]


def test_large_files(tree: Path) -> None:
    """The size is known before the file is read, and checked while it is: it may grow."""
    root = tree / "media"
    with pytest.raises(TooLargeError):
        read_file(f"file://{root}/large.png", root, 4999)
    assert len(read_file(f"file://{root}/large.png", root, 5000)) == 5000


def test_a_link_that_comes_and_goes(tree: Path) -> None:
    """Between a check of the name and its opening, somebody put a link in its place."""
    root = tree / "media"
    stop = threading.Event()

    def swap() -> None:
        path = root / "race.png"
        while not stop.is_set():
            path.unlink(missing_ok=True)
            path.symlink_to(tree / "secret.png")
            path.unlink()
            path.write_bytes(PNG)

    thread = threading.Thread(target=swap)
    thread.start()
    found: set[Any] = set()
    try:
        for _ in range(500):
            try:
                found.add(read_file(f"file://{root}/race.png", root, 1 << 20))
            except (RefusedPathError, ApiError):
                found.add(None)
    finally:
        stop.set()
        thread.join()
    assert SECRET not in found

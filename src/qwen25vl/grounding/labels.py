"""What a thing is called: a value in its own object, or the key that the object stands under."""

from __future__ import annotations

from qwen25vl.grounding.keys import LABEL_KEYS, plain, singular
from qwen25vl.grounding.values import Entry, Node, Value

Group = dict[str, Entry]
"""The entries of one thing by their keys in plain form."""

MAX_LEVELS = 4  # how far up the label of a place is looked for
NO_TEXT = {"null", "none", "nan", "undefined"}


def own_label(group: Group) -> str:
    labels = (text_of(group[name].value) for name in LABEL_KEYS if name in group)
    return next(filter(None, labels), "")


def text_of(value: Value | Node | None, depth: int = 0) -> str:
    """A text, a number as it is written, a list of texts, or the label of an inner object;
    null is none."""
    if isinstance(value, Value):
        return "" if not value.quoted and value.text.lower() in NO_TEXT else value.text.strip()
    if value is None or depth > 1:
        return ""
    if value.bracket == "{":
        entries = {plain(entry.key or ""): entry.value for entry in value.entries}
        labels = (text_of(entries.get(name), depth + 1) for name in LABEL_KEYS)
        return next(filter(None, labels), "")
    texts = (text_of(entry.value, depth + 1) for entry in value.entries)
    return ", ".join(filter(None, texts))


def label_list(group: Group, count: int) -> list[str]:
    """As many labels as there are places, where a list of each was written."""
    for name, entry in group.items():
        value = entry.value
        if singular(name, set(LABEL_KEYS)) not in LABEL_KEYS or not isinstance(value, Node):
            continue
        if value.bracket != "{" and 0 < count == len(value.entries):
            return [text_of(element.value) for element in value.entries]
    return []


def context(node: Node) -> tuple[str | None, Node | None, bool]:
    """The key that a node, or the list that it is an element of, stands under; whose key it is; if
    it is an element."""
    is_element = False
    for _ in range(MAX_LEVELS):
        parent = node.parent
        if node.key is not None or parent is None or parent.bracket == "{" or parent.name:
            return node.key, parent, is_element
        node, is_element = parent, True
    return None, None, is_element

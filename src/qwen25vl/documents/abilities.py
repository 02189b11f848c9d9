"""What to ask for the tasks that Qwen2.5-VL was trained for, as its authors' cookbooks word it.

docs/documents.md shows them; `--ask` replaces the words and keeps how the answer is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen25vl.errors import UsageError

PARSER = (
    "You are an AI specialized in recognizing and extracting text from images. Your mission is to "
    "analyze the image document and generate the result in QwenVL Document Parser {} format using "
    "specified tags while maintaining user privacy and data integrity."
)
INVOICE = (
    '{"seller": "", "buyer": "", "invoice_number": "", "date": "", "currency": "", '
    '"items": [{"description": "", "quantity": "", "unit_price": "", "amount": ""}], '
    '"tax": "", "total": ""}'
)


@dataclass(frozen=True)
class Task:
    """is_json: whether the answer is read as JSON. system: the system message, None for none."""

    question: str
    system: str | None = None
    is_json: bool = False


TASKS: dict[str, Task] = {
    "ocr": Task("Read all the text in the image."),
    "markdown": Task("QwenVL Markdown", PARSER.format("Markdown")),
    "html": Task("QwenVL HTML", PARSER.format("HTML")),
    "tables": Task("Read all the tables in the image. Output them as HTML tables only."),
    "invoice": Task(f"Extract the key-value information in the format: {INVOICE}", is_json=True),
    "caption": Task("Describe this image."),
    "detect": Task(
        "Locate every object in the image and output its bbox_2d coordinates and label in JSON "
        "format.",
        is_json=True,
    ),
}


def find_task(name: str) -> Task:
    if name not in TASKS:
        raise UsageError(f"task is {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]

"""The ecosystem's calls: only the import line differs from transformers.   python
examples/ecosystem.py [MODEL]"""

import sys
from pathlib import Path

from qwen25vl import AutoModelForImageTextToText, AutoProcessor
from qwen25vl.demo import FOLDER

EXAMPLES = Path(__file__).parent
name = sys.argv[1] if len(sys.argv) > 1 else FOLDER

model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", device_map="auto")
processor = AutoProcessor.from_pretrained(name)
conversations = [
    [{"role": "user", "content": [{"type": "image", "path": str(EXAMPLES / "scene.png")},
                                  {"type": "text", "text": question}]}]
    for question in ("Describe the picture.", "Where is the dog?")
]  # fmt: skip
inputs = processor.apply_chat_template(
    conversations,
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
    padding=True,
).to(model.device)
ids = model.generate(**inputs, max_new_tokens=100)
new = [out[len(prompt) :] for prompt, out in zip(inputs.input_ids, ids, strict=True)]
print(*processor.batch_decode(new, skip_special_tokens=True), sep="\n")

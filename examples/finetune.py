"""Train a LoRA adapter with PEFT, and use it beside the model.   python examples/finetune.py OUT"""

import sys
from pathlib import Path

import peft
import torch

import qwen25vl

SCENE = {"type": "image", "image": str(Path(__file__).parent / "scene.png")}
LESSONS = {"What colour is the star?": "PURPLE!", "Where is the dog?": "LEFT!"}

vlm = qwen25vl.load(dtype="float32")
model = peft.get_peft_model(vlm.model, peft.LoraConfig(r=8, target_modules="all-linear"))
optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-3)
read = {"tokenize": True, "return_dict": True}
for question, answer in [*LESSONS.items()] * 25:
    chat = [{"role": "user", "content": [SCENE, {"type": "text", "text": question}]}]
    asked = vlm.processor.apply_chat_template(chat, add_generation_prompt=True, **read)
    lesson = [*chat, {"role": "assistant", "content": answer}]
    inputs = vlm.processor.apply_chat_template(lesson, **read)
    labels = inputs.input_ids.clone()
    labels[:, : asked.input_ids.shape[1]] = -100  # the question is given, the answer is learnt
    model(**inputs, labels=labels).loss.backward()
    optimiser.step()
    optimiser.zero_grad()
model.save_pretrained(sys.argv[1])
taught = qwen25vl.load(adapter={"loud": sys.argv[1]})
print([taught.ask(chat, adapter=name).text for name in ("loud", "__base__")])

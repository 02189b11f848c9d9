"""Hugging Face transformers, bfloat16. Job as in run_ours.py; the prompt is as long."""

from typing import Any

import torch
from protocol import Run, serve, timed
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from qwen25vl.cli.bench import drawn_picture, time_preprocessing
from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.processing.image import ImageSettings


def open_engine(job: dict[str, Any]) -> Run:
    torch.set_num_threads(job["threads"])
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        job["folder"], dtype=torch.bfloat16
    ).eval()
    processor = Qwen2VLImageProcessorPil.from_pretrained(job["folder"])
    picture = drawn_picture(job["picture"])
    _, inputs = time_preprocessing(
        Qwen2_5_VLConfig.from_pretrained(job["folder"]), ImageSettings(), picture, 2
    )
    ids, grid, pixels = inputs.input_ids, inputs.image_grid_thw, inputs.pixel_values.bfloat16()
    slots, num_steps = ids == model.config.image_token_id, job["new_tokens"] - 1
    positions, deltas = model.model.get_rope_index(
        ids, mm_token_type_ids=slots.long(), image_grid_thw=grid
    )

    def run() -> dict[str, float]:
        seconds = {}
        seconds["preprocessing"], _ = timed(
            lambda: processor(images=[picture], return_tensors="pt")
        )
        seconds["vision"], tokens = timed(
            lambda: model.model.visual(pixels, grid_thw=grid).pooler_output
        )

        def prefill() -> Any:
            embeds = model.get_input_embeddings()(ids).masked_scatter(slots[..., None], tokens)
            return model(
                inputs_embeds=embeds, position_ids=positions, use_cache=True, logits_to_keep=1
            )

        def decode() -> None:
            nonlocal out
            for index in range(num_steps):
                position = (ids.shape[1] + index + deltas).expand(3, 1, 1)
                out = model(
                    out.logits[:, -1:].argmax(-1),
                    position_ids=position,
                    past_key_values=out.past_key_values,
                )

        seconds["prefill"], out = timed(prefill)
        took, _ = timed(decode)
        seconds["task"] = sum(seconds.values()) + took
        seconds["decode"] = took / num_steps
        if job["more"]:
            large = drawn_picture(4000, 3000)
            seconds["preprocessing 4000×3000"], _ = timed(
                lambda: processor(images=[large], return_tensors="pt")
            )
        return seconds

    return run


if __name__ == "__main__":
    with torch.inference_mode():
        serve(open_engine)

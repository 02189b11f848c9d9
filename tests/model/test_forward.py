"""The model's own twins: cached and uncached, batched and single, chunked and whole,
padded left and right."""

from pathlib import Path

import pytest
import torch
from scenes import Prompt, mixed_prompts, model_inputs

from qwen25vl import Qwen2_5_VLForConditionalGeneration
from qwen25vl.errors import MessageError, UsageError
from qwen25vl.model.cache import KVCache


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_folder, dtype=torch.float32)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_gives_what_its_rows_give_alone(
    model: Qwen2_5_VLForConditionalGeneration, side: str
) -> None:
    """Batch ≠ single is the oldest complaint about this model."""
    prompts = mixed_prompts()
    with torch.inference_mode():
        inputs = model_inputs(*prompts, padding_side=side)
        together = model(**inputs).logits
        for row, prompt in enumerate(prompts):
            single = model_inputs(prompt, seed=row)
            alone = model(**single).logits[0]
            assert (
                together[row][inputs["attention_mask"][row].bool()] - alone
            ).abs().max() <= 1e-5 * alone.abs().max()


def test_cached_steps_give_what_one_pass_gives(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """A cache that loses the position after a picture or clip answers worse with every token."""
    inputs = model_inputs(*(p.text(*range(60, 66)) for p in mixed_prompts()[1:4]))
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    with torch.inference_mode():
        whole = model(input_ids=ids, attention_mask=mask, **inputs)
        step = model(input_ids=ids[:, :-5], attention_mask=mask[:, :-5], use_cache=True, **inputs)
        logits = [step.logits[:, -1]]
        for column in range(-5, 0):
            caches = step.past_key_values
            columns = mask[:, : mask.shape[1] + column + 1]
            step = model(ids[:, column : column + 1 or None], columns, past_key_values=caches)
            logits.append(step.logits[:, -1])
    assert torch.allclose(torch.stack(logits, 1), whole.logits[:, -6:], atol=1e-4)
    assert torch.equal(step.rope_deltas, whole.rope_deltas)
    assert [cache.get_seq_length() for cache in step.past_key_values] == mask.sum(1).tolist()


def test_a_later_turn_may_bring_a_picture(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """The chat's second picture must stand behind the first turn, not at position 0."""
    first, second = Prompt().image(4, 6).text(8, 9), Prompt([40]).image(6, 4).text(3)
    both = Prompt(first.ids + second.ids, first.image_grids + second.image_grids)
    one, two, whole = model_inputs(first), model_inputs(second, seed=1), model_inputs(both)
    whole["pixel_values"] = torch.cat([one["pixel_values"], two["pixel_values"]])
    with torch.inference_mode():
        caches = model(**one, use_cache=True).past_key_values
        chunked = model(**two, past_key_values=caches).logits
        assert torch.allclose(chunked, model(**whole).logits[:, len(first.ids) :], atol=1e-4)


def test_eager_is_sdpa(tiny_folder: Path, model: Qwen2_5_VLForConditionalGeneration) -> None:
    """The fused kernel against the equation."""
    eager = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tiny_folder, dtype=torch.float32, attn_implementation="eager"
    )
    inputs = model_inputs(*mixed_prompts())
    with torch.inference_mode():
        hidden = [one.model(**inputs).last_hidden_state for one in (eager, model)]
    assert torch.allclose(*hidden, atol=1e-5)


def test_embeddings_instead_of_ids(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """inputs_embeds, position_ids and logits_to_keep do what their names say."""
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        expected = model(ids).logits
        embeds = model.model.language_model.embed_tokens(ids)
        positions, _ = model.model.get_rope_index(ids)
        assert torch.equal(model(inputs_embeds=embeds, position_ids=positions).logits, expected)
        assert torch.allclose(
            model(inputs_embeds=embeds, logits_to_keep=2).logits, expected[:, -2:], atol=1e-5
        )
        kept = model(inputs_embeds=embeds, logits_to_keep=torch.tensor([1, 3])).logits
        assert torch.allclose(kept, expected[:, [1, 3]], atol=1e-5)
        text = model.model.language_model(input_ids=ids)
        assert torch.equal(model.compute_logits(text.last_hidden_state), expected)


def test_training_learns(tiny_folder: Path) -> None:
    """Gradients reach both towers and a few steps lower the loss."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tiny_folder, dtype=torch.float32
    ).train()
    inputs = model_inputs(Prompt().image(4, 6).text(8, 9, 10, 11))
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]


def test_wrong_calls_say_what_is_wrong(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """A shape error from the depth of a matrix product helps nobody."""
    inputs = model_inputs(Prompt().image(4, 4).text(1))
    with pytest.raises(UsageError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(UsageError, match="attention_mask has shape"):
        model(inputs["input_ids"], attention_mask=torch.ones(2, 3))
    with pytest.raises(UsageError, match="no token"):
        model(inputs["input_ids"], attention_mask=torch.zeros(1, 8))
    with pytest.raises(UsageError, match="pixel_values has shape"):
        model.visual(inputs["pixel_values"][:-1], inputs["image_grid_thw"])
    with pytest.raises(UsageError, match="multiples of 2"):
        model.visual(inputs["pixel_values"], torch.tensor([[1, 16, 1]]))
    with pytest.raises(UsageError, match="image_grid_thw and its pixel values go together"):
        model(
            inputs["input_ids"],
            position_ids=torch.arange(8)[None],
            pixel_values=inputs["pixel_values"],
        )
    with pytest.raises(MessageError, match="slots for 4 picture tokens, but 2"):
        model.model.fill_slots(
            torch.zeros(8, 64), inputs["input_ids"][0], "picture", torch.zeros(2, 64)
        )
    with pytest.raises(UsageError, match="past_key_values has 0 sequences"), torch.no_grad():
        model(inputs["input_ids"][:, -1:], past_key_values=[])
    with pytest.raises(UsageError, match="pixel values go together"):
        model(inputs["input_ids"], image_grid_thw=inputs["image_grid_thw"])
    with pytest.raises(MessageError, match="slots for 0 pictures and 0 videos, but 1 pictures"):
        model(inputs_embeds=torch.zeros(1, 8, 64), image_grid_thw=inputs["image_grid_thw"])
    with pytest.raises(MessageError, match="slots for 4 picture tokens, but 0"):
        model(inputs["input_ids"], position_ids=torch.arange(8)[None])
    with pytest.raises(UsageError, match="do not flow through a cache"):
        model(inputs["input_ids"][:, -1:], use_cache=True)
    with pytest.raises(UsageError, match="position_ids has shape"):
        model(inputs["input_ids"][:, -1:], position_ids=torch.zeros(3, 1, 4))
    with pytest.raises(UsageError, match="labels have shape"):
        model(inputs["input_ids"][:, -1:], labels=torch.zeros(1, 4))


def test_cache_grows_and_forgets(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Growing must keep what is stored; a clone must go its own way."""
    config = model.config.text_config
    cache = KVCache(config, torch.float32, capacity=2)
    text = model.model.language_model
    with torch.inference_mode():
        full = text(torch.tensor([[1, 2, 3, 4, 5]])).last_hidden_state
        text(torch.tensor([[1, 2]]), past_key_values=[cache])
        twin = cache.clone()
        text(torch.tensor([[9, 9, 9]]), past_key_values=[cache])
        rest = text(torch.tensor([[3, 4, 5]]), past_key_values=[twin]).last_hidden_state
        with pytest.raises(UsageError, match="cannot be cut to 9"):
            cache.crop(9, 9)
        cache.crop(2, 2)
        again = text(torch.tensor([[3, 4, 5]]), past_key_values=[cache]).last_hidden_state
    assert torch.allclose(rest, full[:, 2:], atol=1e-5)
    assert torch.equal(rest, again)
    assert (twin.length, twin.next_position) == (5, 5)

"""The names under which code for transformers loads a model."""

from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration


class AutoModelForImageTextToText:
    """The class that code for transformers uses; it loads a Qwen2_5_VLForConditionalGeneration."""

    from_pretrained = Qwen2_5_VLForConditionalGeneration.from_pretrained


load_model = Qwen2_5_VLForConditionalGeneration.from_pretrained

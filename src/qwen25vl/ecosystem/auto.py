"""The names under which code for transformers finds a class: each stands for the one class there
is."""

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration
from qwen25vl.ecosystem.vision_language_model import Qwen2_5_VLModel


class AutoConfig:
    """It reads a Qwen2_5_VLConfig."""

    from_pretrained = Qwen2_5_VLConfig.from_pretrained


class AutoModel:
    """It loads a Qwen2_5_VLModel, which has no head."""

    from_pretrained = Qwen2_5_VLModel.from_pretrained
    from_config = Qwen2_5_VLModel.from_config


class AutoModelForImageTextToText:
    """The class that code for transformers uses; it loads a Qwen2_5_VLForConditionalGeneration."""

    from_pretrained = Qwen2_5_VLForConditionalGeneration.from_pretrained
    from_config = Qwen2_5_VLForConditionalGeneration.from_config


load_model = Qwen2_5_VLForConditionalGeneration.from_pretrained

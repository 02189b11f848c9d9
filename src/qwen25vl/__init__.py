"""Qwen2.5-VL for the machine you have. The public names are imported on first use: `import
qwen25vl` is instant."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

PUBLIC = {
    "load": "vlm",
    "VisionLanguageModel": "vlm",
    "batch": "documents.batch",
    "merge_adapter": "loading.merging",
    "pipeline": "ecosystem.pipelines",
    "AutoProcessor": "ecosystem.processor",
    "Qwen2_5_VLProcessor": "ecosystem.processor",
    "AutoTokenizer": "ecosystem.tokenizer",
    "Qwen2Tokenizer": "ecosystem.tokenizer",
    "Qwen2TokenizerFast": "ecosystem.tokenizer",
    "AutoImageProcessor": "ecosystem.image_processor",
    "Qwen2VLImageProcessor": "ecosystem.image_processor",
    "Qwen2VLImageProcessorFast": "ecosystem.image_processor",
    "Qwen2VLImageProcessorPil": "ecosystem.image_processor",
    "AutoVideoProcessor": "ecosystem.video_processor",
    "Qwen2VLVideoProcessor": "ecosystem.video_processor",
    "AutoModelForImageTextToText": "ecosystem.auto",
    "AutoConfig": "ecosystem.auto",
    "AutoModel": "ecosystem.auto",
    "ImageTextToTextPipeline": "ecosystem.image_text_to_text",
    "TorchAoConfig": "ecosystem.torchao_config",
    "BitsAndBytesConfig": "ecosystem.quantisation_configs",
    "QuantoConfig": "ecosystem.quantisation_configs",
    "GenerationConfig": "engine.options",
    "TextStreamer": "ecosystem.streamers",
    "TextIteratorStreamer": "ecosystem.streamers",
    "LogitsProcessor": "ecosystem.callbacks",
    "LogitsProcessorList": "ecosystem.callbacks",
    "StoppingCriteria": "ecosystem.callbacks",
    "StoppingCriteriaList": "ecosystem.callbacks",
    "Qwen2_5_VLConfig": "config",
    "Qwen2_5_VLTextConfig": "config",
    "Qwen2_5_VLVisionConfig": "config",
    "Qwen2_5_VLTextModel": "ecosystem.text_model",
    "Qwen2_5_VLModel": "ecosystem.vision_language_model",
    "Qwen2_5_VLForConditionalGeneration": "ecosystem.conditional_generation",
}
__all__ = ["load", "VisionLanguageModel", "batch", "merge_adapter", "pipeline", "AutoProcessor",
           "Qwen2_5_VLProcessor",
           "AutoTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast", "AutoImageProcessor",
           "Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil",
           "AutoVideoProcessor", "Qwen2VLVideoProcessor",
           "AutoModelForImageTextToText", "TorchAoConfig", "GenerationConfig", "TextStreamer",
           "TextIteratorStreamer", "LogitsProcessor", "LogitsProcessorList", "StoppingCriteria",
           "StoppingCriteriaList", "Qwen2_5_VLConfig",
           "Qwen2_5_VLTextConfig", "Qwen2_5_VLVisionConfig", "Qwen2_5_VLTextModel",
           "Qwen2_5_VLModel", "Qwen2_5_VLForConditionalGeneration", "AutoConfig", "AutoModel",
           "ImageTextToTextPipeline", "BitsAndBytesConfig", "QuantoConfig"]  # fmt: skip

# How long an idle OpenMP thread spins before it sleeps. The default is so long that one other busy
# process slows down every parallel region, and so short in a second thread that calls the model
# that small models take twice as long ("active" makes that half of the count). LLVM's library would
# spin forever then, but for its own setting. The libraries read this once, when torch is imported
# (docs/performance.md).
SPINNING = {"GOMP_SPINCOUNT": "2000", "OMP_WAIT_POLICY": "active", "KMP_BLOCKTIME": "200"}
if not os.environ.keys() & SPINNING.keys():
    os.environ |= SPINNING

if TYPE_CHECKING:
    from qwen25vl.config import Qwen2_5_VLConfig, Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
    from qwen25vl.documents.batch import batch
    from qwen25vl.ecosystem.auto import AutoConfig, AutoModel, AutoModelForImageTextToText
    from qwen25vl.ecosystem.callbacks import (
        LogitsProcessor,
        LogitsProcessorList,
        StoppingCriteria,
        StoppingCriteriaList,
    )
    from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration
    from qwen25vl.ecosystem.image_processor import (
        AutoImageProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLImageProcessorFast,
        Qwen2VLImageProcessorPil,
    )
    from qwen25vl.ecosystem.image_text_to_text import ImageTextToTextPipeline
    from qwen25vl.ecosystem.pipelines import pipeline
    from qwen25vl.ecosystem.processor import AutoProcessor, Qwen2_5_VLProcessor
    from qwen25vl.ecosystem.quantisation_configs import BitsAndBytesConfig, QuantoConfig
    from qwen25vl.ecosystem.streamers import TextIteratorStreamer, TextStreamer
    from qwen25vl.ecosystem.text_model import Qwen2_5_VLTextModel
    from qwen25vl.ecosystem.tokenizer import AutoTokenizer, Qwen2Tokenizer, Qwen2TokenizerFast
    from qwen25vl.ecosystem.torchao_config import TorchAoConfig
    from qwen25vl.ecosystem.video_processor import AutoVideoProcessor, Qwen2VLVideoProcessor
    from qwen25vl.ecosystem.vision_language_model import Qwen2_5_VLModel
    from qwen25vl.engine.options import GenerationConfig
    from qwen25vl.loading.merging import merge_adapter
    from qwen25vl.vlm import VisionLanguageModel, load


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'qwen25vl' has no attribute {name!r}")
    value = getattr(import_module(f"qwen25vl.{PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])

"""On a cluster, with Ray: `AskPages` for Ray Data, `deployment` for Ray Serve."""

from qwen25vl.ray.data import AskPages
from qwen25vl.ray.serving import deployment

__all__ = ["AskPages", "deployment"]
